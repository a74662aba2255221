"""A file of OpenAI's Batch API through `rowmill run`, as its output and error files, on real parts."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from tests.integration.test_local_run import Desk, desk, quick
from tests.support.openai_rows import KEY
from tests.support.openai_server import Asked, Json, OpenAIServer, Reply, error

__all__ = ["desk", "quick"]

ROWS = 40
BUSY = error("Rate limit reached", code="rate_limit_exceeded", kind="requests")


class Moods:
    """The first call of every fifth row meets a rate limit."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()

    def __call__(self, asked: Asked) -> Reply | None:
        text = json.dumps(asked.body)
        self.calls[text] += 1
        if self.calls[text] == 1 and '"every fifth' in text:
            return Reply(BUSY, 429, {"retry-after-ms": "5", "x-ratelimit-reset-requests": "9h"})
        return None


def line(n: int) -> Json:
    text = f"every fifth {n}" if n % 5 == 0 else f"row {n}"
    if n % 10 == 1:
        return {
            "custom_id": f"r-{n}",
            "method": "POST",
            "url": "/v1/embeddings",
            "body": {"model": "tiny-1", "input": text},
        }
    body: Json = {"model": "tiny-1", "messages": [{"role": "user", "content": text}], "max_tokens": 1 if n == 7 else 9}
    made: Json = {"custom_id": f"r-{n}", "method": "POST", "url": "/v1/chat/completions", "body": body}
    if n == 2:
        body["messages"][0]["content"] = "w " * 65
    if n == 3:
        body["model"] = "gone"
    return made | ({"url": "/v1/files"} if n == 4 else {})


def lines_in(path: Path) -> dict[str, Json]:
    return {one["custom_id"]: one for one in map(json.loads, path.read_text("utf-8").splitlines())}


async def test_a_batch_file_runs_unchanged_and_comes_back_as_batch_files(quick: Desk) -> None:
    given = [line(n) for n in range(1, ROWS + 1)]
    (quick.folder / "batch.jsonl").write_text("".join(json.dumps(one) + "\n" for one in given))
    moods = Moods()
    server = OpenAIServer(plan=moods, key=KEY)
    quick.environ["OPENAI_KEY"] = KEY
    async with server as url:
        executor = {"openai": {"baseUrl": url, "apiKey": {"env": "OPENAI_KEY"}, "endpoint": "BatchLines"}}
        quick.write(0, source={"uri": "batch.jsonl"}, key=["custom_id"], executor=executor)
        said = await quick.run()
        assert said.code == 0, said
        asked = len(server.asked)
    assert KEY not in said.out + said.err + "".join(p.read_text() for p in (quick.state / "logs").glob("*.log"))
    assert asked == ROWS - 1 + ROWS // 5  # all but the row that is no line, and one more call for each that had to wait
    output = quick.folder / "batch_output.jsonl"
    exported = await quick.rowmill("results", "--state", quick.state, "--format", "openai", "--output", output)
    assert (exported.code, exported.err) == (
        0,
        f"{ROWS - 3} answers: {output}; 3 failures: {quick.folder / 'batch_error.jsonl'}\n",
    )
    answered, failed = lines_in(output), lines_in(quick.folder / "batch_error.jsonl")
    assert set(failed) == {"r-2", "r-3", "r-4"}
    assert {one["error"]["code"] for one in failed.values()} == {
        "ContextLengthExceeded",
        "InvalidBatchLine",
        "ModelNotFound",
    }
    assert set(answered) == {one["custom_id"] for one in given} - set(failed)
    assert all(one["response"]["status_code"] == 200 and one["error"] is None for one in answered.values())
    assert answered["r-5"]["response"]["body"]["choices"][0]["message"]["content"] == "EVERY FIFTH 5"
    assert answered["r-7"]["response"]["body"]["choices"][0]["finish_reason"] == "length"
    assert answered["r-11"]["response"]["body"]["object"] == "list"
