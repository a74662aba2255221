"""Rows that are lines of OpenAI's Batch API are sent as they stand; results come back as its output and error files."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from rowmill.errors import InvalidInput
from rowmill.identity import RunIdentity
from rowmill.outcome import Outcome, State
from rowmill_cli.export import export_openai
from rowmill_cli.main import main
from rowmill_worker.executors.openai import OpenAIPreview
from rowmill_worker.executors.protocol import Usage
from tests.support.http_rows import JOB, attempt
from tests.support.openai_rows import KEY, failure, openai_executor, openai_spec
from tests.support.openai_server import Json, OpenAIServer, Reply, chat

RUN = RunIdentity("rowmill", "support", "lines", "1")
BODY = {
    "model": "tiny-1",
    "messages": [{"role": "user", "content": "hi you"}],
    "max_tokens": 9,
    "heat": [1, {"a": None}],
}


def line(url: Any = "/v1/chat/completions", body: Any = None, **fields: Any) -> Json:
    made = {"custom_id": "r-1", "method": "POST", "url": url, "body": BODY if body is None else body}
    return {name: value for name, value in (made | fields).items() if value is not ...}


async def test_a_line_is_sent_unchanged_and_the_whole_answer_kept() -> None:
    server = OpenAIServer(key=KEY)
    async with server as url, openai_executor(url, endpoint="BatchLines", apiKey={"env": "KEY"}) as executor:
        row = attempt(**line())
        result = await executor.execute(row)
        assert row.usage == Usage(requests=1, input_tokens=2, output_tokens=2)
        # A table of texts: the body is JSON in a cell.
        assert await executor.execute(attempt(**line(body=json.dumps(BODY)))) == {**result, "request_id": "req_2"}
        vectors = await executor.execute(attempt(**line("/v1/embeddings", {"model": "tiny-1", "input": ["a", "b"]})))
        text = await executor.execute(attempt(**line("/v1/completions", {"model": "tiny-1", "prompt": "hi"})))
        spoken = await executor.execute(attempt(**line("/v1/responses", {"model": "tiny-1", "input": "hi"})))
    assert (result["status_code"], result["request_id"]) == (200, "req_1")
    assert result["body"]["choices"][0]["message"]["content"] == "HI YOU"
    assert len(vectors["body"]["data"]) == 2
    assert text["body"]["choices"][0]["text"] == "HI"
    assert spoken["body"]["object"] == "response"
    assert [asked.path for asked in server.asked] == [
        "/v1/chat/completions",
        "/v1/chat/completions",
        "/v1/embeddings",
        "/v1/completions",
        "/v1/responses",
    ]
    assert server.asked[0].body == server.asked[1].body == BODY
    assert server.asked[4].body == {"model": "tiny-1", "input": "hi"}
    assert server.asked[0].headers["content-type"] == "application/json"
    assert server.asked[0].headers["idempotency-key"] == "support/triage/1/1"


async def test_every_ending_is_a_result_of_a_line_unless_the_manifest_says_so() -> None:
    cut = chat("cut", finish="length")
    async with OpenAIServer(plan=lambda _: Reply(cut)) as url:
        async with openai_executor(url, endpoint="BatchLines") as executor:
            assert (await executor.execute(attempt(**line())))["body"] == cut
        async with openai_executor(url, endpoint="BatchLines", accept=["Refusal"]) as executor:
            assert (await failure(executor, attempt(**line()))).error_class == "OutputTruncated"
        async with openai_executor(url, endpoint="BatchLines", result="usage.total_tokens") as executor:
            assert await executor.execute(attempt(**line())) == 10
    moderated = {"id": "modr-1", "model": "m", "results": [{"flagged": False}]}
    async with OpenAIServer(plan=lambda _: Reply(moderated)) as url:
        async with openai_executor(url, endpoint="BatchLines") as executor:
            row = attempt(**line("/v1/moderations", {"input": "x"}))
            assert (await executor.execute(row))["body"] == moderated


@pytest.mark.parametrize(
    ("row", "told"),
    [
        (line(custom_id=...), "custom_id must be a text of 1 to 512 characters"),
        (line(custom_id=5), "custom_id must be a text"),
        (line(custom_id=""), "custom_id must be a text"),
        (line(method="GET"), "method must be POST"),
        (line(url="/v1/files"), "url must be one of /v1/chat/completions, .* and is /v1/files"),
        (line(url="http://elsewhere/v1/chat/completions"), "url must be one of"),
        (line(url="/v1/chat/completions?x=1"), "url must be one of"),
        (line(url=...), "url must be one of"),
        (line(body=[1]), "body must be an object"),
        (line(body="{"), "body is a text that is not JSON"),
        (line(body="[1]"), "body must be an object"),
        (line(body=...), "body must be an object"),
        (line(body=BODY | {"stream": True}), "body.stream is set"),
    ],
)
async def test_a_row_that_is_no_line_is_not_sent(row: Json, told: str) -> None:
    server = OpenAIServer()
    async with server as url, openai_executor(url, endpoint="BatchLines") as executor:
        one = attempt(**row)
        found = await failure(executor, one)
    assert (found.error_class, found.retryable, found.spent) == ("InvalidBatchLine", False, False)
    with pytest.raises(AssertionError, match=told):
        raise AssertionError(found.message)
    assert server.asked == []
    assert one.usage is None


def test_the_preview_of_a_line() -> None:
    preview = OpenAIPreview(spec=openai_spec("http://m.invalid/v1", endpoint="BatchLines"), job=JOB)
    preview.open()
    shown = preview.render(attempt(**line("/v1/embeddings", {"model": "m", "input": "x"})))
    assert (shown["url"], shown["body"]) == ("http://m.invalid/v1/embeddings", {"model": "m", "input": "x"})


# -- files


def outcome(seq: int, result: Any = None, **fields: Any) -> Outcome:
    text = None if result is None else result if isinstance(result, str) else json.dumps(result, indent=1)
    return Outcome(seq=seq, state=fields.pop("state", State.SUCCEEDED), attempts=1, result=text, **fields)


def failed(seq: int, error_class: str, key: str | None = None) -> Outcome:
    return outcome(seq, state=State.FAILED, error_class=error_class, error_message=f"it was {error_class}", key=key)


async def pages(*outcomes: Outcome) -> AsyncIterator[Sequence[Outcome]]:
    for i in range(0, len(outcomes), 2):
        yield outcomes[i : i + 2]


def lines_in(path: Path) -> list[Json]:
    return [json.loads(text) for text in path.read_text("utf-8").splitlines()]


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


async def test_the_files_are_those_of_the_batch_api(tmp_path: Path) -> None:
    answer = chat("hi")
    whole = {"status_code": 200, "request_id": "req_1", "body": answer}
    body = '{"choices": [], "n": 12345678901234567890123, "f": 1.10,\n"t": "é"}'
    precise = f'{{"status_code": 200, "request_id": "r", "body": {body}}}'
    path = tmp_path / "batch_output.jsonl"
    counts = await export_openai(
        pages(
            outcome(1, whole, key='"a"'),
            failed(2, "HTTP400", key='"b"'),
            outcome(3, precise, key='"c"'),
            failed(4, "Timeout"),
            outcome(5, answer, key='["x",1]'),
            outcome(6, whole, key='"a"', state=State.DEDUPLICATED, duplicate_of="support/lines/1#1"),
        ),
        path,
        RUN,
    )
    assert counts == (4, 2)
    answered, refused = lines_in(path), lines_in(tmp_path / "batch_error.jsonl")
    assert all(list(one) == ["id", "custom_id", "response", "error"] for one in answered + refused)
    assert [one["custom_id"] for one in answered] == ["a", "c", '["x",1]', "a"]
    assert answered[0]["response"] == answered[3]["response"] == whole
    assert answered[2]["response"] == {"status_code": 200, "request_id": "", "body": answer}
    assert all(one["error"] is None for one in answered)
    assert "12345678901234567890123" in path.read_text("utf-8")
    assert '"f": 1.10' in path.read_text("utf-8")
    assert [one["custom_id"] for one in refused] == ["b", "row-4"]
    assert refused[0]["response"]["status_code"] == 400
    assert refused[0]["response"]["body"]["error"]["message"] == "it was HTTP400"
    assert refused[0]["error"] is None
    assert (refused[1]["response"], refused[1]["error"]) == (None, {"code": "Timeout", "message": "it was Timeout"})
    identifiers = [one["id"] for one in answered + refused]
    assert len(set(identifiers)) == 6
    assert all(one.startswith("batch_req_") for one in identifiers)
    # Written again, without failures: the same names, and no error file of old.
    assert await export_openai(pages(outcome(1, whole, key='"a"')), path, RUN) == (1, 0)
    assert lines_in(path) == answered[:1]
    assert names_in(tmp_path) == ["batch_output.jsonl"]


@pytest.mark.parametrize(
    ("options", "told"),
    [([], "name the file by --output PATH"), (["--output", "x.jsonl", "--failed"], "leave out --failed")],
)
def test_the_command_says_what_the_format_needs(
    options: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["results", "--state", str(tmp_path), "--format", "openai", *options]) == 2
    assert told in capsys.readouterr().err


async def test_results_that_are_parts_of_answers_are_refused_and_old_files_stay(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text("old")
    for result in ('"just text"', '{"label": "a"}', "null", "[1]"):
        with pytest.raises(InvalidInput, match=r"row 7: .*endpoint BatchLines or result \"@\""):
            await export_openai(pages(outcome(7, result)), path, RUN)
    with pytest.raises(InvalidInput, match=r"JSONL: give the file the suffix \.jsonl"):
        await export_openai(pages(), tmp_path / "out.csv", RUN)
    assert path.read_text() == "old"
    assert names_in(tmp_path) == ["out.jsonl"]
