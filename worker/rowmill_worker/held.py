"""The rows that this worker holds, and the one table that tells which.

A row's life in a worker:

    delivered → claiming → ready → running → committing → releasing → gone
                   │         │        └ retry, hand-back ──┘
                   └ done elsewhere, locked elsewhere ─────┘

Advisory locks are re-entrant within a session, so Postgres would hand us a row that we run already a second time;
this table is what refuses it. A row is in the table from the moment it is delivered until it is unlocked.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rowmill.outcome import Outcome
from rowmill.window import Delivery


@dataclass(slots=True, eq=False)
class HeldRow:
    """One row in this worker's hands. `session` is the number of the lock session that claimed it, `overdue` how often
    it was cancelled for running past its timeout."""

    seq: int
    shard: int
    payload: bytes
    attempts: int
    deaths: int
    generation: int
    epoch: int
    session: int = 0
    row: Mapping[str, Any] = field(default_factory=dict)
    key: str | None = None
    columns: str | None = None
    digest: bytes | None = None
    key_lock: int | None = None
    ready_since: float = 0.0
    started: float = 0.0
    overdue: int = 0
    releasing: bool = False
    outcome: Outcome | None = None
    delay: float | None = None

    @property
    def suspect(self) -> bool:
        """Left behind by a dead consumer at least once: its starts are noted."""
        return self.deaths >= 0

    @property
    def runs_alone(self) -> bool:
        """It had started in two consumers that died."""
        return self.deaths >= 2


class HeldRows:
    """The table. Rows of one number are held once, whatever the epoch that they came from."""

    def __init__(self) -> None:
        self._rows: dict[int, HeldRow] = {}
        self._keys: dict[bytes, int] = {}
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, seq: int) -> bool:
        return seq in self._rows

    def all(self) -> list[HeldRow]:
        """Every row held now, as a list of its own."""
        return list(self._rows.values())

    def get(self, seq: int) -> HeldRow | None:
        return self._rows.get(seq)

    def add(self, delivery: Delivery, *, generation: int, epoch: int) -> HeldRow:
        row = HeldRow(
            delivery.seq, delivery.shard, delivery.payload, delivery.attempts, delivery.deaths, generation, epoch
        )
        self._rows[row.seq] = row
        self.bytes += len(row.payload)
        return row

    def remove(self, rows: Iterable[HeldRow]) -> None:
        for row in rows:
            if self._rows.get(row.seq) is row:
                del self._rows[row.seq]
                self.bytes -= len(row.payload)
                if row.digest is not None and self._keys.get(row.digest) == row.seq:
                    del self._keys[row.digest]

    def hold_key(self, digest: bytes, seq: int) -> bool:
        """Hold a declared key for a row; False while another row of ours has it."""
        return self._keys.setdefault(digest, seq) == seq

    def free_key(self, digest: bytes, seq: int) -> None:
        if self._keys.get(digest) == seq:
            del self._keys[digest]
