"""What is sent and what the double answers, held against the types of the `openai` package, which nobody here wrote.

Strictly: a field that the package does not know, or a value of another type than it says, fails.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import openai
import pytest
from openai.types import Completion, CreateEmbeddingResponse, completion_create_params, embedding_create_params
from openai.types.chat import ChatCompletion
from openai.types.chat import completion_create_params as chat_create_params
from openai.types.responses import Response, response_create_params
from openai.types.shared import ErrorObject
from pydantic import BaseModel, TypeAdapter, ValidationError

from rowmill_worker.executors.openai import OpenAIExecutor
from rowmill_worker.executors.protocol import Attempt, RowError
from tests.support.http_rows import attempt
from tests.support.openai_rows import KEY, openai_executor
from tests.support.openai_server import Json, OpenAIServer, Reply
from tests.unit.test_executor_openai import ENDINGS, SCHEMA

ANSWERS: Mapping[str, type[BaseModel]] = {
    "/v1/chat/completions": ChatCompletion,
    "/v1/completions": Completion,
    "/v1/embeddings": CreateEmbeddingResponse,
    "/v1/responses": Response,
}
REQUESTS: Mapping[str, Any] = {
    "/v1/chat/completions": chat_create_params.CompletionCreateParamsNonStreaming,
    "/v1/completions": completion_create_params.CompletionCreateParamsNonStreaming,
    "/v1/embeddings": embedding_create_params.EmbeddingCreateParams,
    "/v1/responses": response_create_params.ResponseCreateParamsNonStreaming,
}


@cache
def adapter(path: str) -> TypeAdapter[Any]:
    return TypeAdapter(REQUESTS[path])


def walked(value: Any) -> Any:
    """Iterables are checked only when they are read."""
    if isinstance(value, Mapping):
        return {name: walked(inner) for name, inner in value.items()}
    if hasattr(value, "__next__") or isinstance(value, list | tuple):
        return [walked(inner) for inner in value]
    return value


def check_request(path: str, body: Json) -> None:
    known = REQUESTS[path].__annotations__
    assert set(body) <= set(known), set(body) - set(known)
    walked(adapter(path).validate_python(body))


def unknown_fields(value: Any, path: str = "") -> Iterator[str]:
    if isinstance(value, BaseModel):
        yield from (f"{path}.{name}" for name in value.model_extra or ())
        for name in type(value).model_fields:
            yield from unknown_fields(getattr(value, name), f"{path}.{name}")
    elif isinstance(value, list):
        for item in value:
            yield from unknown_fields(item, f"{path}[]")


def check_answer(path: str, status: int, body: Any) -> None:
    if status == 200:
        model = ANSWERS[path].model_validate(body, strict=True)
        assert list(unknown_fields(model)) == []
    else:
        ErrorObject.model_validate(body["error"], strict=True)


async def end_of(executor: OpenAIExecutor, row: Attempt) -> str:
    try:
        await executor.execute(row)
    except RowError as error:
        return error.error_class
    return "Succeeded"


async def test_every_request_and_every_answer_is_what_the_package_says() -> None:
    talk = [
        {"role": "developer", "content": "Be short."},
        {"role": "user", "content": [{"type": "text", "text": "{{ row.text }}"}]},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": "{{ row.text }}"},
    ]
    usual = {"temperature": "{{ row.t }}", "top_p": 0.9, "user": "{{ row.id | string }}", "seed": 7}
    schema = {"name": "triage", "schema": SCHEMA}
    cases: list[Json] = [
        {"messages": talk, "parameters": {**usual, "max_completion_tokens": 9, "stop": ["\n"]}},
        {"messages": "{{ row.talk }}", "parameters": {"n": 2}, "result": "@"},
        {"jsonSchema": schema},
        {"parameters": {"max_tokens": 1}},
        {"model": "gone"},
        {"endpoint": "Completions", "parameters": usual | {"max_tokens": 5}},
        {"endpoint": "Completions", "prompt": "{{ row.texts }}"},
        {"endpoint": "Embeddings", "parameters": {"dimensions": 3, "encoding_format": "float"}},
        {"endpoint": "Embeddings", "input": "{{ row.texts }}"},
        {"endpoint": "Embeddings", "input": "{{ row.tokens }}"},
        {"endpoint": "Responses", "parameters": {"max_output_tokens": 20, "store": False, "instructions": "Be short."}},
        {"endpoint": "Responses", "input": talk[:1] + talk[3:], "jsonSchema": schema},
        {"endpoint": "Responses", "parameters": {"max_output_tokens": 1}},
    ]
    server = OpenAIServer(key=KEY)
    ends = set()
    row: Json = {"text": "hello there", "t": 0.5, "texts": ["a", "b c"], "tokens": [1, 2], "talk": talk[3:]}
    async with server as url:
        for fields in cases:
            async with openai_executor(url, apiKey={"env": "KEY"}, **fields) as executor:
                ends.add(await end_of(executor, attempt(**row)))
        async with openai_executor(url) as executor:
            with pytest.raises(RowError, match="HTTP401"):
                await executor.execute(attempt(**row))
        async with openai_executor(url, apiKey={"env": "KEY"}) as executor:
            with pytest.raises(RowError, match="ContextLengthExceeded"):
                await executor.execute(attempt(text="w " * 65))
    assert ends == {"Succeeded", "OutputTruncated", "ModelNotFound"}
    assert len(server.asked) == len(cases) + 2
    for asked in server.asked:
        check_request(asked.path, asked.body)
    for path, status, body in server.answered:
        check_answer(path, status, body)
    assert {status for _, status, _ in server.answered} == {200, 400, 401, 404}


@pytest.mark.parametrize(("endpoint", "answer"), [(case[0], case[1]) for case in ENDINGS])
def test_every_ending_is_one_that_the_package_knows(endpoint: str, answer: Json) -> None:
    path = {"ChatCompletions": "/v1/chat/completions", "Completions": "/v1/completions"}.get(endpoint, "/v1/responses")
    check_answer(path, 200, answer)


def test_the_checks_find_what_is_wrong() -> None:
    """They are not ones that let everything pass."""
    good = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
    check_request("/v1/chat/completions", good)
    for bad in (
        {"temperature": "hot"},
        {"messages": [{"role": "user"}]},
        {"messages": [{"role": "king", "content": "x"}]},
    ):
        with pytest.raises(ValidationError):
            check_request("/v1/chat/completions", good | bad)
    with pytest.raises(AssertionError, match="heat"):
        check_request("/v1/chat/completions", good | {"heat": 1})
    path, answer = "/v1/chat/completions", ENDINGS[0][1]
    with pytest.raises(ValidationError):
        check_answer(path, 200, {**answer, "created": "now"})
    with pytest.raises(AssertionError, match="heat"):
        check_answer(path, 200, {**answer, "heat": 1})


async def test_the_package_itself_can_talk_to_the_double() -> None:
    async with OpenAIServer(key=KEY) as url:
        async with openai.AsyncOpenAI(base_url=url, api_key=KEY, max_retries=0) as client:
            said = await client.chat.completions.create(
                model="tiny-1", messages=[{"role": "user", "content": "hi you"}]
            )
            assert (said.choices[0].message.content, said.usage and said.usage.total_tokens) == ("HI YOU", 4)
            answered = await client.responses.create(model="tiny-1", input="hi you")
            assert answered.output_text == "HI YOU"
            vectors = await client.embeddings.create(model="tiny-1", input=["a", "b"], encoding_format="float")
            assert len(vectors.data) == 2
            text = await client.completions.create(model="tiny-1", prompt="hi you")
            assert text.choices[0].text == "HI YOU"
            with pytest.raises(openai.NotFoundError, match="does not exist"):
                await client.completions.create(model="other", prompt="hi")
            with pytest.raises(openai.BadRequestError, match="maximum context length"):
                await client.completions.create(model="tiny-1", prompt="w " * 65)
        async with openai.AsyncOpenAI(base_url=url, api_key="wrong", max_retries=0) as client:
            with pytest.raises(openai.AuthenticationError):
                await client.completions.create(model="tiny-1", prompt="hi")


async def test_both_read_the_same_of_an_answer() -> None:
    """The text that a row gets is the one that the package's own reader gets."""
    answer = ENDINGS[8][1]
    async with OpenAIServer(plan=lambda _: Reply(answer)) as url:
        async with openai.AsyncOpenAI(base_url=url, api_key=KEY, max_retries=0) as client:
            theirs = (await client.responses.create(model="tiny-1", input="x")).output_text
        async with openai_executor(url, endpoint="Responses", accept=["Length"]) as executor:
            assert await executor.execute(attempt(text="x")) == theirs == "cut of"
