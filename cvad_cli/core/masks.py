"""Defect masks at other sizes, without losing what is thin."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool


def covered(mask: Bool[np.ndarray, "h w"], size: tuple[int, int]) -> Bool[np.ndarray, "rows columns"]:
    """Resize a mask to `size` (rows, columns) so that every marked pixel stays marked.

    Along a side that shrinks, a pixel is marked where the mask covers any share of it; along a side that grows, where
    the nearest pixel is marked. Each side is taken by itself and in whole numbers, so this holds at every aspect.
    """
    if not mask.any():
        return np.zeros(size, dtype=np.bool_)
    return _rows_covered(np.ascontiguousarray(_rows_covered(mask, size[0]).T), size[1]).T


def _rows_covered(mask: Bool[np.ndarray, "h w"], count: int) -> Bool[np.ndarray, "count w"]:
    """The mask with `count` rows."""
    held = mask.shape[0]
    edges = np.arange(count + 1) * held
    first, last = edges[:-1] // count, -(-edges[1:] // count) - 1
    marked: np.ndarray = mask[first]
    if count < held:
        for step in range(1, int((last - first).max()) + 1):
            marked |= mask[np.minimum(first + step, last)]
    return marked
