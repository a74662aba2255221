"""What the dialects of OpenAI-compatible servers mean by an error, and how long they ask to wait.

The bodies are those that servers write: OpenAI, Azure, vLLM, llama.cpp, llama-cpp-python, TGI, TEI, SGLang,
transformers, Ollama, LiteLLM.
"""

from __future__ import annotations

from typing import Any

import pytest

from rowmill_worker.executors.openai_refusal import duration, fault_in
from tests.support.http_rows import attempt
from tests.support.openai_rows import ENVIRON, KEY, failure, openai_executor
from tests.support.openai_server import MODEL, OpenAIServer, Reply, error, response

CONTEXT: list[tuple[str, int, Any]] = [
    ("openai", 400, error("This model's maximum context length is 8192 tokens.", code="context_length_exceeded")),
    ("openai embeddings", 400, error("Invalid 'input': maximum context length is 8192 tokens.")),
    (
        "vllm",
        400,
        {
            "error": {
                "message": "Input length (900) exceeds model's maximum context length (512).",
                "type": "BadRequestError",
                "param": None,
                "code": 400,
            }
        },
    ),
    (
        "vllm responses",
        400,
        {
            "error": {
                "message": "The engine prompt length 900 exceeds the max_model_len 512. Please reduce prompt.",
                "type": "invalid_request_error",
                "param": "input",
                "code": 400,
            }
        },
    ),
    (
        "sglang",
        400,
        {
            "object": "error",
            "message": "The input (900 tokens) is longer than the model's context length (512 tokens).",
            "type": "BadRequestError",
            "param": None,
            "code": 400,
        },
    ),
    (
        "llama.cpp",
        400,
        {
            "error": {
                "code": 400,
                "message": "request (900 tokens) exceeds the available context size (512 tokens), try increasing it",
                "type": "exceed_context_size_error",
                "n_prompt_tokens": 900,
                "n_ctx": 512,
            }
        },
    ),
    (
        "llama-cpp-python",
        500,
        {"error": {"message": "Requested tokens (900) exceed context window of 512", "type": "internal_server_error"}},
    ),
    (
        "tgi",
        422,
        {
            "error": "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 512. Given: 900 `inputs` "
            "tokens and 20 `max_new_tokens`",
            "error_type": "validation",
        },
    ),
    ("tei", 413, {"error": "`inputs` must have less than 512 tokens. Given: 900", "error_type": "Validation"}),
    (
        "litellm",
        400,
        {"error": {"message": "litellm.ContextWindowExceededError: prompt is too long: 900 tokens", "code": "400"}},
    ),
]


@pytest.mark.parametrize(("status", "body"), [case[1:] for case in CONTEXT], ids=[case[0] for case in CONTEXT])
async def test_a_row_larger_than_the_context_is_known_in_every_dialect(status: int, body: Any) -> None:
    async with OpenAIServer(plan=lambda _: Reply(body, status)) as url, openai_executor(url) as executor:
        row = attempt(text="x")
        told = await failure(executor, row)
    assert (told.error_class, told.retryable, told.spent) == ("ContextLengthExceeded", False, True)
    assert "spec.executor.openai.parameters" in told.message
    assert row.usage is not None
    assert row.usage.requests == 1


