"""Texts of several rows in one request for embeddings: each row gets what it would have got alone."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from rowmill_worker.executors.openai import OpenAIExecutor
from rowmill_worker.executors.protocol import Attempt, RowError
from tests.support.http_rows import attempt
from tests.support.openai_rows import openai_executor
from tests.support.openai_server import Asked, OpenAIServer, Reply, error

# Batches go when they are full, however slow the machine.
PATIENT = {"maxSize": 8, "minSize": 8, "maxWaitMilliseconds": 60_000, "hardTimeoutMilliseconds": 60_000}
THREE = {"maxSize": 3, "minSize": 3}


def vectors(asked: Asked) -> Reply:
    """A vector a text that tells which it was, in whatever order; a token a character."""
    texts = asked.body["input"] if isinstance(asked.body["input"], list) else [asked.body["input"]]
    if any(text == "poison" for text in texts):
        return Reply(error("This model's maximum context length is 5 tokens.", code="context_length_exceeded"), 400)
    data = [{"object": "embedding", "index": i, "embedding": [float(len(t)), 0.5]} for i, t in enumerate(texts)]
    total = sum(map(len, texts))
    body = {
        "object": "list",
        "data": data[::-1],
        "model": "tiny-1",
        "usage": {"prompt_tokens": total, "total_tokens": total},
    }
    return Reply(body)


async def ends_of(executor: OpenAIExecutor, rows: Sequence[Attempt]) -> list[Any]:
    found = await asyncio.gather(*(executor.execute(row) for row in rows), return_exceptions=True)
    return [one.error_class if isinstance(one, RowError) else one for one in found]


def rows_of(texts: Sequence[str]) -> list[Attempt]:
    return [attempt(seq, text=text) for seq, text in enumerate(texts, 1)]


def batching(url: str, **fields: Any) -> Any:
    return openai_executor(url, endpoint="Embeddings", batching=PATIENT | fields.pop("batching", {}), **fields)


async def test_rows_share_requests_and_none_its_vector() -> None:
    server = OpenAIServer(plan=vectors)
    texts = ["x" * n for n in range(1, 25)]
    async with server as url, batching(url, parameters={"dimensions": 2}) as executor:
        rows = rows_of(texts)
        assert await ends_of(executor, rows) == [[float(n), 0.5] for n in range(1, 25)]
    sizes = [len(asked.body["input"]) for asked in server.asked]
    assert sizes == [8, 8, 8]
    assert all(asked.body["dimensions"] == 2 and asked.body["model"] == "tiny-1" for asked in server.asked)
    first = next(asked for asked in server.asked if asked.body["input"][0] == "x")
    assert first.headers["x-request-id"] == "triage-1-1+7"
    assert len({asked.headers["idempotency-key"] for asked in server.asked}) == 3
    used = [row.usage for row in rows]
    assert all(one is not None and one.requests == 1 for one in used)
    assert sum(one.input_tokens for one in used if one is not None) == sum(range(1, 25))


async def test_a_query_sees_an_answer_of_its_own() -> None:
    async with (
        OpenAIServer(plan=vectors) as url,
        batching(url, batching=THREE, result="[length(data), data[0].index, data[0].embedding[0]]") as executor,
    ):
        assert await ends_of(executor, rows_of(["a", "bb", "ccc"])) == [[1, 0, 1.0], [1, 0, 2.0], [1, 0, 3.0]]
    async with OpenAIServer(plan=vectors) as url, batching(url, batching={"maxSize": 1, "minSize": 1}) as executor:
        assert await ends_of(executor, rows_of(["alone"])) == [[5.0, 0.5]]


async def test_one_bad_row_fails_alone() -> None:
    server = OpenAIServer(plan=vectors)
    async with server as url, batching(url, batching={"maxSize": 64, "minSize": 64}) as executor:
        texts = ["ok"] * 63
        texts.insert(37, "poison")
        ends = await ends_of(executor, rows_of(texts))
    assert ends.count([2.0, 0.5]) == 63
    assert ends[37] == "ContextLengthExceeded"
    assert len(server.asked) == 13  # one of 64; then a pair of halves for each of six halvings


async def test_a_servers_trouble_is_no_rows_fault_and_parts_no_batch() -> None:
    for reply, told in [
        (Reply(error("slow down"), 429, {"Retry-After": "3"}), "HTTP429"),
        (Reply(error("boom"), 500), "HTTP500"),
        (Reply(error("no key"), 401), "HTTP401"),
        (Reply({"object": "list", "data": [{"index": 0, "embedding": [1.0]}], "model": "m"}), "InvalidAnswer"),
        (Reply({"data": []}), "InvalidAnswer"),
    ]:
        server = OpenAIServer(plan=lambda _, r=reply: r)  # type: ignore[misc]
        async with server as url, batching(url) as executor:
            rows = rows_of(["a"] * 8)
            assert await ends_of(executor, rows) == [told] * 8
            assert len(server.asked) == 1
            assert all(row.usage is not None and row.usage.requests == 1 for row in rows)


async def test_what_never_answers_gives_every_row_back() -> None:
    async with OpenAIServer(plan=lambda _: Reply(stalls=True)) as url, batching(url, batching=THREE) as executor:
        rows = [attempt(seq, text="a", timeout=0.3) for seq in range(1, 4)]
        found = await asyncio.gather(*(executor.execute(row) for row in rows), return_exceptions=True)
        assert {(one.error_class, one.retryable, one.spent) for one in found if isinstance(one, RowError)} == {
            ("Timeout", True, False)
        }
        assert len(found) == 3


async def test_closing_hands_back_what_waits() -> None:
    server = OpenAIServer(plan=vectors)
    async with server as url:
        async with batching(url) as executor:
            waiting = asyncio.ensure_future(ends_of(executor, rows_of(["a", "b"])))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        assert await waiting == ["WorkerStopping", "WorkerStopping"]
    assert server.asked == []


async def test_a_row_that_renders_to_no_text_is_told_before_it_waits() -> None:
    async with OpenAIServer(plan=vectors) as url, batching(url) as executor:
        for text in (["a"], None, 5):
            assert await ends_of(executor, [attempt(text=text)]) == ["TemplateError"]
