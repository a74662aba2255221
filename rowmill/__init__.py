"""Rowmill: every row of a table through an executor, every row with exactly one recorded outcome.

This package is the contract that operator, worker and command line share. It imports none of them.
"""

__version__ = "0.1.0"
