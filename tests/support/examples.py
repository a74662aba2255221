"""A copy of `examples/` to run: each manifest as it stands, but for the host and port that it calls."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from aiohttp import web

from examples.textservice.service import make_app

EXAMPLES = Path(__file__).parents[2] / "examples"
ROWMILL = str(Path(sys.executable).with_name("rowmill"))
SECONDS = 150.0


@dataclass(frozen=True)
class Examples:
    """The folder `examples` within `folder`, where commands are started; `environ` is theirs."""

    folder: Path
    environ: dict[str, str]

    def __post_init__(self) -> None:
        shutil.copytree(
            EXAMPLES, self.folder / "examples", ignore=shutil.ignore_patterns("__pycache__", ".rowmill", "*.egg-info")
        )

    def path(self, name: str) -> Path:
        """A file of the copy."""
        return self.folder / "examples" / name

    def point(self, name: str, host: str, url: str) -> None:
        """Have a manifest call the host and port of `url` where it says `host`; nothing else of it changes."""
        path = self.path(name)
        path.write_text(moved(path.read_text("utf-8"), host, urlsplit(url).netloc), "utf-8")

    async def rowmill(self, *arguments: str | Path) -> str:
        """Run a command as a reader of README does, and see it succeed; what it said on standard output."""
        process = await asyncio.create_subprocess_exec(
            ROWMILL,
            *map(str, arguments),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd=self.folder,
            env=self.environ,
        )
        try:
            out, err = await asyncio.wait_for(process.communicate(), SECONDS)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        assert process.returncode == 0, (out + err).decode()
        return out.decode()

    async def run(self, name: str, *options: str) -> str:
        """`rowmill run` a manifest to its end, Complete; its report."""
        out = await self.rowmill("run", f"examples/{name}", "--state", self.state(name), "--quiet", *options)
        assert out.startswith("Complete: "), out
        return out

    def results(self, name: str) -> list[dict[str, Any]]:
        """What a run of a manifest that names no output wrote."""
        return [json.loads(line) for line in (self.state(name) / "results.jsonl").read_text("utf-8").splitlines()]

    def state(self, name: str) -> Path:
        return self.folder / "state" / name.removesuffix(".yaml")


def moved(text: str, host: str, other: str) -> str:
    """`text` with `other` in place of `host` (each with its port, where it has one) in its URLs, and nowhere else."""
    changed, found = re.subn(rf"(?<=://){re.escape(host)}(?=[/\s]|$)", other, text)
    assert found, f"no URL of the manifest has the host {host}"
    return changed


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class TextService:
    """The service of `examples/textservice` in the test's own loop; `calls` are the bodies that it was sent, and
    `times` when (seconds of the loop's clock)."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []
        self.times: list[float] = []
        self.most = 0
        """How many calls it ever had at once."""
        self._now = 0

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[str]:
        app = make_app(latency=lambda: 0.001)
        app.middlewares.append(self._noted)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.2)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            yield f"http://127.0.0.1:{runner.addresses[0][1]}"
        finally:
            await runner.cleanup()

    @web.middleware
    async def _noted(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        self.times.append(asyncio.get_running_loop().time())
        self.calls.append(await request.json())
        self._now += 1
        self.most = max(self.most, self._now)
        try:
            return await handler(request)
        finally:
            self._now -= 1
