"""What is written of a run's output: the object `_rowmill.json`, which readers check and a writer goes on from.

It names every part with its rows, and is written after what it names. `complete` is true once the run is Complete and
all of its rows are there. A part is judged by what its entry says:

    settled    every row of its range has its last outcome, and the ledger held just these in the run's present epoch
    doubtful   settled, but in an earlier epoch: a ledger that lost its newest outcomes (a failover, a restored backup)
               runs them again in a new epoch, so the print is compared before the entry is believed again
    open       not there, cut short, of another range, or holding failures that a newer generation runs again
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import Enum
from typing import Any, Final

from rowmill.identity import RunIdentity
from rowmill.ledger import RangeCounts, RangeState, RunRecord
from rowmill.outcome import State
from rowmill.results import Vectors
from rowmill_operator.results.layout import Span, failures_name, part_name

VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class Shape:
    """What decides the bytes of a part besides the outcomes: with another shape, every part is written anew."""

    format: str
    include: frozenset[State]
    columns: tuple[str, ...]
    vectors: Vectors | None = None
    """The type of results that are vectors; only of Parquet."""

    @property
    def digest(self) -> str:
        shape = [VERSION, self.format, sorted(self.include), self.columns]
        text = json.dumps([*shape, self.vectors] if self.vectors and self.format == "Parquet" else shape)
        return hashlib.blake2b(text.encode("utf-8", "backslashreplace"), digest_size=8).hexdigest()

    def rows_of(self, state: RangeState) -> int:
        """How many rows of a range are written."""
        counts = {
            State.SUCCEEDED: state.succeeded,
            State.FAILED: state.failed,
            State.DEDUPLICATED: state.deduplicated,
        }
        return sum(counts[one] for one in self.include)


@dataclass(frozen=True, slots=True)
class Part:
    """A part as it was written. `rows` are in it; the states count all of its range, also those left out of it.

    `whole`: every row of `first`..`last` had the last outcome of `generation`. `sizes` are the bytes of its objects, of
    which a part without rows has none.
    """

    first: int
    last: int
    rows: int
    sizes: tuple[int, ...]
    succeeded: int
    failed: int
    deduplicated: int
    generation: int
    epoch: int
    whole: bool
    print: str

    @property
    def span(self) -> Span:
        return Span(self.first, self.last)

    def objects(self, format: str) -> dict[str, int]:
        """Its objects with their sizes."""
        return {part_name(self.span, format, n): size for n, size in enumerate(self.sizes, 1)}


class Trust(Enum):
    SETTLED = "settled"
    DOUBTFUL = "doubtful"
    OPEN = "open"


def trust(part: Part | None, span: Span, *, generation: int, epoch: int) -> Trust:
    """How far an entry can be believed for `span` in this generation and epoch."""
    if part is None or not part.whole or part.span != span:
        return Trust.OPEN
    if part.failed and part.generation != generation:
        return Trust.OPEN
    return Trust.SETTLED if part.epoch == epoch else Trust.DOUBTFUL


def still_true(part: Part, state: RangeState, span: Span) -> bool:
    """Whether the ledger holds what the part was written from."""
    return part.span == span and part.print == state.print


def renewed(part: Part, record: RunRecord, state: RangeState, span: Span) -> Part:
    """The entry of a part that was found to be true now."""
    return replace(part, generation=record.generation, epoch=record.epoch, whole=state.closed == span.rows)


@dataclass(slots=True)
class Checkpoint:
    """The state of an output. `ledger` names the ledger's run without telling its token; `saved` is new each time."""

    identity: RunIdentity
    ledger: str
    shape: Shape
    part_rows: int
    parts: dict[int, Part] = field(default_factory=dict)
    saved: str = ""
    generation: int = 0
    epoch: int = 0
    total: int | None = None
    counts: RangeCounts | None = None
    phase: str = ""
    complete: bool = False
    reason: str = ""
    failures: int = 0
    failure_files: int = 0

    @property
    def rows(self) -> int:
        return sum(part.rows for part in self.parts.values())

    @property
    def failed(self) -> int:
        return sum(part.failed for part in self.parts.values())

    @property
    def objects(self) -> dict[str, int]:
        """The parts that are objects, by name, with their sizes."""
        found: dict[str, int] = {}
        for part in self.parts.values():
            found |= part.objects(self.shape.format)
        return found

    @property
    def files_of_failures(self) -> list[str]:
        return [failures_name(number + 1) for number in range(self.failure_files)]

    def as_json(self) -> bytes:
        parts = [
            {"files": list(part.objects(self.shape.format))} | {name: getattr(part, name) for name in Part.__slots__}
            for _, part in sorted(self.parts.items())
        ]
        document = {
            "version": VERSION,
            "run": dict(zip(("installation", "namespace", "name", "runId"), self.identity, strict=True)),
            "phase": self.phase,
            "complete": self.complete,
            "reason": self.reason,
            "total": self.total,
            "rows": self.rows,
            "format": self.shape.format,
            "include": [state.label for state in sorted(self.shape.include)],
            "columns": list(self.shape.columns),
            "failures": {"rows": self.failures, "files": self.files_of_failures},
            "generation": self.generation,
            "epoch": self.epoch,
            "counts": asdict(self.counts) if self.counts else None,
            "partRows": self.part_rows,
            "shape": self.shape.digest,
            "ledger": self.ledger,
            "saved": self.saved,
        }
        head = json.dumps(document, indent=1)
        lines = ",\n".join("  " + json.dumps(part) for part in parts)
        return f'{head[:-2]},\n "parts": [\n{lines}\n ]\n}}\n'.encode()


