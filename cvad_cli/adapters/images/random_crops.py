"""Random crops of photographs for pretraining: resized, turned, mirrored, recoloured and slightly blurred by OpenCV."""

from __future__ import annotations

import math
from typing import Final

import numpy as np

SMALLEST_CROP: Final = 0.15  # of the image's shorter side
FREE_TURN: Final = 0.5  # the share of crops turned by any angle; the others by quarter turns


def random_crop(image: np.ndarray, side: int, *, rng: np.random.Generator) -> np.ndarray:
    """A square of uint8 RGB (h, w, 3), of random position, size and angle, as uint8 RGB (side, side, 3)."""
    angle = rng.uniform(-math.pi / 4, math.pi / 4) if rng.random() < FREE_TURN else 0.0
    margin = abs(math.cos(angle)) + abs(math.sin(angle))
    shorter = min(image.shape[:2])
    share = math.exp(rng.uniform(math.log(max(SMALLEST_CROP, min(1.0, side / 4 / shorter))), 0.0))
    extent = max(2, round(shorter * share))
    top, left = (int(rng.integers(0, length - extent + 1)) for length in image.shape[:2])
    window = image[top : top + extent, left : left + extent]
    square = _turned(_resized(window, math.ceil(side * margin)), angle, side)
    square = np.rot90(square, int(rng.integers(4)))
    if rng.random() < 0.5:
        square = square[:, ::-1]
    return _recoloured(np.ascontiguousarray(square), rng)


def use_one_thread() -> None:
    """Let OpenCV use only the calling thread: for a process that is one of many."""
    import cv2

    cv2.setNumThreads(1)


def shrunk(image: np.ndarray, longest: int) -> np.ndarray:
    """The image with its longer side at most `longest` pixels."""
    import cv2

    factor = longest / max(image.shape[:2])
    if factor >= 1:
        return image
    size = (max(2, round(image.shape[1] * factor)), max(2, round(image.shape[0] * factor)))
    return np.asarray(cv2.resize(np.ascontiguousarray(image), size, interpolation=cv2.INTER_AREA))


def _resized(window: np.ndarray, side: int) -> np.ndarray:
    import cv2

    method = cv2.INTER_AREA if window.shape[0] > side else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(np.ascontiguousarray(window), (side, side), interpolation=method))


def _turned(square: np.ndarray, angle: float, side: int) -> np.ndarray:
    """The middle of the square, turned: its corners lie inside the square, so no pixel is invented."""
    import cv2

    if angle == 0.0:
        return square[:side, :side]
    middle = (square.shape[0] - 1) / 2
    matrix = cv2.getRotationMatrix2D((middle, middle), math.degrees(angle), 1.0)
    matrix[:, 2] += (side - 1) / 2 - middle
    border = cv2.BORDER_REFLECT_101
    return np.asarray(cv2.warpAffine(square, matrix, (side, side), flags=cv2.INTER_LINEAR, borderMode=border))


def _recoloured(square: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Shift brightness, contrast, saturation and cast; one crop in five loses its colour, one in four is blurred."""
    import cv2

    levels = square.astype(np.float32)
    gray = levels.mean(axis=2, keepdims=True)
    saturation = 0.0 if rng.random() < 0.2 else rng.uniform(0.5, 1.5)
    levels = gray + (levels - gray) * np.float32(saturation)
    middle = np.float32(levels.mean())
    contrast, brightness = np.float32(rng.uniform(0.5, 1.4)), np.float32(rng.normal(0, 25))
    cast = rng.normal(1.0, 0.06, 3).astype(np.float32)
    levels = ((levels - middle) * contrast + middle + brightness) * cast
    if rng.random() < 0.25:
        levels = cv2.GaussianBlur(levels, (0, 0), rng.uniform(0.3, 1.5))
    return np.asarray(np.clip(levels, 0, 255) + 0.5).astype(np.uint8)
