"""A worker whose executor fails with its own secret in the error, as a library might. Started like `worker_process`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from rowmill_worker.executors.http import HttpExecutor
from rowmill_worker.executors.protocol import Attempt
from rowmill_worker.main import WorkerSettings, main


async def _leak(self: HttpExecutor, attempt: Attempt) -> Any:
    raise RuntimeError(f"could not sign in with {os.environ['ROWMILL_TEST_TOKEN']}")


if __name__ == "__main__":
    HttpExecutor.execute = _leak  # type: ignore[method-assign]
    sys.exit(
        main(
            WorkerSettings(
                manifest=Path(sys.argv[1]),
                installation="test",
                name="leaky",
                redis_url=os.environ["ROWMILL_REDIS_URL"],
                postgres_dsn=os.environ["ROWMILL_POSTGRES_DSN"],
            )
        )
    )
