"""Tables to read rows from: inline rows, CSV, JSONL, Parquet and Excel, from a path, http(s), an object store or bytes.

Each is a stream of numbered rows that is read in bounded memory, goes on at any row, and has a fingerprint.
"""

from rowmill.sources.cache import prune_cache
from rowmill.sources.opening import Content, open_source
from rowmill.sources.protocol import Source

__all__ = ["Content", "Source", "open_source", "prune_cache"]
