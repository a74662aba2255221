"""What came of each row, as people and programs read it: formats, and a reader of the ledger.

`python -m rowmill.results` prints a run's outcomes; it needs what the worker's image has and nothing more.
"""

from __future__ import annotations

from rowmill.results.formats import SUFFIXES, OutcomeWriter, Sink, cells, column_names, json_line, outcome_writer

__all__ = ["SUFFIXES", "OutcomeWriter", "Sink", "cells", "column_names", "json_line", "outcome_writer"]
