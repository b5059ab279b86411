"""Dead-leaves scenes: repeatable, varied, and with the statistics they are made for."""

from __future__ import annotations

import numpy as np
import pytest

from cvad_cli.core.dead_leaves import OUTLINES, SMALLEST_RADIUS, TEXTURES, _fallen_leaves, _radii, dead_leaves

ROWS = np.arange(64, dtype=np.float32)[:, None]
COLUMNS = np.arange(64, dtype=np.float32)[None, :]


def scenes(count: int, side: int = 64) -> np.ndarray:
    return np.stack([dead_leaves(side, rng=np.random.default_rng([7, index])) for index in range(count)])


def test_the_same_seed_gives_the_same_scene_and_another_seed_another() -> None:
    first, again, other = (dead_leaves(48, rng=np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("side", [16, 33, 256])
def test_a_scene_is_a_colour_image_of_the_side_that_was_asked_for(side: int) -> None:
    scene = dead_leaves(side, rng=np.random.default_rng(0))
    assert scene.shape == (side, side, 3)
    assert scene.dtype == np.uint8


def test_a_side_too_small_for_leaves_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 16 pixels, got 8"):
        dead_leaves(8, rng=np.random.default_rng(0))


def test_scenes_differ_in_brightness_contrast_and_colour() -> None:
    found = scenes(40).astype(float)
    brightness = found.mean(axis=(1, 2, 3))
    contrast = found.std(axis=(1, 2, 3))
    colourfulness = np.abs(found - found.mean(axis=3, keepdims=True)).mean(axis=(1, 2, 3))
    assert brightness.std() > 15
    assert contrast.min() < 20
    assert contrast.max() > 45
    assert colourfulness.min() < 8
    assert colourfulness.max() > 20


def test_few_pixels_are_burnt_out() -> None:
    found = scenes(40)
    assert ((found == 0) | (found == 255)).mean() < 0.2


def test_radii_follow_the_power_law_they_are_drawn_from() -> None:
    # Density r^-a means P(R > r) = (r^(1-a) - high) / (low - high); the exponent is redrawn the way _radii draws it.
    exponent = np.random.default_rng(5).uniform(1.4, 3.2) - 1
    radii = _radii(20_000, 100.0, np.random.default_rng(5))
    low, high = SMALLEST_RADIUS**-exponent, 100.0**-exponent
    for radius in (3.0, 8.0, 30.0):
        assert np.mean(radii > radius) == pytest.approx((radius**-exponent - high) / (low - high), abs=0.015)
    assert radii.min() >= SMALLEST_RADIUS
    assert radii.max() <= 100.0 + 1e-9


def test_later_leaves_lie_on_top_and_some_scenes_repeat() -> None:
    found = [_fallen_leaves(96, np.random.default_rng(seed)) for seed in range(40)]
    for labels, leaves in found:
        assert labels.shape == (96, 96)
        assert 0 <= labels.min() <= labels.max() < leaves
    periodic = sum(
        any(np.array_equal(labels[period:], labels[:-period]) for period in range(8, 48)) for labels, _ in found
    )
    assert 3 <= periodic <= 25


@pytest.mark.parametrize("outline", OUTLINES, ids=lambda outline: outline.__name__)
def test_an_outline_covers_part_of_its_square_and_nothing_beyond_its_reach(outline: object) -> None:
    u, v = np.meshgrid(np.linspace(-2, 2, 201), np.linspace(-2, 2, 201))
    inside = outline(u, v)  # type: ignore[operator]
    assert 0.4 < inside.sum() * (4 / 200) ** 2 < np.pi + 0.1
    assert np.hypot(u, v)[inside].max() < np.sqrt(2)


@pytest.mark.parametrize("texture", sorted(set(TEXTURES), key=lambda one: one.__name__), ids=lambda one: one.__name__)
def test_a_texture_stays_within_its_range_and_is_not_flat(texture: object) -> None:
    fields = [texture(ROWS, COLUMNS, np.random.default_rng(seed)) for seed in range(12)]  # type: ignore[operator]
    for field in fields:
        assert field.shape == (64, 64)
        assert field.dtype == np.float32
        assert np.abs(field).max() < 4.5
    assert np.median([field.std() for field in fields]) > 0.05
    assert not np.array_equal(fields[0], fields[1])


def test_global_random_state_is_left_alone() -> None:
    np.random.seed(0)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # type: ignore[index, union-attr]  # noqa: NPY002
    dead_leaves(32, rng=np.random.default_rng(1))
    assert np.array_equal(before, np.random.get_state()[1])  # type: ignore[index]  # noqa: NPY002
