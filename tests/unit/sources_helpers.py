"""What the tests of sources share: opening a file, reading it whole, and cutting it anywhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rowmill.row import BadRow, Block, Position
from rowmill.sources import Source, open_source


def source(
    path: Path | str, *, format: str | None = None, limit: int | None = None, base: Path | None = None
) -> Source:
    root = base or (path.parent if isinstance(path, Path) else Path())
    return open_source(uri=str(path), rows=None, format=format, limit=limit, base=root, cache=root / "cache")


def read(opened: Source, start: Position | None = None, /, **bounds: int) -> list[Block]:
    return list(opened.blocks(start or Position(), **bounds))


def by_seq(blocks: list[Block], *, first: int = 1) -> dict[int, Any]:
    """Row or BadRow of each seq; asserts that the blocks keep every promise about numbers."""
    found: dict[int, Any] = {}
    expected = first
    for block in blocks:
        assert block.first == expected
        numbers = sorted([e.seq for e in block.entries] + [b.seq for b in block.bad])
        assert numbers == list(range(block.first, block.end.seq))
        assert numbers, "an empty block"
        found |= {e.seq: json.loads(e.payload) for e in block.entries}
        found |= {b.seq: b for b in block.bad}
        expected = block.end.seq
    return dict(sorted(found.items()))


def rows(opened: Source, **bounds: int) -> list[Any]:
    return list(by_seq(read(opened, None, **bounds)).values())


def only_bad(opened: Source) -> BadRow:
    (bad,) = [item for item in rows(opened) if isinstance(item, BadRow)]
    return bad


def assert_resumes(opened: Source, *, max_rows: int, max_bytes: int = 1_048_576) -> None:
    """From each block's end, with and without its hint, exactly the rest comes."""
    blocks = read(opened, max_rows=max_rows, max_bytes=max_bytes)
    whole = by_seq(blocks)
    for block in blocks:
        end = block.end
        rest = {seq: row for seq, row in whole.items() if seq >= end.seq}
        stored = Position(end.seq, json.loads(json.dumps(dict(end.hint))))
        assert by_seq(read(opened, stored, max_rows=max_rows + 1), first=end.seq) == rest
        assert by_seq(read(opened, Position(end.seq)), first=end.seq) == rest
