"""How long a thread could have run and had no core: a busy machine adds that to a measured time, the code does not."""

from __future__ import annotations

from pathlib import Path


def starved(thread: int) -> float:
    """Seconds, since it began, that this process's thread of that native id was ready to run and waited for a core; 0
    where the system does not tell. Only differences say anything."""
    try:
        told = Path(f"/proc/self/task/{thread}/schedstat").read_text()
    except OSError:
        return 0.0
    return int(told.split()[1]) / 1e9
