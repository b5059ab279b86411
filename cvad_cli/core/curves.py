"""The curves that a report draws over all thresholds, with no more points than a plot can show.

scikit-learn computes them. Do not quote figures from here: areas come from core/metrics/ and core/pixel_metrics.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Bool, Float, Float64

MAX_POINTS: Final = 400
"""A curve in a report is about 300 pixels wide."""


@dataclass(frozen=True, slots=True)
class Curve:
    """Points of a curve in the unit square, in drawing order."""

    x: Float64[np.ndarray, " p"]
    y: Float64[np.ndarray, " p"]

    def __post_init__(self) -> None:
        if self.x.ndim != 1 or self.x.shape != self.y.shape or not self.x.size:
            raise ValueError(f"curve: expected x and y of one length from 1, got {self.x.shape} and {self.y.shape}")


def roc(scores: Sequence[float] | Float[np.ndarray, " n"], defective: Sequence[bool] | Bool[np.ndarray, " n"]) -> Curve:
    """Share of defects rejected (y) over share of good parts rejected (x), from (0, 0) to (1, 1).

    Args:
        scores: finite image scores, larger = more anomalous.
        defective: of each image, some True and some False.
    """
    from sklearn.metrics import roc_curve

    x, y, _ = roc_curve(defective, scores)
    return Curve(np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64))


def precision_recall(
    scores: Sequence[float] | Float[np.ndarray, " n"], defective: Sequence[bool] | Bool[np.ndarray, " n"]
) -> Curve:
    """Precision (y) over recall (x) as steps, with rising recall: average precision is the area below the curve.

    The arguments are those of `roc`.
    """
    from sklearn.metrics import precision_recall_curve

    precision, recall, _ = precision_recall_curve(defective, scores)
    # Recall falls as the threshold rises; each step keeps its precision back to the previous recall.
    x, y = np.asarray(recall[::-1], dtype=np.float64), np.asarray(precision[::-1], dtype=np.float64)
    return Curve(np.repeat(x, 2)[1:-1], np.repeat(y[1:], 2))


def thinned(curve: Curve, max_points: int = MAX_POINTS) -> Curve:
    """At most `max_points` (2 or more) of the curve's own points, evenly spaced along it, with both ends."""
    if curve.x.size <= max_points:
        return curve
    along = np.concatenate([[0.0], np.cumsum(np.hypot(np.diff(curve.x), np.diff(curve.y)))])
    chosen = np.unique(np.searchsorted(along, np.linspace(0, along[-1], max_points)).clip(0, curve.x.size - 1))
    chosen[0], chosen[-1] = 0, curve.x.size - 1
    return Curve(curve.x[chosen], curve.y[chosen])
