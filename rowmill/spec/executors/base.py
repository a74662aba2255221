"""What the executors of a manifest are made of."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Final

from pydantic import AfterValidator, ConfigDict, Field, StringConstraints

from rowmill.spec.base import (
    HEADER,
    VARIABLE,
    Finding,
    NoTraps,
    OneOf,
    Part,
    one_of_schema,
    sentence,
)
from rowmill.spec.source import KeyReference, check_uri, uri_scheme

MARKUP: Final = re.compile(r"\{[{%#]")
_SET_BY_ROWMILL: Final = frozenset(
    {"connection", "content-length", "idempotency-key", "transfer-encoding", "x-request-id"}
)
_SECRET_HEADERS: Final = frozenset({"api-key", "authorization", "cookie", "proxy-authorization", "x-api-key"})


def _check_url(url: str) -> str:
    """A URL whose text before the first template must be right on its own."""
    markup = MARKUP.search(url)
    if markup is None:
        check_uri(url)
    head = url if markup is None else url[: markup.start()]
    if head and uri_scheme(head) not in ("http", "https"):
        raise sentence("is no http URL; write http://host/path or https://host/path")
    if any(c.isspace() for c in head):
        raise sentence("holds white space; take it out, or write %20")
    if "@" in head.split("://", 1)[-1].split("/", 1)[0]:
        raise sentence("holds a user or password; send them by headers with valueFrom")
    return url


Url = Annotated[str, StringConstraints(min_length=1, max_length=8192), NoTraps, AfterValidator(_check_url)]
QueryText = Annotated[str, StringConstraints(min_length=1, max_length=4096), NoTraps]
Template = Annotated[str, StringConstraints(min_length=1, max_length=65_536), NoTraps]

RESULT: Final = "JMESPath into the answer; the whole answer when absent."
RESULT_PART: Final = "JMESPath into the answer; @ is the whole answer."


class ValueFrom(OneOf):
    """Where a secret is found: exactly one of `secretKeyRef`, `env`, `file`."""

    model_config = ConfigDict(json_schema_extra=one_of_schema("secretKeyRef", "env", "file"))
    alternatives: ClassVar[tuple[str, ...]] = ("secretKeyRef", "env", "file")

    secret_key_ref: KeyReference | None = Field(
        default=None,
        description="A key of a Secret. Without a cluster it is read from the file NAME/KEY in the folder that the "
        "variable ROWMILL_SECRETS_DIR names.",
    )
    env: Annotated[str, StringConstraints(min_length=1, max_length=256, pattern=VARIABLE)] | None = Field(
        default=None, description="An environment variable of the worker."
    )
    file: Annotated[str, StringConstraints(min_length=1, max_length=4096), NoTraps] | None = Field(
        default=None,
        description="A file that the worker can read; a relative path counts from the folder of the manifest.",
    )


class Header(Part):
    """A header of the request: `name` and exactly one of `value` and `valueFrom`."""

    model_config = ConfigDict(json_schema_extra=one_of_schema("value", "valueFrom"))

    name: Annotated[str, StringConstraints(min_length=1, max_length=256, pattern=HEADER)] = Field(
        description="The header's name. Idempotency-Key and X-Request-Id are set by Rowmill."
    )
    value: Annotated[str, StringConstraints(min_length=1, max_length=8192), NoTraps] | None = Field(
        default=None, description="The value; a template. Never a secret.", examples=["{{ row.language }}"]
    )
    value_from: ValueFrom | None = Field(
        default=None, description="Where the value is found: the only way for a secret."
    )

    @classmethod
    def cross_check(cls, given: Mapping[str, Any]) -> list[Finding]:
        name = given.get("name")
        lower = name.lower() if isinstance(name, str) else ""
        value, value_from = given.get("value"), given.get("valueFrom")
        findings: list[Finding] = []
        if lower in _SET_BY_ROWMILL:
            findings.append((("name",), f"{name} is set by Rowmill; leave it out"))
        if (value is None) == (value_from is None):
            state = "none is set" if value is None else "both value and valueFrom are set"
            findings.append(((), f"needs exactly one of value, valueFrom; {state}"))
        elif lower in _SECRET_HEADERS and isinstance(value, str) and not MARKUP.search(value):
            findings.append(
                (("value",), "a secret never stands in a manifest; write valueFrom with secretKeyRef, env or file")
            )
        return findings


def repeated_headers(headers: Any, taken: Mapping[str, str] | None = None) -> list[Finding]:
    """Findings below `headers` (raw input of any type) where a name is set twice, in whatever letters; `taken` has the
    names (lower case) that another field sets, and which."""
    findings: list[Finding] = []
    seen: dict[str, str] = dict(taken or {})
    for i, header in enumerate(headers if isinstance(headers, list | tuple) else ()):
        name = header.get("name") if isinstance(header, dict) else getattr(header, "name", None)
        if not isinstance(name, str):
            continue
        first = seen.setdefault(name.lower(), f"headers[{i}]")
        if first != f"headers[{i}]":
            findings.append((("headers", i, "name"), f"{name} is already set by {first}; set it once"))
    return findings


class Executor(Part):
    """Base of the executors."""

    templated: ClassVar[tuple[str, ...]] = ()
    queries: ClassVar[tuple[str, ...]] = ()
