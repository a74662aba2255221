"""Which field of the manifest a person has to look at when a call fails: one set of words an executor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final


@dataclass(frozen=True, slots=True)
class Advice:
    """`url` names the field of the address, `result` the one that narrows an answer; `hints` are by status, the words
    after "answered 404 Not Found; "."""

    url: str
    result: str
    hints: Mapping[int, str] = field(default_factory=dict)
    accepted: str = ""
    """The field that says which statuses of 2xx are successes; empty where there is none."""


TOO_MANY: Final = "too many requests; lower spec.concurrency.perWorker or spec.workers.maxReplicas"

HTTP: Final = Advice(
    url="spec.executor.http.url",
    result="spec.executor.http.result",
    accepted="spec.executor.http.successCodes",
    hints={
        400: "the endpoint refuses the request as malformed; check spec.executor.http.body and headers",
        401: "check the credentials in spec.executor.http.headers",
        403: "check that the credentials in spec.executor.http.headers may do this",
        404: "check spec.executor.http.url",
        405: "check spec.executor.http.method",
        413: "the request is too large for the endpoint",
        415: "check the Content-Type in spec.executor.http.headers",
        422: "the endpoint refuses this row's content; check spec.executor.http.body",
        429: TOO_MANY,
    },
)
