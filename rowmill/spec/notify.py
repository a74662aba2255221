"""Who is told of what becomes of a run: the webhook of `spec.notify`.

`events` and not `on`: in YAML 1.1, which kubectl and many tools read, `on` is another way to write `true`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Final, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, ConfigDict, Field, StringConstraints

from rowmill.spec.base import (
    HEADER,
    Finding,
    Listed,
    NoTraps,
    OneOf,
    Part,
    one_of_schema,
    sentence,
    unique,
)
from rowmill.spec.source import KeyReference, check_uri, uri_scheme

NotifyEvent = Literal["Complete", "Failed", "Suspended", "Stalled"]

SECRET_HEADERS: Final = frozenset(
    {"api-key", "authorization", "cookie", "private-token", "proxy-authorization", "x-api-key", "x-auth-token"}
)
SET_BY_ROWMILL: Final = frozenset(
    {
        *("connection", "content-length", "content-type", "expect", "host", "idempotency-key", "transfer-encoding"),
        *("upgrade", "user-agent", "webhook-id", "webhook-signature", "webhook-timestamp", "x-request-id"),
    }
)

_UNFIT: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")


def check_webhook_url(url: str) -> str:
    """Refuse what is no http(s) address, and secrets that are told as such. Raises an error whose text is told."""
    check_uri(url)
    if uri_scheme(url) not in ("http", "https"):
        raise sentence("is no http URL; write http://host/path or https://host/path")
    if any(c.isspace() for c in url):
        raise sentence("holds white space; take it out, or write %20")
    if urlsplit(url).fragment:
        raise sentence("holds a #fragment, which is never sent; take it out")
    return url


def check_header_value(value: str) -> str:
    """Refuse what no header can carry."""
    if _UNFIT.search(value):
        raise sentence("holds a line break or control character, which no header can carry")
    return value


class SecretValue(Part):
    """A value that is found in a Secret."""

    secret_key_ref: KeyReference = Field(
        description="A key of a Secret in the job's namespace. Without a cluster it is read from the file NAME/KEY in "
        "the folder that the variable ROWMILL_SECRETS_DIR names."
    )


class NotifyHeader(Part):
    """A header of the notification: `name` and exactly one of `value` and `valueFrom`."""

    model_config = ConfigDict(json_schema_extra=one_of_schema("value", "valueFrom"))

    name: Annotated[str, StringConstraints(min_length=1, max_length=256, pattern=HEADER)] = Field(
        description="The header's name."
    )
    value: (
        Annotated[str, StringConstraints(min_length=1, max_length=4096), NoTraps, AfterValidator(check_header_value)]
        | None
    ) = Field(default=None, description="The value, as it stands. Never a secret.")
    value_from: SecretValue | None = Field(
        default=None, description="Where the value is found: the only way for a secret."
    )

    @classmethod
    def cross_check(cls, given: Mapping[str, Any]) -> list[Finding]:
        name = given.get("name")
        lower = name.lower() if isinstance(name, str) else ""
        value, value_from = given.get("value"), given.get("valueFrom")
        findings: list[Finding] = []
        if lower in SET_BY_ROWMILL:
            findings.append((("name",), f"{name} is set by Rowmill; leave it out"))
        if (value is None) == (value_from is None):
            state = "none is set" if value is None else "both value and valueFrom are set"
            findings.append(((), f"needs exactly one of value, valueFrom; {state}"))
        elif lower in SECRET_HEADERS and value is not None:
            findings.append((("value",), "a secret never stands in a manifest; write valueFrom with secretKeyRef"))
        return findings


class Notify(OneOf):
    """A webhook that is told what becomes of the run: exactly one of `url` and `urlFrom` says where it is.

    A notification is a POST of JSON (docs/notifications.md). An answer of 2xx acknowledges it; otherwise it is sent
    again, later each time, for 24 hours. The run, its rows and its status never wait for it.
    """

    model_config = ConfigDict(json_schema_extra=one_of_schema("url", "urlFrom"))
    alternatives: ClassVar[tuple[str, ...]] = ("url", "urlFrom")

    url: (
        Annotated[str, StringConstraints(min_length=1, max_length=4096), NoTraps, AfterValidator(check_webhook_url)]
        | None
    ) = Field(
        default=None,
        description="Where notifications go. Redirects are not followed.",
        examples=["https://hooks.example/rowmill"],
    )
    url_from: SecretValue | None = Field(
        default=None, description="Where the address is found: the way for an address that is a secret itself."
    )
    headers: Annotated[tuple[NotifyHeader, ...], Field(max_length=16), Listed] = Field(
        default=(), description="Headers, beside those that Rowmill sets."
    )
    signing_key_from: SecretValue | None = Field(
        default=None,
        description="Where the key is found that notifications are signed by, as Standard Webhooks describe "
        "(webhook-id, webhook-timestamp, webhook-signature). They are not signed when absent.",
    )
    events: Annotated[tuple[NotifyEvent, ...], Field(min_length=1, max_length=4), AfterValidator(unique), Listed] = (
        Field(
            default=("Complete", "Failed"),
            description="What is told: that the run is Complete, that it Failed as a whole, that it is Suspended, that "
            "it is Stalled until somebody mends the cause.",
        )
    )

    @classmethod
    def cross_check(cls, given: Mapping[str, Any]) -> list[Finding]:
        findings = super().cross_check(given)
        headers = given.get("headers")
        seen: dict[str, int] = {}
        for i, header in enumerate(headers if isinstance(headers, list | tuple) else ()):
            name = header.get("name") if isinstance(header, dict) else getattr(header, "name", None)
            if not isinstance(name, str):
                continue
            first = seen.setdefault(name.lower(), i)
            if first != i:
                findings.append((("headers", i, "name"), f"{name} is already set by headers[{first}]; set it once"))
        return findings


__all__ = [
    "SECRET_HEADERS",
    "SET_BY_ROWMILL",
    "Notify",
    "NotifyEvent",
    "NotifyHeader",
    "SecretValue",
    "check_header_value",
    "check_webhook_url",
]
