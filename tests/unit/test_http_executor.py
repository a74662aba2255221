"""What an HTTP row sends and what becomes of its answer, against real servers."""

import asyncio
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from rowmill.errors import InvalidInput
from rowmill_worker.executors.http import HttpExecutor, shared_connector
from rowmill_worker.executors.protocol import Executor, RowError
from rowmill_worker.executors.secrets import SecretReader
from tests.support.endpoint import Behaviour, Endpoint, Plan
from tests.support.http_rows import Mirror, attempt, http_executor, http_spec


async def test_a_row_becomes_a_json_request_with_its_own_types() -> None:
    mirror = Mirror()
    async with mirror as url:
        fields: dict[str, Any] = {
            "body": {
                "text": "{{ row.a }} {{ row.b }}",
                "n": "{{ row.n }}",
                "cell": "{{ row.cell }}",
                "deep": [{"k": "{{ key }}"}],
            },
            "headers": [{"name": "X-Job", "value": "{{ job.name }}-{{ seq }}"}],
        }
        async with http_executor(f"{url}/v1/{{{{ row.id }}}}?q={{{{ row.a | urlencode }}}}", **fields) as executor:
            row = attempt(7, a="x y", b="ü", n=3, cell="42", key=["k", 1])
            assert await executor.execute(row) == {"n": 1, "nested": {"label": "spam"}}
    (seen,) = mirror.seen
    assert seen["method"] == "POST"
    assert seen["path"] == "/v1/7?q=x%20y"
    assert seen["body"] == '{"text":"x y ü","n":3,"cell":"42","deep":[{"k":["k",1]}]}'
    headers = seen["headers"]
    assert headers["content-type"] == "application/json"
    assert headers["idempotency-key"] == "support/triage/1/7"
    assert headers["x-request-id"] == "triage-7-1"
    assert headers["x-job"] == "triage-7"
    assert headers["user-agent"].startswith("rowmill/")


@pytest.mark.parametrize(
    ("body", "headers", "sent", "content_type"),
    [
        ("{{ row.a }} and more", [], "x and more", "text/plain; charset=utf-8"),
        ("{{ row.a }}", [], "x", "text/plain; charset=utf-8"),
        ("{{ row.obj }}", [], '{"k":[1]}', "application/json"),
        ([1, "{{ row.a }}"], [], '[1,"x"]', "application/json"),
        ("<a>{{ row.a }}</a>", [{"name": "content-type", "value": "application/xml"}], "<a>x</a>", "application/xml"),
        ({"k": 1}, [{"name": "Content-Type", "value": "application/vnd.x+json"}], '{"k":1}', "application/vnd.x+json"),
        (None, [], "", None),
    ],
)
async def test_the_body_says_its_type(
    body: Any, headers: list[dict[str, str]], sent: str, content_type: str | None
) -> None:
    mirror = Mirror()
    async with mirror as url, http_executor(url, body=body, headers=headers) as executor:
        await executor.execute(attempt(a="x", obj={"k": [1]}))
    assert mirror.seen[0]["body"] == sent
    assert mirror.seen[0]["headers"].get("content-type") == content_type


async def test_headers_of_the_manifest_go_before_ours() -> None:
    mirror = Mirror()
    headers = [
        {"name": "User-Agent", "value": "mine"},
        {"name": "X-Empty", "value": "{{ row.nothing }}"},
    ]
    async with mirror as url, http_executor(url, headers=headers) as executor:
        await executor.execute(attempt(3, nothing=None))
    sent = mirror.seen[0]["headers"]
    assert (sent["user-agent"], sent["x-empty"]) == ("mine", "")


async def test_a_large_body_arrives_whole() -> None:
    mirror = Mirror()
    text = "é" * 600_000
    async with mirror as url, http_executor(url, body={"t": "{{ row.t }}"}) as executor:
        await executor.execute(attempt(t=text))
    assert mirror.seen[0]["body"] == f'{{"t":"{text}"}}'


