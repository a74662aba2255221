"""Column names that a table can be told apart by."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rowmill.sources.files import SourceFile
from rowmill.sources.payload import shown_names


def checked_columns(names: Sequence[str], file: SourceFile) -> tuple[str, ...]:
    """`names` as columns. Raises InvalidInput when one is empty, given twice, or no text that can be stored."""
    if not names:
        raise file.invalid("the table has no columns")
    empty = [str(i) for i, name in enumerate(names, 1) if not name.strip()]
    if empty:
        raise file.invalid(
            f"the header names no column at position {', '.join(empty[:5])} of {len(names)}; name every column"
        )
    twice = [name for name, times in Counter(names).items() if times > 1]
    if twice:
        raise file.invalid(f"the header names {shown_names(twice)} more than once; give each column its own name")
    if any("\0" in name for name in names):
        raise file.invalid("a column's name holds a NUL character; rename it")
    return tuple(names)
