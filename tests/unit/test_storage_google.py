"""Google's keys: a signed statement for a token, asked of where the policy allows, and nothing told of the key."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

from rowmill.errors import InvalidInput, PlaceUnavailable
from rowmill.storage import AddressPolicy, open_store
from rowmill.storage.google_token import GoogleToken, google_token


class Tokens(ThreadingHTTPServer):
    """Gives tokens, and tells an object store's clients that there is nothing."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.status = 200
        self.answer: Any = {"access_token": "token-1", "expires_in": 1800}
        self.forms: list[dict[str, list[str]]] = []
        self.authorizations: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Tokens

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        self.server.forms.append(parse_qs(self.rfile.read(length).decode()))
        self._send(self.server.status, json.dumps(self.server.answer).encode())

    def do_GET(self) -> None:
        self.server.authorizations.append(self.headers.get("Authorization"))
        self._send(404, b"")

    def _send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def tokens() -> Iterator[Tokens]:
    with Tokens() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)


def pem(key: Any = KEY) -> str:
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    return str(key.private_bytes(encoding, form, serialization.NoEncryption()).decode())


def key_file(tokens: Tokens, **changes: Any) -> str:
    about = {
        "type": "service_account",
        "client_email": "rowmill@team.example",
        "private_key": pem(),
        "private_key_id": "key-1",
        "token_uri": f"{tokens.url}/token",
    }
    return json.dumps({name: value for name, value in (about | changes).items() if value is not None})


def ask(text: str, policy: AddressPolicy | None = None) -> GoogleToken:
    return google_token(
        text,
        where="gs://tables/t.csv",
        field="spec.source",
        policy=policy or AddressPolicy.everything(),
        wall=lambda: 1_700_000_000.0,
    )


def decoded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def test_the_statement_is_signed_by_the_key(tokens: Tokens) -> None:
    assert ask(key_file(tokens)) == GoogleToken("token-1", 1_700_001_800.0)
    (form,) = tokens.forms
    header, claims, signature = form["assertion"][0].split(".")
    KEY.public_key().verify(decoded(signature), f"{header}.{claims}".encode(), padding.PKCS1v15(), hashes.SHA256())
    assert json.loads(decoded(header)) == {"alg": "RS256", "typ": "JWT", "kid": "key-1"}
    assert json.loads(decoded(claims)) == {
        "iss": "rowmill@team.example",
        "scope": "https://www.googleapis.com/auth/devstorage.read_write",
        "aud": f"{tokens.url}/token",
        "iat": 1_700_000_000,
        "exp": 1_700_003_600,
    }


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"type": "external_account"}, "no JSON key of a service account"),
        ({"client_email": None}, "is missing"),
        ({"private_key": "secret"}, "no RSA key"),
        ({"private_key": pem(ec.generate_private_key(ec.SECP256R1()))}, "no RSA key"),
    ],
)
def test_a_key_that_is_none_is_told_without_its_content(tokens: Tokens, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidInput, match=says) as caught:
        ask(key_file(tokens, **changes))
    assert caught.value.problems[0].path == "spec.source.secretName"
    assert "secret" not in caught.value.problems[0].message.replace("secretName", "")
    assert "BEGIN" not in str(caught.value)
    with pytest.raises(InvalidInput, match="no JSON key"):
        ask("{")


def test_a_token_is_asked_only_of_where_the_policy_allows(tokens: Tokens) -> None:
    with pytest.raises(InvalidInput, match="token_uri must begin with https://"):
        ask(key_file(tokens), AddressPolicy.tenants())
    uri = tokens.url.replace("http", "https")
    with pytest.raises(InvalidInput, match=r"127.0.0.1 is a loopback address"):
        ask(key_file(tokens, token_uri=uri), AddressPolicy.tenants())
    assert tokens.forms == []


@pytest.mark.parametrize(
    ("status", "answer", "error"),
    [
        (400, {}, InvalidInput),
        (401, {}, InvalidInput),
        (503, {}, PlaceUnavailable),
        (429, {}, PlaceUnavailable),
        (200, {}, PlaceUnavailable),
        (200, [], PlaceUnavailable),
    ],
)
def test_a_token_that_is_refused(tokens: Tokens, status: int, answer: Any, error: type[Exception]) -> None:
    tokens.status, tokens.answer = status, answer
    with pytest.raises(error) as caught:
        ask(key_file(tokens))
    assert "BEGIN" not in str(caught.value)
    assert str(tokens.forms[0]["assertion"][0]) not in str(caught.value)


def test_a_store_uses_the_token_and_asks_for_another_before_it_expires(tokens: Tokens) -> None:
    now = [1_700_000_000.0]
    tokens.answer = {"access_token": "token-1", "expires_in": 3600 * 24 * 3650}
    store = open_store(
        "gs://tables/t.csv",
        credentials={"GOOGLE_APPLICATION_CREDENTIALS_JSON": key_file(tokens), "STORAGE_EMULATOR_HOST": tokens.url},
        ambient=False,
        policy=AddressPolicy.everything(),
        wall=lambda: now[0],
    )
    assert store.info() is None
    assert set(tokens.authorizations) == {"Bearer token-1"}
    now[0] = 10_000_000_000.0
    tokens.answer = {"access_token": "token-2", "expires_in": 3600}
    tokens.authorizations.clear()
    assert store.info() is None
    assert set(tokens.authorizations) == {"Bearer token-2"}
    assert len(tokens.forms) == 2
    assert "BEGIN" not in repr(store)
