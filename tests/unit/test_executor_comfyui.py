"""The comfyui executor against a server that speaks ComfyUI's routes over a socket."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from rowmill.errors import InvalidInput
from rowmill.spec.executors import ComfyUIExecutor as ComfyUISpec
from rowmill_worker.executors.comfyui import MAX_LISTING_BYTES, ComfyUIExecutor, ComfyUIPreview
from rowmill_worker.executors.comfyui_files import MARKER
from rowmill_worker.executors.comfyui_follow import Pace, Shared
from rowmill_worker.executors.protocol import Attempt, RowError
from rowmill_worker.executors.secrets import SecretReader
from tests.support.comfyui_server import ComfyUIServer, Plan, png, workflow
from tests.support.http_rows import JOB, Mirror, attempt

QUICK = Pace(first=0.01, longest=0.05, told=0.2, retry=0.01, retry_longest=0.05)
ONLY_TOLD = Pace(first=3_600.0, longest=3_600.0, told=3_600.0, retry=3_600.0)
"""The clock never looks."""


def spec_of(url: str, **fields: Any) -> ComfyUISpec:
    return ComfyUISpec.model_validate({"url": url, "workflow": workflow(), **fields})


@contextlib.asynccontextmanager
async def executor_of(
    url: str,
    *,
    pace: Pace = QUICK,
    base: Path | None = None,
    environ: dict[str, str] | None = None,
    most: int = MAX_LISTING_BYTES,
    **fields: Any,
) -> AsyncIterator[ComfyUIExecutor]:
    executor = ComfyUIExecutor(
        spec=spec_of(url, **fields),
        job=JOB,
        secrets=SecretReader(environ=environ or {}, base=base, where="job.yaml"),
        where="job.yaml",
        pace=pace,
        rng=random.Random(1),
        max_listing_bytes=most,
    )
    await executor.open()
    try:
        yield executor
    finally:
        await executor.close()
    assert executor.active_sessions == 0


async def failure(url: str, *, one: Attempt | None = None, **fields: Any) -> RowError:
    """How a row ends that cannot succeed."""
    async with executor_of(url, **fields) as executor:
        with pytest.raises(RowError) as caught:
            await executor.execute(one or attempt(text="a", timeout=60))
    return caught.value


async def eventually(reached: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not reached():
            await asyncio.sleep(0.001)


# -- a prompt from submission to its files


async def test_a_workflow_is_run_and_its_file_is_stored(tmp_path: Path) -> None:
    server = ComfyUIServer()
    async with (
        server as url,
        executor_of(
            url, store={"uri": "made"}, base=tmp_path, headers=[{"name": "X-Team", "value": "art"}]
        ) as executor,
    ):
        one = attempt(7, text="a cat", timeout=60)
        result = await executor.execute(one)
        assert one.usage is not None
        assert one.usage.requests == 1
    (asked,) = server.asked
    assert asked["prompt"]["6"]["inputs"] == {"text": "a cat", "clip": ["4", 1]}
    assert asked["prompt"]["3"]["inputs"]["seed"] == 7  # a number, as it must be
    assert asked["extra_data"]["rowmill"]["key"] == "support/triage/1/7"
    file = tmp_path / "made" / "triage" / "1" / "7-0-9.png"
    content = png('[null, "a cat", null, null]')
    assert file.read_bytes() == content
    assert {p.name for p in file.parent.iterdir()} == {file.name, MARKER}
    assert result == {
        "promptId": asked["prompt_id"],
        "files": [
            {"node": "9", "name": "a_00001_.png", "uri": str(file), "bytes": len(content), "type": "image/png"},
        ],
        "values": {},
    }
    for method, path, headers in server.calls:
        assert headers["X-Team"] == "art"
        if not path.startswith("/ws"):
            assert headers["Idempotency-Key"] == "support/triage/1/7", path
            assert headers["X-Request-Id"] == "triage-7-1"
        assert ("Content-Type" in headers) == (method == "POST")


async def test_without_a_store_the_result_links_to_the_server_and_texts_are_values() -> None:
    nodes: dict[str, Any] = {"12": {"class_type": "PreviewAny", "inputs": {"source": ["6", 0]}}}
    server = ComfyUIServer()
    async with server as url:
        async with executor_of(url + "/api/", workflow=workflow(**nodes)) as executor:
            result = await executor.execute(attempt(text="a", timeout=60))
        (file,) = result["files"]
        assert file == {
            "node": "9",
            "name": "a_00001_.png",
            "uri": f"{url}/api/view?filename=a_00001_.png&subfolder=orders&type=output",
            "bytes": None,
            "type": "image/png",
        }
        assert result["values"] == {"12": {"text": ["['6', 0]"]}}
        async with executor_of(
            url, workflow=workflow(**nodes), outputNodes=["12"], result='values."12".text[0]'
        ) as executor:
            assert await executor.execute(attempt(text="a", timeout=60)) == "['6', 0]"


async def test_the_socket_tells_when_a_prompt_has_ended_and_the_clock_does_where_there_is_none() -> None:
    server = ComfyUIServer(plan=lambda _: Plan(hold=True))
    async with server as url, executor_of(url, pace=ONLY_TOLD) as executor:
        task = asyncio.create_task(executor.execute(attempt(text="a", timeout=60)))
        await server.until(lambda: bool(server.running))
        await eventually(lambda: executor.socket_connected)
        looks = len(server.calls)
        server.release()
        await task
        assert [path.split("/")[1] for _, path, _ in server.calls[looks:]] == ["history"]
    for broken in (ComfyUIServer(sockets=False), ComfyUIServer()):
        broken.deaf = True
        async with broken as url, executor_of(url) as executor:
            assert (await executor.execute(attempt(text="a", timeout=60)))["files"]


async def test_a_socket_that_breaks_is_connected_again_and_nothing_is_missed() -> None:
    server = ComfyUIServer(plan=lambda _: Plan(hold=True))
    async with server as url, executor_of(url, pace=QUICK._replace(told=3_600.0)) as executor:
        rows = [asyncio.create_task(executor.execute(attempt(n, text="a", timeout=60))) for n in range(1, 4)]
        await server.until(lambda: bool(server.running) and len(server.open_sockets) == 1)
        (name,) = server.open_sockets  # one for all rows
        await server.drop_sockets()
        await eventually(lambda: not executor.socket_connected)
        looks = len(server.calls)
        await eventually(lambda: executor.socket_connected)
        assert list(server.open_sockets) == [name]

        def looked_at() -> set[str]:
            return {path for _, path, _ in server.calls[looks:] if path.startswith("/history/")}

        await eventually(lambda: len(looked_at()) == 3)
        await asyncio.sleep(0.05)  # each has looked and waits, for the socket alone
        server.sockets = False
        await server.drop_sockets()  # for good: what ends from now on is told by nobody
        await eventually(lambda: not executor.socket_connected)
        server.release()
        await asyncio.gather(*rows)
    assert len(server.asked) == 3


# -- the same row again


@pytest.mark.parametrize("takes_ids", [True, False])
async def test_what_was_submitted_is_found_in_place_of_paid_again(takes_ids: bool) -> None:
    """Another worker, after the first has died: its prompt waits, runs, or has ended by then."""
    server = ComfyUIServer(plan=lambda _: Plan(hold=True), takes_ids=takes_ids)
    async with server as url:
        async with executor_of(url) as first:
            dead = [asyncio.create_task(first.execute(attempt(n, text="a", timeout=60))) for n in (1, 2)]
            await server.until(lambda: len(server.running) == 1 and len(server.pending) == 1)
            for task in dead:
                task.cancel()
            assert all(
                isinstance(e, asyncio.CancelledError) for e in await asyncio.gather(*dead, return_exceptions=True)
            )
        assert len(server.running) + len(server.pending) == 2  # a worker that stops takes nothing with it
        async with executor_of(url) as second:
            rows = [attempt(n, text="a", timeout=60) for n in (1, 2)]
            tasks = [asyncio.create_task(second.execute(row)) for row in rows]
            await server.until(lambda: any("/queue" in path for _, path, _ in server.calls))
            server.release()
            results = await asyncio.gather(*tasks)
            assert [row.usage.requests for row in rows if row.usage] == [0, 0]
        async with executor_of(url) as third:
            again = await third.execute(attempt(2, text="a", timeout=60))
            assert again == results[1]
            # Another content under the key is another prompt.
            await third.execute(attempt(2, text="b", timeout=60))
    assert len(server.asked) == 3


async def test_a_found_prompt_that_was_stopped_with_its_attempt_is_replaced_within_this_one() -> None:
    server = ComfyUIServer(plan=lambda _: Plan(hold=True))
    async with server as url, executor_of(url) as executor:
        first = asyncio.create_task(executor.execute(attempt(text="a", timeout=60)))
        await server.until(lambda: bool(server.running))
        first.cancel()
        await asyncio.wait([first])
        (item,) = server.running.values()
        looks = len(server.calls)
        again = asyncio.create_task(executor.execute(attempt(text="a", number=2, timeout=60)))
        await server.until(lambda: len(server.calls) > looks + 1)
        item.interrupted.set()  # as an interrupt does that comes late
        await server.until(lambda: len(server.asked) == 2)
        server.release()
        assert (await again)["promptId"] != item.id


async def test_listings_that_are_too_long_to_read() -> None:
    server = ComfyUIServer(takes_ids=False)
    async with server as url:
        async with executor_of(url) as executor:
            for n in range(1, 9):
                await executor.execute(attempt(n, text="x" * 4_000, timeout=60))
        async with executor_of(url, most=30_000) as executor:  # fewer than eight prompts, and more than one
            assert (await executor.execute(attempt(8, text="x" * 4_000, timeout=60)))["files"]
            assert len(server.asked) == 8
            server.plan = lambda _: Plan(hold=True)
            rows = [asyncio.create_task(executor.execute(attempt(n, text="y" * 9_000, timeout=60))) for n in range(4)]
            await server.until(lambda: len(server.asked) == 12)
            told = await executor_failure(executor)
            assert (told.error_class, told.retryable) == ("QueueFull", True)
            server.release()
            assert all(result["files"] for result in await asyncio.gather(*rows))  # their ends can be read


async def test_an_answer_that_was_lost_costs_no_second_prompt() -> None:
    server = ComfyUIServer()
    async with server as url:
        async with executor_of(url) as executor:
            server.lose_answers = True
            told = await executor_failure(executor)
            assert (told.error_class, told.retryable) == ("ConnectionReset", True)
            server.lose_answers = False
            assert (await executor.execute(attempt(text="a", number=2, timeout=60)))["files"]
    assert len(server.asked) == 1


async def executor_failure(executor: ComfyUIExecutor, one: Attempt | None = None) -> RowError:
    with pytest.raises(RowError) as caught:
        await executor.execute(one or attempt(text="a", timeout=60))
    return caught.value


async def test_a_prompt_that_failed_is_followed_by_a_new_one() -> None:
    ends = [Plan(error=("torch.OutOfMemoryError", "Allocation on device")), Plan(error=("E", "503")), Plan()]
    server = ComfyUIServer(plan=lambda _: ends.pop(0))
    async with server as url, executor_of(url) as executor:
        classes = [(await executor_failure(executor)).error_class for _ in range(2)]
        assert classes == ["OutOfMemory", "NodeFailed"]
        assert (await executor.execute(attempt(text="a", number=3, timeout=60)))["files"]
    assert len({asked["prompt_id"] for asked in server.asked}) == 3


async def test_a_prompt_that_the_server_forgot_is_lost_and_then_submitted_anew() -> None:
    server = ComfyUIServer(plan=lambda _: Plan(hold=True))
    async with server as url, executor_of(url) as executor:
        task = asyncio.create_task(executor.execute(attempt(text="a", timeout=60)))
        await server.until(lambda: bool(server.running))
        server.forget()
        with pytest.raises(RowError, match="neither in its queue nor in its history") as caught:
            await task
        assert (caught.value.error_class, caught.value.retryable) == ("PromptLost", True)
        server.release()
        assert (await executor.execute(attempt(text="a", number=2, timeout=60)))["files"]
    assert len(server.asked) == 2


async def test_a_prompt_that_ends_between_two_looks_is_not_lost() -> None:
    server = ComfyUIServer(plan=lambda _: Plan(hold=True))
    async with server as url, executor_of(url) as executor:

        def ends_now(request: web.Request) -> web.StreamResponse | None:
            if request.path == "/queue" and server.running:
                (item,) = server.running.values()
                server.running.clear()
                server.history[item.id] = {
                    "prompt": item.told(),
                    "outputs": {"9": {"text": ["made"]}},
                    "status": {"status_str": "success", "completed": True, "messages": []},
                }
            return None

        server.refuse = ends_now
        assert (await executor.execute(attempt(text="a", timeout=60)))["values"] == {"9": {"text": ["made"]}}
        server.release()
    assert len(server.asked) == 1


async def test_a_server_that_is_away_for_a_while_costs_nothing() -> None:
    server = ComfyUIServer(plan=lambda _: Plan(hold=True))
    async with server as url, executor_of(url) as executor:
        task = asyncio.create_task(executor.execute(attempt(text="a", timeout=60)))
        await server.until(lambda: bool(server.running))
        answered: list[str] = []

        def away(request: web.Request) -> web.Response:
            answered.append(request.path)
            return web.Response(status=502)

        server.refuse = away
        await server.drop_sockets()
        await eventually(lambda: len([path for path in answered if path.startswith("/history")]) > 2)
        server.refuse = lambda request: None
        server.release()
        assert (await task)["files"]
    assert len(server.asked) == 1


# -- time


async def test_a_row_out_of_time_leaves_no_prompt_behind_and_stops_nobody_elses() -> None:
    server = ComfyUIServer(plan=lambda _: Plan(hold=True))
    async with server as url, executor_of(url) as executor:
        other = asyncio.create_task(executor.execute(attempt(1, text="a", timeout=60)))
        await server.until(lambda: bool(server.running))
        told = await executor_failure(executor, attempt(2, text="a", timeout=1))
        assert (told.error_class, told.retryable) == ("Timeout", True)
        assert "taken out of the queue" in told.message
        assert server.pending == []
        assert not any(path == "/interrupt" for _, path, _ in server.calls)
        assert not other.done()
        server.stalled_submit = True
        told = await executor_failure(executor, attempt(3, text="a", timeout=1))
        assert told.error_class == "Timeout"
        assert not any(path == "/interrupt" for _, path, _ in server.calls)
        server.stalled_submit = False
        server.release()
        await other
    server = ComfyUIServer(plan=lambda _: Plan(hold=True))
    async with server as url, executor_of(url) as executor:
        told = await executor_failure(executor, attempt(2, text="a", timeout=1))
        assert told.error_class == "Timeout"
        assert "interrupted" in told.message
        await server.until(lambda: not server.running)
        server.release()
        assert (await executor.execute(attempt(2, text="a", number=2, timeout=60)))["files"]
    assert len(server.asked) == 2


async def test_a_file_that_never_ends_costs_the_attempt_and_not_the_prompt(tmp_path: Path) -> None:
    server = ComfyUIServer()
    async with server as url, executor_of(url, store={"uri": str(tmp_path)}) as executor:
        server.stalled = True
        told = await executor_failure(executor, attempt(text="a", timeout=1))
        assert (told.error_class, told.retryable) == ("Timeout", True)
        assert "takes them without running it again" in told.message
        assert not (tmp_path / "triage" / "1" / "1-0-9.png").exists()
        server.stalled = False
        assert (await executor.execute(attempt(text="a", number=2, timeout=60)))["files"]
        assert (tmp_path / "triage" / "1" / "1-0-9.png").is_file()
    assert len(server.asked) == 1


# -- refusals and failures


MISSING = {"4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "nowhere.safetensors"}}}
NO_TEXT = {"6": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["4", 1]}}}
UNKNOWN = {"9": {"class_type": "UpscaleWonder", "inputs": {}}}
NEGATIVE = {"3": {"class_type": "KSampler", "inputs": {"seed": -1, "model": ["4", 0], "positive": ["6", 0]}}}


@pytest.mark.parametrize(
    ("nodes", "error_class", "words"),
    [
        (MISSING, "MissingModel", "'nowhere.safetensors' not in"),
        (NO_TEXT, "InvalidInputs", r"node 6 \(CLIPTextEncode\): text"),
        (NEGATIVE, "InvalidInputs", r"node 3 \(KSampler\): seed"),
        (UNKNOWN, "MissingNode", "UpscaleWonder"),
        ({"9": {"class_type": "KSampler", "inputs": {}}}, "InvalidWorkflow", "Prompt has no outputs"),
    ],
)
async def test_what_the_server_refuses_is_told_by_node_and_never_retried(
    nodes: dict[str, Any], error_class: str, words: str
) -> None:
    async with ComfyUIServer() as url:
        told = await failure(url, workflow=workflow(**nodes))
    assert (told.error_class, told.retryable) == (error_class, False)
    with pytest.raises(RowError, match=words):
        raise told


async def test_an_output_that_the_server_dropped_matters_where_it_is_wanted() -> None:
    nodes: dict[str, Any] = {"12": {"class_type": "PreviewAny", "inputs": {}}}
    server = ComfyUIServer(plan=lambda _: Plan(hold=True))
    async with server as url:
        told = await failure(url, workflow=workflow(**nodes))
        assert (told.error_class, told.retryable) == ("InvalidInputs", False)
        assert "node 12 (PreviewAny)" in told.message
        await server.until(lambda: not server.running)
        assert server.pending == []
        server.release()
        async with executor_of(url, workflow=workflow(**nodes), outputNodes=["9"]) as executor:
            assert (await executor.execute(attempt(2, text="a", timeout=60)))["files"]


@pytest.mark.parametrize(
    ("error", "error_class", "retryable"),
    [
        (("torch.OutOfMemoryError", "Allocation on device "), "OutOfMemory", True),
        (("RuntimeError", "CUDA out of memory. Tried to allocate 2 GiB"), "OutOfMemory", True),
        (("ValueError", "tuple index out of range"), "NodeFailed", False),
        (("Exception", "API error: too many requests"), "NodeFailed", True),
    ],
)
async def test_a_node_that_fails(error: tuple[str, str], error_class: str, retryable: bool) -> None:
    async with ComfyUIServer(plan=lambda _: Plan(error=error)) as url:
        told = await failure(url)
    assert (told.error_class, told.retryable) == (error_class, retryable)
    assert "node 3 (KSampler)" in told.message
    assert error[1].strip() in told.message


async def test_a_full_queue_an_interrupted_prompt_and_one_without_outputs() -> None:
    server = ComfyUIServer(plan=lambda _: Plan(hold=True))
    async with server as url, executor_of(url) as executor:
        full = web.Response(status=429, headers={"Retry-After": "7"}, text="queue full")
        server.refuse = lambda request: full if request.path == "/prompt" else None
        told = await executor_failure(executor)
        assert (told.error_class, told.retryable, told.retry_after) == ("QueueFull", True, 7.0)
        server.refuse = lambda request: None
        task = asyncio.create_task(executor.execute(attempt(text="a", timeout=60)))
        await server.until(lambda: bool(server.running))
        for item in server.running.values():
            item.interrupted.set()
        with pytest.raises(RowError) as caught:
            await task
        assert (caught.value.error_class, caught.value.retryable) == ("Interrupted", True)
    async with ComfyUIServer(plan=lambda _: Plan(cached=True)) as url:
        told = await failure(url)
        assert (told.error_class, told.retryable) == ("NoOutput", False)
        assert "seed" in told.message


async def test_files_that_cannot_be_had_or_put(tmp_path: Path) -> None:
    server = ComfyUIServer(plan=lambda _: Plan(bytes=3_000_000))
    async with server as url:
        store = {"uri": str(tmp_path / "made"), "maxFileBytes": 2_999_999}
        told = await failure(url, store=store)
        assert (told.error_class, told.retryable) == ("FileTooLarge", False)
        assert "spec.executor.comfyui.store.maxFileBytes" in told.message
        assert [p.name for p in (tmp_path / "made" / "triage" / "1").iterdir()] == [MARKER]
        server.chunked = True  # of no declared length
        assert (await failure(url, store=store)).error_class == "FileTooLarge"
        async with executor_of(url, store={**store, "maxFileBytes": 3_000_000}) as executor:
            (tmp_path / "made" / "triage" / "1" / MARKER).unlink()
            (tmp_path / "made" / "triage" / "1").rmdir()
            (tmp_path / "made" / "triage" / "1").write_text("in the way")
            told = await executor_failure(executor)
            assert "another attempt takes it from there" in told.message
            (tmp_path / "made" / "triage" / "1").unlink()
            (file,) = (await executor.execute(attempt(text="a", number=2, timeout=60)))["files"]
            assert (file["uri"], file["bytes"]) == (str(tmp_path / "made" / "triage" / "1" / "1-0-9.png"), 3_000_000)
            assert await asyncio.to_thread(lambda: len(Path(file["uri"]).read_bytes())) == 3_000_000
            assert len(server.asked) == 1
            server.files.clear()
            told = await executor_failure(executor)
            assert (told.error_class, told.retryable) == ("OutputMissing", False)
    blocked = tmp_path / "blocked"
    blocked.write_text("a file")
    with pytest.raises(InvalidInput, match=r"spec\.executor\.comfyui\.store"):
        async with executor_of("http://127.0.0.1:9", store={"uri": str(blocked)}):
            pass


async def test_answers_that_are_not_comfyuis() -> None:
    for answer in ("<html>", "{}", '{"queue_running": 1, "queue_pending": []}', "[" * 100_000):
        async with Mirror(lambda _, text=answer: web.Response(text=text, content_type="application/json")) as url:  # type: ignore[misc]
            told = await failure(url)
            assert (told.error_class, told.retryable) == ("InvalidAnswer", False)
            assert "spec.executor.comfyui.url" in told.message
    async with Mirror(lambda _: web.Response(status=401)) as url:
        told = await failure(url)
        assert (told.error_class, told.retryable) == ("HTTP401", False)
        assert "spec.executor.comfyui.headers" in told.message


async def test_a_row_that_does_not_fit_is_not_sent_and_secrets_are_not_told() -> None:
    server = ComfyUIServer()
    headers = [{"name": "Authorization", "valueFrom": {"env": "COMFY"}}]
    secret = "Bearer s3cr3t-t0k3n"
    async with server as url, executor_of(url, headers=headers, environ={"COMFY": secret}) as executor:
        told = await executor_failure(executor, attempt())  # no column `text`
        assert not told.spent
        assert told.message.startswith("spec.executor.comfyui.workflow")
        assert server.asked == []
        server.refuse = lambda request: web.Response(status=403, text=f"no {request.headers['Authorization']}")
        told = await executor_failure(executor)
        assert "s3cr3t" not in told.message
    preview = ComfyUIPreview(spec=spec_of("http://c", headers=headers), job=JOB)
    preview.open()
    shown = preview.render(attempt(text="abc"))
    assert shown["url"] == "http://c/prompt"
    assert shown["headers"]["Authorization"] == "[secret]"
    assert shown["body"]["prompt"]["6"]["inputs"]["text"] == "abc"


async def test_many_who_ask_share_a_fetch_that_began_after_they_asked() -> None:
    shared: Shared[int] = Shared()
    began = 0
    go = asyncio.Event()

    async def fetch() -> int:
        nonlocal began
        began += 1
        mine = began
        await go.wait()
        return mine

    first = asyncio.create_task(shared.get(fetch))
    await eventually(lambda: began == 1)
    later = [asyncio.create_task(shared.get(fetch)) for _ in range(5)]
    await asyncio.sleep(0)
    later[0].cancel()
    go.set()
    assert await first == 1
    assert await asyncio.gather(*later[1:]) == [2] * 4
    await shared.close()