class NotReadable(ValueError):
    """Not a checkpoint that this release can go on from."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A checkpoint as it was found, whoever wrote it."""

    identity: RunIdentity
    ledger: str
    shape: str
    saved: str
    values: Mapping[str, Any]

    @classmethod
    def parse(cls, data: bytes) -> Stored:
        """Raises NotReadable."""
        try:
            values = json.loads(data)
            if values["version"] != VERSION:
                raise NotReadable(f"version {values['version']!r}")
            run = values["run"]
            return cls(
                RunIdentity(run["installation"], run["namespace"], run["name"], run["runId"]),
                values["ledger"],
                values["shape"],
                values["saved"],
                values,
            )
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise NotReadable(str(error)) from error

    def checkpoint(self, shape: Shape) -> Checkpoint:
        """To go on from. Raises NotReadable."""
        try:
            values = self.values
            parts = [
                Part(**{name: part[name] for name in Part.__slots__} | {"sizes": tuple(part["sizes"])})
                for part in values["parts"]
            ]
            part_rows = int(values["partRows"])
            return Checkpoint(
                identity=self.identity,
                ledger=self.ledger,
                shape=shape,
                part_rows=part_rows,
                parts={(part.first - 1) // part_rows: part for part in parts},
                saved=self.saved,
                generation=values["generation"],
                epoch=values["epoch"],
                total=values["total"],
                counts=RangeCounts(**values["counts"]) if values["counts"] else None,
                phase=values["phase"],
                complete=values["complete"],
                reason=values["reason"],
                failures=values["failures"]["rows"],
                failure_files=len(values["failures"]["files"]),
            )
        except (ValueError, KeyError, TypeError, ZeroDivisionError) as error:
            raise NotReadable(str(error)) from error


def ledger_name(record: RunRecord) -> str:
    """Tells this run of this ledger from one of the same name in another, or before it was emptied."""
    return hashlib.blake2b(record.token.encode(), digest_size=8).hexdigest()


def states(names: Sequence[str]) -> frozenset[State]:
    """`output.include` as states."""
    return frozenset(state for state in State if state.label in names)
