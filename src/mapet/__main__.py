"""``python -m mapet``."""

import sys

from mapet.cli import main

if __name__ == "__main__":
    sys.exit(main())
