"""Signals raise while nobody listens, are told while somebody does, and leave the handlers as they were."""

from __future__ import annotations

import asyncio
import signal

import pytest

from rowmill_cli.interrupts import Interrupts

EACH = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])


@EACH
def test_it_raises_while_nobody_listens_and_gives_the_handlers_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with Interrupts() as interrupts:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
        with interrupts.noted():
            signal.raise_signal(number)
        assert interrupts.count == 2
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
    assert signal.getsignal(number) is before


@EACH
def test_it_wakes_a_loop_that_waits_for_nothing_else(number: signal.Signals) -> None:
    async def work(interrupts: Interrupts) -> list[int]:
        loop = asyncio.get_running_loop()
        counts: asyncio.Queue[int] = asyncio.Queue()
        with interrupts.told(lambda count: void(loop.call_soon_threadsafe(counts.put_nowait, count))):
            signal.raise_signal(number)
            first = await counts.get()
            signal.raise_signal(number)
            return [first, await counts.get()]

    with Interrupts() as interrupts:
        assert asyncio.run(work(interrupts)) == [1, 2]


def test_what_is_ignored_stays_ignored() -> None:
    """As under nohup, or in a shell's background."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interrupts() as interrupts:
            signal.raise_signal(signal.SIGHUP)
            assert interrupts.count == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def void(value: object) -> None:
    pass
