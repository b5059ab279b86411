"""From an anomaly map to defect regions: where they lie in the original image, how large and how strange they are.

A pixel above `seed` starts a region, and the pixels above `grow` that hang together with it belong to it (hysteresis;
Canny, PAMI 1986, section V). Parts with a small gap between them are one region: a scratch is not five defects. With
the calibrated map threshold as `seed`, good parts show a region no more often than the rate that calibration states.

The map has the size of the network's input and the image any other: rows and columns are scaled apart.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
from scipy import ndimage

PEAK_SHARE: Final = 0.9
"""A rejected part whose map stays under the threshold is shown where the map is above this share of its peak."""

EIGHT: Final = np.ones((3, 3), dtype=bool)
"""Pixels hang together along edges and over corners."""

STEPS: Final = ((0, 1), (1, 0), (0, -1), (-1, 0))
"""Right, down, left, up: (rows, columns)."""


@dataclass(frozen=True, slots=True)
class RegionRule:
    """What counts as a region. Thresholds and gaps are in units of the map, areas in units of the original image."""

    seed: float
    """A region needs a pixel of the map above this: the calibrated `pixel_threshold`."""
    grow: float | None = None
    """It takes in the connected pixels above this, at most `seed`; None: equal to `seed`, no hysteresis."""
    bridge_px: int = 8
    """Parts with at most this many map pixels between them are one region; 8 is a cell of PatchCore's grid at 256."""
    min_area_px: float = 0.0
    """Smaller regions are dropped: pixels of the original image."""
    min_area_mm2: float = 0.0
    """The same in square millimetres; needs `pixel_size_mm`."""
    pixel_size_mm: float | None = None
    """Side of one pixel of the original image."""
    max_regions: int = 4
    """At most this many regions, those of most mass."""

    def __post_init__(self) -> None:
        if not (np.isfinite(self.seed) and np.isfinite(self.floor) and self.floor <= self.seed):
            raise ValueError(f"grow: expected a number up to seed = {self.seed}, got {self.grow}")
        if self.bridge_px < 0 or self.max_regions < 1 or self.min_area_px < 0 or self.min_area_mm2 < 0:
            raise ValueError("region rule: bridge_px and minimum areas start at 0, max_regions at 1")
        if self.pixel_size_mm is not None and not (np.isfinite(self.pixel_size_mm) and self.pixel_size_mm > 0):
            raise ValueError(f"pixel_size_mm: expected a size above 0, got {self.pixel_size_mm}")
        if self.min_area_mm2 > 0 and self.pixel_size_mm is None:
            raise ValueError("min_area_mm2: a minimum in mm^2 needs pixel_size_mm, the side of one pixel")

    @property
    def floor(self) -> float:
        """The lower threshold: `grow`, or `seed` where there is none."""
        return self.seed if self.grow is None else self.grow


@dataclass(frozen=True, slots=True)
class Region:
    """One defect: its place in pixels of the original image, its size and its scores on the map."""

    box: tuple[int, int, int, int]
    """(top, left, bottom, right), bottom and right exclusive: the smallest whole-pixel box that holds the region."""
    centre: tuple[float, float]
    """(y, x): mean place of its pixels, weighted with their scores above the lower threshold."""
    contours: tuple[np.ndarray, ...]
    """Closed polygons (k, 2) of corners (y, x): clockwise around parts, counter-clockwise around holes."""
    area_px: float
    """Pixels of the original image, a fraction where the scale is one."""
    area_mm2: float | None
    """The same in square millimetres; None where the pixel's size is not known."""
    peak: float
    mean_score: float
    mass: float
    """Sum over its map pixels of (map - lower threshold): how much of the evidence is here."""
    mask: np.ndarray = field(repr=False, compare=False)
    """bool (h, w), at the size of the map."""


