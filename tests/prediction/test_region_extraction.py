"""Regions: what hangs together is one defect, and its box, area and outline are those of the original image."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from cvad_cli.core.regions import RegionRule, find_regions, outline

MASKS = st.tuples(st.integers(1, 9), st.integers(1, 9)).flatmap(
    lambda size: st.lists(st.booleans(), min_size=size[0] * size[1], max_size=size[0] * size[1]).map(
        lambda bits: np.asarray(bits).reshape(size)
    )
)
APART = {"bridge_px": 0}


def canvas(*blobs: tuple[slice, slice, float], size: tuple[int, int] = (20, 30)) -> np.ndarray:
    values = np.zeros(size, dtype=np.float32)
    for rows, columns, score in blobs:
        values[rows, columns] = score
    return values


def signed_area(contour: np.ndarray) -> float:
    y, x = contour.T
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2)


def test_a_map_under_the_threshold_has_no_region() -> None:
    assert find_regions(canvas(), (20, 30), RegionRule(seed=1.0)) == ()
    at_the_threshold = canvas((slice(2, 4), slice(2, 4), 1.0))
    assert find_regions(at_the_threshold, (20, 30), RegionRule(seed=1.0)) == ()


def test_a_regions_box_maps_back_to_original_pixels_at_unequal_scales() -> None:
    values = canvas((slice(3, 6), slice(10, 20), 2.0))
    (region,) = find_regions(values, (100, 60), RegionRule(seed=1.0))  # 5 rows and 2 columns to a map pixel
    assert region.box == (15, 20, 30, 40)
    assert region.area_px == 15 * 20
    assert region.centre == (22.5, 30.0)
    assert region.contours[0].tolist() == [[15, 40], [30, 40], [30, 20], [15, 20]]


@pytest.mark.parametrize("image", [(20, 30), (1, 1), (100, 100), (7, 1000), (1024, 1024), (61, 89)])
def test_a_region_that_fills_the_map_fills_the_image_and_no_more(image: tuple[int, int]) -> None:
    (region,) = find_regions(np.ones((20, 30)), image, RegionRule(seed=0.5))
    assert region.box == (0, 0, *image)
    assert region.area_px == pytest.approx(image[0] * image[1])


def test_hysteresis_connects_what_the_upper_threshold_leaves_in_two() -> None:
    two_peaks = canvas((slice(5, 8), slice(4, 22), 1.0), (slice(6, 7), slice(5, 6), 3.0), (6, 20, 3.0))
    assert len(find_regions(two_peaks, (20, 30), RegionRule(seed=2.0, **APART))) == 2
    (region,) = find_regions(two_peaks, (20, 30), RegionRule(seed=2.0, grow=0.5, **APART))
    assert region.box == (5, 4, 8, 22)


def test_hysteresis_grows_over_corners() -> None:
    staircase = np.zeros((20, 30))
    staircase[np.arange(6), np.arange(6)] = 1.0
    staircase[0, 0] = 3.0
    (region,) = find_regions(staircase, (20, 30), RegionRule(seed=2.0, grow=0.5, **APART))
    assert region.area_px == 6


def test_hysteresis_keeps_nothing_that_no_seed_vouches_for() -> None:
    faint_and_clear = canvas((slice(2, 4), slice(2, 4), 1.0), (slice(10, 12), slice(20, 22), 3.0))
    (region,) = find_regions(faint_and_clear, (20, 30), RegionRule(seed=2.0, grow=0.5, bridge_px=8))
    assert region.box == (10, 20, 12, 22)


@pytest.mark.parametrize(("gap", "regions"), [(0, 2), (1, 2), (2, 2), (3, 1), (4, 1)])
@pytest.mark.parametrize("way", ["across", "down"])
def test_parts_are_merged_exactly_up_to_the_gap(gap: int, regions: int, way: str) -> None:
    three_between = canvas((slice(4, 6), slice(4, 8), 2.0), (slice(4, 6), slice(11, 14), 2.0), size=(20, 20))
    values = three_between if way == "across" else three_between.T
    found = find_regions(values, (20, 20), RegionRule(seed=1.0, bridge_px=gap))
    assert len(found) == regions
    assert sum(region.area_px for region in found) == 8 + 6  # bridging adds no pixel


def test_pixels_that_touch_over_a_corner_are_one_region() -> None:
    values = canvas((slice(2, 4), slice(2, 4), 2.0), (slice(4, 6), slice(4, 6), 2.0))
    (region,) = find_regions(values, (20, 30), RegionRule(seed=1.0, **APART))
    assert len(region.contours) == 1


def test_mass_is_the_sum_above_the_lower_threshold_and_decides_the_order() -> None:
    small_and_strong = (slice(1, 3), slice(1, 3), 5.0)
    large_and_weak = (slice(10, 18), slice(10, 20), 2.0)
    values = canvas(small_and_strong, large_and_weak)
    first, second = find_regions(values, (20, 30), RegionRule(seed=1.5, **APART))
    assert (first.mass, second.mass) == (pytest.approx(80 * 0.5), pytest.approx(4 * 3.5))
    assert (first.peak, first.mean_score, second.peak) == (2.0, 2.0, 5.0)
    first, _ = find_regions(values, (20, 30), RegionRule(seed=1.5, grow=1.0, **APART))
    assert first.mass == pytest.approx(80 * 1.0)


def test_what_a_region_grew_counts_towards_its_rank() -> None:
    values = canvas((slice(1, 3), slice(1, 3), 5.0), (slice(10, 16), slice(10, 20), 1.2), (12, 12, 2.0))
    first, second = find_regions(values, (20, 30), RegionRule(seed=1.5, grow=0.5, **APART))
    assert (first.peak, second.peak) == (2.0, 5.0)


def test_equal_masses_are_in_reading_order() -> None:
    values = canvas((slice(12, 14), slice(2, 4), 2.0), (slice(2, 4), slice(20, 22), 2.0), (slice(2, 4), 2, 2.0))
    values[2:4, 3] = 2.0
    found = find_regions(values, (20, 30), RegionRule(seed=1.0, **APART))
    assert [region.box[:2] for region in found] == [(2, 2), (2, 20), (12, 2)]


def test_no_more_than_max_regions_are_kept() -> None:
    values = canvas(*((slice(2, 4), slice(5 * k, 5 * k + 2), 2.0 + k) for k in range(6)))
    found = find_regions(values, (20, 30), RegionRule(seed=1.0, bridge_px=1, max_regions=3))
    assert [region.peak for region in found] == [7.0, 6.0, 5.0]


def test_areas_are_in_mm_where_the_pixels_size_is_known() -> None:
    values = canvas((slice(2, 4), slice(2, 5), 2.0), (slice(10, 11), slice(2, 3), 9.0))
    rule = RegionRule(seed=1.0, pixel_size_mm=0.05, **APART)
    large, small = sorted(find_regions(values, (40, 60), rule), key=lambda region: -region.area_px)
    assert (large.area_px, small.area_px) == (24, 4)  # 2 x 2 original pixels to a map pixel
    assert (large.area_mm2, small.area_mm2) == (pytest.approx(24 * 0.0025), pytest.approx(4 * 0.0025))
    (only,) = find_regions(values, (40, 60), RegionRule(seed=1.0, pixel_size_mm=0.05, min_area_mm2=0.02, **APART))
    assert only.area_px == 24
    exactly = RegionRule(seed=1.0, pixel_size_mm=0.05, min_area_mm2=24 * 0.05**2, **APART)
    assert find_regions(values, (40, 60), exactly)[0].area_px == 24
    (only,) = find_regions(values, (40, 60), RegionRule(seed=1.0, min_area_px=4.5, **APART))
    assert (only.area_px, only.area_mm2) == (24, None)


def test_a_rejected_part_is_never_without_a_region() -> None:
    values = canvas((slice(4, 6), slice(4, 6), 0.8), (5, 20, 0.75), (18, 28, 0.5))
    rule = RegionRule(seed=1.0, min_area_px=100, bridge_px=0)
    assert find_regions(values, (20, 30), rule) == ()
    (region,) = find_regions(values, (20, 30), rule, rejected=True)
    assert (region.box, region.peak) == ((4, 4, 6, 6), pytest.approx(0.8))
    assert region.mass == pytest.approx(4 * 0.08, rel=1e-5)
    for flat in (0.0, -3.0, 7.0):
        (whole,) = find_regions(np.full((4, 4), flat), (8, 8), rule, rejected=True)
        assert whole.box == (0, 0, 8, 8)


def test_a_hole_has_an_outline_of_its_own_that_runs_the_other_way() -> None:
    ring = np.ones((5, 7), dtype=bool)
    ring[2, 2:5] = False
    outer, hole = outline(ring)
    assert (signed_area(outer), signed_area(hole)) == (35, -3)


@settings(max_examples=200, deadline=None)
@given(MASKS)
def test_outlines_enclose_exactly_the_masks_pixels(mask: np.ndarray) -> None:
    contours = outline(mask)
    assert sum(signed_area(contour) for contour in contours) == mask.sum()
    parts = ndimage.label(mask, structure=np.ones((3, 3)))[1]
    assert sum(signed_area(contour) > 0 for contour in contours) == parts
    for contour in contours:
        steps = np.roll(contour, -1, axis=0) - contour
        assert ((steps == 0).sum(1) == 1).all()  # along rows and columns, with no corner that is none
        assert ((steps == 0) != np.roll(steps == 0, 1, axis=0)).all()


@settings(max_examples=100, deadline=None)
@given(MASKS, st.integers(0, 3), st.tuples(st.integers(1, 40), st.integers(1, 40)))
def test_regions_share_out_every_pixel_above_the_threshold(mask: np.ndarray, gap: int, image: tuple[int, int]) -> None:
    rule = RegionRule(seed=0.5, bridge_px=gap, max_regions=100)
    found = find_regions(mask.astype(np.float32), image, rule)
    assert (sum((region.mask.astype(int) for region in found), np.zeros(mask.shape, int)) == mask).all()
    for region in found:
        top, left, bottom, right = region.box
        assert 0 <= top < bottom <= image[0]
        assert 0 <= left < right <= image[1]
        assert top <= region.centre[0] <= bottom
        assert left <= region.centre[1] <= right


LENGTHS = st.integers(1, 300).flatmap(lambda h: st.tuples(st.just(h), st.integers(0, h - 1), st.integers(1, 5000)))


@settings(max_examples=300, deadline=None)
@given(LENGTHS)
def test_a_box_is_exact_and_an_area_that_equals_the_minimum_is_large_enough(lengths: tuple[int, int, int]) -> None:
    h, start, rows = lengths
    values = np.zeros((h, 3))
    values[start:, 1] = 1.0
    (region,) = find_regions(values, (rows, 7), RegionRule(seed=0.5))
    assert region.box == (math.floor(Fraction(start * rows, h)), 2, rows, 5)
    again = find_regions(values, (rows, 7), RegionRule(seed=0.5, min_area_px=region.area_px))
    assert len(again) == 1
    (upper,) = find_regions(values[::-1], (rows, 7), RegionRule(seed=0.5))
    assert upper.box == (0, 2, math.ceil(Fraction((h - start) * rows, h)), 5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"grow": 2.0}, "grow: expected a number up to seed = 1.0, got 2.0", id="grows above its seed"),
        pytest.param({"seed": float("nan")}, "seed = nan", id="no threshold"),
        pytest.param({"min_area_mm2": 1.0}, "needs pixel_size_mm", id="mm without a pixel size"),
        pytest.param({"pixel_size_mm": 0.0}, "pixel_size_mm: expected a size above 0", id="pixels of no size"),
        pytest.param({"max_regions": 0}, "max_regions at 1", id="no regions"),
    ],
)
def test_a_rule_that_cannot_be_kept_is_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RegionRule(**{"seed": 1.0, **change})


def test_maps_that_are_none_are_refused() -> None:
    for bad in (np.zeros((2, 2, 2)), np.zeros((0, 3)), np.full((2, 2), np.nan)):
        with pytest.raises(ValueError, match="anomaly_map: expected finite"):
            find_regions(bad, (4, 4), RegionRule(seed=1.0))
    with pytest.raises(ValueError, match="image_size"):
        find_regions(np.zeros((2, 2)), (0, 4), RegionRule(seed=1.0))
