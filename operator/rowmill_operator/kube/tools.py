"""What every job's controller works with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rowmill.telemetry.logging import Logger
from rowmill_operator.kube.api import KubeApi
from rowmill_operator.kube.events import EventRecorder
from rowmill_operator.kube.notices import NotifyTools
from rowmill_operator.kube.pod_template import WorkloadSettings
from rowmill_operator.kube.runner import RunTools
from rowmill_operator.kube.shared_keys import SharedKeys
from rowmill_operator.kube.stores import Stores


@dataclass(frozen=True, slots=True)
class Tools:
    """One of each for all jobs. `now` is of a clock that never goes back, `wall` seconds since the epoch; `live` finds
    a Deployment as the watch saw it last, by namespace and name."""

    api: KubeApi
    stores: Stores
    events: EventRecorder
    installation: str
    workload: WorkloadSettings
    live: Callable[[str, str], Mapping[str, Any] | None]
    run: RunTools
    notify: NotifyTools
    now: Callable[[], float]
    wall: Callable[[], float]
    log: Logger
    wrote: Callable[[str], None]
    reconciled: Callable[[float], None]
    shared_keys: SharedKeys = field(default_factory=SharedKeys)
