"""From an anomaly map to defect regions: their position in the original image, their size and their anomaly scores.

A pixel above `seed` starts a region; the region takes in all connected pixels above `grow` (hysteresis; Canny, PAMI
1986, section V). Parts with a small gap between them are one region: a scratch is not five defects. With the
calibrated map threshold as `seed`, good parts show a region no more often than the rate that calibration states.

The map has the size of the network's input and the image any other: rows and columns are scaled apart.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import ndimage

PEAK_SHARE: Final = 0.9
"""If a part is rejected but its map stays below the threshold, the region is where the map exceeds this share of its
peak."""

EIGHT: Final = np.ones((3, 3), dtype=bool)
"""Pixels are connected along edges and across corners."""

STEPS: Final = ((0, 1), (1, 0), (0, -1), (-1, 0))
"""Right, down, left, up: (rows, columns)."""


@dataclass(frozen=True, slots=True)
class RegionRule:
    """What counts as a region. Thresholds and gaps are in units of the map, areas in units of the original image."""

    seed: float
    """A region needs a pixel of the map above this: the calibrated `pixel_threshold`."""
    grow: float | None = None
    """A region takes in the connected pixels above this, at most `seed`; None: equal to `seed`, no hysteresis."""
    bridge_px: int = 8
    """Parts with at most this many map pixels between them are one region; 8 is a cell of PatchCore's grid at 256."""
    min_area_px: float = 0.0
    """Smaller regions are dropped: pixels of the original image."""
    min_area_mm2: float = 0.0
    """The same in square millimetres; needs `pixel_size_mm`."""
    pixel_size_mm: float | None = None
    """Side of one pixel of the original image."""
    max_regions: int = 4
    """At most this many regions are kept, those with the largest mass."""

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
    """One defect: its position in pixels of the original image, its size and its scores on the map."""

    box: tuple[int, int, int, int]
    """(top, left, bottom, right), bottom and right exclusive: the smallest whole-pixel box that holds the region."""
    centre: tuple[float, float]
    """(y, x): mean position of its pixels, weighted with their scores above the lower threshold."""
    contours: tuple[Float[np.ndarray, "_ 2"], ...]
    """Closed polygons of corners (y, x): clockwise around parts, counter-clockwise around holes."""
    area_px: float
    """Pixels of the original image; not always a whole number, because the map has another scale."""
    area_mm2: float | None
    """The same in square millimetres; None where the pixel size is not known."""
    peak: float
    mean_score: float
    mass: float
    """Sum over its map pixels of (map - lower threshold): the evidence for this defect."""
    mask: Bool[np.ndarray, "h w"] = field(repr=False, compare=False)
    """The region's pixels, at the size of the map."""


