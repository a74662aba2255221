"""When a run stands still though nobody suspended it, and when it goes on. Pure.

    running ─ a call may need more than the budget leaves ─→ BudgetExhausted ─ it is raised by enough ─→ running
            └ one call after the other is refused ─→ CallsRefused ─ a while later, or when asked to ─→ running

A run that goes on after refused calls has one worker until a row has ended, so that trying costs a handful of calls. In
vain, it stands still for four times as long.
"""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

from rowmill.spend import Budget, Pause, Reason, Shortage, Spend, money

TRY_AGAIN_SECONDS = (60.0, 1800.0)
"""After calls were refused: until one worker tries again, at first and at most."""


def pause_of(
    *, spent: Spend, shortage: Shortage | None, refused: str | None, budget: Budget | None, wall: float, tries: int
) -> Pause | None:
    """Why a run is to stand still by what its workers tell, or None. `tries` is how often it tried in vain before,
    `wall` the time in seconds since the epoch."""
    if refused is not None:
        wait = min(TRY_AGAIN_SECONDS[0] * 4 ** min(tries, 10), TRY_AGAIN_SECONDS[1])
        at = datetime.fromtimestamp(wall + wait, UTC).strftime("%Y-%m-%d %H:%M UTC")
        message = (
            f"{refused}. Nothing more is sent, and no row failed by it. Mend the credentials or the account: one "
            f"worker tries again at {at}. To try at once: kubectl rowmill resume, or without a cluster the same "
            "command again"
        )
        return Pause(Reason.REFUSED, message, wall, until=wall + wait, tries=tries)
    if shortage is None or budget is None or not shortage.lasts(spent=spent, budget=budget):
        return None
    return Pause(Reason.BUDGET, _used_up(shortage, budget), wall, shortage=shortage)


def goes_on(pause: Pause, *, spent: Spend, budget: Budget | None, wall: float, resumed_at: float | None) -> bool:
    """Whether a run that stands still goes on: its budget was raised by enough, or it is time to try again, or somebody
    has asked for it since (`resumed_at`, seconds since the epoch)."""
    if pause.reason is Reason.REFUSED:
        asked = resumed_at is not None and resumed_at > pause.at
        return asked or pause.until is None or wall >= pause.until
    return budget is None or pause.shortage is None or not pause.shortage.lasts(spent=spent, budget=budget)


def still(pause: Pause, *, budget: Budget | None) -> Pause:
    """The same pause in words of today: the budget may have been raised, by too little."""
    if pause.reason is Reason.BUDGET and pause.shortage is not None and budget is not None:
        return pause._replace(message=_used_up(pause.shortage, budget))
    return pause


def _used_up(shortage: Shortage, budget: Budget) -> str:
    limit = getattr(budget, shortage.what)
    name = f"spec.budget.{shortage.what}"
    if shortage.what == "requests":
        why = f"the {_told(limit)} calls of {name} are used up"
    else:
        unit = "" if shortage.what == "cost" else " tokens"
        why = f"the next call may need {_told(shortage.need)}{unit}, more than is left of {name} {_told(limit)}"
    return f"{why}. Raise it, or leave it out, to go on; finished rows are kept and are never paid for again"


def _told(number: int | Decimal) -> str:
    return money(number) if isinstance(number, Decimal) else f"{number:,}"
