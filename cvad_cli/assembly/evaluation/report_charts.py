"""The geometry of the charts on the evaluation's page: bars, ticks and curves. The template draws them.

Horizontal positions are percentages of the width of the plot, so that they fit a page of any width; vertical positions
are pixels. Curves are in a square of `SQUARE` units.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cvad_cli.core.curves import Curve, thinned
from cvad_cli.records import GOOD

BINS: Final = 48
TALLEST_PX: Final = 96  # bar of either half of the histogram
MIN_HALF_PX: Final = 24.0
MIN_BAR_PX: Final = 2.0  # a single image must be seen
RUG_UNITS: Final = 1000
SQUARE: Final = 300
MAX_TICKS: Final = 7
STRAY_SHARE: Final = 0.02  # of the images may lie past the end of the axis, where they would squeeze all others


@dataclass(frozen=True, slots=True)
class Axis:
    """The range of scores in the plots; it includes the threshold."""

    low: float
    high: float
    past_end: int
    """Number of images with a higher score, which are counted in the last bar."""

    def position(self, score: float) -> float:
        """Percent of the width."""
        return round(100 * min(max((score - self.low) / (self.high - self.low), 0.0), 1.0), 3)

    @property
    def ticks(self) -> list[dict[str, Any]]:
        """Round numbers along the axis and their positions."""
        step = _round_step((self.high - self.low) / MAX_TICKS)
        first, last = math.ceil(self.low / step), math.floor(self.high / step)
        return [{"x": self.position(n * step), "text": f"{n * step:.6g}"} for n in range(first, last + 1)]


def _round_step(minimum: float) -> float:
    """The smallest of 1, 2 and 5 times a power of ten that is `minimum` or more."""
    power: float = 10.0 ** math.floor(math.log10(minimum))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= minimum * (1 - 1e-9))


def score_axis(scores: Sequence[float], threshold: float) -> Axis:
    """An axis with margins. If a few distant scores would take more than half of it, it ends before them."""
    values = np.asarray(scores, dtype=np.float64)
    low, high = min(float(values.min()), threshold), max(float(values.max()), threshold)
    usual = max(float(np.quantile(values, 1 - STRAY_SHARE)), threshold)
    if usual > low and high - low > 2 * (usual - low):
        high = low + 1.1 * (usual - low)
    margin = 0.03 * (high - low) or max(abs(high), 1.0) * 0.03
    end = high + margin
    return Axis(low - margin, end, int((values > end).sum()))


def histogram(axis: Axis, scores: Sequence[float], defective: Sequence[bool], threshold: float) -> dict[str, Any]:
    """Bars of the good parts (up) and of the defective ones (down), each as a share of its class.

    The threshold is an edge of two bars, so that each bar is on one side of it.
    """
    width = (axis.high - axis.low) / BINS
    before, after = int((threshold - axis.low) // width), int((axis.high - threshold) // width)
    inner = threshold + width * np.arange(-before, after + 1)
    edges = np.concatenate([[axis.low], inner[(inner > axis.low) & (inner < axis.high)], [axis.high]])
    values, labels = np.asarray(scores, dtype=np.float64), np.asarray(defective, dtype=np.bool_)
    shares = {kind: _shares(values[labels == is_bad], edges) for kind, is_bad in (("good", False), ("bad", True))}
    tallest = max(*(share.max(initial=0.0) for share in shares.values()), 1e-9)
    bars = {kind: _bars(axis, edges, share / tallest) for kind, share in shares.items()}
    up, down = (max([MIN_HALF_PX, *(bar["height"] for bar in bars[kind])]) for kind in ("good", "bad"))
    return {"bars": bars, "up": up, "down": down, "ticks": axis.ticks}


def _shares(values: NDArray[np.float64], edges: NDArray[np.float64]) -> NDArray[np.float64]:
    """Share of the values in each bin (low, high]: a score on the threshold is not above it."""
    bins = np.clip(np.searchsorted(edges, values, side="left") - 1, 0, len(edges) - 2)
    return np.bincount(bins, minlength=len(edges) - 1) / max(len(values), 1)


def _bars(axis: Axis, edges: NDArray[np.float64], heights: NDArray[np.float64]) -> list[dict[str, float]]:
    gap = 0.12  # percent of the width
    return [
        {
            "x": axis.position(float(left)),
            "width": round(max(axis.position(float(right)) - axis.position(float(left)) - gap, 0.1), 3),
            "height": round(max(float(height) * TALLEST_PX, MIN_BAR_PX), 1),
        }
        for left, right, height in zip(edges[:-1], edges[1:], heights, strict=True)
        if height > 0
    ]


def rugs(axis: Axis, scores: Sequence[float], types: Sequence[str], threshold: float) -> list[dict[str, Any]]:
    """One row per type, good parts first, with a stroke per image at its score."""
    values, kinds = np.asarray(scores, dtype=np.float64), np.asarray(types, dtype=np.str_)
    names = sorted(set(types), key=lambda name: (name != GOOD, name))
    return [
        {
            "type": name,
            "good": name == GOOD,
            "images": int((kinds == name).sum()),
            "above": int((values[kinds == name] > threshold).sum()),
            "path": "".join(f"M{axis.position(score) * RUG_UNITS / 100:.1f} 0v10" for score in values[kinds == name]),
        }
        for name in names
    ]


def curve_path(curve: Curve, *, x_end: float = 1.0) -> str:
    """An SVG path in the square: x from 0 to `x_end`, y from 0 to 1, upwards."""
    few = thinned(curve)
    points = (
        f"{x / x_end * SQUARE:.1f} {(1 - y) * SQUARE:.1f}" for x, y in zip(few.x.tolist(), few.y.tolist(), strict=True)
    )
    return "M" + "L".join(points)
