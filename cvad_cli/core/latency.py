"""Percentiles of a stream of times, in constant memory.

The buckets are logarithmic, as in DDSketch (Masson, Rim and Lee, PVLDB 12(12), 2019): a quantile is within 1 % of the
value of that rank. Sums and counts are exact.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, final

import numpy as np

ACCURACY: Final = 0.01
"""Largest relative error of a quantile."""

MIN_S: Final = 1e-7
MAX_S: Final = 1e5
"""Shorter times count as `MIN_S`, longer ones as `MAX_S` (about a day)."""

_GROWTH: Final = (1 + ACCURACY) / (1 - ACCURACY)
_LOG_GROWTH: Final = math.log(_GROWTH)
_BUCKETS: Final = math.ceil(math.log(MAX_S / MIN_S) / _LOG_GROWTH) + 1


@dataclass(frozen=True, slots=True)
class LatencySummary:
    """Mean and percentiles of many times, in milliseconds."""

    count: int
    mean_ms: float
    p50_ms: float
    p95_ms: float
    p99_ms: float


def latency_summary(seconds: Sequence[float]) -> LatencySummary:
    """Exact mean and percentiles (linear interpolation) of a list of one or more times."""
    if not len(seconds):
        raise ValueError("seconds: expected at least one time, got none")
    times = np.asarray(seconds, dtype=np.float64) * 1e3
    p50, p95, p99 = (float(value) for value in np.percentile(times, [50, 95, 99]))
    return LatencySummary(len(times), float(times.mean()), p50, p95, p99)


@final
class Durations:
    """Times in seconds, added one by one. Uses 11 KB for any number of times."""

    def __init__(self) -> None:
        self._counts = np.zeros(_BUCKETS, dtype=np.int64)
        self.count = 0
        self.total_s = 0.0

    def add(self, seconds: float) -> None:
        """Count one time. Raises ValueError if it is negative or not a number."""
        if not seconds >= 0:
            raise ValueError(f"seconds: expected a time from 0, got {seconds}")
        # Python's own functions: NumPy's take eight times as long for a single number.
        self._counts[math.ceil(math.log(min(max(seconds, MIN_S), MAX_S) / MIN_S) / _LOG_GROWTH)] += 1
        self.count += 1
        self.total_s += seconds

    def quantile(self, share: float) -> float:
        """The time of rank floor(share * (count - 1)), counted from 0, within `ACCURACY`; 0 if there is none."""
        if not self.count:
            return 0.0
        rank = int(share * (self.count - 1))
        bucket = int(np.searchsorted(np.cumsum(self._counts), rank, side="right"))
        return float(MIN_S * _GROWTH**bucket * 2 / (1 + _GROWTH))

    def summary(self) -> LatencySummary:
        """Mean and percentiles so far."""
        mean = self.total_s / self.count if self.count else 0.0
        p50, p95, p99 = (1e3 * self.quantile(share) for share in (0.5, 0.95, 0.99))
        return LatencySummary(self.count, 1e3 * mean, p50, p95, p99)


@final
class StageTimes:
    """How long each image took as a whole and in each stage."""

    def __init__(self) -> None:
        self.whole = Durations()
        self._stages: dict[str, Durations] = {}

    def add(self, whole_s: float, stages_s: Mapping[str, float]) -> None:
        """Count an image: its latency, and the part of it that each stage took."""
        self.whole.add(whole_s)
        for name, seconds in stages_s.items():
            self._stages.setdefault(name, Durations()).add(seconds)

    @property
    def stages(self) -> dict[str, LatencySummary]:
        """Mean and percentiles per stage, in the order in which the stages first appeared."""
        return {name: times.summary() for name, times in self._stages.items()}

    @property
    def explained(self) -> float:
        """Share of the whole time that the stages account for; 1 if nothing was counted."""
        parts = sum(times.total_s for times in self._stages.values())
        return parts / self.whole.total_s if self.whole.total_s else 1.0
