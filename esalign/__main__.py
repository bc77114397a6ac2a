"""``python -m esalign`` is the command line."""

from esalign.cli import main

if __name__ == "__main__":
    main()
