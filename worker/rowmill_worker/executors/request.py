"""From a row to the request that it is: templates compiled once, rendered for each attempt. Nothing is sent here.

Whatever goes wrong while rendering ends the row without a call and without an attempt (`spent` is False): the row does
not fit the manifest, and would not fit it the next time either.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple
from urllib.parse import quote

import msgspec
from multidict import CIMultiDict, istr
from yarl import URL

from rowmill import __version__
from rowmill.errors import InvalidInput
from rowmill.spec.executors import HttpExecutor as HttpSpec
from rowmill.spec.executors import ValueFrom
from rowmill.templating import Template, TemplateError, compile_value
from rowmill_worker.executors.protocol import Attempt, RowError
from rowmill_worker.executors.secrets import SecretReader

IDEMPOTENCY_KEY: Final = istr("Idempotency-Key")
REQUEST_ID: Final = istr("X-Request-Id")
_AUTHORIZATION: Final = istr("Authorization")
CONTENT_TYPE: Final = istr("Content-Type")
_USER_AGENT: Final = istr("User-Agent")

MAX_REQUEST_BYTES: Final = 16 * 1_048_576
"""Bytes of a rendered body; a larger one ends the row unsent, with class RequestTooLarge."""

MASK: Final = "[secret]"
"""Stands for a secret's value where none is read (Simulate)."""

_LONE_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_NOT_IN_HEADER: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")


class Request(NamedTuple):
    """One request, ready to send. `bound` names the headers (lower case) whose value came by reference."""

    method: str
    url: URL
    headers: CIMultiDict[str]
    body: bytes | None
    bound: frozenset[str]

    @property
    def origin(self) -> str:
        """Scheme, host and port: what messages may tell of the address (a path may hold a row's content)."""
        return str(self.url.origin())

    def describe(self) -> dict[str, Any]:
        """Method, URL, headers and body as a person may see them: no value that came by reference."""
        headers = {name: MASK if name.lower() in self.bound else value for name, value in self.headers.items()}
        return {
            "method": self.method,
            "url": str(self.url.with_user(None)),
            "headers": headers,
            "body": _body_for_people(self.body),
        }


class RequestTemplate:
    """`spec.executor.http` compiled. `render` is pure and cheap; it is called for each attempt.

    Other executors put what they send in the same terms; `path` then names their part of the manifest in messages, and
    `bearer` (its `apiKey`) is sent as Authorization; `url_path` and `body_path` are where address and body stand in the
    manifest. `shape` makes of the rendered body what is sent, and raises RowError where a row does not fit.

    `secrets` is None where no secret is to be read (Simulate): `[secret]` then stands for each. `job` is what
    templates find under that name. Raises InvalidInput (a template that does not compile, a secret that is missing).
    """

    def __init__(
        self,
        *,
        spec: HttpSpec,
        job: Mapping[str, Any],
        secrets: SecretReader | None,
        where: str = "",
        path: str = "spec.executor.http",
        bearer: ValueFrom | None = None,
        url_path: str | None = None,
        body_path: str | None = None,
        shape: Callable[[Any], Any] | None = None,
    ) -> None:
        self._job = job
        self._shape = shape
        self._body_path = body_path or f"{path}.body"
        self._path = path
        self._method = str(spec.method)
        url_path = url_path or f"{path}.url"
        try:
            self._url = compile_value(spec.url, path=url_path, text=True)
            self._query = None if spec.query is None else compile_value(spec.query, path=f"{path}.query")
            self._body = None if spec.body is None else compile_value(spec.body, path=self._body_path)
            self._headers(spec, secrets, bearer)
            # Most jobs have one URL for all rows: it is parsed once, and a wrong one is told before the first row.
            self._constant = self._parse(self._url.render({})) if self._url.constant else None
        except TemplateError as exc:
            raise InvalidInput.one(where, exc.path, exc.message) from None
        except RowError as exc:
            raise InvalidInput.one(where, url_path, exc.message.removeprefix(f"{url_path}: ")) from None

    def _headers(self, spec: HttpSpec, secrets: SecretReader | None, bearer: ValueFrom | None) -> None:
        self._fixed: CIMultiDict[str] = CIMultiDict()
        self._rendered: list[tuple[istr, Template]] = []
        bound: set[str] = set()
        own = {header.name.lower() for header in spec.headers}
        for index, header in enumerate(spec.headers):
            at = f"{self._path}.headers[{index}]"
            name = istr(header.name)
            if header.value_from is not None:
                bound.add(name.lower())
                self._fixed.add(
                    name, MASK if secrets is None else read_reference(secrets, header.value_from, f"{at}.valueFrom")
                )
            else:
                self._rendered.append((name, compile_value(header.value, path=f"{at}.value", text=True)))
        if bearer is not None:
            bound.add("authorization")
            key = MASK if secrets is None else read_reference(secrets, bearer, f"{self._path}.apiKey")
            # A Secret may hold the whole header's value, as other tools want it.
            self._fixed[_AUTHORIZATION] = key if key.lower().startswith("bearer ") else f"Bearer {key}"
        if "user-agent" not in own:
            self._fixed[_USER_AGENT] = f"rowmill/{__version__}"
        self._bound = frozenset(bound)
        self._has_type = "content-type" in own

    def render(self, attempt: Attempt) -> Request:
        """The request of this attempt. Raises RowError, unspent, where the row does not fit the templates."""
        context = {"row": attempt.row, "key": attempt.key, "seq": attempt.seq, "job": self._job}
        try:
            url = self._url.render(context)
            rendered = [(name, template.render(context), template.path) for name, template in self._rendered]
            query = None if self._query is None else self._query.render(context)
            body = None if self._body is None else self._body.render(context)
        except TemplateError as exc:
            raise _unfit("TemplateError", f"{exc.path}: {exc.message}") from None
        headers = self._fixed.copy()
        for name, value, at in rendered:
            headers.add(name, _header_text(value, at))
        headers[IDEMPOTENCY_KEY] = _header_safe(attempt.idempotency_key)
        headers[REQUEST_ID] = attempt.request_id
        data = None
        if self._body is not None:
            data, content_type = encode_body(body if self._shape is None else self._shape(body), self._body_path)
            if not self._has_type:
                headers[CONTENT_TYPE] = content_type
        target = self._constant or self._parse(url)
        if query:
            target = target.extend_query(_pairs(query, f"{self._path}.query"))
        return Request(self._method, target, headers, data, self._bound)

    def _parse(self, rendered: str) -> URL:
        at = self._url.path
        try:
            url = URL(rendered.strip())
            host = url.raw_host
        except ValueError:
            host = None
        if not host or url.scheme not in ("http", "https"):
            raise _unfit(
                "InvalidURL",
                f"{at}: it is, or for this row renders to, no http or https address with a host; "
                "check the columns that it uses, and put them through the quote filter",
            )
        if url.raw_user is not None and "authorization" in {name.lower() for name in self._fixed}:
            raise _unfit("InvalidURL", f"{at}: it holds a user, and the headers an Authorization; leave one out")
        return url


