"""The curves that a report draws: all thresholds at once, in as few points as an image can show.

scikit-learn counts. Nothing here is a figure to quote: areas come from core/metrics/ and core/pixel_metrics.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

MAX_POINTS: Final = 400
"""A curve of a report is some 300 pixels wide."""


@dataclass(frozen=True, slots=True)
class Curve:
    """Points of a curve in the unit square, in drawing order."""

    x: NDArray[np.float64]
    y: NDArray[np.float64]

    def __post_init__(self) -> None:
        if self.x.ndim != 1 or self.x.shape != self.y.shape or not self.x.size:
            raise ValueError(f"curve: expected x and y of one length from 1, got {self.x.shape} and {self.y.shape}")


def roc(scores: ArrayLike, defective: ArrayLike) -> Curve:
    """Share of defects rejected (y) over share of good parts rejected (x), from (0, 0) to (1, 1).

    Args:
        scores: (n,) finite image scores, larger = stranger.
        defective: (n,) booleans, some True and some False.
    """
    from sklearn.metrics import roc_curve

    x, y, _ = roc_curve(defective, scores)
    return Curve(np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64))


def precision_recall(scores: ArrayLike, defective: ArrayLike) -> Curve:
    """Precision (y) over recall (x), with rising recall, as steps: average precision is the area below it.

    Arguments are those of `roc`.
    """
    from sklearn.metrics import precision_recall_curve

    precision, recall, _ = precision_recall_curve(defective, scores)
    # Recall falls as the threshold rises; a step holds its precision back to the recall before.
    x, y = np.asarray(recall[::-1], dtype=np.float64), np.asarray(precision[::-1], dtype=np.float64)
    return Curve(np.repeat(x, 2)[1:-1], np.repeat(y[1:], 2))


def thinned(curve: Curve, max_points: int = MAX_POINTS) -> Curve:
    """At most `max_points` (from 2) of the curve's own points, evenly spread along it, both ends among them."""
    if curve.x.size <= max_points:
        return curve
    along = np.concatenate([[0.0], np.cumsum(np.hypot(np.diff(curve.x), np.diff(curve.y)))])
    chosen = np.unique(np.searchsorted(along, np.linspace(0, along[-1], max_points)).clip(0, curve.x.size - 1))
    chosen[0], chosen[-1] = 0, curve.x.size - 1
    return Curve(curve.x[chosen], curve.y[chosen])
