"""The example service: its text rules, its HTTP answers, its life as a process."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer

from examples.textservice.names import distinctive, fold, kind_of, lookalike_key, soundex, take_apart, words_of
from examples.textservice.service import MAX_BODY_BYTES, Unusable, describe, make_app

SERVICE = Path(__file__).parents[2] / "examples" / "textservice" / "service.py"


@pytest.mark.parametrize(
    ("text", "folded"),
    [
        ("A Coruña", "a coruna"),
        ("STRASSE Straße", "strasse strasse"),
        ("Łódź Ærø", "lodz aero"),
        ("\uff2a\uff26\uff2b", "jfk"),
    ],
)
def test_folding(text: str, folded: str) -> None:
    assert fold(text) == folded


@pytest.mark.parametrize(
    ("name", "words", "also"),
    [
        ("O'Hare Int'l", "ohare international", ()),
        ("Lawrence Cty", "lawrence county", ()),
        ("Minot AFB", "minot air force base", ()),
        ("Lake Hood SPB", "lake hood seaplane base", ()),
        ("St George Muni", "saint george municipal", ()),
        ("Ely Arpt (Yelland)", "ely airport", ("yelland",)),
        ('W. H. "Bud" Barron', "w h barron", ("bud",)),
        ("(Yelland)", "yelland", ()),
        ("Mem Field", "mem field", ()),
        ("Gen Wm J Fox Airfld", "general wm j fox airfield", ()),
        ("Lawrence County Airpark,Inc", "lawrence county airpark inc", ()),
    ],
)
def test_names_are_taken_apart(name: str, words: str, also: tuple[str, ...]) -> None:
    own = take_apart(name)
    assert (" ".join(own.words), own.also) == (words, also)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("Downtown Heliport", "heliport"),
        ("Lake Hood SPB", "seaplane base"),
        ("Ellsworth AFB", "military"),
        ("Tinian Intl", "international"),
        ("Tri-Cities", "regional"),
        ("Livingston Muni", "municipal"),
        ("Troy Cty", "county"),
        ("Sky Harbor Airpark", "airpark"),
        ("Trinity", "other"),
        ("Thigpen", "other"),
    ],
)
def test_kinds(name: str, kind: str) -> None:
    assert kind_of(take_apart(name).words) == kind


@pytest.mark.parametrize(
    ("word", "code"),
    [
        ("robert", "R163"),
        ("rupert", "R163"),
        ("rubin", "R150"),
        ("ashcraft", "A261"),
        ("tymczak", "T522"),
        ("pfister", "P236"),
        ("honeyman", "H555"),
        ("lee", "L000"),
        ("42", "4200"),
        ("", "0000"),
    ],
)
def test_soundex(word: str, code: str) -> None:
    assert soundex(word) == code


def test_spellings_of_one_place_share_a_key() -> None:
    def key(name: str) -> str:
        return lookalike_key(take_apart(name).words, words_of("Reading"), "PA")

    assert key("Reading Muni,Gen Carl A Spaatz") == key("Gen. Carl A. Spaatz, Reading Municipal")
    assert key("Spaatz Field") == key("Spatz Airport")
    assert key("Spaatz Field") != key("Miller Field")
    assert distinctive(("municipal", "airport")) == ("municipal", "airport")


GOOD = {"name": "Livingston Municipal", "city": "Livingston", "state": "TX"}


def test_the_answer() -> None:
    assert describe(GOOD) == {
        "name": "livingston municipal",
        "also": [],
        "words": ["livingston", "municipal"],
        "slug": "livingston-municipal-livingston-tx",
        "kind": "municipal",
        "sound": "L152",
        "lookalike": "tx-L152",
    }


@pytest.mark.parametrize(
    ("change", "field", "message"),
    [
        ({"name": None}, "name", "is missing"),
        ({"city": 42}, "city", "must be a text"),
        ({"city": "NA"}, "city", "names nothing"),
        ({"state": "  "}, "state", "names nothing"),
        ({"name": "x" * 201}, "name", "has 201 characters; at most 200"),
        ({"name": "北京"}, "name", "no letter or digit"),
    ],
)
def test_unusable_fields(change: dict[str, Any], field: str, message: str) -> None:
    with pytest.raises(Unusable, match=message) as unusable:
        describe({**GOOD, **change})
    assert unusable.value.field == field


@pytest.fixture
async def client() -> AsyncIterator[TestClient[Any, Any]]:
    async with TestClient(TestServer(make_app(latency=lambda: 0.0))) as client:
        yield client


async def test_http_answers(client: TestClient[Any, Any]) -> None:
    assert (await client.get("/healthz")).status == 200
    good = await client.post("/v1/names", json=GOOD)
    assert (good.status, (await good.json())["slug"]) == (200, "livingston-municipal-livingston-tx")
    refused = await client.post("/v1/names", json={**GOOD, "city": "NA"})
    assert refused.status == 422
    assert (await refused.json())["error"]["field"] == "city"
    for body in (b"{", b"[]", b'"\xff"'):
        answer = await client.post("/v1/names", data=body)
        assert answer.status == 400
        assert "body" in (await answer.json())["error"]["message"]
    assert (await client.post("/v1/names", data=b"x" * (MAX_BODY_BYTES + 1))).status == 413


async def test_each_call_takes_its_latency() -> None:
    asked = iter([0.0, 0.05])
    async with TestClient(TestServer(make_app(latency=lambda: next(asked)))) as client:
        loop = asyncio.get_running_loop()
        await client.post("/v1/names", json=GOOD)
        start = loop.time()
        await client.post("/v1/names", json=GOOD)
        assert loop.time() - start >= 0.05


async def start(*options: str) -> asyncio.subprocess.Process:
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(
        sys.executable, str(SERVICE), *options, stdin=pipe, stdout=pipe, stderr=pipe
    )


@pytest.mark.parametrize("how", ["sigterm", "sigint", "stdin"])
async def test_it_tells_its_address_and_ends_when_told(how: str) -> None:
    process = await start("--port", "0", *(["--follow-stdin"] if how == "stdin" else []))
    assert process.stdout is not None
    assert process.stdin is not None
    address = (await asyncio.wait_for(process.stdout.readline(), 60)).decode().strip()
    host, _, port = address.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    body = json.dumps(GOOD).encode()
    writer.write(b"POST /v1/names HTTP/1.0\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    assert b"livingston-municipal" in await asyncio.wait_for(reader.read(), 60)
    writer.close()
    if how == "stdin":
        process.stdin.close()
    else:
        process.send_signal(signal.SIGTERM if how == "sigterm" else signal.SIGINT)
    _, errors = await asyncio.wait_for(process.communicate(), 60)
    assert (process.returncode, errors) == (0, b"")


async def test_a_port_that_is_taken_is_said_plainly() -> None:
    server = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    process = await start("--port", str(port))
    _, errors = await asyncio.wait_for(process.communicate(), 60)
    server.close()
    assert process.returncode == 1
    assert b"cannot listen on port" in errors
    assert b"Traceback" not in errors
