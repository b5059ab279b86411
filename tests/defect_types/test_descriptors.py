"""Descriptors: views stay inside, eight orientations are all there are, and a vector says how a region differs."""

from __future__ import annotations

import dataclasses
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cvad_cli.core.descriptors import (
    CELLS,
    ORIENTATIONS,
    VIEW_PX,
    Cells,
    NormalModel,
    ViewBox,
    describe,
    inverse_root,
    key_of,
    nearest,
    normal_model,
    orient,
    own_cells,
    pixel_statistics,
    query_vector,
    unit,
    view_box,
    view_side,
)

WIDTHS = (3, 4, 5, 6)
SIDES = st.integers(1, 5000)


def cells_like(count: int, *, seed: int, shift: float = 0.0, images: int = 4) -> Cells:
    rng = np.random.default_rng(seed)
    stages = tuple(rng.normal(shift, 1, (count, width)).astype(np.float32) for width in WIDTHS)
    return Cells(stages, rng.random((count, 7)), np.arange(count) % images)


@pytest.fixture(scope="module")
def normal() -> NormalModel:
    return normal_model(cells_like(60, seed=0), cells_like(2000, seed=1))


@settings(max_examples=200, deadline=None)
@given(SIDES, SIDES, st.floats(-1, 2), st.floats(-1, 2))
def test_a_view_stays_inside_the_image(rows: int, columns: int, down: float, across: float) -> None:
    box = view_box((down * rows, across * columns), (rows, columns))
    assert 1 <= box.side <= min(rows, columns)
    assert 0 <= box.top <= rows - box.side
    assert 0 <= box.left <= columns - box.side


@pytest.mark.parametrize(
    ("image", "side"),
    [
        pytest.param((256, 256), 256, id="the network's own size: the whole image"),
        pytest.param((1024, 1024), 256, id="native resolution"),
        pytest.param((512, 900), 256, id="never enlarged"),
        pytest.param((4096, 3000), 750, id="zoom at most 4, of the shorter side"),
        pytest.param((100, 5000), 100, id="smaller than a view: as much as there is"),
    ],
)
def test_a_view_is_native_never_enlarged_and_zooms_at_most_four_times(image: tuple[int, int], side: int) -> None:
    assert view_side(image) == side


def test_a_view_is_centred_where_there_is_room() -> None:
    assert view_box((500.0, 600.0), (1024, 1024)) == ViewBox(372, 472, 256)
    assert view_box((1000.0, 5.0), (1024, 1024)) == ViewBox(768, 0, 256)


def test_a_regions_cells_are_those_that_hold_a_pixel_of_it_at_unequal_scales() -> None:
    mask = np.zeros((256, 128), dtype=bool)  # of an image of 1024 x 1024: 4 rows and 8 columns to a map pixel
    mask[100:104, 50:51] = True  # rows 400..415, columns 400..407
    cells = own_cells(mask, (1024, 1024), ViewBox(384, 384, 256))  # 8 x 8 native pixels to a cell
    assert np.argwhere(cells).tolist() == [[2, 2], [3, 2]]
    assert not own_cells(mask, (1024, 1024), ViewBox(0, 0, 256)).any()
    assert own_cells(np.ones((7, 5), bool), (300, 280), ViewBox(10, 24, 256)).all()


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 64), st.integers(1, 64), st.integers(256, 2000), st.integers(256, 2000), st.integers(0, 2**32))
def test_the_view_about_a_pixel_holds_a_cell_of_it(h: int, w: int, rows: int, columns: int, seed: int) -> None:
    y, x = np.random.default_rng(seed).integers((h, w))
    mask = np.zeros((h, w), dtype=bool)
    mask[y, x] = True
    box = view_box(((y + 0.5) * rows / h, (x + 0.5) * columns / w), (rows, columns))
    assert own_cells(mask, (rows, columns), box).any()


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 300), st.integers(32, 3000), st.data())
def test_a_cell_is_a_regions_own_exactly_where_they_overlap(length: int, size: int, data: st.DataObject) -> None:
    box = view_box((data.draw(st.integers(0, size)), 0.0), (size, size))
    row = data.draw(st.integers(0, length - 1))
    mask = np.zeros((length, 1), dtype=bool)
    mask[row] = True
    found = own_cells(mask, (size, size), box)[:, 0]
    top, bottom = Fraction(row * size, length), Fraction((row + 1) * size, length)
    edges = [box.top + Fraction(box.side * cell, CELLS) for cell in range(CELLS + 1)]
    assert found.tolist() == [bool(edges[cell] < bottom and top < edges[cell + 1]) for cell in range(CELLS)]


def test_the_eight_orientations_are_different_and_closed() -> None:
    image = np.arange(9).reshape(3, 3)
    all_of_them = {orient(image, k).tobytes() for k in range(ORIENTATIONS)}
    assert len(all_of_them) == ORIENTATIONS
    for first in range(ORIENTATIONS):
        twice = {orient(orient(image, first), second).tobytes() for second in range(ORIENTATIONS)}
        assert twice == all_of_them
    assert (orient(image, 0) == image).all()


