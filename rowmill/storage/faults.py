"""From what a vendor's library says to one of two errors: somebody must mend something, or it passes by itself.

The libraries' texts are taken apart for their codes and never shown whole: some hold keys, signed addresses or pages of
XML. What is not known to need a person counts as passing, except refusals (4xx): those stay until somebody acts.
"""

from __future__ import annotations

import errno
import re
from typing import NamedTuple

from rowmill.errors import InvalidInput, PlaceUnavailable, RowmillError
from rowmill.storage.place import Kind, Place

_AWS = re.compile(r"AWS Error ([A-Z0-9_]+)(?: \(HTTP status (\d{3})\))? during (\w+) operation")
_CURL = re.compile(r"(?:curlCode: |CURL error \[)(\d+)")
_GOOGLE = re.compile(r"google::cloud::Status\(([A-Z_]+):")
_AZURE = re.compile(r"Azure Error: \[(\w*)\] (\d{3})")

_DENIED = {
    "ACCESS_DENIED",
    "EXPIRED_TOKEN",
    "INCOMPLETE_SIGNATURE",
    "INVALID_ACCESS_KEY_ID",
    "INVALID_CLIENT_TOKEN_ID",
    "INVALID_SIGNATURE",
    "INVALID_TOKEN",
    "MISSING_AUTHENTICATION_TOKEN",
    "SIGNATURE_DOES_NOT_MATCH",
    "UNRECOGNIZED_CLIENT",
    "PERMISSION_DENIED",
    "UNAUTHENTICATED",
}
_NO_OBJECT = {"NO_SUCH_KEY", "RESOURCE_NOT_FOUND", "NOT_FOUND", "BlobNotFound", "PathNotFound"}
_NO_BUCKET = {"NO_SUCH_BUCKET", "ContainerNotFound", "FilesystemNotFound"}
_REFUSED = {"INVALID_ARGUMENT", "FAILED_PRECONDITION", "OUT_OF_RANGE", "UNIMPLEMENTED", "VALIDATION"}
_CURL_SAYS = {
    5: "its proxy does not resolve",
    6: "its host does not resolve",
    7: "its host refuses the connection",
    28: "it does not answer in time",
    35: "the TLS handshake failed",
    52: "it closed the connection without an answer",
    55: "the connection broke",
    56: "the connection broke",
}
_BROKEN = "the connection failed"
_FULL = (errno.ENOSPC, errno.EDQUOT)


class _Said(NamedTuple):
    code: str = ""
    status: int | None = None
    curl: int | None = None


def fault(error: Exception, *, place: Place, where: str, field: str, what: str) -> RowmillError:
    """The error for what went wrong while doing `what` (`reading`, `writing part-1`) at `where`.

    `field` is the part of the manifest that names the place: `spec.source` or `spec.output`.
    """
    if isinstance(error, RowmillError):
        return error
    if place.kind is Kind.LOCAL:
        return _of_files(error, where=where, field=field, what=what)
    said = _said(str(error))
    name = f"the {'container' if place.kind is Kind.AZURE else 'bucket'} {place.bucket}"
    missing = isinstance(error, FileNotFoundError)

    def invalid(message: str, part: str = "uri") -> InvalidInput:
        return InvalidInput.one(where, f"{field}.{part}", message)

    if said.curl == 60:
        return invalid(f"{what}: the store's certificate is not trusted; correct the endpoint, or have it trusted")
    if said.code in _NO_BUCKET:
        return invalid(f"{what}: {name} does not exist; correct the address, or create it")
    if said.code in _DENIED or said.status in (401, 403) or isinstance(error, PermissionError):
        return invalid(
            f"{what}: {place.kind} denies access to {name} ({_shown(said)}); check the keys in the Secret, and "
            "that they may do this. Without a Secret only what is public can be used",
            "secretName",
        )
    if missing or said.code in _NO_OBJECT or said.status == 404:
        return invalid(f"{what}: there is no such object, or no such {name.removeprefix('the ')}; correct the address")
    if said.status in (301, 307, 308):
        return invalid(f"{what}: {name} lives in another region; set AWS_REGION in the Secret to it", "secretName")
    if said.code == "REQUEST_TIME_TOO_SKEWED":
        return PlaceUnavailable(f"{where}: {what}: the clock of this machine differs from the store's; set it")
    transient_status = said.status is None or said.status in (408, 429) or said.status >= 500
    if said.code in _REFUSED or not transient_status:
        return invalid(
            f"{what}: {place.kind} refuses the request ({_shown(said)}); check region, endpoint and keys in the Secret",
            "secretName",
        )
    told = said.code or said.status is not None
    reason = f"it answers {_shown(said)}" if told and not said.curl else _CURL_SAYS.get(said.curl or 0, _BROKEN)
    return PlaceUnavailable(f"{where}: {what}: {place.kind} cannot be used for now: {reason}; it is tried again")


def _said(text: str) -> _Said:
    curl = _CURL.search(text)
    number = int(curl[1]) if curl else None
    if found := _AWS.search(text):
        return _Said(found[1], int(found[2]) if found[2] else None, number)
    if found := _GOOGLE.search(text):
        return _Said(found[1], None, number)
    if found := _AZURE.search(text):
        return _Said(found[1], int(found[2]), number)
    if "AuthenticationException" in text:
        return _Said("UNAUTHENTICATED", None, number)
    return _Said(curl=number)


def _shown(said: _Said) -> str:
    if said.status is not None:
        return f"{said.status} {said.code}".strip() if said.code not in ("", "UNKNOWN") else f"status {said.status}"
    return said.code or "no reason given"


def _of_files(error: Exception, *, where: str, field: str, what: str) -> RowmillError:
    number = getattr(error, "errno", None)
    reason = getattr(error, "strerror", None) or type(error).__name__
    if number in _FULL:
        return PlaceUnavailable(f"{where}: {what}: the disk is full; free some space. It is tried again")
    if isinstance(error, FileNotFoundError):
        reason = "there is no such file"
    return InvalidInput.one(where, f"{field}.uri", f"{what}: {reason.partition('. Detail')[0]}; correct the path")
