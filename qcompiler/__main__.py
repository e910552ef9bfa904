"""`python -m qcompiler`."""

import sys

from qcompiler.cli import main

if __name__ == "__main__":
    sys.exit(main())
