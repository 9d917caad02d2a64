"""python -m ddice.cli."""

import sys

from ddice.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
