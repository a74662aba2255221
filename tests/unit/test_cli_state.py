"""The state folder: held by one command, remembered by the next, never mistaken for another folder."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rowmill.errors import InvalidInput, StateInUse
from rowmill.identity import RunIdentity
from rowmill_cli.local.state import LastRun, State, default_folder

IDENTITY = RunIdentity("local", "support", "triage", "1")
HOLDER = """
import sys
from pathlib import Path
from rowmill_cli.local.state import State
with State.hold(Path(sys.argv[1]), create=True):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_command_is_refused_and_told_who_holds_it(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(StateInUse) as caught, State.hold(folder, create=True):
            pytest.fail("two held it at once")
        assert f"process {holder.pid}" in str(caught.value)
        assert "--state DIR" in str(caught.value)
        holder.send_signal(signal.SIGKILL)
        holder.wait(60)
        with State.hold(folder, create=True):
            pass
    finally:
        holder.kill()
        holder.communicate()


def test_it_remembers_the_last_run_and_the_generation_of_each(tmp_path: Path) -> None:
    other = IDENTITY._replace(run_id="2")
    with State.hold(tmp_path / "s", create=True) as state:
        state.remember(LastRun(IDENTITY, Path("/jobs/job.yaml"), None), job="{}")
        state.raise_retry_generation(IDENTITY, 2)
        state.raise_retry_generation(IDENTITY, 1)
        state.remember(LastRun(other, Path("/jobs/job.yaml"), Path("/out.csv")), job='{"a": 1}')
    with State.hold(tmp_path / "s", create=False) as state:
        assert state.last_run() == LastRun(other, Path("/jobs/job.yaml"), Path("/out.csv"))
        assert state.retry_generation(IDENTITY) == 2
        assert state.retry_generation(other) == 0
        assert state.job_file.read_text() == '{"a": 1}'


def test_a_folder_that_no_run_was_started_in(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(InvalidInput, match="no run was started"), State.hold(folder, create=False):
            pytest.fail("held")
    assert not (tmp_path / "absent").exists()


def test_a_folder_with_other_things_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(InvalidInput, match=r"thesis\.tex"), State.hold(tmp_path, create=True):
        pytest.fail("held")
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_start_that_was_cut_before_it_remembered_anything_is_gone_on_with(tmp_path: Path) -> None:
    with State.hold(tmp_path / "s", create=True):
        pass
    (tmp_path / "s" / "job.yaml").write_text("{")
    with State.hold(tmp_path / "s", create=True) as state:
        state.remember(LastRun(IDENTITY, Path("/j"), None), job="{}")


@pytest.mark.parametrize("content", ["", "[]", '{"run": {"name": "x"}}', '{"run": 3}'])
def test_a_damaged_record_is_said_to_be(tmp_path: Path, content: str) -> None:
    with State.hold(tmp_path, create=True):
        pass
    (tmp_path / "state.json").write_text(content)
    with State.hold(tmp_path, create=False) as state, pytest.raises(InvalidInput, match="is damaged"):
        state.last_run()


def test_a_folder_of_a_newer_release_is_refused(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text(json.dumps({"layout": 99}))
    with pytest.raises(InvalidInput, match="another version"), State.hold(tmp_path, create=True):
        pytest.fail("held")


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(InvalidInput, match="cannot be used as --state"),
        State.hold(tmp_path / "file" / "s", create=True),
    ):
        pytest.fail("held")


def test_the_lock_is_not_inherited(tmp_path: Path) -> None:
    """A worker or server that outlives a killed command must not keep the folder locked."""
    with State.hold(tmp_path, create=True):
        child = subprocess.Popen(["sleep", "30"], close_fds=False)
    try:
        with State.hold(tmp_path, create=True):
            pass
    finally:
        child.kill()
        child.wait()


def test_where_it_is_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert default_folder(Path("jobs/a.yaml"), IDENTITY) == tmp_path / "jobs" / ".rowmill" / "support-triage"
