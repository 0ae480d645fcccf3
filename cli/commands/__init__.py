"""Commands of `tessera`, one file each with `register(app)`."""
