"""`python -m hvemu` is the command hvemu."""

import sys

from hvemu.cli import main

if __name__ == "__main__":
    sys.exit(main())
