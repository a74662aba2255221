"""Controllers of resources that are not there any more.

A watch that broke lists again and says nothing of what was deleted meanwhile. Our finalizer keeps a deleted resource
until its controller is done; where somebody took it off by force, only a look at the whole list tells.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from rowmill.errors import RowmillError
from rowmill.telemetry.logging import Logger
from rowmill_operator.kube.api import GROUPS, NOT_FOUND, ApiError, KubeApi, path_of
from rowmill_operator.kube.hub import Hub

SWEEP_SECONDS = 60.0
PAGE = "500"


async def sweep_gone(hub: Hub, *, api: KubeApi, namespaces: Sequence[str], log: Logger) -> None:
    """Look every minute, until cancelled."""
    while True:
        await asyncio.sleep(SWEEP_SECONDS)
        known = {controller.uid for controller in hub.controllers}
        if not known:
            continue
        try:
            found = await listed(api, namespaces)
        except RowmillError as error:
            log.warning("the list of BatchJobs cannot be read", reason=str(error))
            continue
        # What was made since the list was read is not among `known`.
        hub.gone(known - found)


async def listed(api: KubeApi, namespaces: Sequence[str]) -> set[str]:
    """UIDs of all BatchJobs, page by page, metadata alone."""
    paths = [path_of("batchjobs", namespace) for namespace in namespaces] or [f"/{GROUPS['batchjobs']}/batchjobs"]
    uids: set[str] = set()
    for path in paths:
        token = ""
        while True:
            try:
                page = await api.get_metadata(path, limit=PAGE, **({"continue": token} if token else {}))
            except ApiError as error:
                if error.status == NOT_FOUND:
                    break  # the CustomResourceDefinition is gone, and every resource with it
                raise
            uids.update(item["metadata"]["uid"] for item in page.get("items") or [])
            token = page.get("metadata", {}).get("continue", "")
            if not token:
                break
    return uids
