"""What measured rates say: ratios of two sides, who is fastest, and how a cost grows with a size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Ratio:
    """How many times the rate of one side is that of another, both measured in one run."""

    of_medians: float
    lowest: float
    highest: float
    """Of the repeats, each of ours against theirs of the same repeat."""


def ratio_of(ours: Sequence[float], theirs: Sequence[float]) -> Ratio:
    """Compare two rates (n,), in images a second, that were measured in turn in the same n repeats."""
    if len(ours) != len(theirs) or not len(ours):
        raise ValueError(f"expected two lists of one length above 0, got {len(ours)} and {len(theirs)}")
    if min(*ours, *theirs) <= 0:
        raise ValueError("rates: expected numbers above 0")
    paired = [mine / other for mine, other in zip(ours, theirs, strict=True)]
    return Ratio(float(np.median(ours) / np.median(theirs)), min(paired), max(paired))


def fastest(rates: Mapping[str, Sequence[float]]) -> str:
    """The name whose median rate is highest; of equals, the first."""
    return max(rates, key=lambda name: float(np.median(rates[name])))


def growth_exponent(sizes: Sequence[float], costs: Sequence[float]) -> float | None:
    """The e in cost ~ size^e, by least squares on logarithms; None with fewer than two sizes.

    >>> round(growth_exponent([1, 2, 4], [3, 12, 48]), 6)
    2.0
    """
    if len(set(sizes)) < 2:
        return None
    slope, _ = np.polyfit(np.log(np.asarray(sizes, float)), np.log(np.asarray(costs, float)), 1)
    return float(slope)
