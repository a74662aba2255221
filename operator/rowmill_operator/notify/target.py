"""Where a notification goes and what it carries: `spec.notify` with its secrets read, anew for every try.

So a Secret that is mended, or an edit of the manifest, counts from the next try on. A target is never shown: neither
its address (which may be a secret itself) nor its headers stand in any text; `place` is what is told of it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit

from rowmill.errors import RowmillError
from rowmill.spec.notify import Notify, SecretValue, check_header_value, check_webhook_url
from rowmill.spec.source import KeyReference

SECRET_BYTES: Final = 8_192
KEY_MARK: Final = "whsec_"
"""Begins a signing key that is written in base64; any other is taken as it stands."""

ReadSecret = Callable[[KeyReference, str], Awaitable[str]]
"""Reads the key of a Secret; the text is where the manifest names it. Raises RowmillError."""


class NotReady(RowmillError):
    """A notification cannot be sent as the manifest stands, or as its secrets do."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where to, with which headers, signed by what; `place` is its scheme and host."""

    url: str = field(repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    key: bytes | None = field(default=None, repr=False)

    @property
    def place(self) -> str:
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc}"


async def resolve(notify: Notify, read: ReadSecret) -> Target:
    """The target, its secrets read. Raises NotReady, and what `read` raises."""

    async def secret(value: SecretValue, path: str) -> str:
        path = f"{path}.secretKeyRef"
        text = (await read(value.secret_key_ref, path)).removesuffix("\n").removesuffix("\r")
        what = f"{path}: the key {value.secret_key_ref.key} of the Secret {value.secret_key_ref.name}"
        if not text:
            raise NotReady(f"{what} is empty; put the value there")
        if len(text.encode()) > SECRET_BYTES:
            raise NotReady(f"{what} is larger than {SECRET_BYTES:,} bytes; put the value alone there")
        try:
            return check_header_value(text)
        except ValueError as error:
            raise NotReady(f"{what} {error}") from None

    if notify.url_from is not None:
        url = await secret(notify.url_from, "spec.notify.urlFrom")
        try:
            check_webhook_url(url)
        except ValueError as error:
            raise NotReady(f"spec.notify.urlFrom: what the Secret holds {error}") from None
    else:
        assert notify.url is not None
        url = notify.url
    headers = {}
    for i, header in enumerate(notify.headers):
        if header.value_from is not None:
            headers[header.name] = await secret(header.value_from, f"spec.notify.headers[{i}].valueFrom")
        else:
            headers[header.name] = header.value or ""
    key = None
    if notify.signing_key_from is not None:
        path = "spec.notify.signingKeyFrom"
        key = _key(await secret(notify.signing_key_from, path), path)
    return Target(url, headers, key)


def signature(key: bytes, *, uid: str, timestamp: int, body: bytes) -> dict[str, str]:
    """The headers of Standard Webhooks: HMAC-SHA256 over `uid.timestamp.body`. `timestamp` is the time of this try in
    seconds since the epoch: who verifies it need not believe what was recorded and sent again."""
    signed = hmac.new(key, f"{uid}.{timestamp}.".encode() + body, hashlib.sha256).digest()
    return {
        "webhook-id": uid,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": f"v1,{base64.b64encode(signed).decode()}",
    }


def _key(text: str, path: str) -> bytes:
    if not text.startswith(KEY_MARK):
        return text.encode()
    try:
        return base64.b64decode(text.removeprefix(KEY_MARK), validate=True)
    except (binascii.Error, ValueError):
        raise NotReady(
            f"{path}: the key begins with {KEY_MARK}, and what follows is no base64; put it in as it was given out"
        ) from None