@pytest.mark.parametrize("orientation", range(ORIENTATIONS))
def test_pixel_statistics_turn_with_the_image(orientation: int) -> None:
    view = np.random.default_rng(0).random((64, 64, 3), dtype=np.float32)
    turned = pixel_statistics(orient(view, orientation))
    np.testing.assert_allclose(turned, orient(pixel_statistics(view), orientation), atol=1e-5)


def test_pixel_statistics_are_what_they_are_called() -> None:
    view = np.zeros((VIEW_PX, VIEW_PX, 3))
    view[..., 0] = np.arange(VIEW_PX)[:, None] / 1000  # red rises by 1/1000 a row, so grey by a third of that
    red = view[8:16, 0, 0]
    mean, deviation, high, low, red_green, blue_green, slope = pixel_statistics(view)[1, 5]
    assert mean == pytest.approx(red.mean() / 3)
    assert deviation == pytest.approx(red.std() / 3, rel=1e-4)
    assert (high, low) == (pytest.approx(red.max() / 3), pytest.approx(red.min() / 3))
    assert (red_green, blue_green) == (pytest.approx(red.mean()), 0)
    assert slope == pytest.approx(1 / 3000, rel=1e-3)


@pytest.mark.parametrize("shape", [(64, 32, 3), (64, 64), (64, 64, 1), (60, 60, 3)])
def test_views_that_do_not_divide_into_cells_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="view: expected"):
        pixel_statistics(np.zeros(shape))


def test_the_inverse_root_whitens() -> None:
    rng = np.random.default_rng(0)
    samples = rng.normal(size=(500, 6)) @ rng.normal(size=(6, 6)) + 3
    root = inverse_root(samples, shrinkage=0.0, max_rows=64)
    np.testing.assert_allclose(np.cov(samples @ root, rowvar=False), np.eye(6), atol=1e-4)
    np.testing.assert_allclose(root, root.T, atol=1e-6)


def test_full_shrinkage_scales_all_directions_alike() -> None:
    samples = np.random.default_rng(0).normal(size=(400, 3)) * [1.0, 2.0, 3.0]
    variance = samples.var(0, ddof=1).mean()
    np.testing.assert_allclose(inverse_root(samples, shrinkage=1.0), np.eye(3) / np.sqrt(variance), rtol=1e-5)


def test_more_dimensions_than_samples_and_constant_samples_give_finite_roots() -> None:
    for samples in (np.random.default_rng(0).normal(size=(3, 40)), np.ones((5, 4)), np.arange(6.0)[:, None]):
        for shrinkage in (0.0, 0.01):
            assert np.isfinite(inverse_root(samples, shrinkage)).all()
    with pytest.raises(ValueError, match="n >= 2"):
        inverse_root(np.ones((1, 4)))


def test_the_nearest_key_is_the_nearest() -> None:
    rng = np.random.default_rng(0)
    queries, keys = rng.normal(size=(57, 4)), rng.normal(size=(23, 4))
    distances, rows = nearest(queries, keys, max_pairs=100)
    everything = np.linalg.norm(queries[:, None] - keys, axis=2)
    assert (rows == everything.argmin(1)).all()
    np.testing.assert_allclose(distances, everything.min(1))


def test_a_key_of_the_same_image_does_not_count() -> None:
    keys = np.asarray([[0.0], [5.0]])
    distances, rows = nearest(np.asarray([[0.0], [1.0]]), keys, (np.asarray([0, 1]), np.asarray([0, 1])))
    assert (distances.tolist(), rows.tolist()) == ([5.0, 1.0], [1, 0])
    distances, _ = nearest(np.asarray([[0.0]]), keys, (np.asarray([2]), np.asarray([2, 2])))
    assert np.isinf(distances[0])


def test_one_good_cell_in_a_thousand_is_beyond_the_cell_threshold(normal: NormalModel) -> None:
    fresh = cells_like(20_000, seed=2)
    beyond = (nearest(key_of(fresh.stages), normal.keys)[0] > normal.cell_threshold).mean()
    assert 0.0001 < beyond < 0.003


def test_good_pixel_statistics_are_white_and_centred_in_the_model(normal: NormalModel) -> None:
    pixels = (cells_like(20_000, seed=3).pixels - normal.surface_mean) @ normal.surface_whitening
    np.testing.assert_allclose(pixels.mean(0), 0, atol=0.1)
    np.testing.assert_allclose(np.cov(pixels, rowvar=False), np.eye(7), atol=0.15)


def test_a_normal_model_needs_two_images() -> None:
    with pytest.raises(ValueError, match="at least 2 images"):
        normal_model(cells_like(10, seed=0, images=1), cells_like(50, seed=1, images=1))


