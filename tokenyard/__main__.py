"""``python -m tokenyard``: the command line."""

from tokenyard.cli import main

if __name__ == "__main__":  # vLLM's engine core starts by spawn, which imports this module again
    main()
