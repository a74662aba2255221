"""The operator's process: waits until it leads, watches, works, ends.

Exit codes: 0 told to stop · 1 it lost the lead or a part of ours failed (the log says which) · 2 its settings are not
usable. Redis and Postgres may be away at the start: jobs are told so and wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import secrets
import signal
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack

import uvloop
from prometheus_client import CollectorRegistry

from rowmill.errors import InvalidInput, RowmillError
from rowmill.tasks import end_tasks
from rowmill.telemetry.logging import Logger, configure_logging
from rowmill.telemetry.metrics import EngineMetrics
from rowmill.telemetry.serving import serve_probes
from rowmill_operator.kube.api import KubeApi, path_of
from rowmill_operator.kube.controller import JobController
from rowmill_operator.kube.events import EventRecorder
from rowmill_operator.kube.hub import Deployments, Hub
from rowmill_operator.kube.leader import lead
from rowmill_operator.kube.metrics import JobsCollector, OperatorMetrics
from rowmill_operator.kube.notices import NotifyTools
from rowmill_operator.kube.pod_template import WorkloadSettings
from rowmill_operator.kube.retention import keep_retention
from rowmill_operator.kube.runner import RunTools
from rowmill_operator.kube.settings import OperatorSettings
from rowmill_operator.kube.stores import Stores
from rowmill_operator.kube.sweep import sweep_gone
from rowmill_operator.kube.tools import Tools
from rowmill_operator.kube.watch import Watch, watch_registry
from rowmill_operator.notify import AT_ONCE, Poster

UPLOADS_AT_ONCE = 2

SWITCH_SECONDS = 0.001
"""How long a thread that reads a source may keep the interpreter while the loop waits for it, a fifth of the default:
the loop asks for it several times a turn."""


def main() -> int:
    """Run the operator to its end; returns the exit code."""
    try:
        settings = OperatorSettings.from_environment(os.environ)
    except InvalidInput as error:
        sys.stderr.write("\n".join(error.lines()) + "\n")
        return 2
    log, _ = configure_logging(level=settings.log_level, operator=settings.pod_name)
    try:
        uvloop.run(_main(settings, log))
    except RowmillError as error:
        log.error("the operator ends", reason=str(error))
        return 1
    return 0


async def _main(settings: OperatorSettings, log: Logger) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    sys.setswitchinterval(SWITCH_SECONDS)
    # What was imported stays to the end. A full collection, which everybody waits for, takes a tenth of a second with
    # it and a few milliseconds without; feeding causes several a second.
    gc.collect()
    gc.freeze()

    def signals() -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)

    signals()
    registry = CollectorRegistry()
    metrics = OperatorMetrics(registry)
    async with AsyncExitStack() as ends:
        api = await KubeApi.connect(called=metrics.called)
        ends.push_async_callback(api.close)
        port = await ends.enter_async_context(
            serve_probes(host="0.0.0.0", port=settings.http_port, registry=registry, not_ready=lambda: None)
        )
        log.info("up", http_port=port, namespaces=list(settings.namespaces) or "all")
        await lead(
            lambda: _work(settings, api, registry, metrics, stop, signals, log),
            api=api,
            name=settings.lease,
            namespace=settings.pod_namespace,
            identity=f"{settings.pod_name}-{secrets.token_hex(4)}",
            stop=stop,
            log=log,
        )


async def _work(
    settings: OperatorSettings,
    api: KubeApi,
    registry: CollectorRegistry,
    metrics: OperatorMetrics,
    stop: asyncio.Event,
    signals: Callable[[], None],
    log: Logger,
) -> None:
    """What the leader does."""
    loop = asyncio.get_running_loop()
    async with AsyncExitStack() as ends:
        stores = Stores(redis_url=settings.redis_url, postgres_dsn=settings.postgres_dsn, now=loop.time)
        ends.push_async_callback(stores.close)
        pools = [_threads(settings.threads, name) for name in ("feed", "fetch", "upload")]
        names = _threads(AT_ONCE, "names")  # a name that nobody answers for keeps a thread for seconds
        for pool in (*pools, names):
            ends.callback(pool.shutdown, wait=False, cancel_futures=True)
        events = EventRecorder(
            send=lambda namespace, body: api.create(path_of("events", namespace), body),
            instance=settings.pod_name,
            log=log,
            now=loop.time,
            wall=time.time,
            token=lambda: secrets.token_hex(8),
            wrote=metrics.event_written,
        )
        deployments = Deployments()
        tools = Tools(
            api=api,
            stores=stores,
            events=events,
            installation=settings.installation,
            workload=_workload(settings, await api_server_addresses(api, os.environ)),
            live=deployments.get,
            run=RunTools(
                api=api,
                threads=pools[0],
                fetchers=pools[1],
                uploaders=pools[2],
                uploads=asyncio.Semaphore(UPLOADS_AT_ONCE),
                cache=settings.cache,
                cache_bytes=settings.cache_bytes,
                policy=settings.policy,
                ambient=settings.ambient_credentials,
                metrics=EngineMetrics(registry),
                log=log,
            ),
            notify=NotifyTools(
                Poster(policy=settings.policy, threads=names, slots=asyncio.Semaphore(AT_ONCE), wall=time.time),
                metrics.notified,
            ),
            now=loop.time,
            wall=time.time,
            log=log,
            wrote=metrics.status_written,
            reconciled=metrics.reconciled,
            shared_keys=settings.shared_keys,
        )
        hub = Hub(make=lambda body: JobController(body, tools=tools), log=log)
        registry.register(JobsCollector(lambda: [one.numbers for one in hub.controllers]))
        metrics.leader.set(1)
        ends.callback(metrics.leader.set, 0)
        helpers = [
            asyncio.create_task(events.run(), name="events"),
            asyncio.create_task(metrics.probe_loop(loop.time), name="lag"),
            asyncio.create_task(sweep_gone(hub, api=api, namespaces=settings.namespaces, log=log), name="sweep"),
            asyncio.create_task(
                keep_retention(
                    hub, stores=stores, installation=settings.installation, log=log, dropped=metrics.run_dropped
                ),
                name="retention",
            ),
        ]
        ends.push_async_callback(end_tasks, helpers)
        watch = Watch(
            api=api,
            make_registry=lambda: watch_registry(jobs=hub.saw, deployments=deployments.saw),
            namespaces=settings.namespaces,
            unserved=lambda: hub.gone({one.uid for one in hub.controllers}),
            signals=signals,
            log=log,
        )
        try:
            await watch.run(stop)
        finally:
            await hub.close()
            log.info("stopped; workers go on")


def _threads(count: int, name: str) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, thread_name_prefix=name)


async def api_server_addresses(api: KubeApi, environ: Mapping[str, str]) -> tuple[str, ...]:
    """Where the API server is, as CIDRs: its Service and, where we may read them, the addresses behind it."""
    found = {environ.get("KUBERNETES_SERVICE_HOST", "")}
    with contextlib.suppress(RowmillError):
        endpoints = await api.get("/api/v1/namespaces/default/endpoints/kubernetes")
        for subset in endpoints.get("subsets") or []:
            found.update(one["ip"] for one in subset.get("addresses") or [])
    return tuple(sorted(f"{one}/{128 if ':' in one else 32}" for one in found if one))


def _workload(settings: OperatorSettings, api_server: tuple[str, ...]) -> WorkloadSettings:
    return WorkloadSettings(
        image=settings.worker_image,
        installation=settings.installation,
        redis_url=settings.worker_redis_url,
        postgres_dsn=settings.worker_postgres_dsn,
        image_pull_policy=settings.worker_image_pull_policy,
        image_pull_secrets=settings.worker_image_pull_secrets,
        api_server=api_server,
        http_port=settings.worker_http_port,
        log_level=settings.log_level,
    )


if __name__ == "__main__":
    raise SystemExit(main())
