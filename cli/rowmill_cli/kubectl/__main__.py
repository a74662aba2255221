"""`python -m rowmill_cli.kubectl`: the same as `kubectl rowmill`."""

import sys

from rowmill_cli.kubectl.main import main

if __name__ == "__main__":
    sys.exit(main())
