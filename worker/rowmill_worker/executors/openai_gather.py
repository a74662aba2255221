"""Texts of several rows in one request for embeddings, and each row's part of the answer. Pure.

Rows that share a request share everything of it but their text: `batching` goes with a manifest whose model,
parameters and headers are the same for all. Each row sees of the answer what it would have seen alone: one vector, and
its share of the tokens, by the length of its text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from rowmill_worker.executors.openai_answer import read_usage, vectors_of
from rowmill_worker.executors.openai_request import PATH
from rowmill_worker.executors.protocol import RowError, Usage
from rowmill_worker.executors.request import IDEMPOTENCY_KEY, MAX_REQUEST_BYTES, REQUEST_ID, Request

OF_ONE_ROW: Final = frozenset(
    {
        *("HTTP400", "HTTP413", "HTTP422"),
        *("AnswerTooLarge", "ContentFiltered", "ContextLengthExceeded", "RequestTooLarge"),
    }
)
"""Failures of a request that one of its rows may have caused: the batch is parted until that row is alone."""


def gathered(requests: Sequence[Request]) -> Request:
    """One request for the texts of several, in their order. Raises RowError where they are too much for one."""
    first = requests[0]
    if len(requests) == 1:
        return first
    bodies = [msgspec.json.decode(request.body or b"", type=dict[str, msgspec.Raw]) for request in requests]
    body = msgspec.json.encode({**bodies[0], "input": [one["input"] for one in bodies]})
    if len(body) > MAX_REQUEST_BYTES:
        raise RowError(
            "RequestTooLarge",
            f"{len(requests)} rows make a request of more than {MAX_REQUEST_BYTES:,} bytes; lower "
            f"{PATH}.batching.maxSize",
            retryable=False,
            spent=False,
        )
    keys = "\0".join(request.headers[IDEMPOTENCY_KEY] for request in requests)
    headers = first.headers.copy()
    headers[IDEMPOTENCY_KEY] = f"batch {hashlib.blake2b(keys.encode(), digest_size=16).hexdigest()}"
    headers[REQUEST_ID] = f"{first.headers[REQUEST_ID]}+{len(requests) - 1}"
    return first._replace(headers=headers, body=body)


def parted(answer: Mapping[str, Any], sizes: Sequence[int], *, origin: str) -> list[dict[str, Any]]:
    """An answer to so many texts, of these sizes, as an answer to each. Raises RowError, InvalidAnswer."""
    vectors = vectors_of(answer, origin=origin, expected=len(sizes))
    total = Usage()
    read_usage(answer, total)
    told = "usage" in answer
    parts, weight, given = [], sum(sizes) or 1, 0
    seen = 0
    for vector, size in zip(vectors, sizes, strict=True):
        seen += size
        # Rounded so that the shares add up to the whole.
        until = total.input_tokens * seen // weight
        tokens, given = until - given, until
        usage = {"usage": {"prompt_tokens": tokens, "total_tokens": tokens}} if told else {}
        parts.append({**answer, "data": [{**vector, "index": 0}], **usage})
    return parts
