"""Outcomes as the output and error files of OpenAI's Batch API, for tools that read those. Pure.

A line of the output file, and two of the error file: a row that the server refused, and one that has no answer at all:

    {"id": "…", "custom_id": "a", "response": {"status_code": 200, "request_id": "…", "body": {…}}, "error": null}
    {"id": "…", "custom_id": "b", "response": {"status_code": 400, …, "body": {"error": {…}}}, "error": null}
    {"id": "…", "custom_id": "c", "response": null, "error": {"code": "Timeout", "message": "…"}}

`custom_id` is the row's key; `row-<seq>` where there is none. `id` is the same for a row however often it is written.
Bodies stand as the server wrote them, number for number.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Final, NamedTuple

import msgspec

from rowmill.errors import InvalidInput
from rowmill.identity import RunIdentity
from rowmill.outcome import Outcome, State

_HTTP_CLASS: Final = re.compile(r"HTTP([1-5][0-9][0-9])")
_OF_A_LINE: Final = frozenset({"status_code", "request_id", "body"})
_OF_AN_ANSWER: Final = frozenset({"choices", "data", "output", "results"})


class BatchLine(NamedTuple):
    """One line, without its end, and whether it belongs into the error file."""

    text: str
    error: bool


def batch_line(identity: RunIdentity, outcome: Outcome) -> BatchLine:
    """The line of an outcome. Raises InvalidInput where a result is not the server's whole answer."""
    row = hashlib.blake2b(f"{identity.installation}/{identity}#{outcome.seq}".encode(), digest_size=12).hexdigest()
    begin = f'{{"id": "batch_req_{row}", "custom_id": {json.dumps(_custom_id(outcome))}, '
    if outcome.state is not State.FAILED:
        return BatchLine(f'{begin}"response": {_response(outcome)}, "error": null}}', False)
    error_class, message = outcome.error_class or "Failed", outcome.error_message or ""
    status = _HTTP_CLASS.fullmatch(error_class)
    if status is None:
        error = json.dumps({"code": error_class, "message": message})
        return BatchLine(f'{begin}"response": null, "error": {error}}}', True)
    body = {"error": {"message": message, "type": "request_failed", "param": None, "code": error_class}}
    refused = json.dumps({"status_code": int(status[1]), "request_id": "", "body": body})
    return BatchLine(f'{begin}"response": {refused}, "error": null}}', True)


def _custom_id(outcome: Outcome) -> str:
    key = json.loads(outcome.key) if outcome.key is not None else None
    if key is None:
        return f"row-{outcome.seq}"
    return key if isinstance(key, str) else json.dumps(key, ensure_ascii=False, separators=(",", ":"))


def _response(outcome: Outcome) -> str:
    try:
        fields = msgspec.json.decode(outcome.result or "null", type=dict[str, msgspec.Raw])
    except msgspec.DecodeError:
        fields = {}
    if fields.keys() == _OF_A_LINE:
        return _text({name: fields[name] for name in ("status_code", "request_id", "body")})
    if fields.keys() & _OF_AN_ANSWER:
        answer = msgspec.Raw((outcome.result or "").encode())
        return _text({"status_code": 200, "request_id": "", "body": answer})
    raise InvalidInput.one(
        "",
        "",
        f"row {outcome.seq}: its result is a part of the server's answer, and OpenAI's files hold whole ones; run the "
        'job with endpoint BatchLines or result "@", or write another format',
    )


def _text(response: dict[str, object]) -> str:
    # A line's end in JSON can only be blank space between tokens.
    return msgspec.json.encode(response).decode().replace("\r", " ").replace("\n", " ")