def find_regions(
    anomaly_map: np.ndarray, image_size: tuple[int, int], rule: RegionRule, *, rejected: bool = False
) -> tuple[Region, ...]:
    """The regions of a map (h, w), most mass first, in an image of `image_size` (rows, columns).

    `rejected`: the part was rejected by its image score, so there is something to show. Where nothing passes the rule,
    the answer is the one region of most mass above `PEAK_SHARE` of the map's peak, of whatever area.

    Raises:
        ValueError: the map is not two-dimensional, empty or not finite, or the image has no pixels.
    """
    if anomaly_map.ndim != 2 or anomaly_map.size == 0 or not np.isfinite(anomaly_map).all():
        raise ValueError(f"anomaly_map: expected finite (h, w), got shape {anomaly_map.shape}")
    if min(image_size) < 1:
        raise ValueError(f"image_size: expected rows and columns from 1, got {image_size}")
    values = anomaly_map.astype(np.float64)
    labels = _bridged(_hysteresis(values, rule.seed, rule.floor), rule.bridge_px)
    floor, kept = rule.floor, _strongest(labels, values - rule.floor, _min_pixels(values, image_size, rule))
    if rejected and not kept:
        floor = float(values.max() - (1 - PEAK_SHARE) * abs(values.max()))
        labels = _bridged(values >= floor, rule.bridge_px)
        kept = _strongest(labels, values - floor, 0.0)[:1]
    return tuple(
        _measure(values, labels == label, image_size, floor, rule.pixel_size_mm) for label in kept[: rule.max_regions]
    )


def mask_regions(
    share: np.ndarray, anomaly_map: np.ndarray, image_size: tuple[int, int], rule: RegionRule
) -> tuple[Region, ...]:
    """The parts of a defect mask as regions of any area, with the map's scores; none where the mask is empty.

    `share` (h, w) says how much of each pixel of the map (h, w) the mask covers, 0..1.
    """
    # Any share of a map pixel counts: a scratch must not fall through the map's grid.
    whole = replace(rule, seed=0.0, grow=None, min_area_px=0.0, min_area_mm2=0.0)
    return tuple(
        replace(
            region,
            peak=float(anomaly_map[region.mask].max()),
            mean_score=float(anomaly_map[region.mask].mean()),
            mass=float(np.maximum(anomaly_map[region.mask] - rule.floor, 0).sum()),
        )
        for region in find_regions(share, image_size, whole)
    )


def overlaps(region: Region, mask: np.ndarray) -> bool:
    """Whether a region and a mask of any size, bool (h, w), share a part of the image.

    Each side is compared at the finer of both grids: nothing thin falls between the samples.
    """
    finer = [max(sides) for sides in zip(mask.shape, region.mask.shape, strict=True)]
    return bool((_sampled(region.mask, finer) & _sampled(mask, finer)).any())


def _sampled(mask: np.ndarray, size: list[int]) -> np.ndarray:
    """A mask (h, w) at the centres of a grid of `size` (rows, columns), at least as fine."""
    rows, columns = (
        np.minimum((np.arange(many) + 0.5) * few / many, few - 1).astype(int)
        for many, few in zip(size, mask.shape, strict=True)
    )
    sampled: np.ndarray = mask[np.ix_(rows, columns)]
    return sampled


def _min_pixels(values: np.ndarray, image_size: tuple[int, int], rule: RegionRule) -> float:
    """The minimum areas of the rule, in pixels of the map."""
    in_mm = rule.min_area_mm2 / rule.pixel_size_mm**2 if rule.pixel_size_mm else 0.0
    return max(rule.min_area_px, in_mm) * values.size / (image_size[0] * image_size[1])


def _strongest(labels: np.ndarray, excess: np.ndarray, min_pixels: float) -> list[int]:
    """The labels of at least so many pixels, most mass first; equal ones in reading order."""
    pixels = np.bincount(labels.ravel())
    mass = np.bincount(labels.ravel(), weights=excess.ravel())
    order = np.argsort(-mass[1:], kind="stable") + 1
    # A minimum of exactly the region's area keeps it, whatever the scales round to.
    return [int(label) for label in order if pixels[label] >= min_pixels * (1 - 1e-9)]


