"""An event on a job when the limits of its group begin to differ from its own, differ otherwise, or agree again.

It stands beside what the job tells of itself: a job that is held to lower limits runs as it should. What was told
before a restart is not told again.
"""

from __future__ import annotations

from typing import Final

from rowmill.limits import LimitsTold, say_limits
from rowmill.status import Phase, RunStatus
from rowmill_operator.kube.events import EventRecorder, Involved

DIFFER: Final = "LimitsDiffer"
"""Reason of the event that says that jobs of the group set different limits, whose hold, and for whom."""

AGREE: Final = "LimitsAgree"
"""And that the job's own limits hold again, and those of others are the same."""

_Key = tuple[object, ...] | None


class LimitsEvents:
    """Tells one job's events. One that is refused for being too soon is tried again with the next status."""

    def __init__(self, involved: Involved, events: EventRecorder) -> None:
        self._involved = involved
        self._events = events
        self._last: _Key = None
        self._owed: tuple[str, str] | None = None

    def known(self, told: LimitsTold | None) -> None:
        """The resource's status says this already."""
        self._last = _key(told)

    def saw(self, run: RunStatus) -> None:
        """The status says this now. Nothing is told of a run that does not run: for it nothing holds."""
        if run.phase is not Phase.RUNNING or run.limits is None:
            return
        if (key := _key(run.limits)) != self._last:
            self._last = key
            if key is not None:
                self._owed = DIFFER, say_limits(run.limits)
            else:
                self._owed = AGREE, f"limits group {run.limits.group}: this job's own limits hold, no job sets others"
        if self._owed is not None:
            reason, message = self._owed
            if self._events.remark(self._involved, reason=reason, message=message, warning=False):
                self._owed = None


def _key(told: LimitsTold | None) -> _Key:
    """What makes a difference; None where nothing differs."""
    return None if told is None or not told.differ else (told.held, told.lowered_by, told.lowers)
