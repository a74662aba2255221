"""The commands of `kubectl rowmill`, one module each."""

from __future__ import annotations

from rowmill_cli.kubectl.commands.results import results
from rowmill_cli.kubectl.commands.retry import retry
from rowmill_cli.kubectl.commands.status import status
from rowmill_cli.kubectl.commands.suspend import resume, suspend

__all__ = ["results", "resume", "retry", "status", "suspend"]
