"""A worker whose executor fails with its own secret in the error, as a library might. Started like `worker_process`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rowmill_worker import main as worker_main
from rowmill_worker.executors.http import HttpExecutor
from rowmill_worker.executors.protocol import Attempt
from rowmill_worker.main import WorkerSettings


async def _leak(self: HttpExecutor, attempt: Attempt) -> Any:
    raise RuntimeError(f"could not sign in with {os.environ['ROWMILL_TEST_TOKEN']}")


def main(arguments: Sequence[str]) -> int:
    """Its argument is the job's file."""
    HttpExecutor.execute = _leak  # type: ignore[method-assign]
    return worker_main.main(
        WorkerSettings(
            manifest=Path(arguments[0]),
            installation="test",
            name="leaky",
            redis_url=os.environ["ROWMILL_REDIS_URL"],
            postgres_dsn=os.environ["ROWMILL_POSTGRES_DSN"],
        )
    )
