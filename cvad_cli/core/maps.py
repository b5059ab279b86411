"""From a coarse map of cell scores to an anomaly map of the input's pixels.

Enlarging and Gaussian smoothing are linear and separable, so together they are one matrix per side: rows @ map @
columns^T. The matrices depend only on the sizes and are computed once.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
from jaxtyping import Float, Float32

MAP_SIGMA_PX: Final = 4.0
"""PatchCore's smoothing, in pixels of the network's input (Roth et al., CVPR 2022, section 3.3: sigma = 4)."""

GAUSSIAN_REACH: Final = 4.0
"""Where the Gaussian is cut off, in sigmas: the default of kornia, which anomalib uses, and of SciPy."""

FLOAT32: Final = np.finfo(np.float32)


@dataclass(frozen=True, slots=True)
class Enlargement:
    """A linear map from cells (r, c) to pixels (h, w)."""

    rows: Float32[np.ndarray, "h r"]
    columns: Float32[np.ndarray, "w c"]

    def __call__(self, coarse: Float[np.ndarray, "*b r c"]) -> Float32[np.ndarray, "*b h w"]:
        """Enlarge one map or several."""
        enlarged: np.ndarray = self.rows @ coarse.astype(np.float32, copy=False) @ self.columns.T
        return enlarged


@dataclass(frozen=True, slots=True)
class MapScale:
    """How EfficientAD's two maps become one: `student` * first + `autoencoder` * second + `offset`."""

    student: float
    autoencoder: float
    offset: float

    @classmethod
    def of(cls, qa_st: float, qb_st: float, qa_ae: float, qb_ae: float) -> MapScale:
        """The mean of both, each scaled so that its quantiles a, b lie at 0 and 0.1 (Batzner et al., algorithm 2).

        Quantiles that are all 0 were never measured: anomalib then leaves the maps as they are.

        Raises:
            ValueError: the quantiles of one map are equal up to rounding, in the wrong order or not finite.
        """
        if not any((qa_st, qb_st, qa_ae, qb_ae)):
            return cls(0.5, 0.5, 0.0)
        student = 0.05 / quantile_range("student", qa_st, qb_st)
        autoencoder = 0.05 / quantile_range("autoencoder", qa_ae, qb_ae)
        return cls(student, autoencoder, -student * qa_st - autoencoder * qa_ae)


def quantile_range(name: str, low: float, high: float) -> float:
    """The distance between the 90 % and the 99.5 % quantile of the map `name`.

    Raises ValueError where they are equal up to rounding or not finite. Such a map has no scale, and an invented one
    would decide how much this map counts against the other.
    """
    where = f"the {name}'s map of good images goes from {low:g} to {high:g} between 90 % and 99.5 % of its pixels"
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError(f"{where}: the training has diverged")
    if high - low <= 2 * FLOAT32.eps * max(abs(low), abs(high)) or high - low < FLOAT32.tiny:
        raise ValueError(f"{where}: it is the same nearly everywhere and has no scale")
    return high - low


def anomaly_map(
    patch_scores: Float[np.ndarray, " p"], grid: tuple[int, int], image_size: tuple[int, int]
) -> Float32[np.ndarray, "h w"]:
    """Upsample patch scores, given row by row over `grid`, to the input's pixels and smooth them.

    Nearest-neighbour upsampling and a Gaussian of `MAP_SIGMA_PX` with mirrored borders, as in anomalib.
    """
    if patch_scores.size != grid[0] * grid[1]:
        raise ValueError(f"patch_scores: expected {grid[0]} x {grid[1]} values, got {patch_scores.size}")
    return smoothed(grid, image_size)(patch_scores.reshape(grid))


def smoothed(grid: tuple[int, int], image_size: tuple[int, int]) -> Enlargement:
    """PatchCore's enlargement: each pixel gets its cell's score, then a Gaussian of `MAP_SIGMA_PX` smooths them."""
    return Enlargement(*(_smoothed_side(*sides) for sides in zip(grid, image_size, strict=True)))


def interpolated(grid: tuple[int, int], image_size: tuple[int, int], border: int) -> Enlargement:
    """EfficientAD's enlargement: `border` cells of zeros around the map, then bilinear interpolation."""
    return Enlargement(*(_interpolated_side(*sides, border) for sides in zip(grid, image_size, strict=True)))


@lru_cache(maxsize=64)
def _smoothed_side(cells: int, pixels: int) -> np.ndarray:
    reach = int(GAUSSIAN_REACH * MAP_SIGMA_PX + 0.5)
    offsets = np.arange(-reach, reach + 1)
    kernel = np.exp(-0.5 * (offsets / MAP_SIGMA_PX) ** 2)
    kernel /= kernel.sum()
    # Mirrored without repeating the edge: pixel -1 is pixel 1.
    period = max(1, 2 * (pixels - 1))
    position = np.abs(np.arange(pixels)[:, None] + offsets) % period
    source = np.minimum(position, period - position)
    side = np.zeros((pixels, cells))
    np.add.at(side, (np.arange(pixels)[:, None], source * cells // pixels), kernel[None, :])
    return _read_only(side)


@lru_cache(maxsize=64)
def _interpolated_side(cells: int, pixels: int, border: int) -> np.ndarray:
    """With half-pixel centres, as torch's `interpolate(mode="bilinear")` does without aligned corners."""
    padded = cells + 2 * border
    at = np.maximum((np.arange(pixels) + 0.5) * padded / pixels - 0.5, 0)
    low = np.minimum(at.astype(int), padded - 1)
    high = np.minimum(low + 1, padded - 1)
    side = np.zeros((pixels, padded))
    np.add.at(side, (np.arange(pixels), low), 1 - (at - low))
    np.add.at(side, (np.arange(pixels), high), at - low)
    return _read_only(side[:, border : padded - border])


def _read_only(values: np.ndarray) -> np.ndarray:
    """As float32. All users share the array, so it is read-only."""
    shared = np.ascontiguousarray(values, dtype=np.float32)
    shared.flags.writeable = False
    return shared
