"""Redirects are followed within bounds, and carry no secret to another origin."""

import asyncio
from typing import Any

import pytest
from aiohttp import web
from multidict import CIMultiDict
from yarl import URL

from rowmill_worker.executors.protocol import RowError
from rowmill_worker.executors.redirect import MAX_REDIRECTS, follow, same_origin
from rowmill_worker.executors.request import Request
from tests.support.http_rows import Mirror, attempt, http_executor

HEADERS = [
    {"name": "Authorization", "valueFrom": {"env": "TOKEN"}},
    {"name": "X-Custom-Key", "valueFrom": {"env": "TOKEN"}},
    {"name": "X-Tenant-Token", "value": "written-in-the-manifest"},
    {"name": "Cookie", "valueFrom": {"env": "COOKIE"}},
    {"name": "Accept", "value": "application/json"},
]
ENVIRON = {"TOKEN": "Bearer s3cr3t-token", "COOKIE": "session=s3cr3t"}


def redirecting(status: int, location: str) -> Mirror:
    """Answers the first path with a redirect, any other with JSON."""

    def answer(request: web.BaseRequest) -> web.StreamResponse:
        if request.path == "/start":
            return web.Response(status=status, headers={"Location": location})
        return web.json_response({"arrived": True})

    return Mirror(answer)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_another_host_gets_no_secret(status: int) -> None:
    other = Mirror(lambda _: web.json_response({"arrived": True}))
    async with other as target:
        first = redirecting(status, f"{target}/elsewhere")
        async with first as url, http_executor(f"{url}/start", headers=HEADERS, environ=ENVIRON) as executor:
            assert await executor.execute(attempt(7)) == {"arrived": True}
    assert first.seen[0]["headers"]["authorization"] == "Bearer s3cr3t-token"
    (seen,) = other.seen
    assert "s3cr3t" not in repr(seen)
    for name in ("authorization", "x-custom-key", "x-tenant-token", "cookie"):
        assert name not in seen["headers"]
    # What tells a paid call from its repetition goes along; it is no secret.
    assert seen["headers"]["idempotency-key"] == "support/triage/1/7"
    assert seen["headers"]["x-request-id"] == "triage-7-1"
    assert seen["headers"]["accept"] == "application/json"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_the_same_origin_keeps_its_headers(status: int) -> None:
    mirror = redirecting(status, "/elsewhere?a=1")
    async with mirror as url, http_executor(f"{url}/start", headers=HEADERS, environ=ENVIRON) as executor:
        assert await executor.execute(attempt()) == {"arrived": True}
    first, second = mirror.seen
    assert second["path"] == "/elsewhere?a=1"
    assert second["headers"]["authorization"] == "Bearer s3cr3t-token"
    assert second["headers"]["x-tenant-token"] == "written-in-the-manifest"
    kept = status in (307, 308)
    assert (second["method"], second["body"]) == (("POST", first["body"]) if kept else ("GET", ""))
    assert ("content-type" in second["headers"]) == kept


async def test_what_was_taken_off_stays_off_on_the_way_back() -> None:
    home = Mirror()
    async with home as url:
        away = Mirror(lambda _: web.Response(status=307, headers={"Location": f"{url}/back"}))
        async with away as other:
            home._answer = lambda request: (
                web.Response(status=307, headers={"Location": f"{other}/away"})
                if request.path == "/start"
                else web.json_response({"arrived": True})
            )
            async with http_executor(f"{url}/start", headers=HEADERS, environ=ENVIRON) as executor:
                assert await executor.execute(attempt()) == {"arrived": True}
    assert [seen["path"] for seen in home.seen] == ["/start", "/back"]
    assert "authorization" not in home.seen[1]["headers"]


async def test_a_circle_ends() -> None:
    mirror = redirecting(307, "/start")
    async with mirror as url, http_executor(f"{url}/start") as executor:
        with pytest.raises(RowError) as caught:
            await executor.execute(attempt())
        assert executor.active_sessions == 0
    assert (caught.value.error_class, caught.value.retryable) == ("TooManyRedirects", False)
    assert len(mirror.seen) == MAX_REDIRECTS + 1


async def test_all_hops_share_one_timeout() -> None:
    class Slow(Mirror):
        async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
            await asyncio.sleep(0.06)
            return await super()._handle(request)

    mirror = Slow(lambda _: web.Response(status=307, headers={"Location": "/start"}))
    async with mirror as url, http_executor(f"{url}/start") as executor:
        with pytest.raises(RowError, match=r"Timeout: .* within 0\.1 s"):
            await executor.execute(attempt(timeout=0.1))
    assert len(mirror.seen) <= 2


@pytest.mark.parametrize("location", [None, "", "ftp://host/x", "javascript:alert(1)", "http://[::1"])
async def test_a_place_that_cannot_be_called_ends_the_row(location: str | None) -> None:
    headers = {} if location is None else {"Location": location}
    mirror = Mirror(lambda _: web.Response(status=302, headers=headers))
    async with mirror as url, http_executor(url) as executor:
        with pytest.raises(RowError) as caught:
            await executor.execute(attempt())
    assert (caught.value.error_class, caught.value.retryable) == ("InvalidRedirect", False)


@pytest.mark.parametrize(
    ("source", "target", "same"),
    [
        ("https://a/x", "https://a/y", True),
        ("http://a/", "https://a/", True),
        ("http://a:80/", "https://a:443/", True),
        ("https://a/", "http://a/", False),
        ("https://a/", "https://b/", False),
        ("https://a/", "https://a.b/", False),
        ("https://a:8443/", "https://a/", False),
        ("http://a:8080/", "https://a/", False),
        ("http://A/", "http://a/", True),
    ],
)
def test_which_origins_are_the_same(source: str, target: str, same: bool) -> None:
    assert same_origin(URL(source), URL(target)) is same


def test_a_user_in_the_location_becomes_no_authorization() -> None:
    request = Request("POST", URL("http://a/"), CIMultiDict({"Authorization": "mine"}), b"{}", frozenset())
    followed = follow(request, 307, "http://user:pass@a/next", hop=1)
    assert followed.url == URL("http://a/next")
    assert followed.headers["Authorization"] == "mine"


def test_an_idempotency_key_that_came_by_reference_stays_home() -> None:
    headers: Any = CIMultiDict({"Idempotency-Key": "secret", "Accept": "*/*"})
    request = Request("POST", URL("http://a/"), headers, None, frozenset({"idempotency-key"}))
    assert dict(follow(request, 307, "http://b/", hop=1).headers) == {"Accept": "*/*"}
