"""What the jobs of a limits group want of it, what of that holds, and how it is said. Pure.

The lowest number of each kind holds for all jobs of a group that have workers. A job whose own number is higher, or
which has none, is told whose holds instead; the one that set it is told whom it holds up.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

MOST_JOBS: Final = 5
"""Other jobs that one is told of, of each kind."""


class GroupLimits(NamedTuple):
    """What one job wants of its group; 0 is no limit."""

    requests_per_minute: int = 0
    tokens_per_minute: int = 0
    max_in_flight: int = 0


_UNITS: Final = ("requests a minute", "tokens a minute", "calls at once")


@dataclass(frozen=True, slots=True)
class LimitsTold:
    """What a job is told of its group.

    `own` are the manifest's numbers, `held` those that hold, at most as high. `lowered_by` names the jobs
    (namespace/name) whose numbers hold in place of higher ones of its own, `lowers` those for which its own hold in
    place of higher ones of theirs; no number counts as higher than any. At most `MOST_JOBS` each, by name.
    """

    group: str
    own: GroupLimits
    held: GroupLimits
    lowered_by: tuple[str, ...] = ()
    lowers: tuple[str, ...] = ()

    @property
    def differ(self) -> bool:
        """Whether jobs of the group set different numbers, in a way that concerns this job."""
        return bool(self.lowered_by or self.lowers)


def say_limits(told: LimitsTold) -> str:
    """What a person should know of it, in one line; "" where all jobs of the group set the same."""
    kinds = list(zip(_UNITS, told.own, told.held, strict=True))
    parts = []
    if told.lowered_by:
        numbers = ", ".join(
            f"{held:,} {unit} (this job sets {f'{own:,}' if own else 'none'})"
            for unit, own, held in kinds
            if held != own
        )
        parts.append(f"{_jobs(told.lowered_by)} set lower limits, and the lowest hold: {numbers}")
    if told.lowers:
        numbers = ", ".join(f"{held:,} {unit}" for unit, own, held in kinds if held and held == own)
        parts.append(f"{_jobs(told.lowers)} set higher limits or none, and this job's hold for them too: {numbers}")
    return f"limits group {told.group}: {'; '.join(parts)}" if parts else ""


def _jobs(names: tuple[str, ...]) -> str:
    """At the bound there may be more than are named."""
    return ", ".join(names) + (" and perhaps others" if len(names) >= MOST_JOBS else "")
