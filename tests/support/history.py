"""What five records of one run must agree on: source, endpoint, ledger, exported file, Redis. Pure; see `checker`.

Each is read by its own reader, none of them the program's, and `compare` looks for every way in which a run could
have lied: a row lost, recorded twice or invented, a result of another row, a call too many, two calls at once.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

from tests.support.endpoint import Call

SUCCEEDED, FAILED, DEDUPLICATED = 1, 2, 3
LABELS = {SUCCEEDED: "Succeeded", FAILED: "Failed", DEDUPLICATED: "Deduplicated"}
SHOWN = 5
GONE_SECONDS = 0.5
"""A caller that gave up left at most so long before the endpoint noticed."""


class Recorded(NamedTuple):
    """One line of the ledger; `finished_at` in seconds since the epoch, `key` and `result` as JSON values."""

    seq: int
    generation: int
    state: int
    attempts: int
    key: Any
    result: Any
    error_class: str | None
    error_message: str | None
    finished_at: float


class Run(NamedTuple):
    """What the ledger holds of the run itself. `counts` are those written with its end, if it ended."""

    name: str
    generation: int
    total: int | None
    counts: Mapping[str, int] | None


@dataclass
class History:
    """What was found. Rows are named by seq; every list is empty after a clean run."""

    rows: int
    calls: int
    calls_per_row: Counter[int] = field(default_factory=Counter)
    lost: list[int] = field(default_factory=list)
    two_outcomes: list[str] = field(default_factory=list)
    strangers: list[int] = field(default_factory=list)
    foreign_results: list[str] = field(default_factory=list)
    successes_without_a_call: list[int] = field(default_factory=list)
    unknown_calls: list[str] = field(default_factory=list)
    export_differences: list[str] = field(default_factory=list)
    count_differences: list[str] = field(default_factory=list)
    leftovers: list[str] = field(default_factory=list)
    duplicates: dict[int, int] = field(default_factory=dict)
    """Calls of a row beyond the attempts that its outcomes tell of."""
    late_calls: list[int] = field(default_factory=list)
    """Rows that were called after their success was recorded, once for each such call."""
    overlaps: list[int] = field(default_factory=list)
    """Rows of which two calls were at the endpoint at once, once for each such pair."""

    @property
    def duplicate_calls(self) -> int:
        return sum(self.duplicates.values())

    def problems(self, *, allowed_duplicates: int = 0, allowed_overlaps: int | None = None) -> list[str]:
        """One line a kind of problem, with the first offenders; none after a clean run."""
        overlaps = allowed_duplicates if allowed_overlaps is None else allowed_overlaps
        kinds: list[tuple[str, Sequence[Any], int]] = [
            ("rows lost", self.lost, 0),
            ("rows with two outcomes", self.two_outcomes, 0),
            ("outcomes of rows that do not exist", self.strangers, 0),
            ("results that belong to another row", self.foreign_results, 0),
            ("successes that no call explains", self.successes_without_a_call, 0),
            ("calls of no row of the source", self.unknown_calls, 0),
            ("differences between export and ledger", self.export_differences, 0),
            ("differences between counts and outcomes", self.count_differences, 0),
            ("keys left in Redis", self.leftovers, 0),
            ("calls after a recorded success, by row", self.late_calls, allowed_duplicates),
            ("calls of one row at once, by row", self.overlaps, overlaps),
        ]
        lines = [
            f"{len(found)} {what}{f' ({allowed} allowed)' if allowed else ''}: {_first(found)}"
            for what, found, allowed in kinds
            if len(found) > allowed
        ]
        if self.duplicate_calls > allowed_duplicates:
            shown = [f"row {seq}: {n} more of {self.calls_per_row[seq]}" for seq, n in self.duplicates.items()]
            lines.append(f"{self.duplicate_calls} duplicate calls ({allowed_duplicates} allowed): {_first(shown)}")
        return lines

    def assert_clean(self, *, allowed_duplicates: int = 0, allowed_overlaps: int | None = None) -> None:
        """Fail with every problem. What was killed or cut explains `allowed_duplicates` calls, and as many that
        overlapped, unless `allowed_overlaps` says otherwise."""
        problems = self.problems(allowed_duplicates=allowed_duplicates, allowed_overlaps=allowed_overlaps)
        head = f"the history of {self.rows} rows and {self.calls} calls is not clean:"
        assert not problems, "\n  ".join([head, *problems])


def compare(
    *,
    run: Run,
    source: Sequence[str],
    recorded: Sequence[Recorded],
    calls: Sequence[Call] | None,
    exported: Sequence[Mapping[str, Any]] | None,
    redis_keys: Iterable[str],
    echoed: Callable[[Any], Any] | None,
) -> History:
    """Compare the records. `source` names the rows in order, each once, as the endpoint hears them.

    `calls` or `exported` None: that record was not kept. `echoed` takes the row's name out of a result that says whose
    it is; None where results do not.
    """
    seq_of = {name: seq for seq, name in enumerate(source, 1)}
    if len(seq_of) != len(source):
        raise ValueError("the source names two rows alike: choose another row_field, or nothing can be told apart")
    history = History(rows=len(source), calls=0, leftovers=sorted(redis_keys))
    of_row: dict[int, list[Recorded]] = defaultdict(list)
    for outcome in recorded:
        of_row[outcome.seq].append(outcome)
    history.strangers = sorted(seq for seq in of_row if not 1 <= seq <= len(source))
    effective = {seq: _effective(outcomes) for seq, outcomes in of_row.items()}
    for seq in range(1, len(source) + 1):
        end = effective.get(seq)
        if end is None or (end.state == FAILED and end.generation != run.generation):
            history.lost.append(seq)
    history.two_outcomes = [line for seq in sorted(of_row) for line in _two_outcomes(of_row[seq])]
    history.count_differences = list(_count_differences(run, len(source), effective.values()))
    if echoed is not None:
        for seq, end in sorted(effective.items()):
            if end.state == SUCCEEDED and 1 <= seq <= len(source) and echoed(end.result) != source[seq - 1]:
                history.foreign_results.append(f"row {seq} ({source[seq - 1]}) has {_short(end.result)}")
    if exported is not None:
        history.export_differences = list(_export_differences(effective, exported))
    if calls is not None:
        _compare_calls(history, run, seq_of, of_row, calls)
    return history


def _effective(outcomes: Sequence[Recorded]) -> Recorded:
    """The success, if there is one, else the newest failure."""
    final = [o for o in outcomes if o.state != FAILED]
    return min(final, key=lambda o: o.generation) if final else max(outcomes, key=lambda o: o.generation)


def _two_outcomes(outcomes: Sequence[Recorded]) -> Iterable[str]:
    for earlier, later in pairwise(sorted(outcomes, key=lambda o: o.generation)):
        if earlier.generation == later.generation:
            yield f"row {earlier.seq}: twice in generation {earlier.generation}"
        elif earlier.state != FAILED:
            yield f"row {earlier.seq}: {LABELS[earlier.state]}, then {LABELS[later.state]}"


def _count_differences(run: Run, rows: int, effective: Iterable[Recorded]) -> Iterable[str]:
    if run.total is not None and run.total != rows:
        yield f"the run has {run.total} rows, the source {rows}"
    if run.counts is not None:
        states = Counter(o.state for o in effective)
        for state, label in LABELS.items():
            told = run.counts[label.lower()]
            if told != states[state]:
                yield f"the run counts {told} {label}, its outcomes are {states[state]}"


def _export_differences(effective: Mapping[int, Recorded], exported: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    seqs = [line["seq"] for line in exported]
    yield from (f"line of row {b} comes after row {a}" for a, b in pairwise(seqs) if b <= a)
    yield from (f"row {seq} is not exported" for seq in sorted(set(effective) - set(seqs)))
    for line in exported:
        end = effective.get(line["seq"])
        if end is None:
            yield f"row {line['seq']} is exported, the ledger has none"
            continue
        error = None
        if end.error_class is not None:
            error = {"class": end.error_class, "message": end.error_message or ""}
        expected = {
            "key": end.key,
            "state": LABELS[end.state],
            "attempts": end.attempts,
            "result": end.result,
            "error": error,
        }
        for name, value in expected.items():
            # As texts, so that 1, 1.0 and true are three things.
            if _text(line[name]) != _text(value):
                yield f"row {line['seq']}: {name} is {_short(line[name])}, in the ledger {_short(value)}"


def _compare_calls(
    history: History,
    run: Run,
    seq_of: Mapping[str, int],
    of_row: Mapping[int, Sequence[Recorded]],
    calls: Sequence[Call],
) -> None:
    by_row: dict[int, list[Call]] = defaultdict(list)
    for call in calls:
        if call.request_id is not None and not call.request_id.startswith(f"{run.name}#"):
            continue  # of another run at the same endpoint
        history.calls += 1
        seq = _seq_of_call(call, run, seq_of)
        if seq is None:
            history.unknown_calls.append(f"call {call.n}: row {call.row}, key {call.key}")
        else:
            by_row[seq].append(call)
    history.calls_per_row = Counter({seq: len(made) for seq, made in by_row.items()})
    for seq, made in sorted(by_row.items()):
        outcomes = of_row.get(seq, ())
        extra = len(made) - sum(o.attempts for o in outcomes)
        if extra > 0:
            history.duplicates[seq] = extra
        done = [o.finished_at for o in outcomes if o.state != FAILED]
        history.late_calls += [seq for call in made if done and call.start > min(done)]
        history.overlaps += [seq] * _overlaps(made)
    answered = {seq for seq, made in by_row.items() if any((c.answered or "").startswith("2") for c in made)}
    history.successes_without_a_call = sorted(
        seq for seq, outcomes in of_row.items() if seq not in answered and any(o.state == SUCCEEDED for o in outcomes)
    )


def _seq_of_call(call: Call, run: Run, seq_of: Mapping[str, int]) -> int | None:
    """The row that a call is of. Where its body was never read, or names a row, its key must say the same."""
    named = seq_of.get(call.row) if call.row is not None else None
    start, _, number = (call.key or "").rpartition("#")
    if start != run.name or not number.isdigit():
        return named  # a declared key, which several rows may share
    keyed = int(number)
    if call.row is None:
        return keyed if keyed <= len(seq_of) else None
    return named if named == keyed else None


def _overlaps(calls: Sequence[Call]) -> int:
    """Pairs that follow each other before the first has ended. One that never ended overlaps all that follow."""
    count, busy_until = 0, float("-inf")
    for call in sorted(calls, key=lambda c: c.start):
        count += call.start < busy_until
        end = float("inf") if call.end is None else call.end
        if call.answered == "client gone":
            end = max(call.start, end - GONE_SECONDS)
        busy_until = max(busy_until, end)
    return count


def _first(found: Sequence[Any]) -> str:
    more = f", … ({len(found) - SHOWN} more)" if len(found) > SHOWN else ""
    return ", ".join(str(one) for one in found[:SHOWN]) + more


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _short(value: Any) -> str:
    text = _text(value)
    return text if len(text) <= 120 else text[:117] + "…"
