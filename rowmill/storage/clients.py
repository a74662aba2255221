"""The libraries' clients, made from explicit credentials alone.

Invariant: without `ambient`, nothing of this process's identity is used: no variable of its environment, no file of its
home, no metadata service. Where no credentials are given, requests go unsigned. With credentials given, these are used
and nothing else, ambient or not.
"""

from __future__ import annotations

import base64
import binascii
import datetime as dt
import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult, urlsplit

from rowmill.errors import InvalidInput, PlaceUnavailable
from rowmill.storage.addresses import AddressPolicy, AddressRefused
from rowmill.storage.google_token import KEY as GOOGLE_KEY
from rowmill.storage.google_token import google_token
from rowmill.storage.place import Kind, Place

CONNECT_SECONDS = 10.0
REQUEST_SECONDS = 30.0
ATTEMPTS = 3
RETRY_SECONDS = 15

CREDENTIALS = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    GOOGLE_KEY,
    "STORAGE_EMULATOR_HOST",
    "AZURE_STORAGE_ACCOUNT",
    "AZURE_STORAGE_KEY",
    "AZURE_STORAGE_SAS_TOKEN",
    "AZURE_STORAGE_ENDPOINT",
)
"""What credentials are known by: keys of a Secret, or variables of the environment."""

_REGION = re.compile(r"[a-z0-9-]{1,40}")
_ACCOUNT = re.compile(r"[a-z0-9]{3,24}")


@dataclass(frozen=True, slots=True)
class Client:
    """`fs` is a pyarrow filesystem; past `expires` (seconds since the epoch) another must be made."""

    fs: Any
    expires: float | None = None


class Credentials:
    """Keys as a Secret holds them. Neither repr nor messages show a value."""

    def __init__(self, values: Mapping[str, str]) -> None:
        self._values = {name: value.strip() for name, value in values.items() if value.strip()}

    def __repr__(self) -> str:
        return f"Credentials({', '.join(sorted(self._values))})"

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def get(self, name: str) -> str | None:
        return self._values.get(name)


def make_client(
    place: Place,
    *,
    credentials: Credentials | None,
    ambient: bool,
    policy: AddressPolicy,
    where: str,
    field: str,
) -> Client:
    """A client for `place`. Blocks: it resolves an endpoint's host, and asks Google for a token.

    Raises InvalidInput, PlaceUnavailable.
    """
    own = ambient and credentials is None
    keys = credentials or Credentials({name: os.environ[name] for name in CREDENTIALS if own and name in os.environ})
    maker = _Maker(keys, ambient=own, policy=policy, where=where, field=field)
    if place.kind is Kind.S3:
        return maker.s3(place)
    if place.kind is Kind.GCS:
        return maker.gcs()
    if place.kind is Kind.AZURE:
        return maker.azure(place)
    return maker.files()


