"""The generated look-alikes: repeatable, varied, and with masks that say exactly what a defect changed."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from cvad_cli.core.textures import LINES, NOTICEABLE, TEXTURES, defective_texture, normal_texture
from cvad_cli.core.textures.canvas import FAR, SIDE, Canvas, Outline, cells, stroke
from cvad_cli.core.textures.lighting import Lamp, Surface

CATEGORIES = list(TEXTURES)
DEFECTS = [
    pytest.param(category, kind, id=f"{category} {kind}") for category in TEXTURES for kind in TEXTURES[category]
]


def seeded(*key: int) -> np.random.Generator:
    return np.random.default_rng(key)


@pytest.mark.parametrize("size", [64, 97, 128])
@pytest.mark.parametrize("category", CATEGORIES)
def test_a_normal_image_is_rgb_bytes_that_use_the_range(category, size):
    image = normal_texture(category, size=size, rng=seeded(0))
    assert image.shape == (size, size, 3)
    assert image.dtype == np.uint8
    assert image.flags.c_contiguous
    assert image.flags.writeable
    assert image.std() > 8
    assert np.mean((image == 0) | (image == 255)) < 0.01


@pytest.mark.parametrize(("category", "kind"), DEFECTS)
def test_equal_seeds_give_equal_images_and_others_differ(category, kind):
    image, mask = defective_texture(category, kind, size=64, rng=seeded(5))
    same, same_mask = defective_texture(category, kind, size=64, rng=seeded(5))
    other, other_mask = defective_texture(category, kind, size=64, rng=seeded(6))
    assert np.array_equal(image, same)
    assert np.array_equal(mask, same_mask)
    assert not np.array_equal(image, other)
    assert not np.array_equal(mask, other_mask)


def test_a_generator_gives_another_part_each_time_it_is_asked():
    rng = seeded(1)
    first, second = (normal_texture("grid", size=64, rng=rng) for _ in range(2))
    assert not np.array_equal(first, second)


@pytest.mark.parametrize(("category", "kind"), DEFECTS)
def test_the_mask_is_what_the_defect_changed(category, kind):
    for seed in range(4):
        clean = normal_texture(category, size=128, rng=seeded(seed)).astype(int)
        image, mask = defective_texture(category, kind, size=128, rng=seeded(seed))
        change = np.abs(image.astype(int) - clean).max(axis=2)
        assert mask.dtype == np.bool_
        assert change[~mask].max() <= NOTICEABLE + 1  # rounding to grey levels may add one
        assert (change[mask] >= NOTICEABLE - 1).mean() > 0.4  # the rest was closed or filled
        assert kind in LINES or np.array_equal(mask, ndimage.binary_fill_holes(mask))


@pytest.mark.parametrize("size", [64, 128])
@pytest.mark.parametrize(("category", "kind"), DEFECTS)
def test_every_defect_is_there_and_local(category, kind, size):
    shares = []
    for seed in range(6):
        _, mask = defective_texture(category, kind, size=size, rng=seeded(100, seed))
        shares.append(mask.mean())
    assert min(shares) > 0
    assert 0.001 < np.median(shares) < 0.08
    assert max(shares) < 0.15


@pytest.mark.parametrize(("category", "kind"), DEFECTS)
def test_defects_of_one_type_lie_in_different_places(category, kind):
    masks = [defective_texture(category, kind, size=64, rng=seeded(7, seed))[1] for seed in range(6)]
    centres = np.array([ndimage.center_of_mass(mask) for mask in masks])
    assert np.all(centres.std(axis=0) > 4)


@pytest.mark.parametrize("category", CATEGORIES)
def test_normal_images_vary_in_pattern_and_in_light(category):
    images = np.stack([normal_texture(category, size=64, rng=seeded(8, seed)) for seed in range(8)]).astype(float)
    gray = images.mean(axis=-1)
    assert gray.mean(axis=(1, 2)).std() > 1.0
    patterns = (gray - gray.mean(axis=(1, 2), keepdims=True)).reshape(len(gray), -1)
    likeness = np.corrcoef(patterns)[np.triu_indices(len(gray), 1)]
    assert np.abs(likeness).max() < 0.7


@pytest.mark.parametrize(("category", "kind"), [(name, TEXTURES[name][0]) for name in CATEGORIES])
def test_one_seed_is_the_same_image_at_every_size(category, kind):
    large, large_mask = defective_texture(category, kind, size=256, rng=seeded(9))
    small, small_mask = defective_texture(category, kind, size=128, rng=seeded(9))
    halved = large.reshape(128, 2, 128, 2, 3).mean(axis=(1, 3))
    assert np.corrcoef(halved.ravel(), small.ravel())[0, 1] > 0.9
    assert large_mask[::2, ::2][small_mask].mean() > 0.6


@pytest.mark.parametrize(
    ("category", "kind", "size", "message"),
    [
        pytest.param("wool", "cut", 64, "no texture 'wool'; there are grid, leather, tile", id="category"),
        pytest.param("grid", "cut", 64, "grid has no defect 'cut'; there are bent, broken, glue", id="defect type"),
        pytest.param("grid", "bent", 63, "expected at least 64 pixels, got 63", id="size"),
    ],
)
def test_an_unknown_name_or_size_is_refused_with_what_there_is(category, kind, size, message):
    with pytest.raises(ValueError, match=message):
        defective_texture(category, kind, size=size, rng=seeded(0))


@pytest.mark.parametrize("grain", [1.5, 6.0, 40.0])
def test_noise_has_unit_variance_up_to_the_borders(grain):
    canvas = Canvas.square(64)
    rng = seeded(2)
    stack = np.stack([canvas.noise(grain, rng) for _ in range(300)])
    assert stack.dtype == np.float32
    for place in (stack[:, 0, 0], stack[:, 32, 31], stack[:, -1, 0]):
        assert abs(place.mean()) < 0.25
        assert 0.75 < place.std() < 1.25


def test_a_stroke_measures_distance_progress_and_side():
    canvas = Canvas.square(256)
    curve = stroke(canvas.x, canvas.y, np.array([(50.5, 100.5), (150.5, 100.5)]), reach=20.0)
    assert curve.distance[100, 100] == 0
    assert curve.distance[110, 75] == pytest.approx(10)
    assert curve.distance[100, 162] == pytest.approx(12)
    assert curve.progress[110, 75] == pytest.approx(0.25)
    assert curve.side[110, 75] > 0 > curve.side[90, 75]  # y points down: walking right, below is on the right
    assert curve.distance[130, 75] == FAR


def test_a_smooth_outline_is_an_ellipse_of_the_same_area():
    canvas = Canvas.square(256)
    depth = Outline((120.0, 130.0), 30.0, elongation=2.0, angle=0.4).depth(canvas, seeded(0))
    assert np.mean(depth > 0) * SIDE**2 == pytest.approx(np.pi * 30.0**2, rel=0.01)
    assert depth[130, 120] == pytest.approx(30.0, abs=1.0)


def test_distances_to_cell_borders_obey_the_laws_of_distances():
    canvas = Canvas.square(128)
    x, y = np.broadcast_arrays(canvas.x, canvas.y)
    border = cells(x, y, 32.0, seeded(4))
    assert border.min() >= 0
    assert border.max() < 32.0  # half the distance between two seeds at most
    slope = np.hypot(*np.gradient(border, canvas.pixel))
    assert slope.max() < 1.5  # F1 and F2 have slope 1: half their difference has at most 1, but for rare slivers


def test_light_falls_from_where_the_lamp_is():
    canvas = Canvas.square(64)
    bump = 5.0 * np.exp(-((canvas.x - 128.0) ** 2 + (canvas.y - 128.0) ** 2) / 1000.0)
    plain = Surface(canvas, np.full((64, 64, 1), 100.0, np.float32), bump.astype(np.float32))
    from_the_left = Lamp(azimuth=np.pi, relief=1.0, exposure=1.0, falloff=0.0, noise=0.0)
    image = from_the_left.shine(plain)[..., 0]
    assert image[32, 27] > 110
    assert image[32, 36] < 90
    assert image[2, 2] == pytest.approx(100.0)
