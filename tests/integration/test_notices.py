"""Notices on a real ledger and over real sockets: told at least once, under one id, and to nobody else."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest
import trustme

from rowmill.errors import StoreUnavailable
from rowmill.identity import RunIdentity
from rowmill.ledger import Ledger, Notices
from rowmill.ledger.notices import KEPT
from rowmill.spec.notify import Notify
from rowmill.spec.source import KeyReference
from rowmill.storage import AddressPolicy
from rowmill_operator.notify import Answer, Courier, Poster, Said, Target, courier, schedule
from tests.support.kube_lab import Noted
from tests.support.webhook import Reply, Webhook

RUN = RunIdentity("test", "ns", "job", "1")
JOB = ("test", "ns", "job")
HERE = AddressPolicy.tenants(["127.0.0.0/8"])


@pytest.fixture
async def ledger(postgres_dsn: str) -> AsyncIterator[Ledger]:
    """A ledger that knows the run."""
    ledger = await Ledger.connect(postgres_dsn, connections=4)
    try:
        await asyncio.gather(*(ledger.migrate() for _ in range(3)))
        await ledger.runs.ensure(RUN, frozen={}, shards=1, row_limit=None)
        yield ledger
    finally:
        await ledger.close()


def poster(policy: AddressPolicy = HERE, *, timeout: float = 30.0, slots: int = 4) -> Poster:
    return Poster(
        policy=policy, threads=ThreadPoolExecutor(2), slots=asyncio.Semaphore(slots), wall=time.time, timeout=timeout
    )


async def posted(url: str, policy: AddressPolicy = HERE, *, timeout: float = 30.0) -> Answer:
    return await poster(policy, timeout=timeout).post(Target(url), {"a": 1}, uid="u", request_id="r")


# -- the ledger


async def record(notices: Notices, *, event: str = "Complete", occasion: str = "1", generation: int = 0) -> bool:
    return await notices.record(RUN, generation=generation, event=event, occasion=occasion, body={"event": event})


async def test_an_occasion_is_recorded_once_however_many_see_it(ledger: Ledger) -> None:
    new = await asyncio.gather(*(record(ledger.notices) for _ in range(8)))
    assert sorted(new) == [False] * 7 + [True]
    assert await record(ledger.notices, generation=1)
    assert await record(ledger.notices, occasion="2")
    found = await ledger.notices.open_of(*JOB)
    assert len({one.uid for one in found}) == 3
    assert all("." not in one.uid and one.uid.isascii() for one in found)
    assert not await ledger.notices.record(
        RunIdentity("test", "ns", "job", "unknown"), generation=0, event="Failed", occasion="1", body={}
    )
    assert await ledger.notices.open_of("test", "ns", "another") == []


async def test_what_has_ended_is_known_and_never_open_again(ledger: Ledger) -> None:
    await record(ledger.notices)
    (notice,) = await ledger.notices.open_of(*JOB)
    await ledger.notices.postpone(notice, seconds=60, problem="it answers 503")
    (later,) = await ledger.notices.open_of(*JOB)
    assert (later.tries, later.problem, later.uid) == (1, "it answers 503", notice.uid)
    assert 50 < later.wait <= 60
    await ledger.notices.delivered(later)
    await ledger.notices.gave_up(notice, problem="another operator's opinion")
    await ledger.notices.postpone(notice, seconds=0, problem="late")
    assert await ledger.notices.open_of(*JOB) == []
    assert not await record(ledger.notices), "its record stays: the same end is not told again"


async def test_few_notices_are_kept_and_the_new_one_does_not_wait_behind_the_refused(ledger: Ledger) -> None:
    for n in range(KEPT + 5):
        await record(ledger.notices, event="Suspended", occasion=f"{n}")
        (notice,) = await ledger.notices.open_of(*JOB)
        await ledger.notices.delivered(notice)
    for n in range(25):
        await record(ledger.notices, event="Stalled", occasion=f"{n}")
    for notice in await ledger.notices.open_of(*JOB):
        await ledger.notices.postpone(notice, seconds=3600, problem="it answers 400")
    await record(ledger.notices, event="Failed")
    assert {one.event for one in (await ledger.notices.open_of(*JOB))[:6]} == {"Stalled", "Failed"}
    async with ledger.pool.connection() as c:
        ended = await c.fetchval("select count(*) from rowmill.notices where ended_at is not null")
    assert ended == KEPT
    assert not await record(ledger.notices, event="Suspended", occasion=f"{KEPT + 4}"), "the newest are those kept"


# -- one POST


async def test_a_notification_carries_what_is_asked_for_and_no_more() -> None:
    async with Webhook() as hook:
        answer = await poster().post(
            Target(hook.url, {"Authorization": "Bearer s"}, b"k"),
            {"ä": "\ud800"},
            uid="id-1",
            request_id="ns/job/1#Failed.0",
        )
        (told,) = hook.told
    assert answer.acknowledged
    assert told.body == {"ä": "\ud800"}
    assert told.raw.isascii()
    sent = {name: told.headers[name] for name in ("Authorization", "Idempotency-Key", "X-Request-Id", "Content-Type")}
    assert sent == {
        "Authorization": "Bearer s",
        "Idempotency-Key": "id-1",
        "X-Request-Id": "ns/job/1#Failed.0",
        "Content-Type": "application/json",
    }
    assert told.headers["webhook-id"] == "id-1"
    assert abs(int(told.headers["webhook-timestamp"]) - time.time()) < 120


@pytest.mark.parametrize(
    "url",
    [
        "http://169.254.169.254/latest/meta-data/",
        "http://127.0.0.1:PORT/",
        "http://127.1:PORT/",
        "http://2130706433:PORT/",
        "http://0x7f.1:PORT/",
        "http://[::1]:PORT/",
        "http://[::ffff:127.0.0.1]:PORT/",
        "http://localhost:PORT/",
        "http://0.0.0.0:PORT/",
        "http://[fe80::1]/",
    ],
)
async def test_what_only_the_operator_reaches_is_not_told(url: str) -> None:
    async with Webhook() as hook:
        answer = await posted(url.replace("PORT", str(hook.port)), AddressPolicy.tenants())
        assert hook.told == []
    assert answer.status is None
    assert answer.lasting
    assert answer.problem


async def test_a_name_is_connected_to_where_it_was_judged() -> None:
    """What a name resolves to is looked up once, judged, and connected to; not looked up again."""
    asked: list[tuple[str, int]] = []

    class Once(AddressPolicy):
        def checked(self, host: str, port: int, **_: Any) -> list[str]:
            asked.append((host, port))
            return ["127.0.0.1"]

    async with Webhook() as hook:
        answer = await posted(f"http://hooks.example:{hook.port}/x", Once(restricted=True))
        assert answer.acknowledged
        assert asked == [("hooks.example", hook.port)]
        assert hook.told[0].headers["Host"] == f"hooks.example:{hook.port}"


async def test_a_redirect_is_not_followed_and_no_proxy_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    async with Webhook() as other, Webhook(Reply(307, {"Location": other.url})) as hook:
        monkeypatch.setenv("http_proxy", other.url)
        answer = await posted(hook.url)
        assert (answer.status, answer.acknowledged) == (307, False)
        assert "redirects" in answer.problem
        assert len(hook.told) == 1
        assert other.told == []


class Nameless(AddressPolicy):
    """Where no name resolves."""

    def checked(self, host: str, port: int, **_: Any) -> list[str]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")


async def test_every_failure_becomes_an_answer_that_shows_no_path() -> None:
    problems = {}
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    async with Webhook(Reply(503, {"Retry-After": "7"}), Reply(silent=True)) as hook:
        busy = await posted(hook.url)
        assert (busy.status, busy.retry_after, busy.lasting) == (503, 7.0, False)
        problems["silent"] = (await posted(hook.url, timeout=0.3)).problem
    problems["down"] = (await posted("http://127.0.0.1:1/secret-path")).problem
    problems["no such name"] = (await posted("http://nowhere.example/secret-path", Nameless(restricted=True))).problem
    async with serving(b"", ssl_context=context) as port:
        problems["untrusted"] = (await posted(f"https://127.0.0.1:{port}/secret-path")).problem
    async with serving(b"SSH-2.0-OpenSSH\r\n") as port:
        problems["no http"] = (await posted(f"http://127.0.0.1:{port}/secret-path")).problem
        problems["no tls"] = (await posted(f"https://127.0.0.1:{port}/secret-path")).problem
    async with serving(b"HTTP/1.1 200 OK\r\nX-A: ", b"a", forever=True) as port:
        problems["dripping"] = (await posted(f"http://127.0.0.1:{port}/secret-path", timeout=0.5)).problem
    problems["bad url"] = (await posted("http://[::1/secret-path")).problem
    assert all(problems.values()), problems
    assert not [text for text in problems.values() if "secret-path" in text or "what stands here" in text], problems
    assert "does not resolve" in problems["no such name"]
    assert "cannot be connected to" in problems["down"]
    assert "within 0.3 s" in problems["silent"]
    assert "certificate" in problems["untrusted"]
    assert "0.5 s" in problems["dripping"]


async def test_an_answer_counts_before_its_body_comes() -> None:
    async with serving(b"HTTP/1.1 202 Accepted\r\nContent-Length: 999999999\r\n\r\n") as port:
        assert (await posted(f"http://127.0.0.1:{port}/")).acknowledged


async def test_tries_are_bounded_over_all_jobs() -> None:
    async with Webhook(usual=Reply(silent=True)) as hook:
        shared = poster(slots=2)
        tries = [asyncio.create_task(shared.post(Target(hook.url), {}, uid=f"{n}", request_id="r")) for n in range(6)]
        await hook.until(2)
        for _ in range(50):
            await asyncio.sleep(0)
        assert len(hook.told) == 2
        tries[0].cancel()
        tries[1].cancel()
        await hook.until(4)
        for one in tries:
            one.cancel()
        await asyncio.gather(*tries, return_exceptions=True)


@asynccontextmanager
async def serving(
    first: bytes, then: bytes = b"", *, forever: bool = False, ssl_context: ssl.SSLContext | None = None
) -> AsyncIterator[int]:
    """Something that answers so, whatever it is asked."""
    tasks: set[asyncio.Task[None]] = set()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            writer.write(first)
            while forever:
                await asyncio.sleep(0.02)
                writer.write(then)
                await writer.drain()
            await reader.read()
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=ssl_context, family=socket.AF_INET)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


# -- the courier


class Desk:
    """A courier on a ledger, and what it said."""

    def __init__(self, ledger: Ledger, **given: Any) -> None:
        self.ledger = ledger
        self.said: list[Said] = []
        self.log = Noted()
        self.broken: Callable[[str], None] = lambda name: None
        self.courier = Courier(
            notices=self.notices,
            installation="test",
            namespace="ns",
            name="job",
            poster=poster(),
            said=self.said.append,
            log=self.log,  # type: ignore[arg-type]
            spread=lambda: 0.0,
        )

    async def notices(self) -> Any:
        desk = self

        class Notices:
            def __getattr__(self, name: str) -> Any:
                desk.broken(name)
                return getattr(desk.ledger.notices, name)

        return Notices()

    def follow(self, url: str, *events: str) -> None:
        self.courier.follow(
            Notify.model_validate({"url": url, **({"events": list(events)} if events else {})}), self._secret
        )

    async def _secret(self, reference: KeyReference, path: str) -> str:
        raise AssertionError(path)

    @asynccontextmanager
    async def at_work(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.courier.run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def document(event: str, *, epoch: int = 1, since: str = "2027-01-15T08:00:00Z") -> dict[str, Any]:
    return {
        "phase": event,
        "run": {"id": "1", "generation": 0, "epoch": epoch},
        "conditions": [{"type": event, "status": "True", "reason": "R", "message": "m", "lastTransitionTime": since}],
    }


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule, "FIRST_SECONDS", 0.05)
    monkeypatch.setattr(courier, "LEDGER_RETRY_SECONDS", (0.05, 0.1))


@pytest.mark.usefixtures("hurried")
async def test_it_is_told_again_until_it_is_heard_and_then_never_again(ledger: Ledger) -> None:
    async with Webhook(500, Reply(429, {"Retry-After": "0"}), 204) as hook:
        desk = Desk(ledger)
        desk.follow(hook.url)
        async with desk.at_work():
            desk.courier.saw(document("Complete"))
            assert await desk.courier.ended(within=60)
            desk.courier.saw(document("Complete"))
            desk.courier.saw(document("Suspended"))  # not asked for
        after = Desk(ledger)  # who sees the same end without knowing that it was told
        after.follow(hook.url)
        async with after.at_work():
            after.courier.saw(document("Complete"))
            assert await after.courier.ended(within=60)
        assert [one.ended for one in desk.said] == ["retried", "retried", "delivered"]
        assert [one.tries for one in desk.said] == [1, 2, 3]
        assert after.said == []
        assert len(hook.told) == 3
        assert len({one.key for one in hook.told}) == 1
        assert {one.body["id"] for one in hook.told} == {hook.told[0].key}
        assert hook.told[0].headers["X-Request-Id"] == "ns/job/1#Complete.0"


@pytest.mark.usefixtures("hurried")
async def test_who_begins_again_goes_on_with_what_was_not_heard(ledger: Ledger) -> None:
    async with Webhook(503) as hook:
        desk = Desk(ledger)
        desk.follow(hook.url)
        async with desk.at_work():
            desk.courier.saw(document("Failed"))
            assert await desk.courier.tried(within=60)
        after = Desk(ledger)
        after.follow(hook.url)  # and sees nothing: the run goes on in another generation meanwhile
        async with after.at_work():
            assert await after.courier.ended(within=60)
        assert [one.event for one in hook.told] == ["Failed", "Failed"]
        assert hook.told[0].key == hook.told[1].key
        assert [one.tries for one in after.said] == [2]


@pytest.mark.usefixtures("hurried")
async def test_what_was_heard_is_not_told_again_while_the_ledger_is_away(ledger: Ledger) -> None:
    failures = iter([True] * 3)

    def broken(name: str) -> None:
        if name == "delivered" and next(failures, False):
            raise StoreUnavailable("Postgres is away")

    async with Webhook() as hook:
        desk = Desk(ledger)
        desk.broken = broken
        desk.follow(hook.url)
        async with desk.at_work():
            desk.courier.saw(document("Complete"))
            assert await desk.courier.ended(within=60)
        assert len(hook.told) == 1
        assert len(desk.log.said("notices wait for the ledger")) == 3
        assert await ledger.notices.open_of(*JOB) == []


@pytest.mark.usefixtures("hurried")
async def test_an_occasion_is_kept_while_the_ledger_is_away_and_no_surprise_ends_the_courier(ledger: Ledger) -> None:
    failures = iter([StoreUnavailable("away"), asyncpg.PostgresError("odd"), ZeroDivisionError("nobody foresaw it")])

    def broken(name: str) -> None:
        if (error := next(failures, None)) is not None:
            raise error

    async with Webhook() as hook:
        desk = Desk(ledger)
        desk.broken = broken
        desk.follow(hook.url, "Suspended", "Complete")
        async with desk.at_work():
            desk.courier.saw(document("Suspended"))
            desk.courier.saw(document("Complete"))
            assert await desk.courier.ended(within=60)
        assert [one.event for one in hook.told] == ["Suspended", "Complete"]


@pytest.mark.usefixtures("hurried")
async def test_one_that_is_refused_does_not_hold_up_the_next(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule, "FIRST_SECONDS", 3600.0)
    async with Webhook(400) as hook:
        desk = Desk(ledger)
        desk.follow(hook.url, "Suspended", "Failed")
        desk.courier.saw(document("Suspended"))
        desk.courier.saw(document("Failed"))
        async with desk.at_work():
            await hook.until(2)
        assert [one.event for one in hook.told] == ["Suspended", "Failed"]


@pytest.mark.usefixtures("hurried")
async def test_another_address_counts_at_once_for_what_is_still_due_and_none_tells_nobody(ledger: Ledger) -> None:
    async with Webhook(usual=500) as wrong, Webhook() as right:
        desk = Desk(ledger)
        desk.follow(wrong.url)
        async with desk.at_work():
            desk.courier.saw(document("Failed"))
            await wrong.until(2)
            desk.courier.follow(None, desk._secret)
            assert await desk.courier.ended(within=60)
            desk.follow(right.url)
            await right.until(1)
        assert right.told[0].key == wrong.told[0].key


async def test_it_is_given_up_after_a_day_by_the_clock_of_the_ledger(ledger: Ledger) -> None:
    await record(ledger.notices, event="Failed")
    async with ledger.pool.connection() as c:
        await c.execute("update rowmill.notices set created_at = created_at - interval '25 hours', tries = 60")
    async with Webhook(usual=503) as hook:
        desk = Desk(ledger)
        desk.follow(hook.url)
        async with desk.at_work():
            assert await desk.courier.ended(within=60)
        assert [(one.ended, one.tries, one.problem) for one in desk.said] == [("failed", 61, "it answers 503")]
        assert await ledger.notices.open_of(*JOB) == []
        assert not await record(ledger.notices, event="Failed")
