"""A job's notices, from the occasion to the acknowledgement.

    seen      a status tells of an occasion                    in memory; a restart sees the same status again
    recorded  it is in the ledger, once                        nothing forgets it any more
    tried     the webhook is asked; the ledger knows of it     a restart goes on with what is left of the wait
    ended     acknowledged, or given up after a day

Killed before it is recorded: the next one sees the same status, and it is the same occasion. Killed between the
acknowledgement and its record: told again, under the same id. A ledger that is away holds up notices and nothing else;
what was acknowledged meanwhile is not told again by this process.

Notices of a job are tried one after the other, each by its own schedule: one that is refused does not hold up the next.
Nothing here is waited for by a run, and nothing that happens here is raised to anybody.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal
from urllib.parse import urlsplit

from rowmill.errors import InvalidInput, RowmillError
from rowmill.identity import RunIdentity
from rowmill.ledger import Notice, Notices
from rowmill.ledger.notices import OPEN_AT_ONCE
from rowmill.spec.notify import Notify
from rowmill.tasks import set_within
from rowmill.telemetry.logging import Logger
from rowmill_operator.notify.content import Occasion, body_of, occasion_of, request_id
from rowmill_operator.notify.post import Poster
from rowmill_operator.notify.schedule import Answer, wait_after
from rowmill_operator.notify.target import NotReady, ReadSecret, resolve

LEDGER_RETRY_SECONDS: Final = (1.0, 60.0)


@dataclass(frozen=True, slots=True)
class Said:
    """How a try ended. `place` is the webhook's scheme and host (never its path), `problem` a person's sentence.

    `lasting`: a person should look, for it hardly passes by itself.
    """

    notice: Notice
    place: str
    ended: Literal["delivered", "retried", "failed"]
    tries: int
    problem: str = ""
    lasting: bool = False


class Courier:
    """Tells one job's webhook. `notices` gives the ledger's; `said` is told how each try ended; `spread` is a number
    from 0 to 1 by chance."""

    def __init__(
        self,
        *,
        notices: Callable[[], Awaitable[Notices]],
        installation: str,
        namespace: str,
        name: str,
        poster: Poster,
        said: Callable[[Said], None],
        log: Logger,
        spread: Callable[[], float] = random.random,
    ) -> None:
        self._notices = notices
        self._job = (installation, namespace, name)
        self._poster = poster
        self._said = said
        self._log = log
        self._spread = spread
        self._follows: tuple[Notify, ReadSecret] | None = None
        self._seen: deque[Occasion] = deque(maxlen=OPEN_AT_ONCE)
        self._newest: Occasion | None = None
        self._heard: set[int] = set()
        self._changed = asyncio.Event()
        self._all_tried = asyncio.Event()
        self._all_ended = asyncio.Event()
        self._nothing_to_do()

    def follow(self, notify: Notify | None, read: ReadSecret) -> None:
        """Tell this webhook from now on, what is still open too; None tells nobody. `read` reads its secrets."""
        before = self._follows
        self._follows = None if notify is None else (notify, read)
        if notify == (before[0] if before is not None else None):
            return
        self._newest = None
        self._something_to_do() if notify is not None else self._nothing_to_do()
        self._changed.set()

    def saw(self, document: Mapping[str, Any]) -> None:
        """A status document was told. Cheap where it tells nothing new."""
        if self._follows is None:
            return
        _, namespace, name = self._job
        occasion = occasion_of(document, events=self._follows[0].events, namespace=namespace, name=name)
        if occasion is None or (self._newest is not None and occasion.key == self._newest.key):
            return
        self._newest = occasion
        self._seen.append(occasion)
        self._something_to_do()
        self._changed.set()

    async def tried(self, *, within: float) -> bool:
        """Wait until every notice was tried at least once, at most `within` seconds; whether it was."""
        return await set_within(self._all_tried, within)

    async def ended(self, *, within: float) -> bool:
        """Wait until every notice is acknowledged or given up, at most `within` seconds; whether it is."""
        return await set_within(self._all_ended, within)

    @property
    def all_ended(self) -> bool:
        """Whether nothing is left to be told."""
        return self._all_ended.is_set()

    async def run(self) -> None:
        """Tell until cancelled."""
        delay = LEDGER_RETRY_SECONDS[0]
        while True:
            self._changed.clear()
            wait: float | None
            try:
                wait = await self._round()
                delay = LEDGER_RETRY_SECONDS[0]
            except Exception as error:  # a notice is not worth a job
                if isinstance(error, RowmillError):
                    self._log.warning("notices wait for the ledger", reason=str(error))
                else:
                    self._log.exception("notices could not be told; it is tried again")
                wait, delay = delay, min(delay * 2, LEDGER_RETRY_SECONDS[1])
            if wait is None:
                await self._changed.wait()
            else:
                await set_within(self._changed, wait)

    async def _round(self) -> float | None:
        """Record what was seen, try what is due. Seconds until something is due again; None where nothing is open."""
        if self._follows is None:
            self._seen.clear()
            return None
        if self._all_ended.is_set():
            return None
        notify, read = self._follows
        notices = await self._notices()
        while self._seen:
            await self._record(notices, self._seen[0])
            self._seen.popleft()
        waits: list[float] = []
        for notice in await notices.open_of(*self._job):
            if notice.event not in notify.events:
                continue
            if self._changed.is_set():
                return 0.0  # another webhook, or more to tell
            if notice.id in self._heard:
                await self._acknowledged(notices, notice)
            elif notice.wait > 0:
                waits.append(notice.wait)
            elif (wait := await self._try(notices, notice, notify, read)) is not None:
                waits.append(wait)
        if self._changed.is_set():
            return 0.0
        self._all_tried.set()
        if not waits:
            self._all_ended.set()
            return None
        return min(waits)

    async def _record(self, notices: Notices, occasion: Occasion) -> None:
        installation, namespace, name = self._job
        await notices.record(
            RunIdentity(installation, namespace, name, occasion.run_id),
            generation=occasion.generation,
            event=occasion.event,
            occasion=occasion.mark,
            body=occasion.body,
        )

    async def _try(self, notices: Notices, notice: Notice, notify: Notify, read: ReadSecret) -> float | None:
        """Seconds until its next try; None where it has ended."""
        place = _place(notify.url)
        try:
            target = await resolve(notify, read)
            place = target.place
            answer = await self._poster.post(
                target,
                body_of(notice),
                uid=notice.uid,
                request_id=request_id(notice.identity, event=notice.event, generation=notice.generation),
            )
        except RowmillError as error:
            answer = Answer(problem=str(error), lasting=isinstance(error, NotReady | InvalidInput))
        tries = notice.tries + 1
        if answer.acknowledged:
            self._heard.add(notice.id)
            self._said(Said(notice, place, "delivered", tries))
            await self._acknowledged(notices, notice)
            return None
        wait = wait_after(answer, tries=tries, age=notice.age, spread=self._spread())
        ended: Literal["retried", "failed"] = "retried" if wait is not None else "failed"
        self._said(Said(notice, place, ended, tries, answer.problem, answer.lasting))
        if wait is None:
            await notices.gave_up(notice, problem=answer.problem)
        else:
            await notices.postpone(notice, seconds=wait, problem=answer.problem)
        return wait

    async def _acknowledged(self, notices: Notices, notice: Notice) -> None:
        await notices.delivered(notice)
        self._heard.discard(notice.id)

    def _something_to_do(self) -> None:
        self._all_tried.clear()
        self._all_ended.clear()

    def _nothing_to_do(self) -> None:
        self._all_tried.set()
        self._all_ended.set()


def _place(url: str | None) -> str:
    """What is told of an address that was not read yet."""
    if url is None:
        return "the address of spec.notify.urlFrom"
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"
