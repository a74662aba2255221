"""What a figure is, and how all of them are shown: a table for people, a JSON file for everything else."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Figure:
    """One ratio. `aims` are the goals, the nearer first; `higher` tells which side of them is good.

    `rounds` are the ratios of the single rounds that `value` is the median of; `parts` are the rates behind it.
    """

    name: str
    what: str
    value: float
    aims: tuple[float, ...]
    higher: bool
    rounds: list[float] = field(default_factory=list)
    parts: dict[str, Any] = field(default_factory=dict)

    @property
    def reached(self) -> int:
        """How many of the aims are reached."""
        return sum(self.value >= aim if self.higher else self.value <= aim for aim in self.aims)


@dataclass(frozen=True, slots=True)
class Missing:
    """A figure that cannot be had here, and how it could be."""

    name: str
    reason: str


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def table(results: Sequence[Figure | Missing]) -> str:
    """The figures, a line each, with what they are made of below."""
    lines = [f"{'figure':<33}{'ratio':>9}   {'aim':<16}{'rounds'}"]
    for result in results:
        if isinstance(result, Missing):
            lines.append(f"{result.name:<33}{'-':>9}   {result.reason}")
            continue
        sign = ">=" if result.higher else "<="
        aims = ", ".join(f"{sign} {aim:g}" for aim in result.aims)
        rounds = " ".join(_short(value) for value in result.rounds)
        verdict = f"{result.reached}/{len(result.aims)} " if result.aims else ""
        lines.append(f"{result.name:<33}{_short(result.value):>9}   {aims:<16}{verdict}[{rounds}]")
        lines.append(f"    {result.what}")
        lines += [f"    {name}: {_shown(value)}" for name, value in result.parts.items()]
    return "\n".join(lines)


def save(path: Path, results: Sequence[Figure | Missing], settings: dict[str, Any]) -> None:
    """Everything that was measured, and under what circumstances."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"settings": settings, "figures": [asdict(result) for result in results]}
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _short(value: float) -> str:
    return f"{value:.4f}" if abs(value) < 0.1 else f"{value:.2f}"


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.1f}" if abs(value) < 1000 else f"{value:,.0f}"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_shown(part)}" for name, part in value.items())
    return str(value)
