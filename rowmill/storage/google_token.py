"""Access tokens from a Google service account's JSON key: a signed statement, exchanged for a token of an hour."""

from __future__ import annotations

import base64
import http.client
import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from rowmill.errors import InvalidInput, PlaceUnavailable
from rowmill.storage.addresses import AddressPolicy, AddressRefused
from rowmill.storage.pinned_http import http_opener

KEY = "GOOGLE_APPLICATION_CREDENTIALS_JSON"
_SCOPE = "https://www.googleapis.com/auth/devstorage.read_write"
_LIFETIME_SECONDS = 3600
_TIMEOUT_SECONDS = 30.0
_ANSWER_BYTES = 65_536


class GoogleToken(NamedTuple):
    """`expires` in seconds since the epoch."""

    value: str
    expires: float


def google_token(
    text: str,
    *,
    where: str,
    field: str,
    policy: AddressPolicy,
    timeout: float = _TIMEOUT_SECONDS,
    wall: Callable[[], float] = time.time,
) -> GoogleToken:
    """Exchange a service account's JSON key for an access token. Blocks.

    Raises InvalidInput (no such key, refused, its `token_uri` may not be connected to), PlaceUnavailable.
    """

    def invalid(message: str) -> InvalidInput:
        return InvalidInput.one(where, f"{field}.secretName", f"{KEY}: {message}")

    try:
        key = json.loads(text)
    except ValueError:
        key = None
    if not isinstance(key, dict) or key.get("type") != "service_account":
        raise invalid("this is no JSON key of a service account; create one for the account and put it in whole")
    email, private, uri = key.get("client_email"), key.get("private_key"), key.get("token_uri")
    if not all(isinstance(part, str) and part for part in (email, private, uri)):
        raise invalid("client_email, private_key or token_uri is missing; put the JSON key in whole")
    parts = urlsplit(str(uri))
    if parts.scheme != "https" and policy.restricted:
        raise invalid("token_uri must begin with https://")
    host = parts.hostname or "token_uri"
    now = wall()
    claims = {"iss": email, "scope": _SCOPE, "aud": uri, "iat": int(now), "exp": int(now) + _LIFETIME_SECONDS}
    try:
        assertion = _signed(claims, str(private), key_id=key.get("private_key_id"))
    except ValueError:
        raise invalid("private_key is no RSA key in PEM form; put the JSON key in as it was downloaded") from None
    body = urllib.parse.urlencode(
        {"grant_type": "urn:ietf:params:oauth:grant-type:jwt-bearer", "assertion": assertion}
    ).encode()
    request = urllib.request.Request(str(uri), data=body, headers={"User-Agent": "rowmill"})
    try:
        with http_opener(policy).open(request, timeout=timeout) as answer:
            said = json.loads(answer.read(_ANSWER_BYTES))
        return GoogleToken(str(said["access_token"]), now + float(said.get("expires_in", _LIFETIME_SECONDS)))
    except AddressRefused as error:
        raise invalid(str(error)) from None
    except urllib.error.HTTPError as error:
        error.close()
        if error.code < 500 and error.code not in (408, 429):
            raise invalid(f"{host} refuses it ({error.code}); is the key deleted, or the account disabled?") from None
        raise PlaceUnavailable(f"{where}: {host} answers {error.code} to a request for a token") from None
    except (KeyError, TypeError, ValueError):
        raise PlaceUnavailable(f"{where}: {host} gave an answer that holds no token") from None
    except (OSError, http.client.HTTPException) as error:
        raise PlaceUnavailable(f"{where}: {host} gives no token ({type(error).__name__}); it is tried again") from None


def _signed(claims: dict[str, Any], private: str, *, key_id: object) -> str:
    # Late: only those who read from Google with a key need it.
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import padding, rsa

    key = serialization.load_pem_private_key(private.encode(), password=None)
    if not isinstance(key, rsa.RSAPrivateKey):
        raise ValueError("not an RSA key")
    header = {"alg": "RS256", "typ": "JWT"} | ({"kid": key_id} if isinstance(key_id, str) else {})
    text = f"{_encoded(json.dumps(header).encode())}.{_encoded(json.dumps(claims).encode())}"
    return f"{text}.{_encoded(key.sign(text.encode(), padding.PKCS1v15(), hashes.SHA256()))}"


def _encoded(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
