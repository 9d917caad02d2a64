"""python -m ddice.cli."""

import sys

from ddice.cli.main import main

sys.exit(main())
