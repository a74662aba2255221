"""What is said of a run when it has ended, or was interrupted: numbers, errors, where the results are, what is next."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from rowmill.identity import RunIdentity
from rowmill.limits import say_limits
from rowmill.spend import Spend, money
from rowmill.status import ErrorCount, Phase, RunStatus, when_dropped
from rowmill_cli.progress import duration

_TOP_ERRORS = 5


@dataclass(frozen=True, slots=True)
class Ending:
    """All that the report needs. `seconds` is the wall time of this command; `again` the command that goes on."""

    identity: RunIdentity
    status: RunStatus
    seconds: float
    state: Path
    again: str
    results: Path | str | None = None
    interrupted: bool = False
    simulated: bool = False
    cost: Decimal | None = None
    """What the rows that succeeded would have cost, where a simulation says what one costs."""


def render(ending: Ending) -> str:
    """The report, without a final line end."""
    status = ending.status
    lines = [_headline(ending), ""]
    total = "not known yet" if status.total is None else f"{status.total:,}"
    facts = [
        ("rows", total),
        ("succeeded", f"{status.succeeded:,}"),
        ("failed", f"{status.failed:,}"),
        ("deduplicated", f"{status.deduplicated:,}"),
        ("retried", f"{status.retried:,}"),
        ("success rate", success_rate(status)),
        ("duration", duration(ending.seconds)),
    ]
    if status.spend.requests:
        facts.append(("would call" if ending.simulated else "calls", f"{status.spend.requests:,}"))
    if used := amounts(status.spend):
        facts.append(("would use" if ending.simulated else "used", used))
    if (projected := status.projected) is not None:
        rows = status.source_rows or status.total
        told = ", ".join(filter(None, [f"{projected.requests:,} calls", amounts(projected)]))
        facts.append(("projected", f"{told} for all {rows:,} rows"))
    if ending.cost is not None:
        facts.append(("would cost", f"{ending.cost:,f}"))
    lines += [f"  {name:<14}{value}" for name, value in facts]
    if status.errors:
        lines += ["", "Errors, the most frequent first:"]
        lines += [f"  {_error(error)}" for error in status.errors[:_TOP_ERRORS]]
    if status.limits is not None and status.limits.differ:
        lines += ["", f"When it was last seen: {say_limits(status.limits)}."]
    if status.dropped_at is not None:
        lines += ["", f"The results {when_dropped(status.dropped_at)}. Change spec.runId to run again."]
    if ending.results is not None:
        lines += ["", f"Results: {ending.results}"]
    lines += ["", *_next_steps(ending)]
    return "\n".join(lines).rstrip()


def amounts(spend: Spend) -> str:
    """Tokens and money, as far as there are any."""
    told = [f"{spend.input_tokens:,} tokens in, {spend.output_tokens:,} out"] if spend.tokens else []
    told += [f"cost {money(spend.cost)}"] if spend.cost else []
    return ", ".join(told)


def success_rate(status: RunStatus) -> str:
    """Share of the finished rows that did not fail, rounded down so that 100% means every one."""
    if not status.done:
        return "no row has finished"
    good = status.succeeded + status.deduplicated
    return f"{10_000 * good // status.done / 100:.2f}%"


def _headline(ending: Ending) -> str:
    what = f"{ending.identity.namespace}/{ending.identity.name}, run {ending.identity.run_id.removesuffix('~simulate')}"
    if ending.simulated:
        what += " (simulated: no call was sent)"
    if ending.interrupted:
        return f"Interrupted: {what}"
    text = f"{ending.status.phase}: {what}"
    if ending.status.phase in (Phase.FAILED, Phase.SUSPENDED) and ending.status.message:
        text += f"\n{ending.status.message}"
    return text


def _error(error: ErrorCount) -> str:
    rows = "1 row" if error.count == 1 else f"{error.count:,} rows"
    return f"{error.error_class:<24}{rows:<14}such as row {error.example_row:,}"


def _next_steps(ending: Ending) -> list[str]:
    state = shlex.quote(str(ending.state))
    if ending.interrupted or ending.status.phase is Phase.SUSPENDED:
        return [
            "What has finished is recorded and is not paid for again. Go on with:",
            f"  {ending.again}",
            "What there is so far:",
            f"  rowmill results --state {state}",
        ]
    if not ending.status.failed or ending.status.dropped_at is not None:
        return []
    return [
        "See the failed rows, then run them again (rows that succeeded are not called again):",
        f"  rowmill results --state {state} --failed",
        f"  rowmill retry --state {state}",
    ]
