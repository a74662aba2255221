"""`python -m rowmill_worker.children FD`: one child, started by its worker."""

from __future__ import annotations

import sys

from rowmill_worker.children.serve import main

if __name__ == "__main__":
    main(int(sys.argv[1]))
