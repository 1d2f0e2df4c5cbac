"""`python -m tapioca_export`, and what the command `tapioca-export` calls."""

from .stopping import stopped_by_signals


def start() -> None:
    """Run the command line; Ctrl-C is one line from the first import on."""
    with stopped_by_signals():
        from .cli import main

        main(prog_name="tapioca-export")


if __name__ == "__main__":
    start()
