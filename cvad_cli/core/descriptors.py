"""What is wrong with a region, as a vector: its features minus those of the nearest normal surface, whitened.

A frozen backbone looks at each region a second time: at a square view around it, at native resolution where that
helps, in eight orientations. The network belongs to the caller; what follows on its features is plain arithmetic:

    view, 8 orientations --backbone--> stages on one grid of `CELLS` x `CELLS` cells, and pixel statistics per cell
    cells of the region --nearest normal cell--> residuals --whitened by good residuals--> mean over the region
    one block of length 1 per stage, then the pixel statistics --> one unit vector per orientation

The definition was chosen by measurement: docs/defect-types.md lists the alternatives and their results.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Final, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32, Int, Shaped

DESCRIPTOR_VERSION: Final = 1
"""Rises with any change to the numbers in a vector: vectors of different versions must never be compared."""

VIEW_PX: Final = 256
"""Side of a view at the input of the network."""

CELLS: Final = 32
"""Cells along one side of a view."""

ORIENTATIONS: Final = 8
"""Four quarter turns, each plain and mirrored: the symmetries of a square."""

MAX_ZOOM: Final = 4.0
"""A view is never smaller than a quarter of the image's shorter side."""

SHRINKAGE: Final = 0.01
"""Share of the isotropic part in the covariance of good residuals."""

KEY_STAGES: Final = (1, 2)
"""The stages, counted from the input, on which the nearest normal cell is searched (strides 8 and 16)."""

CELL_QUANTILE: Final = 0.999
"""A cell counts as defective if it is farther from normal than this share of good cells."""

FALLBACK: Final = 0.85
"""If every cell of a region looks normal, the cells above this share of the region's peak describe it."""

SURFACE_WEIGHT: Final = 0.5
"""Length of the block of pixel statistics; the blocks of the stages have length 1."""

SURFACE_SIZE: Final = 7
"""Number of pixel statistics of a cell."""

PAIRS_AT_ONCE: Final = 1 << 23
"""Maximum number of distances held at once: 32 MiB of float32."""

ROWS_AT_ONCE: Final = 8192
"""Samples of a covariance that are converted to float64 at once."""

Stages = Sequence[Float[np.ndarray, "n _"]]
"""One array per stage of the network, from the input to the output; the same n cells in each."""


class ViewBox(NamedTuple):
    """A square of the original image, in its pixels."""

    top: int
    left: int
    side: int


def unit(vectors: Float[np.ndarray, "*n d"]) -> Float[np.ndarray, "*n d"]:
    """Vectors scaled to length 1; a zero vector stays zero."""
    length: np.ndarray = np.linalg.norm(vectors, axis=-1, keepdims=True)
    scaled: np.ndarray = vectors / np.where(length > 0, length, 1)
    return scaled


def view_side(image_size: tuple[int, int]) -> int:
    """Side of a view in native pixels: `VIEW_PX`, but at least 1 / `MAX_ZOOM` of the image's shorter side.

    A view of `VIEW_PX` pixels needs no enlargement. If the image is smaller than that, the view is the whole shorter
    side and has to be enlarged.
    """
    shorter = min(image_size)
    return min(shorter, max(VIEW_PX, round(shorter / MAX_ZOOM)))


def view_box(centre: tuple[float, float], image_size: tuple[int, int]) -> ViewBox:
    """The view around `centre` (y, x in native pixels) of an image (rows, columns), moved so that it lies inside."""
    side = view_side(image_size)
    top, left = (
        min(max(round(position - side / 2), 0), length - side)
        for position, length in zip(centre, image_size, strict=True)
    )
    return ViewBox(top, left, side)


def own_cells(
    mask: Bool[np.ndarray, "h w"], image_size: tuple[int, int], box: ViewBox
) -> Bool[np.ndarray, "cells cells"]:
    """The cells of a view that contain a pixel of a region.

    `mask` is the region at the size of the anomaly map; `image_size` is the size of the original image.
    """
    cells = np.zeros((CELLS, CELLS), dtype=bool)
    rows, columns = (
        _cells_along(length, size, start, box.side)
        for length, size, start in zip(mask.shape, image_size, (box.top, box.left), strict=True)
    )
    for row, (top, bottom) in enumerate(rows):
        band = np.asarray(mask[top:bottom].any(axis=0))
        cells[row] = [band[left:right].any() for left, right in columns]
    return cells