OTHERS: list[tuple[str, int, Any, str, bool]] = [
    ("openai model", 404, error(f"The model `{MODEL}` does not exist", code="model_not_found"), "ModelNotFound", False),
    (
        "vllm model",
        404,
        {"error": {"message": "The model `m` does not exist.", "type": "NotFoundError", "param": "model", "code": 404}},
        "ModelNotFound",
        False,
    ),
    ("ollama model", 404, {"error": {"message": 'model "m" not found', "type": "api_error"}}, "ModelNotFound", False),
    ("transformers", 400, {"detail": "Server is pinned to 'a'; requested 'm'."}, "ModelNotFound", False),
    ("azure", 404, {"error": {"code": "DeploymentNotFound", "message": "The API deployment…"}}, "ModelNotFound", False),
    ("route", 404, {"detail": "Not Found"}, "HTTP404", False),
    (
        "llama.cpp route",
        404,
        {"error": {"code": 404, "message": "File Not Found", "type": "not_found_error"}},
        "HTTP404",
        False,
    ),
    (
        "azure filter",
        400,
        {
            "error": {
                "code": "content_filter",
                "message": "The response was filtered due to the prompt triggering Azure's content management policy.",
                "innererror": {"code": "ResponsibleAIPolicyViolation"},
            }
        },
        "ContentFiltered",
        False,
    ),
    (
        "openai policy",
        400,
        error(
            "Invalid prompt: your prompt was flagged as potentially violating our usage policy.", code="invalid_prompt"
        ),
        "ContentFiltered",
        False,
    ),
    (
        "quota",
        429,
        error(
            "You exceeded your current quota, please check your plan.",
            code="insufficient_quota",
            kind="insufficient_quota",
        ),
        "QuotaExceeded",
        False,
    ),
    (
        "balance",
        402,
        {"error": {"message": "Insufficient Balance", "code": "invalid_request_error"}},
        "QuotaExceeded",
        False,
    ),
    (
        "too large",
        429,
        error(
            "Request too large for m on tokens per min (TPM): Limit 10, Requested 20.",
            code="rate_limit_exceeded",
            kind="tokens",
        ),
        "RequestTooLarge",
        False,
    ),
    (
        "rate",
        429,
        error("Rate limit reached for requests", code="rate_limit_exceeded", kind="requests"),
        "HTTP429",
        True,
    ),
    ("tgi busy", 429, {"error": "Model is overloaded", "error_type": "overloaded"}, "HTTP429", True),
    (
        "tgi generation",
        424,
        {"error": "Request failed during generation: CUDA", "error_type": "generation"},
        "HTTP424",
        True,
    ),
    ("other 424", 424, {"error": "a tool server is away", "error_type": "tool_error"}, "HTTP424", False),
    (
        "llama.cpp loading",
        503,
        {"error": {"message": "Loading model", "type": "unavailable_error", "code": 503}},
        "HTTP503",
        True,
    ),
    (
        "vllm engine",
        500,
        {"error": {"message": "EngineCore encountered an issue.", "type": "InternalServerError", "code": 500}},
        "HTTP500",
        True,
    ),
    ("field", 422, {"detail": [{"loc": ["body", "n"], "msg": "Input should be a valid integer"}]}, "HTTP422", False),
    ("key", 401, error("Incorrect API key provided", code="invalid_api_key"), "HTTP401", False),
    ("region", 403, error("Country not supported", code="unsupported_country_region_territory"), "HTTP403", False),
    ("no json", 502, b"<html>Bad Gateway</html>", "HTTP502", True),
    ("empty", 500, b"", "HTTP500", True),
    ("deep", 400, b"[" * 60_000, "HTTP400", False),
]


@pytest.mark.parametrize(
    ("status", "body", "error_class", "retryable"), [case[1:] for case in OTHERS], ids=[case[0] for case in OTHERS]
)
async def test_refusals_are_classed_by_what_the_server_says(
    status: int, body: Any, error_class: str, retryable: bool
) -> None:
    async with OpenAIServer(plan=lambda _: Reply(body, status)) as url, openai_executor(url) as executor:
        told = await failure(executor, attempt(text="x"))
    assert (told.error_class, told.retryable) == (error_class, retryable), told.message
    assert told.message.startswith(url.removesuffix("/v1") + f" answered {status}")


async def test_messages_name_the_field_and_quote_the_server_without_its_secret() -> None:
    cases = [
        (404, error("The model `x` does not exist", code="model_not_found"), "check spec.executor.openai.model (of"),
        (401, error(f"Incorrect API key provided: {KEY}."), "check the key in spec.executor.openai.apiKey"),
        (404, {"detail": "Not Found"}, "check spec.executor.openai.baseUrl (with most servers it ends in /v1)"),
        (400, error(f"Unknown parameter, said {KEY}"), "check spec.executor.openai.parameters"),
    ]
    for status, body, expected in cases:
        async with OpenAIServer(plan=lambda _, s=status, b=body: Reply(b, s)) as url:  # type: ignore[misc]
            async with openai_executor(url, apiKey={"env": "KEY"}, environ=ENVIRON) as executor:
                told = await failure(executor, attempt(text="x"))
        assert expected in told.message
        assert KEY not in told.message
        said = body["detail"] if "detail" in body else body["error"]["message"]
        assert str(said).replace(KEY, "[redacted]") in told.message


async def test_an_ending_quotes_the_server_without_its_secret() -> None:
    for answer in (
        response(None, status="failed", failed={"code": "server_error", "message": f"key {KEY} is odd"}),
        response(None, refusal=f"I will not say {KEY}"),
    ):
        async with OpenAIServer(plan=lambda _, a=answer: Reply(a)) as url:  # type: ignore[misc]
            async with openai_executor(url, endpoint="Responses", apiKey={"env": "KEY"}) as executor:
                told = await failure(executor, attempt(text="x"))
        assert KEY not in told.message
        assert "[redacted]" in told.message


