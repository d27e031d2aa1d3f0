"""The command ``tokenyard``, which is ``python -m tokenyard``, too."""

from tokenyard.garbage import leave_it


def main() -> None:
    """Entry point."""
    # Not above: vLLM's processes start by spawn, which imports this module again, and need none of the commands.
    from tokenyard.cli import app

    try:
        app()
    finally:
        leave_it()


if __name__ == "__main__":
    main()
