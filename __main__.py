"""Entry point of `python -m tessera`, the same as the `tessera` command."""

from .cli.app import main

main()