def read_reference(secrets: SecretReader, reference: ValueFrom, path: str) -> str:
    """The value that a `valueFrom` at `path` refers to. Raises InvalidInput where it cannot be had."""
    if reference.secret_key_ref is not None:
        ref = reference.secret_key_ref
        return secrets.from_secret(ref.name, ref.key, path=f"{path}.secretKeyRef")
    if reference.env is not None:
        return secrets.from_env(reference.env, path=f"{path}.env")
    if reference.file is not None:
        return secrets.from_file(reference.file, path=f"{path}.file")
    raise InvalidInput.one("", path, "it names nothing; give one of secretKeyRef, env, file")


def _pairs(query: Mapping[str, Any], at: str) -> list[tuple[str, str]]:
    """Parameters of the URL: a list repeats its name, null leaves it out."""
    pairs = []
    for name, value in query.items():
        for item in value if isinstance(value, list | tuple) else (value,):
            if item is None:
                continue
            if isinstance(item, str):
                if not item.isascii() and _LONE_SURROGATE.search(item):
                    raise _unfit("InvalidText", f"{at}.{name}: it renders to a lone surrogate (half of a character)")
                pairs.append((name, item))
            elif isinstance(item, bool | int | float):
                pairs.append((name, msgspec.json.encode(item).decode()))
            else:
                raise _unfit(
                    "TemplateError",
                    f"{at}.{name}: it renders to an object or nested list, which no parameter can carry",
                )
    return pairs


def encode_body(body: Any, at: str) -> tuple[bytes, str]:
    """A body's bytes and its Content-Type; `at` names it in messages. Raises RowError, unspent, for none."""
    try:
        if isinstance(body, str):
            data, content_type = body.encode(), "text/plain; charset=utf-8"
        else:
            data, content_type = msgspec.json.encode(body), "application/json"
    except UnicodeEncodeError:
        raise _unfit("InvalidText", f"{at}: it renders to a lone surrogate (half of a character)") from None
    except (TypeError, ValueError, RecursionError):
        raise _unfit("TemplateError", f"{at}: it renders to something that is not JSON") from None
    if len(data) > MAX_REQUEST_BYTES:
        raise _unfit(
            "RequestTooLarge", f"{at}: it renders to {len(data):,} bytes; at most {MAX_REQUEST_BYTES:,} are sent"
        )
    return data, content_type


def _header_text(text: str, at: str) -> str:
    if _NOT_IN_HEADER.search(text):
        raise _unfit(
            "TemplateError", f"{at}: it renders to a line break or control character, which no header can carry"
        )
    if not text.isascii() and _LONE_SURROGATE.search(text):
        raise _unfit("InvalidText", f"{at}: it renders to a lone surrogate (half of a character)")
    return text.strip()


def _header_safe(text: str) -> str:
    # A dedupe key may be any text; its percent-encoded form is just as stable and tells keys apart just as well.
    return text if text.isascii() and text.isprintable() else quote(text, safe=" /:#", errors="surrogatepass")


def _unfit(error_class: str, message: str) -> RowError:
    return RowError(error_class, message, retryable=False, spent=False)


def _body_for_people(body: bytes | None) -> Any:
    if body is None:
        return None
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return body.decode("utf-8", "replace")
