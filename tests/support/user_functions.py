"""Functions as users write them, good and bad; what they do hangs on the text that they are given."""

from __future__ import annotations

import asyncio
import datetime
import decimal
import os
import signal
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rowmill.functions import Context, PermanentError, RetryError, batch_function, row_function


@dataclass
class Told:
    text: str
    at: datetime.date
    price: decimal.Decimal


def act(text: str) -> Any:
    """What a text asks for; anything else is answered by its length."""
    match text:
        case "exit":
            os._exit(3)
        case "segfault":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "memory":
            os.kill(os.getpid(), signal.SIGKILL)  # as the kernel does where memory runs out
        case "sys.exit":
            sys.exit("enough")
        case "raise":
            raise ValueError(f"cannot read {text!r}")
        case "permanent":
            raise PermanentError("no such thing", error_class="NoSuchThing")
        case "retry":
            raise RetryError("busy", after=7.5)
        case "object":
            return object()
        case "nan":
            return [float("nan")]
        case "surrogate":
            return "\ud800"
        case "large":
            return "x" * 1_048_577
        case "dataclass":
            return Told(text, datetime.date(2026, 1, 2), decimal.Decimal("1.50"))
        case "loud":
            print("x" * 100_000)
            for n in range(5_000):
                print(f"line {n}")
    return len(text)


@row_function
def measure(*, text: str) -> Any:
    if text == "hang":
        time.sleep(1_000)
    if text == "thread":
        threading.Thread(target=time.sleep, args=(1_000,)).start()
    return act(text)


@row_function
async def measure_async(text: str) -> Any:
    if text == "hang":
        await asyncio.sleep(1_000)
    if text == "block":
        time.sleep(1_000)  # noqa: ASYNC251 - the mistake that this is about
    if text == "meet":
        await asyncio.sleep(0.05)
    return act(text)


def everything(text: str, row: dict[str, Any], context: Context, mark: int = 1) -> dict[str, Any]:
    return {
        "text": text,
        "row": row,
        "key": context.key,
        "who": f"{context.namespace}/{context.job}/{context.run_id}#{context.seq}.{context.attempt}",
        "ids": [context.idempotency_key, context.request_id],
        "stores": [name for name in os.environ if name.startswith("ROWMILL_")],
        "mark": mark,
    }


@batch_function
def measure_all(rows: list[dict[str, Any]]) -> list[Any]:
    texts = [row["text"] for row in rows]
    if "short" in texts:
        return texts[1:]
    if "hang" in texts:
        time.sleep(1_000)
    for text in texts:
        if text in ("exit", "raise", "retry"):
            act(text)
    return [PermanentError("empty") if not text else act(text) for text in texts]


@batch_function
async def measure_all_async(rows: list[dict[str, Any]], contexts: list[Context]) -> list[Any]:
    return [{**row, "seq": context.seq, "rows": len(rows)} for row, context in zip(rows, contexts, strict=True)]


def counted_starts(*, text: str) -> str:
    return text


if starts := os.environ.get("COUNT_STARTS"):
    with Path(starts).open("a") as file:
        file.write(f"{os.getpid()}\n")
    if len(Path(starts).read_text().split()) in map(int, os.environ.get("FAIL_STARTS", "").split()):
        raise RuntimeError("not this time")

not_a_function = 5
