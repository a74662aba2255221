"""`kubectl rowmill results`: the pod it makes, what it says while that does not start, and that nothing is lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from rowmill.results import reader
from rowmill_cli.kubectl import reader_pod as pods
from rowmill_cli.kubectl import stream
from rowmill_cli.kubectl.errors import ClusterError, NotNow
from rowmill_cli.kubectl.main import main
from rowmill_cli.kubectl.view import JobView
from rowmill_operator.kube import naming, pod_guard, pod_template
from tests.unit.kubectl_double import KubectlDouble, batch_job

ROWS = '{"seq": 1, "state": "Succeeded"}\n{"seq": 2, "state": "Failed"}\n'
RECEIPT = f'{reader.RECEIPT}{{"outcomes": 2, "bytes": {len(ROWS)}}}\n'
DONE = batch_job(phase="Complete", rows={"total": 2, "succeeded": 1, "failed": 1}, spec={"output": {"columns": ["a"]}})
RUNNING_POD = {"status": {"phase": "Running", "containerStatuses": [{"state": {"running": {}}}]}}


@pytest.fixture
def kubectl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> KubectlDouble:
    made = KubectlDouble(tmp_path / "double")
    monkeypatch.setenv("KUBECTL", str(made.binary))
    monkeypatch.setattr(sys.modules["rowmill_cli.kubectl.commands.results"], "POLL_SECONDS", 0.01)
    made.answers("get batchjobs.rowmill.dev triage", out=DONE)
    made.answers("delete pod")
    return made


def starts(kubectl: KubectlDouble, out: str = ROWS, err: str = RECEIPT, code: int = 0) -> None:
    kubectl.answers("create", out={})
    kubectl.answers("get pod ", out=RUNNING_POD)
    kubectl.answers("exec", out=out, err=err, code=code)


def waiting(reason: str, message: str) -> dict[str, Any]:
    return {
        "spec": {"containers": [{"name": "reader", "image": "localhost/rowmill-worker:dev"}]},
        "status": {
            "phase": "Pending",
            "containerStatuses": [{"state": {"waiting": {"reason": reason, "message": message}}}],
        },
    }


def run(capfd: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(["results", "triage", *arguments])
    out, err = capfd.readouterr()
    assert "Traceback" not in err
    return code, out, err


def removed(kubectl: KubectlDouble) -> bool:
    """Whether the pod that was made was deleted."""
    name = kubectl.given("create")["metadata"]["name"]
    return len(kubectl.called("delete pod", name)) == 1


class TestReading:
    def test_rows_go_to_standard_output_and_words_do_not(
        self, kubectl: KubectlDouble, capfd: pytest.CaptureFixture[str]
    ) -> None:
        starts(kubectl)
        code, out, err = run(capfd)
        (call,) = kubectl.called("exec")
        assert (code, out) == (0, ROWS)
        assert err == "support/triage, run 1: 2 outcomes\n"
        assert call[call.index("--") + 1 :] == [
            *("python", "-m", "rowmill.results", "--receipt", "--namespace", "support", "--name", "triage"),
            *("--run-id", "1", "--format", "jsonl"),
        ]
        assert removed(kubectl)

    def test_failed_rows_as_csv_into_a_file(
        self, kubectl: KubectlDouble, capfd: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        starts(kubectl)
        file = tmp_path / "out.csv"
        code, out, err = run(capfd, "--failed", "-o", "csv", "--output", str(file))
        (call,) = kubectl.called("exec")
        assert (code, out) == (0, "")
        assert call[-4:] == ["--format", "csv", "--failed", "--column=a"]
        assert file.read_text() == ROWS
        assert "2 failed rows in" in err
        assert sorted(one.name for one in tmp_path.iterdir()) == ["double", "out.csv"]

    def test_where_else_they_lie_is_said(self, kubectl: KubectlDouble, capfd: pytest.CaptureFixture[str]) -> None:
        first = batch_job(rows={"succeeded": 2}, output={"uri": "s3://bucket/1/"}, name="other")
        kubectl.answers("get batchjobs.rowmill.dev other", out=first)
        starts(kubectl)
        assert main(["results", "other"]) == 0
        err = capfd.readouterr().err
        assert "The run is not over (Running): this is what there is so far." in err
        assert "s3://bucket/1/" in err

    def test_the_reader_understands_what_it_is_asked(self) -> None:
        """The plugin and the image meet here: the options, the line of the receipt, the variables."""
        asked = pods.arguments(JobView(DONE), failed=True, format="csv")
        assert asked[:3] == ["python", "-m", "rowmill.results"]
        options = reader._parser().parse_args(asked[3:])
        assert (options.receipt, options.failed, options.format, options.column) == (True, True, "csv", ["a"])
        assert stream.RECEIPT == reader.RECEIPT
        assert set(pods.VARIABLES) == {reader.DSN_VARIABLE, reader.INSTALLATION_VARIABLE}
        assert set(pods.VARIABLES) <= {pod_template.POSTGRES_DSN, pod_template.INSTALLATION}


class TestNothingIsLost:
    @pytest.mark.parametrize(
        ("out", "err", "code", "says"),
        [
            (ROWS[:-5], RECEIPT, 0, f"{len(ROWS) - 5:,} of {len(ROWS):,} bytes came"),
            (ROWS, "", 0, "are not complete"),
            (
                ROWS,
                "rowmill: Postgres is away\ncommand terminated with exit code 2\n",
                2,
                "(Postgres is away)",
            ),
            ("", "rowmill: the ledger knows no run x\ncommand terminated with exit code 1\n", 1, "knows no run x"),
            (
                "",
                "rowmill: BatchJob x: the results of this run were dropped on …\n",
                1,
                "rowmill: BatchJob x: the results",
            ),
            ("", "command terminated with exit code 137\n", 137, "It ran out of memory"),
        ],
    )
    def test_a_stream_that_was_cut_is_no_success_and_no_file(
        self,
        kubectl: KubectlDouble,
        capfd: pytest.CaptureFixture[str],
        tmp_path: Path,
        out: str,
        err: str,
        code: int,
        says: str,
    ) -> None:
        starts(kubectl, out=out, err=err, code=code)
        file = tmp_path / "out.jsonl"
        file.write_text("of yesterday")
        found, _, said = run(capfd, "--output", str(file))
        assert found == 2
        assert says in said
        assert file.read_text() == "of yesterday"
        assert sorted(one.name for one in tmp_path.iterdir()) == ["double", "out.jsonl"]
        assert removed(kubectl)

    def test_a_folder_that_is_not_there_costs_no_pod(
        self, kubectl: KubectlDouble, capfd: pytest.CaptureFixture[str]
    ) -> None:
        code, _, err = run(capfd, "--output", "/nowhere/out.csv")
        assert code == 2
        assert "there is no folder /nowhere" in err
        assert kubectl.calls == []

    def test_a_connection_that_says_nothing_is_given_up(self) -> None:
        here, there = os.pipe()
        with os.fdopen(here, "rb") as source, os.fdopen(there, "wb"):
            with pytest.raises(ClusterError, match="taken for dead"):
                stream.pump(source, Untouched(), idle=0.05)

    def test_whoever_reads_may_go(self, kubectl: KubectlDouble) -> None:
        starts(kubectl, out="x" * 100_000 + "\n")
        command = f"{sys.executable} -m rowmill_cli.kubectl results triage | head -c 1; exit ${{PIPESTATUS[0]}}"
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stdout, done.stderr) == (0, "x", "")
        assert removed(kubectl)

    def test_ctrl_c_deletes_the_pod(self, kubectl: KubectlDouble) -> None:
        kubectl.answers("create", out={})
        kubectl.answers("get pod ", out=RUNNING_POD)
        kubectl.answers("exec", out=ROWS, hangs=True)
        process = subprocess.Popen(
            [sys.executable, "-m", "rowmill_cli.kubectl", "results", "triage"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        tick = threading.Event()
        while not kubectl.hanging.exists():
            assert process.poll() is None
            tick.wait(0.05)
        process.send_signal(2)
        _, err = process.communicate(timeout=60)
        assert (process.returncode, err) == (130, "rowmill: interrupted\n")
        assert removed(kubectl)


class TestAPodThatDoesNotStart:
    @pytest.mark.parametrize(
        ("pod", "says"),
        [
            (waiting("ErrImagePull", "denied"), "cannot be pulled for the reader's pod (denied). Name a pull secret"),
            (
                waiting("CreateContainerConfigError", 'secret "triage-workers" not found'),
                "the outcomes of support/triage are recorded, but the Secret triage-workers",
            ),
            (waiting("CreateContainerConfigError", "container has runAsNonRoot"), "container has runAsNonRoot"),
            ({"status": {"phase": "Failed", "reason": "Evicted"}}, "ended before it was used (Evicted)"),
        ],
    )
    def test_why_is_said_and_it_is_deleted(
        self, kubectl: KubectlDouble, capfd: pytest.CaptureFixture[str], pod: dict[str, Any], says: str
    ) -> None:
        kubectl.answers("create", out={})
        kubectl.answers("get pod ", out=pod)
        code, out, err = run(capfd)
        assert (code, out) == (2, "")
        assert says in err
        assert removed(kubectl)

    def test_waiting_has_an_end(self, kubectl: KubectlDouble, capfd: pytest.CaptureFixture[str]) -> None:
        unscheduled = {"type": "PodScheduled", "status": "False", "message": "0/1 nodes are available"}
        kubectl.answers("create", out={})
        kubectl.answers("get pod ", out={"status": {"phase": "Pending", "conditions": [unscheduled]}})
        code, _, err = run(capfd, "--wait-seconds", "1")
        assert code == 2
        assert "did not start within 1 s (no node takes it: 0/1 nodes are available)" in err
        assert removed(kubectl)

    def test_who_may_not_make_pods_is_told_that_alone(
        self, kubectl: KubectlDouble, capfd: pytest.CaptureFixture[str]
    ) -> None:
        kubectl.fails(
            "create",
            err='Error from server (Forbidden): error when creating "STDIN": pods is forbidden: User "alice" cannot '
            'create resource "pods" in API group "" in the namespace "support"\n',
        )
        code, _, err = run(capfd)
        assert code == 2
        assert err.startswith("rowmill: you (alice) may not create pods in the namespace support.")
        assert err.count("\n") == 1
        assert kubectl.called("delete") == []

    def test_a_pod_that_cannot_be_deleted_is_named(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        double = KubectlDouble(tmp_path / "other")
        monkeypatch.setenv("KUBECTL", str(double.binary))
        double.answers("get batchjobs.rowmill.dev triage", out=DONE)
        starts(double)
        double.fails("delete", err="The connection to the server x was refused\n")
        code, out, err = run(capfd)
        name = double.given("create")["metadata"]["name"]
        assert (code, out) == (0, ROWS)
        assert f"kubectl delete pod {name} -n support" in err


@pytest.mark.parametrize(
    "job",
    [
        batch_job(phase="Pending"),
        batch_job(phase="Pending", run={}),
        batch_job(rows={"succeeded": 0}),
    ],
)
def test_no_results_yet_costs_no_pod(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], job: dict[str, Any]
) -> None:
    double = KubectlDouble(tmp_path / "double")
    monkeypatch.setenv("KUBECTL", str(double.binary))
    double.answers("get batchjobs.rowmill.dev", out=job)
    code, out, err = run(capfd)
    assert (code, out) == (2, "")
    assert "has no results yet" in err
    assert len(double.calls) == 1


@pytest.mark.parametrize("output", [{}, {"output": {"uri": "s3://bucket/triage/1/"}}])
def test_results_that_were_dropped_cost_no_pod(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], output: dict[str, Any]
) -> None:
    double = KubectlDouble(tmp_path / "double")
    monkeypatch.setenv("KUBECTL", str(double.binary))
    job = batch_job(phase="Complete", rows={"failed": 3}, resultsDroppedTime="2026-01-01T10:00:00Z", **output)
    double.answers("get batchjobs.rowmill.dev", out=job)
    code, out, err = run(capfd)
    assert (code, out) == (2, "")
    assert "were dropped on 2026-01-01 10:00 UTC, after spec.resultsRetentionSeconds" in err
    assert ("s3://bucket/triage/1/" in err) is bool(output)
    assert len(double.calls) == 1


class TestThePod:
    JOB = JobView(
        batch_job(
            name="a" * 80,
            spec={
                "workers": {
                    "nodeSelector": {"kubernetes.io/arch": "arm64", "gpu": "yes"},
                    "podTemplate": {"spec": {"imagePullSecrets": [{"name": "registry"}]}},
                }
            },
        )
    )

    def test_it_is_restricted_and_has_no_credentials(self) -> None:
        """Judged by what the operator holds tenants' pods against."""
        pod = pods.reader_pod(self.JOB, suffix="0a1b2c3d")
        spec = pod["spec"]
        assert list(pod_guard._pod(pod)) == []
        assert list(pod_guard._containers(pod)) == []
        assert spec["automountServiceAccountToken"] is False
        assert spec["containers"][0]["securityContext"]["readOnlyRootFilesystem"] is True
        assert (spec["restartPolicy"], spec["activeDeadlineSeconds"]) == ("Never", 3600)
        assert all("valueFrom" in one or one["name"] == "HOME" for one in spec["containers"][0]["env"])
        assert "REDIS" not in json.dumps(pod), "it has no business with Redis"

    def test_it_is_none_of_the_jobs_workers_and_goes_with_the_job(self) -> None:
        pod = pods.reader_pod(self.JOB, suffix="0a1b2c3d")
        labels = pod["metadata"]["labels"]
        wanted = naming.selector(self.JOB.name)
        assert any(labels.get(key) != value for key, value in wanted.items())
        assert len(pod["metadata"]["name"]) <= 63
        (owner,) = pod["metadata"]["ownerReferences"]
        assert owner["uid"] == self.JOB.uid
        assert not owner.get("blockOwnerDeletion"), "needs a right that readers do not have"
        keys = {one["valueFrom"]["secretKeyRef"]["name"] for one in pod["spec"]["containers"][0]["env"][:2]}
        assert keys == {naming.workers_name(self.JOB.name)}

    def test_it_goes_where_its_image_runs_and_wakes_no_gpu(self) -> None:
        spec = pods.reader_pod(self.JOB, suffix="0")["spec"]
        assert spec["nodeSelector"] == {"kubernetes.io/arch": "arm64"}
        assert spec["imagePullSecrets"] == [{"name": "registry"}]
        assert pods.reader_pod(self.JOB, suffix="0", pull_secrets=("x",))["spec"]["imagePullSecrets"] == [{"name": "x"}]

    def test_it_ends_when_it_is_told_to(self) -> None:
        """As the first process of a container, which a signal that it does not ask for never reaches."""
        waits = pods.WAIT.replace("signal.sigtimedwait", "print(flush=True); signal.sigtimedwait")
        process = subprocess.Popen([sys.executable, "-c", waits], stdout=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stdout.readline() == b"\n"
        process.terminate()
        assert process.wait(60) == 0
        process.stdout.close()

    def test_no_secret_and_no_outcome_is_no_error_of_anybody(self) -> None:
        job = JobView(batch_job())
        pod = waiting("CreateContainerConfigError", 'secret "triage-workers" not found')
        with pytest.raises(NotNow, match="no worker of it has run"):
            pods.look(pod, job)


class Untouched:
    def write(self, data: bytes, /) -> None:
        raise AssertionError("nothing was said")
