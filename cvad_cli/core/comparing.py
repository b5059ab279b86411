"""How a measured cost grows with a size."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def growth_exponent(sizes: Sequence[float], costs: Sequence[float]) -> float | None:
    """The e in cost ~ size^e, by a least-squares fit on logarithms; None with fewer than two sizes.

    >>> round(growth_exponent([1, 2, 4], [3, 12, 48]), 6)
    2.0
    """
    if len(set(sizes)) < 2:
        return None
    slope, _ = np.polyfit(np.log(np.asarray(sizes, float)), np.log(np.asarray(costs, float)), 1)
    return float(slope)
