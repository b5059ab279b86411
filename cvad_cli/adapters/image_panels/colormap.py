"""The colours of anomaly maps, the same in panels and thumbnails."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cvad_cli.adapters.image_panels.text import Pixels, as_pixels


def score_range(scores: NDArray[np.float32], threshold: float) -> tuple[float, float]:
    """The scores that the darkest and the brightest colour stand for.

    From the lowest score to as far above the threshold as that is below it, or to the highest score if that is more: a
    good part never glows, and a strong defect keeps its shape.
    """
    low = float(scores.min())
    high = max(float(scores.max()), 2 * threshold - low)
    return low, high if high > low else low + 1.0


def levels(scores: NDArray[np.float32], threshold: float) -> Pixels:
    """The scores (h, w) as shades 0..255 of their `score_range`."""
    low, high = score_range(scores, threshold)
    return as_pixels(np.clip((scores - low) * (255 / (high - low)), 0, 255).astype(np.uint8))


def colours(shades: Pixels) -> Pixels:
    """RGB (h, w, 3) of shades (h, w): from black by purple and orange to pale yellow, also told apart in gray."""
    import cv2

    return as_pixels(cv2.cvtColor(cv2.applyColorMap(shades, cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB))