@pytest.mark.parametrize(
    ("content", "content_type", "query", "result"),
    [
        (
            b'{"label": "spam", "n": 12345678901234567890123}',
            "application/json",
            None,
            {"label": "spam", "n": 12345678901234567890123},
        ),
        (b'{"a": {"label": ["x"]}}', "application/json", "a.label[0]", "x"),
        (b'{"a": 1}', "application/json", "missing.field", None),
        (b"[1, 2.5, null]", "", None, [1, 2.5, None]),
        (b'{"a": 1}', "text/html", "a", 1),
        (b"42", "text/plain", None, "42"),
        ("grüß".encode("latin-1"), "text/plain; charset=ISO-8859-1", None, "grüß"),
        ("\ufeff[1]".encode(), "application/json", None, [1]),
        (b'{"a": "\\ud83d\\ude00 \\\\u0000"}', "application/json", None, {"a": "😀 \\u0000"}),
        (b'{"bad": "\\ud800", "good": 1}', "application/json", "good", 1),
        (b"", "application/json", None, None),
    ],
)
async def test_the_answer_becomes_the_result(content: bytes, content_type: str, query: str | None, result: Any) -> None:
    plan = Plan(default=Behaviour("raw", body=content, content_type=content_type))
    async with Endpoint(plan=plan) as endpoint, http_executor(endpoint.url, result=query) as executor:
        assert await executor.execute(attempt()) == result


async def test_parameters_are_encoded_repeated_and_left_out() -> None:
    mirror = Mirror()
    query = {"q": "{{ row.q }}", "tag": "{{ row.tags }}", "none": "{{ row.none }}", "yes": True, "n": 1.5}
    async with mirror as url, http_executor(f"{url}/v1?fixed=1", query=query) as executor:
        await executor.execute(attempt(q="a&b=ü +", tags=["x", 2], none=None))
        for bad in ({"k": 1}, [[1]]):
            with pytest.raises(RowError, match=r"spec\.executor\.http\.query\.q: .* no parameter can carry"):
                await executor.execute(attempt(q=bad, tags=[], none=None))
    assert [seen["path"] for seen in mirror.seen] == ["/v1?fixed=1&q=a%26b%3D%C3%BC+%2B&tag=x&tag=2&yes=true&n=1.5"]


async def test_success_codes_say_what_success_is() -> None:
    plan = Plan(choose=lambda row, nth: Behaviour("ok", status=int(row or 0), body={"status": row}))
    async with Endpoint(plan=plan) as endpoint:
        async with http_executor(endpoint.url, successCodes=[200, 404, 302]) as executor:
            for status in (200, 404, 302):
                assert await executor.execute(attempt(status)) == {"status": str(status)}
            with pytest.raises(RowError, match=r"HTTP202: .* not among spec\.executor\.http\.successCodes") as caught:
                await executor.execute(attempt(202))
    assert not caught.value.retryable


async def test_no_content_is_null() -> None:
    async with Endpoint(plan=Plan(default=Behaviour("raw", status=204, body=""))) as endpoint:
        async with http_executor(endpoint.url, method="DELETE", body=None) as executor:
            assert await executor.execute(attempt()) is None