def test_parts_that_do_not_fit_make_no_normal_model(normal: NormalModel) -> None:
    for change in (
        {"stages": normal.stages[:2]},
        {"whitening": normal.whitening[::-1]},
        {"surface_mean": np.zeros(3)},
        {"cell_threshold": float("nan")},
    ):
        with pytest.raises(ValueError, match="normal model"):
            dataclasses.replace(normal, **change)


def test_a_vector_points_along_the_whitened_residual_of_the_regions_cells(normal: NormalModel) -> None:
    view = cells_like(CELLS**2, seed=4)
    own = np.zeros(CELLS**2, dtype=bool)
    own[100:104] = True
    for stage in view.stages:
        stage[own] += 20.0  # every one of them beyond the threshold
    vector = describe(view.stages, view.pixels, own, normal)
    assert vector.shape == (normal.size,) == (3 + 4 + 5 + 6 + 7,)
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-6)
    rows = nearest(key_of(view.stages)[own], normal.keys)[1]
    start = 0
    for stage, reference, whitening in zip(view.stages, normal.stages, normal.whitening, strict=True):
        block = vector[start : start + stage.shape[1]]
        start += stage.shape[1]
        residual = (stage[own] - reference[rows]).mean(0) @ whitening
        np.testing.assert_allclose(block, residual / np.linalg.norm(residual) / np.sqrt(4.25), atol=1e-5)
    surface = (view.pixels[own].mean(0) - normal.surface_mean) @ normal.surface_whitening
    np.testing.assert_allclose(vector[start:], 0.5 * surface / np.linalg.norm(surface) / np.sqrt(4.25), atol=1e-5)


def test_cells_outside_the_region_do_not_sway_its_vector(normal: NormalModel) -> None:
    view, own = cells_like(CELLS**2, seed=5), np.arange(CELLS**2) < 40
    before = describe(view.stages, view.pixels, own, normal)
    for stage in view.stages:
        stage[~own] += 100
    assert (describe(view.stages, view.pixels, own, normal) == before).all()


def test_cells_that_pass_for_normal_do_not_dilute_a_defect(normal: NormalModel) -> None:
    view, defect = cells_like(CELLS**2, seed=6), np.arange(CELLS**2) < 5
    for stage in view.stages:
        stage[defect] += 20.0
    usual = nearest(key_of(view.stages), normal.keys)[0] < normal.cell_threshold
    generous = defect | (usual & (np.arange(CELLS**2) < 200))
    exact = describe(view.stages, view.pixels, defect, normal)
    np.testing.assert_allclose(describe(view.stages, view.pixels, generous, normal), exact, atol=1e-6)


def test_a_region_that_passes_for_normal_is_described_by_its_strangest_cells(normal: NormalModel) -> None:
    stages = [np.repeat(stage[:1], 3, 0) for stage in normal.stages]
    stages[1][:, 0] += normal.cell_threshold * np.asarray([0.2, 0.18, 0.1])  # 1, 0.9 and 0.5 of the peak
    stages[3] += np.random.default_rng(8).normal(size=stages[3].shape)  # not what cells are compared on
    pixels = np.random.default_rng(9).random((3, 7))
    every, first_two = np.ones(3, dtype=bool), np.asarray([True, True, False])
    found = describe(stages, pixels, every, normal)
    np.testing.assert_allclose(found, describe(stages, pixels, first_two, normal), atol=1e-6)
    peak_alone = describe(stages, pixels, np.asarray([True, False, False]), normal)
    assert np.abs(found - peak_alone).max() > 0.01


def test_a_view_without_a_cell_of_the_region_counts_as_a_whole(normal: NormalModel) -> None:
    view = cells_like(CELLS**2, seed=7)
    nothing, everything = np.zeros(CELLS**2, dtype=bool), np.ones(CELLS**2, dtype=bool)
    found = describe(view.stages, view.pixels, nothing, normal)
    assert (found == describe(view.stages, view.pixels, everything, normal)).all()


def test_a_region_that_equals_normal_cells_exactly_still_has_a_finite_vector(normal: NormalModel) -> None:
    whole = dataclasses.replace(normal, stages=tuple(np.round(stage) for stage in normal.stages))
    own = [stage[:4].copy() for stage in whole.stages]  # whole numbers: the distances are exactly zero
    vector = describe(own, np.random.default_rng(0).random((4, 7)), np.ones(4, dtype=bool), whole)
    assert np.isfinite(vector).all()
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-6)  # the pixel statistics are what is left


def test_a_query_is_the_unit_mean_of_its_orientations() -> None:
    vectors = unit(np.random.default_rng(0).normal(size=(3, 8, 5)))
    query = query_vector(vectors)
    np.testing.assert_allclose(np.linalg.norm(query, axis=1), 1)
    np.testing.assert_allclose(query * np.linalg.norm(vectors.mean(1), axis=1, keepdims=True), vectors.mean(1))
    assert (query_vector(np.zeros((8, 5))) == 0).all()
