"""`python -m waxlake` is the command `waxlake`."""

from waxlake.cli import main

if __name__ == "__main__":
    main()
