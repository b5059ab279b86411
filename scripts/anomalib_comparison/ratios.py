"""Ratios of rates that were measured in turn in one run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Ratio:
    """The rate of one side over that of another, both measured in one run."""

    of_medians: float
    lowest: float
    highest: float
    """Lowest and highest ratio within one repeat."""


def ratio_of(ours: Sequence[float], theirs: Sequence[float]) -> Ratio:
    """Compare two rates (n,), in images per second, that were measured in turn in the same n repeats."""
    if len(ours) != len(theirs) or not len(ours):
        raise ValueError(f"expected two lists of one length above 0, got {len(ours)} and {len(theirs)}")
    if min(*ours, *theirs) <= 0:
        raise ValueError("rates: expected numbers above 0")
    paired = [mine / other for mine, other in zip(ours, theirs, strict=True)]
    return Ratio(float(np.median(ours) / np.median(theirs)), min(paired), max(paired))


def fastest(rates: Mapping[str, Sequence[float]]) -> str:
    """The name whose median rate is highest; the first of equals."""
    return max(rates, key=lambda name: float(np.median(rates[name])))
