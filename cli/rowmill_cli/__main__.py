"""`python -m rowmill_cli` is `rowmill`."""

import sys

from rowmill_cli.main import main

if __name__ == "__main__":
    sys.exit(main())
