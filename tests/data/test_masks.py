"""A defect that is marked stays marked, whatever the sizes of image, mask, map and page."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cvad_cli.adapters.image_panels.anomaly_panel import anomaly_panel
from cvad_cli.adapters.image_panels.report_thumbnails import thumbnail
from cvad_cli.adapters.image_panels.text import write_png
from cvad_cli.adapters.images import resize_image, resize_map, resize_mask
from cvad_cli.core.regions import RegionRule, mask_regions, overlaps

SIDES = st.one_of(st.integers(1, 40), st.sampled_from([100, 256, 333, 2000]))
SIZES = st.tuples(SIDES, SIDES)
MAP_SIZES = st.tuples(*[st.one_of(st.integers(1, 40), st.sampled_from([64, 256]))] * 2)


@st.composite
def thin_masks(draw: st.DrawFn) -> np.ndarray:
    """A mask of any size with one rectangle in it, often a single pixel, row or column."""
    rows, columns = draw(SIZES)
    top, left = draw(st.integers(0, rows - 1)), draw(st.integers(0, columns - 1))
    height, width = draw(st.sampled_from([1, 1, 2, rows])), draw(st.sampled_from([1, 1, 3, columns]))
    mask = np.zeros((rows, columns), dtype=np.bool_)
    mask[top : top + height, left : left + width] = True
    return mask


def test_a_scratch_across_a_narrow_image_stays_at_every_position() -> None:
    lost = []
    for row in range(2000):
        mask = np.zeros((2000, 100), dtype=np.bool_)
        mask[row, 10:90] = True
        if not resize_mask(mask, (256, 256)).any():
            lost.append(row)
    assert not lost, f"{len(lost)} of 2000 positions are lost"


@settings(max_examples=200, deadline=None)
@given(thin_masks(), SIZES)
def test_a_mask_with_a_pixel_in_it_keeps_one_at_every_size(mask: np.ndarray, size: tuple[int, int]) -> None:
    resized = resize_mask(mask, size)
    assert resized.shape == size
    assert resized.any()
    assert not resize_mask(np.zeros_like(mask), size).any()
    # What is marked lies within a pixel of where the mask is.
    for axis in (0, 1):
        scale = size[axis] / mask.shape[axis]
        there, here = (np.flatnonzero(plane.any(axis=1 - axis)) for plane in (mask, resized))
        assert here[0] >= there[0] * scale - max(scale, 1)
        assert here[-1] + 1 <= (there[-1] + 1) * scale + max(scale, 1)


@settings(max_examples=100, deadline=None)
@given(thin_masks(), SIZES)
def test_a_mask_that_shrinks_on_both_sides_is_as_opencv_resizes_it(mask: np.ndarray, size: tuple[int, int]) -> None:
    size = min(size[0], mask.shape[0]), min(size[1], mask.shape[1])
    levels, shape = mask.astype(np.uint8), size[::-1]
    expected = cv2.resize(levels, shape, interpolation=cv2.INTER_NEAREST) > 0
    if not expected.any():
        expected = cv2.resize(levels.astype(np.float32), shape, interpolation=cv2.INTER_AREA) > 0
    np.testing.assert_array_equal(resize_mask(mask, size), expected)


@settings(max_examples=100, deadline=None)
@given(thin_masks(), MAP_SIZES, st.tuples(st.integers(1, 3000), st.integers(1, 3000)))
def test_a_mask_becomes_regions_where_it_is_and_never_the_whole_image(
    mask: np.ndarray, size: tuple[int, int], image_size: tuple[int, int]
) -> None:
    rule = RegionRule(seed=0.5, bridge_px=0)
    share = resize_map(mask.astype(np.float32), size)
    regions = mask_regions(share, np.full(size, 0.2, np.float32), image_size, rule)
    assert regions
    assert overlaps(regions[0], mask)
    assert sum(region.mask.sum() for region in regions) == (share > 0).sum()
    assert [region.peak for region in regions] == [pytest.approx(0.2)] * len(regions)


def test_an_empty_map_never_becomes_a_region() -> None:
    nothing = np.zeros((8, 8), np.float32)
    assert mask_regions(nothing, np.ones((8, 8), np.float32), (80, 80), RegionRule(seed=0.5)) == ()


@settings(max_examples=100, deadline=None)
@given(SIZES, MAP_SIZES, st.tuples(st.floats(0, 1), st.floats(0, 1)))
def test_a_region_and_a_mask_of_one_point_overlap(
    mask_size: tuple[int, int], map_size: tuple[int, int], place: tuple[float, float]
) -> None:
    """Whichever of the two has more rows or columns; `place` is a point of the image."""
    mask, there = np.zeros(mask_size, np.bool_), np.zeros(map_size, np.float32)
    finer = [max(sides) for sides in zip(mask_size, map_size, strict=True)]
    at = [(min(int(part * many), many - 1) + 0.5) / many for part, many in zip(place, finer, strict=True)]
    for plane in (mask, there):
        plane[tuple(int(part * many) for part, many in zip(at, plane.shape, strict=True))] = 1
    (region,) = mask_regions(there, there, (64, 64), RegionRule(seed=0.0, bridge_px=0))
    assert overlaps(region, mask)


@pytest.mark.parametrize("value", [3.0, -3.0])
@pytest.mark.parametrize("turned", [False, True])
def test_a_map_that_shrinks_on_one_side_alone_keeps_its_mean(value: float, turned: bool) -> None:
    for row in range(0, 2000, 7):
        values = np.zeros((2000, 100), np.float32)
        values[row] = value
        given_, size = (values.T, (300, 250)) if turned else (values, (250, 300))
        assert resize_map(given_, size).mean() == pytest.approx(value / 2000, rel=1e-4)


def test_maps_whose_sides_both_shrink_or_both_grow_are_as_opencv_resizes_them() -> None:
    values = np.random.default_rng(0).normal(size=(60, 90)).astype(np.float32)
    for size, method in (((31, 47), cv2.INTER_AREA), ((20, 30), cv2.INTER_AREA), ((100, 91), cv2.INTER_LINEAR)):
        np.testing.assert_array_equal(resize_map(values, size), cv2.resize(values, size[::-1], interpolation=method))


@pytest.mark.parametrize("turned", [False, True])
def test_an_image_that_shrinks_on_one_side_alone_lets_hardly_any_moire_through(turned: bool) -> None:
    stripes = np.round(127.5 + 127.5 * np.cos(2 * np.pi * np.arange(2000) / 2.6)).astype(np.uint8)
    image = np.array(np.broadcast_to(stripes[:, None, None], (2000, 100, 3)))
    resized = resize_image(image.swapaxes(0, 1) if turned else image, (256, 256))
    assert np.ptp(resized[4:-4, 4:-4].astype(int)) / 255 < 0.05


@pytest.mark.parametrize("shape", [(2000, 100), (100, 2000), (1024, 1024), (5000, 12)])
def test_a_scratch_is_drawn_in_panels_and_in_reports(tmp_path: Path, shape: tuple[int, int]) -> None:
    image = np.full((*shape, 3), 90, np.uint8)
    anomaly_map = np.zeros((64, 64), np.float32)
    for number in range(9):
        mask = np.zeros(shape, np.bool_)
        if shape[0] >= shape[1]:
            mask[shape[0] // 3 + number] = True
        else:
            mask[:, shape[1] // 3 + number] = True
        assert thumbnail(image, anomaly_map, mask, threshold=0.5).truth
        write_png(tmp_path / "panel.png", anomaly_panel(image, anomaly_map, mask, threshold=0.5, title="scratch"))
        assert truth_is_drawn(tmp_path / "panel.png"), number


def truth_is_drawn(path: Path) -> bool:
    """Whether white pixels lie inside the black tile of the ground truth."""
    with Image.open(path) as sheet:
        levels = np.asarray(sheet.convert("L"))
    black = levels < 5
    rows, columns = np.flatnonzero(black.sum(1) > 30), np.flatnonzero(black.sum(0) > 30)
    tile = levels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return bool((tile > 250).any())