def _cells_along(length: int, size: int, start: int, side: int) -> list[tuple[int, int]]:
    """For each cell along an axis, the half-open range of map pixels it covers; `length` map pixels cover `size`."""
    # In whole numbers: an edge on the border of a pixel must not reach into the next pixel by rounding.
    edges = [(start * CELLS + cell * side) * length for cell in range(CELLS + 1)]
    unit_px = size * CELLS
    return [(low // unit_px, -(-high // unit_px)) for low, high in pairwise(edges)]


def orient(image: Shaped[np.ndarray, "h w *c"], orientation: int) -> Shaped[np.ndarray, "_ _ *c"]:
    """Orientation 0..7 of an image or a map: `orientation` % 4 quarter turns, then mirrored from 4 on."""
    turned = np.rot90(image, orientation % 4)
    return np.ascontiguousarray(turned[:, ::-1] if orientation >= 4 else turned)


def pixel_statistics(view: Float[np.ndarray, "s s 3"]) -> Float32[np.ndarray, "cells cells 7"]:
    """Seven statistics of each cell of an RGB view in 0..1, whose side s is a multiple of `CELLS`.

    They are: brightness, its standard deviation, maximum and minimum, red minus green, blue minus green, and slope.
    """
    if view.ndim != 3 or view.shape[0] != view.shape[1] or view.shape[2] != 3 or view.shape[0] % CELLS:
        raise ValueError(f"view: expected (s, s, 3) with s a multiple of {CELLS}, got shape {view.shape}")
    levels = view.astype(np.float32)
    grey = levels.mean(-1)
    down, across = np.gradient(grey)
    tiles = _tiles(grey)
    means = (
        _tiles(plane).mean(-1)
        for plane in (levels[..., 0] - levels[..., 1], levels[..., 2] - levels[..., 1], down**2 + across**2)
    )
    red_green, blue_green, steepness = means
    of_grey = (tiles.mean(-1), tiles.std(-1), tiles.max(-1), tiles.min(-1))
    return np.stack([*of_grey, red_green, blue_green, np.sqrt(steepness)], -1)


def _tiles(plane: Float[np.ndarray, "s s"]) -> Float[np.ndarray, "cells cells pixels"]:
    """The pixels of each cell."""
    step = plane.shape[0] // CELLS
    return plane.reshape(CELLS, step, CELLS, step).swapaxes(1, 2).reshape(CELLS, CELLS, -1)


def inverse_root(
    samples: Float[np.ndarray, "n d"], shrinkage: float = SHRINKAGE, *, max_rows: int = ROWS_AT_ONCE
) -> Float32[np.ndarray, "d d"]:
    """The inverse square root of the covariance of samples, shrunk towards its mean variance.

    With S the covariance, it is the inverse root of (1 - a) S + a trace(S) / d I (Ledoit and Wolf, Journal of
    Multivariate Analysis 2004, with the share a given instead of estimated). For constant samples it is the identity.
    `max_rows` samples are converted to float64 at once.
    """
    from sklearn.covariance import shrunk_covariance

    if samples.ndim != 2 or len(samples) < 2:
        raise ValueError(f"samples: expected (n, d) with n >= 2, got shape {samples.shape}")
    mean, size = samples.mean(0, dtype=np.float64), samples.shape[1]
    covariance = np.zeros((size, size))
    for start in range(0, len(samples), max_rows):
        centred = samples[start : start + max_rows] - mean
        covariance += centred.T @ centred / (len(samples) - 1)
    if not covariance.any():
        return np.eye(size, dtype=np.float32)
    values, vectors = np.linalg.eigh(shrunk_covariance(covariance, shrinkage))
    floor = np.finfo(np.float64).eps * values.max()  # without shrinkage, the variance along a direction may be 0
    root: np.ndarray = ((vectors / np.sqrt(np.maximum(values, floor))) @ vectors.T).astype(np.float32)
    return root


@dataclass(frozen=True)
class NormalModel:
    """What a good surface looks like in a view: m representative cells, and how much good cells differ from them."""

    stages: tuple[Float32[np.ndarray, "m _"], ...]
    """The representatives, per stage."""
    whitening: tuple[Float32[np.ndarray, "_ _"], ...]
    """The inverse root of the covariance of good residuals, per stage."""
    surface_mean: Float32[np.ndarray, " 7"]
    """Mean pixel statistics of good cells."""
    surface_whitening: Float32[np.ndarray, "7 7"]
    cell_threshold: float
    """Distance to the nearest representative that a share of 1 - `CELL_QUANTILE` of good cells exceeds."""

    def __post_init__(self) -> None:
        if len(self.stages) <= max(KEY_STAGES) or len(self.stages) != len(self.whitening):
            raise ValueError(f"normal model: expected 3 stages or more, got {len(self.stages)}")
        cells = len(self.stages[0])
        for stage, matrix in zip(self.stages, self.whitening, strict=True):
            if stage.ndim != 2 or len(stage) != cells or cells < 1 or matrix.shape != (stage.shape[1],) * 2:
                raise ValueError(f"normal model: stage {stage.shape} and whitening {matrix.shape} do not fit")
        if self.surface_mean.shape != (SURFACE_SIZE,) or self.surface_whitening.shape != (SURFACE_SIZE,) * 2:
            raise ValueError(f"normal model: pixel statistics of shape {self.surface_mean.shape}")
        if not (np.isfinite(self.cell_threshold) and self.cell_threshold >= 0):
            raise ValueError(f"normal model: cell threshold {self.cell_threshold}")

    @property
    def size(self) -> int:
        """Length d of a vector."""
        return sum(int(stage.shape[1]) for stage in self.stages) + SURFACE_SIZE

    @cached_property
    def keys(self) -> Float[np.ndarray, "m d_key"]:
        """The features by which the nearest representative is searched."""
        return key_of(self.stages)


@dataclass(frozen=True, slots=True)
class Cells:
    """Some cells of good views, and the image that each comes from."""

    stages: tuple[Float[np.ndarray, "n _"], ...]
    pixels: Float[np.ndarray, "n 7"]
    """Pixel statistics."""
    images: Int[np.ndarray, " n"]

    def take(self, rows: Int[np.ndarray, " m"]) -> Cells:
        """Only the cells in `rows`."""
        return Cells(tuple(stage[rows] for stage in self.stages), self.pixels[rows], self.images[rows])


def key_of(stages: Stages) -> Float[np.ndarray, "n d_key"]:
    """The stages on which cells are compared, concatenated."""
    return np.concatenate([stages[stage] for stage in KEY_STAGES], -1)


def nearest(
    queries: Float[np.ndarray, "n d"],
    keys: Float[np.ndarray, "m d"],
    groups: tuple[Int[np.ndarray, " n"], Int[np.ndarray, " m"]] | None = None,
    *,
    max_pairs: int = PAIRS_AT_ONCE,
) -> tuple[Float[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    """Distance to, and row of, the nearest key of each query.

    `groups` are the groups of the queries and of the keys: a key of the query's own group does not count. The distance
    is infinite if no key remains. At most `max_pairs` distances are held at once.
    """
    step = max(1, max_pairs // len(keys))
    squares = (keys * keys).sum(1)
    distances, rows = np.empty(len(queries), keys.dtype), np.empty(len(queries), np.intp)
    for start in range(0, len(queries), step):
        part = slice(start, start + step)
        squared = squares - 2 * queries[part] @ keys.T
        if groups is not None:
            squared[groups[0][part, None] == groups[1]] = np.inf
        rows[part] = squared.argmin(1)
        found = np.take_along_axis(squared, rows[part, None], 1)[:, 0] + (queries[part] ** 2).sum(1)
        distances[part] = np.sqrt(np.maximum(found, 0))
    return distances, rows


def normal_model(representatives: Cells, good: Cells) -> NormalModel:
    """The normal model of `representatives` and a sample of `good` cells.

    A good cell is compared with representatives of other images only, so that it is never its own neighbour.

    Raises:
        ValueError: fewer than 2 good cells have a representative in another image.
    """
    distances, rows = nearest(
        key_of(good.stages), key_of(representatives.stages), (good.images, representatives.images)
    )
    usable = np.flatnonzero(np.isfinite(distances))
    if len(usable) < 2:
        raise ValueError("good cells: expected cells from at least 2 images")
    residuals = (  # one stage at a time: all stages together are as large as the sample
        stage[usable] - reference[rows[usable]]
        for stage, reference in zip(good.stages, representatives.stages, strict=True)
    )
    return NormalModel(
        stages=tuple(stage.astype(np.float32) for stage in representatives.stages),
        whitening=tuple(inverse_root(residual) for residual in residuals),
        surface_mean=good.pixels.mean(0).astype(np.float32),
        surface_whitening=inverse_root(good.pixels),
        cell_threshold=float(np.quantile(distances[usable], CELL_QUANTILE)),
    )


def describe(
    stages: Stages, pixels: Float[np.ndarray, "n 7"], own: Bool[np.ndarray, " n"], normal: NormalModel
) -> Float32[np.ndarray, " d"]:
    """The unit vector of a region in one view in one orientation.

    The n = `CELLS`^2 cells are in row-major order; `own` marks those of the region. Only those of them that are more
    anomalous than good cells count. If the view has no cell of the region, all its cells count.
    """
    cells = np.flatnonzero(own) if own.any() else np.arange(len(own))
    mine = [stage[cells] for stage in stages]
    distance, row = nearest(key_of(mine), normal.keys)
    # Equality keeps the peak itself if every distance is zero.
    chosen = distance >= min(normal.cell_threshold, FALLBACK * distance.max())
    blocks = [
        unit((stage[chosen] - reference[row[chosen]]).mean(0) @ matrix)
        for stage, reference, matrix in zip(mine, normal.stages, normal.whitening, strict=True)
    ]
    surface = (pixels[cells[chosen]].mean(0) - normal.surface_mean) @ normal.surface_whitening
    vector: np.ndarray = unit(np.concatenate([*blocks, SURFACE_WEIGHT * unit(surface)])).astype(np.float32)
    return vector


def query_vector(orientations: Float[np.ndarray, "*n o d"]) -> Float[np.ndarray, "*n d"]:
    """The unit mean of a region's vectors over its orientations: the vector to search with."""
    return unit(orientations.mean(-2))
