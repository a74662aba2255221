"""Tables to read rows from: inline rows, CSV, JSONL, Parquet and Excel, from a path or http(s).

Each is a stream of numbered rows that is read in bounded memory, goes on at any row, and has a fingerprint.
"""

from rowmill.sources.opening import open_source
from rowmill.sources.protocol import Source

__all__ = ["Source", "open_source"]
