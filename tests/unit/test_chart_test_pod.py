"""What `helm test` runs in a pod, run here against a server that answers as operator and API server do."""

from __future__ import annotations

import http.server
import importlib.util
import json
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import trustme

from tests.unit.chart_helpers import CHART, EXISTING, of_kind, render

RESOURCES = ["batchjobs", "batchjobs/status", "batchjobs/scale"]


class Answers:
    """A server at 127.0.0.1 whose answers a test sets by path; it keeps the tokens that it was shown."""

    def __init__(self, trusted: ssl.SSLContext | None = None) -> None:
        self.by_path: dict[str, tuple[int, bytes]] = {}
        self.tokens: list[str | None] = []
        answers = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                answers.tokens.append(self.headers.get("Authorization"))
                status, body = answers.by_path.get(self.path, (404, b"{}"))
                self.send_response(status)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        if trusted is not None:
            self._server.socket = trusted.wrap_socket(self._server.socket, server_side=True)
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def operator(monkeypatch: pytest.MonkeyPatch) -> Iterator[Answers]:
    server = Answers()
    monkeypatch.setenv("OPERATOR", "operator.invalid")
    monkeypatch.setenv("OPERATOR_HOST_VARIABLE", "MILL_ROWMILL_SERVICE_HOST")
    monkeypatch.setenv("MILL_ROWMILL_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("OPERATOR_PORT", str(server.port))
    server.by_path["/readyz"] = (200, b"ok")
    yield server
    server.close()


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Answers]:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.crt"))
    (tmp_path / "token").write_text("the-token\n")
    server = Answers(context)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(server.port))
    server.by_path["/apis/rowmill.dev/v1alpha1"] = (200, resources(RESOURCES))
    yield server
    server.close()


def resources(names: list[str]) -> bytes:
    return json.dumps({"kind": "APIResourceList", "resources": [{"name": name} for name in names]}).encode()


@pytest.fixture
def script(tmp_path: Path) -> ModuleType:
    """The very text that the pod is given, with its waiting left out."""
    (pod,) = of_kind(render(EXISTING), "Pod")
    python, option, text = pod["spec"]["containers"][0]["command"]
    assert (python, option) == ("python", "-c")
    assert text.strip() == (CHART / "files" / "chart_test.py").read_text("utf-8").strip()
    place = tmp_path / "chart_test_in_pod.py"
    place.write_text(text)
    spec = importlib.util.spec_from_file_location("chart_test_in_pod", place)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.ACCOUNT = tmp_path  # type: ignore[attr-defined]
    module.SECONDS = module.STEADY_SECONDS = 0.0  # type: ignore[attr-defined]
    return module


def test_all_is_well(script: ModuleType, operator: Answers, api: Answers, capsys: pytest.CaptureFixture[str]) -> None:
    assert script.main() == 0
    assert capsys.readouterr().out == "BatchJob: ok\noperator: ok\n"
    assert api.tokens == ["Bearer the-token"]
    assert operator.tokens == [None]


def test_an_operator_that_is_not_ready(
    script: ModuleType, operator: Answers, api: Answers, capsys: pytest.CaptureFixture[str]
) -> None:
    operator.by_path["/readyz"] = (503, b"no Lease yet")
    assert script.main() == 1
    assert "readyz answered 503: no Lease yet" in capsys.readouterr().out


class Clock:
    """Stands in for `time`: a second passes only where one is waited for."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.mark.parametrize(
    ("found", "result", "after"),
    [
        ([None] * 99, None, 3),  # well from the start
        (["no"] * 5 + [None] * 99, None, 8),  # well in the end
        ([None, None, "no"] * 99, "no", 20),  # well now and then: it is started again and again
        (["no"] * 99, "no", 20),
    ],
)
def test_well_means_well_for_a_while(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, found: list[str | None], result: str | None, after: float
) -> None:
    clock = Clock()
    monkeypatch.setattr(script, "time", clock)
    monkeypatch.setattr(script, "SECONDS", 20.0)
    answers = iter(found)
    assert script.why_not_well(lambda: next(answers), steady=3.0) == result
    assert clock.now == pytest.approx(after, abs=3)


def test_an_operator_that_is_not_there(
    script: ModuleType, operator: Answers, api: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPERATOR_PORT", "1")
    assert "see the operator's pods" in script.operator_is_ready()


def test_a_cluster_that_knows_no_batchjob(script: ModuleType, api: Answers) -> None:
    del api.by_path["/apis/rowmill.dev/v1alpha1"]
    assert "crds.enabled=true" in script.batchjobs_are_known()


def test_an_old_definition(script: ModuleType, api: Answers) -> None:
    api.by_path["/apis/rowmill.dev/v1alpha1"] = (200, resources(RESOURCES[:1]))
    assert "lacks ['batchjobs/scale', 'batchjobs/status']" in script.batchjobs_are_known()


def test_an_api_server_that_is_not_trusted(script: ModuleType, api: Answers, tmp_path: Path) -> None:
    trustme.CA().cert_pem.write_to_path(str(tmp_path / "ca.crt"))
    assert "CERTIFICATE_VERIFY_FAILED" in script.batchjobs_are_known()
    assert api.tokens == [], "the token was shown to a stranger"


def test_the_pod_is_given_what_the_script_asks_for() -> None:
    (pod,) = of_kind(render(EXISTING), "Pod")
    env = {e["name"]: e["value"] for e in pod["spec"]["containers"][0]["env"]}
    assert env == {
        "OPERATOR": "mill-rowmill.batch.svc",
        "OPERATOR_HOST_VARIABLE": "MILL_ROWMILL_SERVICE_HOST",
        "OPERATOR_PORT": "8080",
    }
    assert pod["metadata"]["annotations"]["helm.sh/hook"] == "test"
