"""A BatchJob's webhook: what `spec.notify` asks for, with secrets of the job's namespace.

The courier does the work. Here it gets what it needs of the cluster, and what it says is told to people: a line for
every notification, an event when a person should look, another when it is given up.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from rowmill.ledger import Notices
from rowmill.spec import BatchJob
from rowmill.spec.source import KeyReference
from rowmill.telemetry.logging import Logger
from rowmill_operator.kube.api import NOT_FOUND, ApiError, KubeApi, path_of
from rowmill_operator.kube.events import EventRecorder, Involved
from rowmill_operator.kube.stores import Stores
from rowmill_operator.notify import Courier, NotReady, Poster, Said

FAILING: Final = "NotifyFailing"
"""Reason of the event that says that a webhook does not take a notification, which is sent again."""

FAILED: Final = "NotifyFailed"
"""And that it is not sent again."""

NOTIFIED: Final = "Notified"
"""And that it was taken after all."""

TRIES_BEFORE_TOLD: Final = 3
"""Of a failure that may pass by itself."""


@dataclass(frozen=True, slots=True)
class NotifyTools:
    """What every job's webhook works with; one of each for all. `notified` counts how tries ended."""

    poster: Poster
    notified: Callable[[str], None]


class JobNotices:
    """One job's webhook. Nothing of it is ever raised to whoever drives the job."""

    def __init__(
        self,
        *,
        involved: Involved,
        api: KubeApi,
        stores: Stores,
        installation: str,
        events: EventRecorder,
        tools: NotifyTools,
        log: Logger,
    ) -> None:
        self._involved = involved
        self._api = api
        self._stores = stores
        self._events = events
        self._notified = tools.notified
        self._log = log
        self._told: set[int] = set()
        self.courier = Courier(
            notices=self._ledger,
            installation=installation,
            namespace=involved.namespace,
            name=involved.name,
            poster=tools.poster,
            said=self._said,
            log=log,
        )

    def follow(self, job: BatchJob | None) -> None:
        """What is asked for from now on; None: the manifest cannot be used, and neither can its webhook."""
        self.courier.follow(None if job is None else job.spec.notify, self._secret)

    def saw(self, document: Mapping[str, Any]) -> None:
        """The status says this now."""
        self.courier.saw(document)

    async def run(self) -> None:
        """Tell until cancelled."""
        await self.courier.run()

    async def _ledger(self) -> Notices:
        return (await self._stores.get())[0].notices

    async def _secret(self, reference: KeyReference, path: str) -> str:
        """Raises NotReady where it is missing, ApiAway and ApiError."""
        namespace = self._involved.namespace
        try:
            found = await self._api.get(path_of("secrets", namespace, reference.name))
        except ApiError as error:
            if error.status != NOT_FOUND:
                raise
            raise NotReady(
                f"{path}: there is no Secret {reference.name} in the namespace {namespace}. Create it"
            ) from error
        data = found.get("data") or {}
        if reference.key not in data:
            keys = ", ".join(sorted(data)[:10])
            raise NotReady(
                f"{path}: the Secret {reference.name} has no key {reference.key} "
                f"({'it has ' + keys if keys else 'it is empty'}). Add the key, or correct the name"
            )
        try:
            return base64.b64decode(data[reference.key], validate=True).decode()
        except (binascii.Error, UnicodeDecodeError):
            raise NotReady(
                f"{path}: the key {reference.key} of the Secret {reference.name} is no text; write it as text"
            ) from None

    def _said(self, said: Said) -> None:
        notice = said.notice
        self._notified(said.ended)
        fields = {
            "run": str(notice.identity),
            "notification": notice.uid,
            "notify_event": notice.event,
            "webhook": said.place,
            "tries": said.tries,
        }
        if said.ended == "delivered":
            self._log.info("the webhook was told", **fields)
            if notice.id in self._told:
                self._told.discard(notice.id)
                self._tell(NOTIFIED, f"{said.place} was told of {notice.event}", warning=False)
            return
        self._log.warning("the webhook was not told", reason=said.problem, again=said.ended == "retried", **fields)
        what = f"spec.notify: {said.place} was not told of {notice.event}: {said.problem}"
        if said.ended == "failed":
            self._told.discard(notice.id)
            self._tell(FAILED, f"{what}. It is not sent again", warning=True)
        elif notice.id not in self._told and (said.lasting or said.tries >= TRIES_BEFORE_TOLD):
            self._told.add(notice.id)
            self._tell(FAILING, f"{what}. It is sent again for 24 hours, later each time", warning=True)

    def _tell(self, reason: str, message: str, *, warning: bool) -> None:
        self._events.remark(self._involved, reason=reason, message=message, warning=warning)