def _hysteresis(values: np.ndarray, seed: float, grow: float) -> np.ndarray:
    """Pixels above `grow` in components that hold one above `seed`: bool (h, w)."""
    labels, count = ndimage.label(values > grow, structure=EIGHT)
    seeded = np.zeros(count + 1, dtype=bool)
    seeded[labels[values > seed]] = True
    seeded[0] = False
    kept: np.ndarray = seeded[labels]
    return kept


def _bridged(mask: np.ndarray, gap: int) -> np.ndarray:
    """Numbers from 1 for the mask's components, those with up to `gap` empty pixels between them taken together.

    A square of side gap + 1 about each pixel makes two pixels touch exactly where the gap between them is small enough.
    """
    reach = ndimage.maximum_filter(mask, size=gap + 1, mode="constant", cval=0) if gap else mask
    labels: np.ndarray = ndimage.label(reach, structure=EIGHT)[0]
    labels[~mask] = 0
    return labels


def _measure(
    values: np.ndarray, mask: np.ndarray, image_size: tuple[int, int], floor: float, pixel_size_mm: float | None
) -> Region:
    """What is known of the region `mask` (h, w), which holds a pixel."""
    scale = np.asarray(image_size) / np.asarray(values.shape)
    pixels, scores = np.argwhere(mask), values[mask]
    excess = scores - floor
    weights = excess if excess.sum() > 0 else np.ones_like(excess)
    # In whole numbers: a corner that falls on a pixel's edge must not be rounded past it.
    (top, bottom), (left, right) = (
        (first * size // length, -(-(last + 1) * size // length))
        for first, last, size, length in zip(
            pixels.min(0).tolist(), pixels.max(0).tolist(), image_size, values.shape, strict=True
        )
    )
    centre = ((pixels + 0.5) * weights[:, None]).sum(0) / weights.sum() * scale
    area = len(pixels) * float(scale.prod())
    return Region(
        box=(top, left, bottom, right),
        centre=(float(centre[0]), float(centre[1])),
        contours=tuple(contour * scale for contour in outline(mask)),
        area_px=area,
        area_mm2=None if pixel_size_mm is None else area * pixel_size_mm**2,
        peak=float(scores.max()),
        mean_score=float(scores.mean()),
        mass=float(excess.sum()),
        mask=mask,
    )


def outline(mask: np.ndarray) -> tuple[np.ndarray, ...]:
    """The edges between a bool mask (h, w) and its outside, as closed polygons (k, 2) of corners (y, x), exact.

    The mask lies to the right of the way round: clockwise around parts, counter-clockwise around holes. Where two
    pixels touch over a corner only, the way goes from one to the other, so that they stay one part.
    """
    edges = _edges(mask)
    left_to_walk = {(int(y), int(x)) for y, x in np.argwhere(edges[0])}  # every loop goes right somewhere
    return tuple(_walk(edges, start, left_to_walk) for start in sorted(left_to_walk) if start in left_to_walk)


def _edges(mask: np.ndarray) -> np.ndarray:
    """bool (4, h + 1, w + 1): an edge leaves the corner (y, x) in the direction of `STEPS`, the mask on its right."""
    inside = np.pad(mask.astype(bool), 1)
    north_west, north_east = inside[:-1, :-1], inside[:-1, 1:]
    south_west, south_east = inside[1:, :-1], inside[1:, 1:]
    return np.stack(
        [
            south_east & ~north_east,
            south_west & ~south_east,
            north_west & ~south_west,
            north_east & ~north_west,
        ]
    )


def _walk(edges: np.ndarray, start: tuple[int, int], left_to_walk: set[tuple[int, int]]) -> np.ndarray:
    """The loop that leaves `start` to the right, its corners alone; what it passes is taken off `left_to_walk`."""
    corners, corner, heading = [], start, 0
    while True:
        if heading == 0:
            left_to_walk.discard(corner)
        corner = (corner[0] + STEPS[heading][0], corner[1] + STEPS[heading][1])
        turned = next(way % 4 for way in (heading - 1, heading, heading + 1) if edges[way % 4][corner])
        if turned != heading:
            corners.append(corner)
        heading = turned
        if corner == start and heading == 0:
            return np.asarray(corners, dtype=np.float64)