@pytest.mark.parametrize(
    ("content", "content_type", "query", "error_class", "says"),
    [
        (b"<h1>hello</h1>", "text/html", "a", "InvalidAnswer", "it began: <h1>hello</h1>"),
        (b"sorry, no", "application/json", None, "InvalidAnswer", "not JSON"),
        (b'{"a": NaN}', "application/json", None, "InvalidAnswer", "not JSON"),
        (b'{"a": 1e999}', "application/json", None, "InvalidAnswer", "not JSON"),
        (b"[" * 100_000, "application/json", None, "InvalidAnswer", "not JSON"),
        (b"", "application/json", "a", "InvalidAnswer", "it was empty"),
        (b'{"a": 1}', "application/json", "length(a)", "InvalidAnswer", "spec.executor.http.result"),
        (b'{"a": ["x\\u0000"]}', "application/json", None, "InvalidText", "U+0000"),
        (b'{"\\u0000": 1}', "application/json", None, "InvalidText", "U+0000"),
        (b'{"a": "\\ud800"}', "application/json", None, "InvalidText", "lone surrogate"),
        (b"nul \0 in text", "text/plain", None, "InvalidText", "U+0000"),
        (b"caf\xe9", "text/plain", None, "InvalidText", "not utf-8"),
        (b"x", "text/plain; charset=klingon", None, "InvalidText", "not klingon"),
        (b'"' + b"x" * 2_000_000 + b'"', "application/json", None, "AnswerTooLarge", "1,048,576 bytes"),
        (b'"' + b"x" * 11_000_000 + b'"', "application/json", None, "AnswerTooLarge", "10,485,760 bytes"),
    ],
)
async def test_an_answer_that_cannot_be_used_ends_the_row(
    content: bytes, content_type: str, query: str | None, error_class: str, says: str
) -> None:
    plan = Plan(default=Behaviour("raw", body=content, content_type=content_type))
    async with Endpoint(plan=plan) as endpoint, http_executor(endpoint.url, result=query) as executor:
        with pytest.raises(RowError) as caught:
            await executor.execute(attempt())
        assert executor.active_sessions == 0
    error = caught.value
    assert (error.error_class, error.retryable, error.spent) == (error_class, False, True)
    assert says in error.message
    assert "may have been charged" in error.message
    assert len(error.message) < 800


