"""A run's webhook without a cluster: told by the command that ran it, or by the next one."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from rowmill.ledger import Ledger
from rowmill.spec import identity_of, load_manifest
from rowmill.status import Phase, RunStatus
from rowmill_cli.interrupts import Interrupts
from rowmill_cli.local.webhook import tell_webhook
from tests.support.kube_lab import Noted
from tests.support.webhook import Reply, Webhook

DONE = RunStatus(phase=Phase.COMPLETE, epoch=1, total=2, succeeded=2, ended_at=1_800_000_000.0)
FAILED = RunStatus(phase=Phase.FAILED, message="2 of 2 rows failed", epoch=1, total=2, failed=2)


def manifest(notify: dict[str, Any] | None) -> str:
    return json.dumps(
        {
            "apiVersion": "rowmill.dev/v1alpha1",
            "kind": "BatchJob",
            "metadata": {"name": "triage", "namespace": "support"},
            "spec": {
                "mode": "Simulate",
                "source": {"rows": [{"id": 1}, {"id": 2}]},
                "executor": {"http": {"url": "http://nowhere.example/"}},
                "workers": {"minReplicas": 1, "maxReplicas": 1},
                **({"notify": notify} if notify else {}),
            },
        }
    )


@pytest.fixture
async def ledger(postgres_dsn: str) -> AsyncIterator[Ledger]:
    ledger = await Ledger.connect(postgres_dsn)
    await ledger.migrate()
    yield ledger
    await ledger.close()


async def tell(
    ledger: Ledger,
    notify: dict[str, Any] | None,
    status: RunStatus,
    *,
    environ: dict[str, str] | None = None,
    **given: Any,
) -> list[str]:
    """What a person is told."""
    job = load_manifest(manifest(notify), where="t")
    identity = identity_of(job, installation="local")
    await ledger.runs.ensure(identity, frozen={}, shards=1, row_limit=None)
    said: list[str] = []
    await tell_webhook(
        job,
        identity,
        status,
        results=None,
        ledger=ledger,
        environ=environ or {},
        interrupts=given.pop("interrupts", None) or Interrupts(),
        say=said.append,
        log=Noted(),  # type: ignore[arg-type]
        **given,
    )
    return said


async def tell_until_tried(ledger: Ledger, notify: dict[str, Any], status: RunStatus) -> list[str]:
    """The same, interrupted once a try has failed and is written down."""
    with Interrupts() as interrupts:
        telling = asyncio.create_task(tell(ledger, notify, status, wait=300.0, interrupts=interrupts))
        async with asyncio.timeout(60):
            tries = 0
            while not tries:
                await asyncio.sleep(0.02)
                async with ledger.pool.connection() as c:
                    tries = await c.fetchval("select max(tries) from rowmill.notices") or 0
        assert interrupts._listener is not None
        interrupts._listener(1)
        return await asyncio.wait_for(telling, 60)


async def test_what_nobody_took_is_told_by_the_next_command(ledger: Ledger) -> None:
    async with Webhook(usual=503) as hook:
        said = await tell_until_tried(ledger, {"url": hook.url}, FAILED)
        assert said == [
            f"http://127.0.0.1:{hook.port} was not told of Failed: it answers 503. "
            "The next command with this state tells it"
        ]
        hook.usual = 200
        async with ledger.pool.connection() as c:
            await c.execute("update rowmill.notices set try_at = clock_timestamp()")
        assert await tell(ledger, {"url": hook.url}, FAILED, wait=60.0) == []
        before = len(hook.told)
        assert await tell(ledger, {"url": hook.url}, FAILED) == []
        assert len(hook.told) == before
        assert len({one.key for one in hook.told}) == 1
        assert await tell(ledger, None, FAILED) == []


async def test_an_interrupt_and_a_silent_receiver_end_the_waiting(ledger: Ledger) -> None:
    async with Webhook(usual=Reply(silent=True)) as hook:
        with Interrupts() as interrupts:
            telling = asyncio.create_task(tell(ledger, {"url": hook.url}, DONE, wait=300.0, interrupts=interrupts))
            await hook.until(1)
            assert interrupts._listener is not None
            interrupts._listener(1)
            said = await asyncio.wait_for(telling, 60)
        assert said == ["the webhook was not told: there was no time for it; the next command with this state tells it"]


async def test_a_secret_of_this_machine(ledger: Ledger, tmp_path: Path) -> None:
    async with Webhook() as hook:
        reference = {"secretKeyRef": {"name": "hook", "key": "token"}}
        notify = {"url": hook.url, "headers": [{"name": "X-Token", "valueFrom": reference}]}
        (said,) = await tell_until_tried(ledger, notify, DONE)
        assert "ROWMILL_SECRETS_DIR" in said
        assert hook.told == []
        (tmp_path / "hook").mkdir()
        (tmp_path / "hook" / "token").write_text("s3cr3t\n")
        async with ledger.pool.connection() as c:
            await c.execute("update rowmill.notices set try_at = clock_timestamp()")
        assert await tell(ledger, notify, DONE, environ={"ROWMILL_SECRETS_DIR": str(tmp_path)}, wait=60.0) == []
        assert hook.told[0].headers["X-Token"] == "s3cr3t"


async def test_rowmill_run_tells_the_end_once(tmp_path: Path, redis_url: str, postgres_dsn: str) -> None:
    environ = {**os.environ, "ROWMILL_REDIS_URL": redis_url, "ROWMILL_POSTGRES_DSN": postgres_dsn}
    async with Webhook(503) as hook:
        (tmp_path / "job.yaml").write_text(manifest({"url": hook.url}))
        for _ in range(2):
            process = await asyncio.create_subprocess_exec(
                str(Path(sys.executable).with_name("rowmill")),
                *("run", "job.yaml", "--quiet"),
                cwd=tmp_path,
                env=environ,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
            out, err = await asyncio.wait_for(process.communicate(), 100)
            assert process.returncode == 0, (out, err)
            assert b"Traceback" not in err
    assert len(hook.told) == 2
    assert hook.told[0].key == hook.told[1].key
    body = hook.told[1].body
    assert (body["event"], body["job"]["mode"], body["rows"]["succeeded"]) == ("Complete", "Simulate", 2)
