"""Images and maps at the size at which they are drawn."""

from __future__ import annotations

import numpy as np


def resized(plane: np.ndarray, width: int, height: int, enlarging: int) -> np.ndarray:
    """An image (h, w, 3) or a map (h, w) as `height` rows and `width` columns; `enlarging` is OpenCV's method for that.

    Sides that shrink go first: OpenCV's area filter skips pixels where the other side grows in the same call.
    """
    import cv2

    small = min(width, plane.shape[1]), min(height, plane.shape[0])
    if small != (plane.shape[1], plane.shape[0]):
        plane = cv2.resize(plane, small, interpolation=cv2.INTER_AREA)
    if small != (width, height):
        plane = cv2.resize(plane, (width, height), interpolation=enlarging)
    return np.asarray(plane)
