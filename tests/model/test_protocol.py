"""The protocol holds whatever goes wrong; with any one guard taken out, it does not.

Bounds: two rows with any one fault anywhere; two rows with two faults, of process and window; one row with two
faults, of connections or of rollbacks too. Any two faults of all kinds, failovers among them, are eight million
states, some minutes instead of seconds: `python -m tests.model --rows 1 --faults 2` explores them by hand.
"""

from __future__ import annotations

import pytest

from tests.model.explorer import Violation, explore, successors
from tests.model.protocol import KINDS, canonical, initial


def test_without_faults_every_interleaving_completes() -> None:
    assert explore(rows=2, faults=0).complete > 0


@pytest.mark.slow
def test_two_rows_and_any_one_fault() -> None:
    assert explore(rows=2, faults=1).complete > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rows", "kinds"),
    [
        pytest.param(2, {"kill", "pause", "wipe"}, id="processes-and-wipes"),
        pytest.param(1, {"kill", "pause", "session", "reply", "wipe"}, id="connections"),
        pytest.param(1, {"kill", "pause", "wipe", "rollback"}, id="rollbacks"),
    ],
)
def test_two_faults(rows: int, kinds: set[str]) -> None:
    assert explore(rows=rows, faults=2, kinds=kinds).complete > 0


@pytest.mark.parametrize(
    ("without", "kinds", "promise"),
    [
        ("no-gap-check", {"wipe"}, "open row in Complete"),
        ("count-then-complete", {"failover"}, "open row in Complete"),
        ("no-sweeper", {"kill"}, "stuck"),
        ("no-own-pending", {"reply"}, "stuck"),
        ("one-statement-claim", {"wipe"}, "call unexplained"),
        ("unlock-before-commit", {"wipe"}, "call unexplained"),
        ("no-held-table", {"wipe"}, "two at once under one lock"),
        ("upsert", {"session", "wipe"}, "outcome changed"),
        ("no-fence", {"session"}, "finished run revived"),
        ("ack-before-commit", set(), "epoch unexplained"),
        ("ledger-before-window", set(), "epoch unexplained"),
    ],
)
def test_a_guard_taken_out_is_missed(without: str, kinds: set[str], promise: str) -> None:
    faults = 2 if len(kinds) == 2 else 1
    with pytest.raises(Violation) as violation:
        explore(rows=1 if faults == 2 else 2, faults=faults, kinds=kinds, without=(without,))
    assert violation.value.promise == promise


def test_the_gap_check_heals_a_missing_fence() -> None:
    """A wipe between two appends goes unnoticed then; the gap check finds the rows, only later."""
    assert explore(rows=2, faults=1, kinds={"wipe"}, without=("no-fence",)).complete > 0
    with pytest.raises(Violation, match="open row in Complete"):
        explore(rows=2, faults=1, kinds={"wipe"}, without=("no-fence", "no-gap-check"))


def test_acknowledging_before_the_commit_loses_rows_but_for_the_gap_check() -> None:
    with pytest.raises(Violation, match="open row in Complete"):
        explore(rows=1, faults=0, without=("ack-before-commit", "no-gap-check"))


def test_every_kind_of_fault_is_explored() -> None:
    seen, todo, kinds = set(), [initial(1, 1)], set()
    while todo:
        for step in successors(todo.pop(), (), KINDS):
            kinds.add(step.fault)
            after = canonical(step.after)
            if after not in seen:
                seen.add(after)
                todo.append(after)
    assert kinds == {"", *KINDS}
