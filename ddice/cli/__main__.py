"""python -m ddice.cli."""

import os
import sys

# `python -m` looks for modules in the working directory first: a file there that is named like a
# package which is imported below would run in its place.
if sys.path[0] == os.getcwd() and not getattr(sys.flags, "safe_path", sys.flags.isolated):
    del sys.path[0]

from ddice.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