def find_regions(
    anomaly_map: Float[np.ndarray, "h w"], image_size: tuple[int, int], rule: RegionRule, *, rejected: bool = False
) -> tuple[Region, ...]:
    """The regions of a map, largest mass first, in an image of `image_size` (rows, columns).

    `rejected`: the part was rejected by its image score, so it must have a region. If no region passes the rule, the
    result is the region with the largest mass above `PEAK_SHARE` of the map's peak, of any area.

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
    share: Float[np.ndarray, "h w"],
    anomaly_map: Float[np.ndarray, "h w"],
    image_size: tuple[int, int],
    rule: RegionRule,
) -> tuple[Region, ...]:
    """The parts of a defect mask as regions of any area, with the map's scores; none if the mask is empty.

    `share` is the fraction of each map pixel that the mask covers, 0..1.
    """
    # Any fraction of a map pixel counts: a scratch is often thinner than a map pixel.
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


def overlaps(region: Region, mask: Bool[np.ndarray, "h w"]) -> bool:
    """Whether a region and a mask of any size have a part of the image in common.

    Each axis is compared on the finer of the two grids, so that no thin line falls between the samples.
    """
    finer = [max(sides) for sides in zip(mask.shape, region.mask.shape, strict=True)]
    return bool((_sampled(region.mask, finer) & _sampled(mask, finer)).any())


def _sampled(mask: Bool[np.ndarray, "h w"], size: list[int]) -> Bool[np.ndarray, "rows columns"]:
    """The mask at the centres of a grid of `size` (rows, columns), which is at least as fine."""
    rows, columns = (
        np.minimum((np.arange(many) + 0.5) * few / many, few - 1).astype(int)
        for many, few in zip(size, mask.shape, strict=True)
    )
    sampled: np.ndarray = mask[np.ix_(rows, columns)]
    return sampled


def _min_pixels(values: Float[np.ndarray, "h w"], image_size: tuple[int, int], rule: RegionRule) -> float:
    """The minimum areas of the rule, in pixels of the map."""
    in_mm = rule.min_area_mm2 / rule.pixel_size_mm**2 if rule.pixel_size_mm else 0.0
    return max(rule.min_area_px, in_mm) * values.size / (image_size[0] * image_size[1])


def _strongest(labels: Int[np.ndarray, "h w"], excess: Float[np.ndarray, "h w"], min_pixels: float) -> list[int]:
    """The labels of `min_pixels` pixels or more, largest mass first; labels of equal mass in reading order."""
    pixels = np.bincount(labels.ravel())
    mass = np.bincount(labels.ravel(), weights=excess.ravel())
    order = np.argsort(-mass[1:], kind="stable") + 1
    # A region of exactly the minimum area is kept, however the scales are rounded.
    return [int(label) for label in order if pixels[label] >= min_pixels * (1 - 1e-9)]


def _hysteresis(values: Float[np.ndarray, "h w"], seed: float, grow: float) -> Bool[np.ndarray, "h w"]:
    """The pixels above `grow` in components that contain a pixel above `seed`."""
    labels, count = ndimage.label(values > grow, structure=EIGHT)
    seeded = np.zeros(count + 1, dtype=bool)
    seeded[labels[values > seed]] = True
    seeded[0] = False
    kept: np.ndarray = seeded[labels]
    return kept


def _bridged(mask: Bool[np.ndarray, "h w"], gap: int) -> Int[np.ndarray, "h w"]:
    """Labels from 1 for the mask's components; components with up to `gap` empty pixels between them share a label.

    Each pixel grows to a square of side gap + 1: two squares touch exactly where the gap is small enough.
    """
    reach = ndimage.maximum_filter(mask, size=gap + 1, mode="constant", cval=0) if gap else mask
    labels: np.ndarray = ndimage.label(reach, structure=EIGHT)[0]
    labels[~mask] = 0
    return labels


def _measure(
    values: Float[np.ndarray, "h w"],
    mask: Bool[np.ndarray, "h w"],
    image_size: tuple[int, int],
    floor: float,
    pixel_size_mm: float | None,
) -> Region:
    """Measure the region `mask`, which is not empty."""
    scale = np.asarray(image_size) / np.asarray(values.shape)
    pixels, scores = np.argwhere(mask), values[mask]
    excess = scores - floor
    weights = excess if excess.sum() > 0 else np.ones_like(excess)
    # In whole numbers: a corner on the edge of a pixel must not be rounded past it.
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


def outline(mask: Bool[np.ndarray, "h w"]) -> tuple[Float[np.ndarray, "_ 2"], ...]:
    """The exact border of a mask, as closed polygons of corners (y, x).

    The polygons run clockwise around parts and counter-clockwise around holes: the mask is on their right. Two pixels
    that touch only at a corner share a polygon, so that they stay one part.
    """
    edges = _edges(mask)
    left_to_walk = {(int(y), int(x)) for y, x in np.argwhere(edges[0])}  # every loop goes right somewhere
    return tuple(_walk(edges, start, left_to_walk) for start in sorted(left_to_walk) if start in left_to_walk)


def _edges(mask: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "4 h+1 w+1"]:
    """Whether an edge starts at each corner in each direction of `STEPS`, with the mask on its right."""
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


def _walk(
    edges: Bool[np.ndarray, "4 rows columns"], start: tuple[int, int], left_to_walk: set[tuple[int, int]]
) -> Float[np.ndarray, "k 2"]:
    """The corners of the loop that starts at `start` to the right; removes visited starts from `left_to_walk`."""
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
