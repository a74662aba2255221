"""What came of each row, as people and programs read it: formats, and a reader of the ledger.

`python -m rowmill.results` prints a run's outcomes; it needs what the worker's image has and nothing more.
"""

from __future__ import annotations

from rowmill.results.formats import SUFFIXES, OutcomeWriter, Sink, cells, column_names, json_line, outcome_writer
from rowmill.results.vectors import Vectors, vectors_of, vectors_of_frozen

__all__ = [
    "SUFFIXES",
    "OutcomeWriter",
    "Sink",
    "Vectors",
    "cells",
    "column_names",
    "json_line",
    "outcome_writer",
    "vectors_of",
    "vectors_of_frozen",
]
