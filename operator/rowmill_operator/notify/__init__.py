"""Telling a webhook what becomes of a run: `spec.notify`.

    content    which occasion a status speaks of, and the notification's text            pure
    schedule   what follows a try: acknowledged, again later, given up                   pure
    target     where a notification goes and what it carries, secrets read               pure but for the reader
    post       one POST, under an address policy, within a time
    courier    a job's notices from the occasion to the acknowledgement, by the ledger

Knows nothing of Kubernetes: `rowmill run` and the operator tell in the same way. At least once, under an id that
stays the same; in nobody's way: neither a run nor another job ever waits for a webhook.
"""

from rowmill_operator.notify.content import Occasion, occasion_of
from rowmill_operator.notify.courier import Courier, Said
from rowmill_operator.notify.post import AT_ONCE, Poster
from rowmill_operator.notify.schedule import GIVE_UP_SECONDS, Answer
from rowmill_operator.notify.target import NotReady, ReadSecret, Target, resolve

__all__ = [
    "AT_ONCE",
    "GIVE_UP_SECONDS",
    "Answer",
    "Courier",
    "NotReady",
    "Occasion",
    "Poster",
    "ReadSecret",
    "Said",
    "Target",
    "occasion_of",
    "resolve",
]
