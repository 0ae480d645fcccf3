"""Several processes: the process group and the launcher."""
