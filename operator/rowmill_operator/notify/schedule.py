"""What follows a try to tell somebody something. Pure.

    2xx                         acknowledged
    410                         given up: its owner says that nobody listens there any more, ever
    everything else             again: wrong addresses, secrets and answers of 4xx are mended while it waits

Waits begin at `FIRST_SECONDS`, double up to `LONGEST_SECONDS`, and are spread, so that many jobs do not come back
together. A `Retry-After` is waited for, at most `LONGEST_ASKED_SECONDS`. `GIVE_UP_SECONDS` after the occasion the last
try is made.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Final

FIRST_SECONDS: Final = 2.0
LONGEST_SECONDS: Final = 1_800.0
LONGEST_ASKED_SECONDS: Final = 3_600.0
GIVE_UP_SECONDS: Final = 86_400.0
GONE: Final = 410
_PASSING: Final = frozenset({408, 425, 429})


@dataclass(frozen=True, slots=True)
class Answer:
    """How a try ended. `status` None: without an answer, and `problem` says why. `retry_after` in seconds.

    `lasting`: it hardly passes by itself; a person should look.
    """

    status: int | None = None
    retry_after: float | None = None
    problem: str = ""
    lasting: bool = False

    @classmethod
    def of_status(cls, status: int, *, retry_after: float | None = None) -> Answer:
        """Of an HTTP status."""
        if 200 <= status <= 299:
            return cls(status)
        if 300 <= status <= 399:
            problem = f"it redirects ({status}), which is not followed; name the address itself"
        elif status in (401, 403):
            problem = f"it answers {status}; see that the headers carry what it asks for"
        else:
            problem = f"it answers {status}"
        lasting = status < 500 and status not in _PASSING
        return cls(status, retry_after, problem, lasting)

    @property
    def acknowledged(self) -> bool:
        return self.status is not None and 200 <= self.status <= 299


def wait_after(answer: Answer, *, tries: int, age: float, spread: float) -> float | None:
    """Seconds until the next try, or None where it is given up.

    `tries` counts this one, at least 1; `age` is the time since the occasion in seconds; `spread` is from 0 to 1, by
    chance.
    """
    if answer.status == GONE or age >= GIVE_UP_SECONDS:
        return None
    backoff = min(LONGEST_SECONDS, FIRST_SECONDS * 2.0 ** min(tries - 1, 30)) * (0.5 + spread / 2)
    asked = min(answer.retry_after or 0.0, LONGEST_ASKED_SECONDS) * (1 + spread / 10)
    return min(max(backoff, asked), GIVE_UP_SECONDS - age)


def retry_after_of(text: str | None, *, wall: float) -> float | None:
    """Seconds that a `Retry-After` asks for: a number or a date; None of anything else. `wall` is the time now."""
    text = (text or "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        when = parsedate_to_datetime(text)
        seconds: float = (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp() - wall
    except (ValueError, TypeError, IndexError, OverflowError):  # whatever a date that is none may meet
        return None
    return max(0.0, seconds)