async def test_an_answer_that_tells_no_length_is_bounded_too() -> None:
    async def pour(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        response.enable_compression(web.ContentCoding.gzip)
        await response.prepare(request)
        for _ in range(64):
            await response.write(b" " * 65_536)
        return response

    class Pouring(Mirror):
        async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
            return await pour(request)

    async with Pouring() as url, http_executor(url, options={"max_answer_bytes": 1_000_000}) as executor:
        with pytest.raises(RowError, match="larger than 1,000,000 bytes") as caught:
            await executor.execute(attempt())
    assert caught.value.error_class == "AnswerTooLarge"


@pytest.mark.parametrize(
    ("fields", "row", "error_class", "says"),
    [
        (
            {"body": {"t": "{{ row.missing }}"}},
            {},
            "TemplateError",
            'spec.executor.http.body.t: the row has no column "missing"',
        ),
        ({"url": "{{ row.u }}"}, {"u": "not a url"}, "InvalidURL", "spec.executor.http.url"),
        ({"url": "{{ row.u }}"}, {"u": "file:///etc/passwd"}, "InvalidURL", "http or https"),
        ({"url": "{{ row.u }}"}, {"u": "http://"}, "InvalidURL", "host"),
        ({"url": "{{ row.u }}"}, {"u": "http://[::1"}, "InvalidURL", "host"),
        ({"url": "{{ row.u }}"}, {"u": "http://x:99999/"}, "InvalidURL", "host"),
        ({"url": "{{ row.u }}"}, {"u": "http://a\ud800b/"}, "InvalidURL", "host"),
        (
            {"headers": [{"name": "X-A", "value": "{{ row.h }}"}]},
            {"h": "a\r\nX-Evil: 1"},
            "TemplateError",
            "headers[0].value",
        ),
        ({"headers": [{"name": "X-A", "value": "{{ row.h }}"}]}, {"h": "\ud800"}, "InvalidText", "headers[0].value"),
        ({"body": "{{ row.h }}"}, {"h": "\ud800"}, "InvalidText", "spec.executor.http.body"),
        ({"body": {"h": "{{ row.h }}"}}, {"h": "\ud800"}, "InvalidText", "spec.executor.http.body"),
    ],
)
async def test_a_row_that_does_not_fit_is_not_sent(
    fields: dict[str, Any], row: dict[str, Any], error_class: str, says: str
) -> None:
    async with Endpoint() as endpoint:
        fields = {"url": endpoint.url, **fields}
        async with http_executor(**fields) as executor:
            with pytest.raises(RowError) as caught:
                await executor.execute(attempt(**row))
        assert endpoint.stats()["calls"] == 0
    error = caught.value
    assert (error.error_class, error.retryable, error.spent) == (error_class, False, False)
    assert says in error.message


async def test_an_idempotency_key_of_any_text_is_sent_in_one_stable_form() -> None:
    mirror = Mirror()
    async with mirror as url, http_executor(url) as executor:
        for key in ("plain/key#1", "größe\n1"):
            row = attempt()
            row.idempotency_key = key
            await executor.execute(row)
    assert [seen["headers"]["idempotency-key"] for seen in mirror.seen] == ["plain/key#1", "gr%C3%B6%C3%9Fe%0A1"]


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"body": {"t": "{{ row. }}"}}, "spec.executor.http.body.t"),
        ({"headers": [{"name": "X-A", "value": "{% if %}"}]}, "spec.executor.http.headers[0].value"),
        ({"result": "a["}, "spec.executor.http.result"),
        (
            {"headers": [{"name": "Authorization", "valueFrom": {"env": "NO_TOKEN"}}]},
            "spec.executor.http.headers[0].valueFrom.env",
        ),
    ],
)
async def test_what_the_manifest_gets_wrong_is_told_at_opening(fields: dict[str, Any], path: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        async with http_executor("http://127.0.0.1:9/", **fields):
            pass
    (problem,) = caught.value.problems
    assert problem.path == path
    assert caught.value.lines()[0].startswith(f"job.yaml: {path}: ")


async def test_secrets_are_sent_and_never_told(tmp_path: Path) -> None:
    (tmp_path / "triage").mkdir()
    (tmp_path / "triage" / "token").write_text("Bearer s3cr3t-token-value\n")
    (tmp_path / "plain.txt").write_text("file-secret-value")
    headers = [
        {"name": "Authorization", "valueFrom": {"secretKeyRef": {"name": "triage", "key": "token"}}},
        {"name": "X-Env", "valueFrom": {"env": "API_KEY"}},
        {"name": "X-File", "valueFrom": {"file": str(tmp_path / "plain.txt")}},
    ]
    environ = {"ROWMILL_SECRETS_DIR": str(tmp_path), "API_KEY": 'env "secret" value'}

    def tell(request: web.BaseRequest) -> web.Response:
        # Everything that it was given, as it stands and escaped, and a secret across the end of the excerpt.
        told = " ".join([request.headers["Authorization"], request.headers["X-File"]])
        cut = "x" * 150 + " s3cr3t-token-value"
        return web.json_response({"told": told, "env": request.headers["X-Env"], "cut": cut}, status=403)

    mirror = Mirror(tell)
    async with mirror as url, http_executor(url, headers=headers, environ=environ) as executor:
        with pytest.raises(RowError) as caught:
            await executor.execute(attempt())
        text = f"{caught.value!s} {caught.value!r} {executor!r} {vars(executor)!r}"
    sent = mirror.seen[0]["headers"]
    assert sent["authorization"] == "Bearer s3cr3t-token-value"
    assert (sent["x-env"], sent["x-file"]) == ('env "secret" value', "file-secret-value")
    assert caught.value.error_class == "HTTP403"
    assert "[redacted]" in caught.value.message
    for hidden in ("s3cr3t", "file-secret", 'env "secret', 'env \\"secret'):
        assert hidden not in text


async def test_connections_are_kept_and_each_call_has_a_session_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    sessions: list[aiohttp.ClientSession] = []
    init = aiohttp.ClientSession.__init__

    def noted(self: aiohttp.ClientSession, *args: Any, **kwargs: Any) -> None:
        sessions.append(self)
        init(self, *args, **kwargs)

    monkeypatch.setattr(aiohttp.ClientSession, "__init__", noted)
    mirror = Mirror()
    async with mirror as url, http_executor(url) as executor:
        for seq in range(5):
            await executor.execute(attempt(seq))
    assert len({seen["connection"] for seen in mirror.seen}) == 1
    assert len({id(session) for session in sessions}) == 5
    assert all(session.closed for session in sessions)


async def test_errors_keep_their_connection_too() -> None:
    mirror = Mirror(lambda _: web.Response(status=503, text="busy" * 1000))
    async with mirror as url, http_executor(url) as executor:
        for seq in range(3):
            with pytest.raises(RowError, match="HTTP503"):
                await executor.execute(attempt(seq))
    assert len({seen["connection"] for seen in mirror.seen}) == 1


async def test_a_connector_that_was_closed_is_replaced_before_sending() -> None:
    made: list[aiohttp.TCPConnector] = []

    def make() -> aiohttp.TCPConnector:
        made.append(shared_connector())
        return made[-1]

    async with Endpoint() as endpoint, http_executor(endpoint.url, options={"connector_factory": make}) as executor:
        await executor.execute(attempt(1))
        await made[0].close()
        assert await executor.execute(attempt(2)) == {"row": "2", "ok": True}
        assert executor.rebuilt_connectors == 1
        assert endpoint.stats()["calls"] == 2
        assert executor.active_sessions == 0


class ClosedOnUse(aiohttp.TCPConnector):
    """Closes itself when it is asked for a connection, after the session was made: the latest moment there is."""

    async def connect(self, *args: Any, **kwargs: Any) -> Any:
        await self.close()
        return await super().connect(*args, **kwargs)


async def test_a_connector_that_closes_between_session_and_sending_costs_no_attempt() -> None:
    made: list[aiohttp.BaseConnector] = []

    def make() -> aiohttp.BaseConnector:
        made.append(ClosedOnUse(limit=0) if len(made) < 2 else shared_connector())
        return made[-1]

    async with Endpoint() as endpoint, http_executor(endpoint.url, options={"connector_factory": make}) as executor:
        assert await executor.execute(attempt(1)) == {"row": "1", "ok": True}
        assert (len(made), endpoint.stats()["calls"]) == (3, 1)


async def test_a_session_that_is_closed_before_its_request_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    request = aiohttp.ClientSession._request
    closed = 0

    async def closing(self: aiohttp.ClientSession, *args: Any, **kwargs: Any) -> aiohttp.ClientResponse:
        nonlocal closed
        if closed < 2:
            closed += 1
            await self.close()
        return await request(self, *args, **kwargs)

    monkeypatch.setattr(aiohttp.ClientSession, "_request", closing)
    async with Endpoint() as endpoint, http_executor(endpoint.url) as executor:
        assert await executor.execute(attempt(1)) == {"row": "1", "ok": True}
        assert (closed, endpoint.stats()["calls"]) == (2, 1)


async def test_one_that_never_stays_open_is_given_back_unspent() -> None:
    options = {"connector_factory": lambda: ClosedOnUse(limit=0)}
    async with Endpoint() as endpoint, http_executor(endpoint.url, options=options) as executor:
        with pytest.raises(RowError) as caught:
            await executor.execute(attempt(1))
        assert endpoint.stats()["calls"] == 0
    assert (caught.value.error_class, caught.value.retryable, caught.value.spent) == ("SessionClosed", True, False)


async def test_a_cancelled_row_leaves_nothing_open() -> None:
    async with Endpoint(plan=Plan(default=Behaviour("hang"))) as endpoint, http_executor(endpoint.url) as executor:
        task = asyncio.create_task(executor.execute(attempt()))
        await endpoint.wait(in_flight=1)
        assert executor.active_sessions == 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert executor.active_sessions == 0
        await endpoint.wait(idle=True)


async def test_it_is_an_executor_and_is_used_between_open_and_close() -> None:
    spec = http_spec("http://127.0.0.1:9/")
    executor: Executor = HttpExecutor(spec=spec, job={}, secrets=SecretReader(environ={}))
    with pytest.raises(RuntimeError, match="between open and close"):
        await executor.execute(attempt())
    await executor.open()
    await executor.close()
    with pytest.raises(RuntimeError, match="between open and close"):
        await executor.execute(attempt())