class _Maker:
    def __init__(self, keys: Credentials, *, ambient: bool, policy: AddressPolicy, where: str, field: str) -> None:
        self._keys = keys
        self._ambient = ambient
        self._policy = policy
        self._where = where
        self._field = field

    def _invalid(self, message: str, part: str = "secretName") -> InvalidInput:
        return InvalidInput.one(self._where, f"{self._field}.{part}", message)

    def files(self) -> Client:
        from pyarrow import fs

        if self._policy.restricted:
            raise self._invalid(
                "files of the operator are no place for a job; use http(s)://, s3://, gs:// or az://", "uri"
            )
        return Client(fs.LocalFileSystem())

    def s3(self, place: Place) -> Client:
        from pyarrow import fs

        key, secret = self._keys.get("AWS_ACCESS_KEY_ID"), self._keys.get("AWS_SECRET_ACCESS_KEY")
        if (key is None) != (secret is None):
            raise self._invalid("the Secret needs both AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or neither")
        region = self._keys.get("AWS_REGION") or self._keys.get("AWS_DEFAULT_REGION")
        if region is not None and not _REGION.fullmatch(region):
            raise self._invalid("AWS_REGION is no region; write one such as eu-central-1")
        options: dict[str, Any] = {
            # A stream that writes in the foreground completes the object with what it has when a part fails.
            "background_writes": True,
            "allow_delayed_open": True,  # a small object is one request
            "connect_timeout": CONNECT_SECONDS,
            "request_timeout": REQUEST_SECONDS,
            "retry_strategy": fs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS),
        }
        endpoint = self._keys.get("AWS_ENDPOINT_URL_S3") or self._keys.get("AWS_ENDPOINT_URL")
        if endpoint is not None:
            parts = self._endpoint(endpoint, "AWS_ENDPOINT_URL")
            options |= {"endpoint_override": parts.netloc, "scheme": parts.scheme}
        if key is not None:
            options |= {
                "access_key": key,
                "secret_key": secret,
                "session_token": self._keys.get("AWS_SESSION_TOKEN"),
            }
        elif not self._ambient:
            options["anonymous"] = True
        if region is None and not self._ambient:
            region = "us-east-1" if endpoint is not None else self._region_of(place)
        return Client(fs.S3FileSystem(region=region, **options))

    def _region_of(self, place: Place) -> str:
        """Where AWS keeps a bucket; it tells anybody."""
        from pyarrow import fs

        try:
            return str(fs.resolve_s3_region(place.bucket))
        except OSError as error:
            if "NETWORK_CONNECTION" in str(error):
                raise PlaceUnavailable(f"{self._where}: S3 cannot be reached to find the bucket's region") from None
            raise self._invalid(
                f"AWS has no bucket {place.bucket}; correct the address, or set AWS_ENDPOINT_URL in the Secret where "
                "another store is meant",
                "uri",
            ) from None

    def gcs(self) -> Client:
        from pyarrow import fs

        options: dict[str, Any] = {"retry_time_limit": dt.timedelta(seconds=RETRY_SECONDS)}
        emulator = self._keys.get("STORAGE_EMULATOR_HOST")
        if emulator is not None:
            parts = self._endpoint(emulator if "://" in emulator else f"http://{emulator}", "STORAGE_EMULATOR_HOST")
            options |= {"endpoint_override": parts.netloc, "scheme": parts.scheme}
        key = self._keys.get(GOOGLE_KEY)
        if key is None:
            return Client(fs.GcsFileSystem(anonymous=not self._ambient, **options))
        token = google_token(key, where=self._where, field=self._field, policy=self._policy)
        expires = dt.datetime.fromtimestamp(token.expires, dt.UTC)
        return Client(
            fs.GcsFileSystem(access_token=token.value, credential_token_expiration=expires, **options), token.expires
        )

    def azure(self, place: Place) -> Client:
        from pyarrow import fs

        account = self._keys.get("AZURE_STORAGE_ACCOUNT") or place.account
        if account is None:
            raise self._invalid("the storage account is not known; set AZURE_STORAGE_ACCOUNT in the Secret")
        if not _ACCOUNT.fullmatch(account):
            raise self._invalid("AZURE_STORAGE_ACCOUNT is no name of a storage account: 3 to 24 letters and digits")
        key, sas = self._keys.get("AZURE_STORAGE_KEY"), self._keys.get("AZURE_STORAGE_SAS_TOKEN")
        if key is not None and sas is not None:
            raise self._invalid("the Secret holds both AZURE_STORAGE_KEY and AZURE_STORAGE_SAS_TOKEN; leave one out")
        options: dict[str, Any] = {}
        if key is not None:
            try:
                base64.b64decode(key, validate=True)
            except (binascii.Error, ValueError):
                raise self._invalid("AZURE_STORAGE_KEY is no account key: it is not base64") from None
            options["account_key"] = key
        elif sas is not None:
            options["sas_token"] = "?" + sas.lstrip("?")
        elif not self._ambient:
            # An empty query signs nothing. Without any of these the library would look for an identity of its own.
            options["sas_token"] = "?"
        endpoint = self._keys.get("AZURE_STORAGE_ENDPOINT")
        if endpoint is not None:
            parts = self._endpoint(endpoint, "AZURE_STORAGE_ENDPOINT")
            options |= {
                "blob_storage_authority": parts.netloc,
                "dfs_storage_authority": parts.netloc,
                "blob_storage_scheme": parts.scheme,
                "dfs_storage_scheme": parts.scheme,
            }
        return Client(fs.AzureFileSystem(account, **options))

    def _endpoint(self, url: str, name: str) -> SplitResult:
        """The parts of an endpoint whose host may be connected to."""
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError:
            host = None
        if not host or parts.scheme not in ("http", "https") or parts.path.strip("/") or parts.query or "@" in url:
            raise self._invalid(f"{name} is no endpoint; write https://host:port and nothing behind it")
        try:
            self._policy.checked(host, port or (443 if parts.scheme == "https" else 80))
        except AddressRefused as error:
            raise self._invalid(f"{name}: {error}") from None
        except (OSError, UnicodeError) as error:
            if isinstance(error, socket.gaierror) and error.errno == socket.EAI_AGAIN:
                raise PlaceUnavailable(f"{self._where}: the host {host} of {name} cannot be resolved for now") from None
            raise self._invalid(f"{name}: the host {host} does not resolve; correct it") from None
        return parts
