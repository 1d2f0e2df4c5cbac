"""`python -m tapioca_export`."""

from .cli import main

main(prog_name="tapioca-export")
