"""An HTTP service."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field

from rowmill.spec.base import (
    Finding,
    Int,
    Json,
    JsonObject,
    Listed,
    unique,
)
from rowmill.spec.executors.base import RESULT, Executor, Header, QueryText, Url, repeated_headers


class HttpExecutor(Executor):
    """One HTTP request a row. Answers of 2xx are results; see `successCodes`."""

    templated: ClassVar[tuple[str, ...]] = ("url", "headers", "query", "body")
    queries: ClassVar[tuple[str, ...]] = ("result",)

    url: Url = Field(
        description="Where the request goes; a template. Put cells into it by the filter quote.",
        examples=["http://triage.support.svc/v1/tickets/{{ row.id | quote }}"],
    )
    method: Literal["GET", "POST", "PUT", "PATCH", "DELETE"] = Field(
        default="POST", description="The request's method."
    )
    headers: Annotated[tuple[Header, ...], Field(max_length=64), Listed] = Field(
        default=(),
        description="Headers, beside those that Rowmill sets. Content-Type, when absent, is application/json, or "
        "text/plain where the body is one text.",
    )
    query: Annotated[JsonObject, Field(max_length=64)] | None = Field(
        default=None,
        description="Parameters of the URL, name to value; templates. They are encoded; a list repeats the name, "
        "null leaves it out.",
        examples=[{"lang": "{{ row.language }}"}],
    )
    body: Json = Field(
        default=None,
        description="The request's JSON; templates may stand in every text. A leaf that is exactly one expression "
        "keeps the value's own type. No body when absent.",
        examples=[{"text": "{{ row.subject }} {{ row.body }}", "priority": "{{ row.priority }}"}],
    )
    result: QueryText | None = Field(default=None, description=RESULT, examples=["label", "choices[0].message.content"])
    success_codes: (
        Annotated[
            tuple[Annotated[Int, Field(ge=200, le=599)], ...],
            Field(min_length=1, max_length=32),
            AfterValidator(unique),
            Listed,
        ]
        | None
    ) = Field(default=None, description="Statuses that count as success; all from 200 to 299 when absent.")

    @classmethod
    def cross_check(cls, given: Mapping[str, Any]) -> list[Finding]:
        findings: list[Finding] = []
        if given.get("method") == "GET" and given.get("body") is not None:
            findings.append((("body",), "a GET request has no body; use query, or method POST"))
        query = given.get("query")
        for name, value in query.items() if isinstance(query, dict) else ():
            values = value if isinstance(value, list) else [value]
            if any(isinstance(v, dict | list) for v in values):
                findings.append((("query", name), "must be a text, a number, true, false, or a list of these"))
        findings += repeated_headers(given.get("headers"))
        return findings