async def test_a_wrong_key_and_a_wrong_model_on_a_server_that_checks_them() -> None:
    async with OpenAIServer(key=KEY) as url:
        async with openai_executor(url) as executor:
            assert (await failure(executor, attempt(text="x"))).error_class == "HTTP401"
        async with openai_executor(url, apiKey={"env": "KEY"}, model="other") as executor:
            assert (await failure(executor, attempt(text="x"))).error_class == "ModelNotFound"
        async with openai_executor(url, apiKey={"env": "KEY"}) as executor:
            assert (await failure(executor, attempt(text="w " * 65))).error_class == "ContextLengthExceeded"
            assert await executor.execute(attempt(text="fits")) == "FITS"


RATE = error("Rate limit reached", code="rate_limit_exceeded", kind="")
REQUESTS = error("Rate limit reached", code="rate_limit_exceeded", kind="requests")
TOKENS = error("Rate limit reached", code="rate_limit_exceeded", kind="tokens")
R, T = "x-ratelimit-reset-requests", "x-ratelimit-reset-tokens"
LEFT_R, LEFT_T = "x-ratelimit-remaining-requests", "x-ratelimit-remaining-tokens"


@pytest.mark.parametrize(
    ("status", "body", "headers", "wait"),
    [
        (429, RATE, {}, None),
        (429, RATE, {"Retry-After": "7"}, 7.0),
        (429, RATE, {"Retry-After": "7", "retry-after-ms": "1500"}, 1.5),
        (429, RATE, {"retry-after-ms": "soon", "Retry-After": "7"}, 7.0),
        (429, RATE, {"Retry-After": "7", R: "1h"}, 7.0),
        (503, RATE, {"retry-after-ms": "250"}, 0.25),
        (429, RATE, {"retry-after-ms": "1e12"}, 3600.0),
        (429, REQUESTS, {R: "6m0s", T: "20ms"}, 360.0),
        (429, TOKENS, {R: "6m0s", T: "20ms"}, 0.02),
        (429, RATE, {R: "12s", T: "1s", LEFT_R: "0", LEFT_T: "50"}, 12.0),
        (429, RATE, {R: "12s", T: "3s", LEFT_R: "0", LEFT_T: "0"}, 12.0),
        (429, RATE, {R: "12s", T: "3s", LEFT_R: "5", LEFT_T: "50"}, 3.0),
        (429, RATE, {R: "99d"}, 3600.0),
        (429, RATE, {R: "nonsense"}, None),
        (500, RATE, {R: "12s"}, None),
    ],
)
async def test_the_wait_that_a_server_asks_for_is_heeded(
    status: int, body: Any, headers: dict[str, str], wait: float | None
) -> None:
    async with OpenAIServer(plan=lambda _: Reply(body, status, headers)) as url, openai_executor(url) as executor:
        told = await failure(executor, attempt(text="x"))
    assert told.retryable
    assert told.retry_after == wait


@pytest.mark.parametrize(
    ("status", "said", "retryable"),
    [(500, "false", False), (429, "false", False), (400, "true", True), (409, "true", True), (500, "maybe", True)],
)
async def test_a_server_that_says_whether_to_retry_is_taken_at_its_word(
    status: int, said: str, retryable: bool
) -> None:
    reply = Reply(error("x"), status, {"x-should-retry": said})
    async with OpenAIServer(plan=lambda _: reply) as url, openai_executor(url) as executor:
        assert (await failure(executor, attempt(text="x"))).retryable is retryable


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1s", 1.0),
        ("6m0s", 360.0),
        ("8.64s", 8.64),
        ("120ms", 0.12),
        ("1h2m3.5s", 3723.5),
        ("2m59.56s", 179.56),
        ("1d", 86_400.0),
        ("12", 12.0),
        ("0s", 0.0),
        ("", None),
        ("-3s", None),
        ("-3", None),
        ("nan", None),
        ("s", None),
        ("1s2m", None),
        (None, None),
    ],
)
def test_durations(text: str | None, seconds: float | None) -> None:
    assert duration(text) == (None if seconds is None else pytest.approx(seconds))


def test_what_is_no_error_is_none() -> None:
    for body in (b"", b"null", b"[]", b"[1,2]", b'{"a": 1}', b'"x"', b"{", {"error": None}, {"error": ""}, 5):
        assert fault_in(body) is None
