"""What the operator tells Prometheus, read by tests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

Labels = Mapping[str, str]


class Metrics:
    """One reading of `/metrics`."""

    def __init__(self, text: str) -> None:
        self._samples = [
            (sample.name, sample.labels, sample.value)
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        ]

    def total(self, name: str, /, **labels: str) -> float:
        """The sum over all series of that name and of these labels; 0 where there is none."""
        return sum(value for found, has, value in self._samples if found == name and labels.items() <= has.items())

    def by(self, name: str, label: str, /, **labels: str) -> dict[str, float]:
        """Sums by the value of one label."""
        sums: dict[str, float] = {}
        for found, has, value in self._samples:
            if found == name and labels.items() <= has.items():
                sums[has.get(label, "")] = sums.get(has.get(label, ""), 0.0) + value
        return sums

    def histogram(self, name: str) -> Histogram:
        bounds = {float(bound): count for bound, count in self.by(f"{name}_bucket", "le").items()}
        return Histogram(dict(sorted(bounds.items())))


@dataclass(frozen=True)
class Histogram:
    """How many values were at most each bound."""

    at_most: Mapping[float, float]

    def since(self, before: Histogram) -> Histogram:
        return Histogram({bound: count - before.at_most.get(bound, 0.0) for bound, count in self.at_most.items()})

    @property
    def count(self) -> int:
        return int(max(self.at_most.values(), default=0))

    def over(self, bound: float) -> float:
        """The share of values that were over a bound of the histogram."""
        return 1 - self.at_most[bound] / self.count if self.count else 0.0

    def quantile(self, share: float) -> float:
        """The smallest bound that this share of the values is within."""
        return next(bound for bound, count in self.at_most.items() if count >= share * self.count)
