"""A run's output in an object store, in parts. Knows neither Kubernetes nor where the run's workers are."""

from __future__ import annotations

from rowmill_operator.results.checkpoint import Shape, states
from rowmill_operator.results.folder import StoreFolder, open_folder
from rowmill_operator.results.layout import PART_ROWS, run_folder
from rowmill_operator.results.ports import Folder, OutputObject
from rowmill_operator.results.writer import OutputSummary, Pace, PartsWriter

__all__ = [
    "PART_ROWS",
    "Folder",
    "OutputObject",
    "OutputSummary",
    "Pace",
    "PartsWriter",
    "Shape",
    "StoreFolder",
    "open_folder",
    "run_folder",
    "states",
]
