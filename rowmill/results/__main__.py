"""`python -m rowmill.results`; see `rowmill.results.reader`."""

import sys

from rowmill.results.reader import main

if __name__ == "__main__":
    sys.exit(main())
