"""Secrets stay out of the log, whatever line they would get into."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.endpoint import spawn
from tests.support.rig import Rig

TOKEN = "s3cr3t-token-of-the-endpoint"


async def test_an_error_that_holds_the_secret_is_logged_without_it(
    tmp_path: Path, redis_url: str, postgres_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROWMILL_TEST_TOKEN", TOKEN)
    async with (
        spawn() as endpoint,
        Rig(tmp_path, redis_url=redis_url, postgres_dsn=postgres_dsn, endpoint=endpoint) as rig,
    ):
        rig.table(3)
        headers = [{"name": "X-Token", "valueFrom": {"env": "ROWMILL_TEST_TOKEN"}}]
        http = {"url": endpoint.url, "method": "POST", "headers": headers, "body": {"row": "{{ row.id }}"}}
        rig.job(executor={"http": http}, retry={"maxAttempts": 1})
        await rig.start_engine()
        worker = await rig._start("leaky", "leaky", str(rig.job_file))
        status = await rig.complete()
        assert status["failed"] == 3
        assert await worker.logged("the executor failed")
        text = worker.log.read_text()
        assert "could not sign in with" in text, "the error itself is told"
        assert TOKEN not in text
