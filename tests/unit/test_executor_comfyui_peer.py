"""The ComfyUI double held against a client that others wrote (comfy-api-simplified): socket, history, files, queue."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable
from typing import Any

import pytest
from comfy_api_simplified.comfy_api_wrapper import ComfyApiWrapper
from comfy_api_simplified.comfy_workflow_wrapper import ComfyWorkflowWrapper
from comfy_api_simplified.exceptions import ComfyApiError

from rowmill_worker.executors.protocol import RowError
from tests.support.comfyui_server import ComfyUIServer, Plan, png, workflow
from tests.support.http_rows import attempt
from tests.unit.test_executor_comfyui import executor_of


def prompt_of(text: str, seed: int = 1) -> dict[str, Any]:
    prompt = copy.deepcopy(workflow(text))
    prompt["3"]["inputs"]["seed"] = seed
    return prompt


async def called(server: ComfyUIServer, call: Callable[[ComfyApiWrapper], Any]) -> Any:
    """What the other client makes of a call, on a thread of its own.

    It submits first and connects then; the prompt ends when it has done both.
    """
    async with server as url:
        task = asyncio.create_task(asyncio.to_thread(call, ComfyApiWrapper(url)))
        reached = asyncio.create_task(server.until(lambda: bool(server.open_sockets and server.running)))
        await asyncio.wait({task, reached}, return_when=asyncio.FIRST_COMPLETED)
        reached.cancel()
        server.release()
        return await task


def held(**plan: Any) -> Callable[[Any], Plan]:
    return lambda _: Plan(hold=True, **plan)


async def test_a_prompt_is_followed_and_its_image_fetched() -> None:
    # A preview over the socket is what this client takes for the image, so one run is quiet and one is not.
    wrapped = ComfyWorkflowWrapper(prompt_of("a dog"))
    quiet = ComfyUIServer(plan=held(), previews=False)
    found = await called(quiet, lambda api: api.queue_and_wait_images(wrapped, "SaveImage"))
    assert found == {"a_00001_.png": png('[null, "a dog", null, null]')}
    prompt, images = await called(
        ComfyUIServer(plan=held()), lambda api: asyncio.run(api.queue_prompt_and_wait(prompt_of("a dog")))
    )
    assert images == [b"a preview"]
    assert len(prompt) == 36


async def test_failures_and_refusals() -> None:
    with pytest.raises(ComfyApiError, match="Execution error"):
        await called(
            ComfyUIServer(plan=held(error=("E", "no"))),
            lambda api: asyncio.run(api.queue_prompt_and_wait(prompt_of("a"))),
        )
    with pytest.raises(ComfyApiError, match="400"):
        await called(ComfyUIServer(), lambda api: api.queue_prompt(prompt_of("a", seed=-1)))
    with pytest.raises(ComfyApiError, match="404"):
        await called(ComfyUIServer(), lambda api: api.get_image("no", "", "output"))


async def test_the_queue_as_both_see_it_and_an_interrupt_of_the_others() -> None:
    server = ComfyUIServer(plan=lambda _: Plan(hold=True))
    async with server as url, executor_of(url) as executor:
        api = ComfyApiWrapper(url)
        task = asyncio.create_task(executor.execute(attempt(text="a", timeout=60)))
        await server.until(lambda: bool(server.running))
        (ours,) = server.running
        theirs = (await asyncio.to_thread(api.queue_prompt, prompt_of("b")))["prompt_id"]
        places = [await asyncio.to_thread(api.get_queue_size_before, one) for one in (ours, theirs)]
        assert places == [0, 1]
        assert await asyncio.to_thread(api.get_history, ours) == {}
        await asyncio.to_thread(api.interrupt)
        with pytest.raises(RowError) as caught:
            await task
        assert caught.value.error_class == "Interrupted"
