"""A sketch of an image is small, whatever the image is, and shows where the defect is."""

from __future__ import annotations

import re

import cv2
import numpy as np
import pytest

from cvad_cli.adapters.image_panels import report_thumbnails as thumbnails
from cvad_cli.adapters.image_panels.report_thumbnails import UNITS, shrunk, thumbnail


def filled(path: str, width: int, height: int) -> np.ndarray:
    """What a browser fills of a path of closed loops with relative steps, by the even-odd rule."""
    plane = np.zeros((height, width), dtype=np.uint8)
    loops = []
    for loop in path.split("z")[:-1]:
        numbers = np.array([int(number) for number in re.findall(r"-?\d+", loop)]).reshape(-1, 2)
        loops.append(np.cumsum(numbers, axis=0).astype(np.int32))
    cv2.fillPoly(plane, loops, 1)  # even-odd, with its edge
    return plane.astype(bool)


def scene(height=300, width=400):
    image = np.random.default_rng(0).integers(60, 200, (height, width, 3), dtype=np.uint8)
    rows, columns = np.mgrid[:64, :64]
    anomaly_map = np.exp(-((rows - 20) ** 2 + (columns - 40) ** 2) / 60).astype(np.float32)
    mask = cv2.resize((anomaly_map > 0.6).astype(np.uint8), (width, height)) > 0
    return image, anomaly_map, mask


def test_the_outline_and_the_mask_lie_where_the_map_and_the_truth_are():
    image, anomaly_map, mask = scene()
    drawn = thumbnail(image, anomaly_map, mask, threshold=0.5)
    assert (drawn.width, drawn.height) == (UNITS, round(UNITS * 300 / 400))
    size = drawn.width, drawn.height
    for path, plane in ((drawn.outline, anomaly_map > 0.5), (drawn.truth, mask)):
        shown, wanted = filled(path, *size), cv2.resize(plane.astype(np.uint8), size, interpolation=cv2.INTER_AREA) > 0
        assert (shown & wanted).sum() / (shown | wanted).sum() > 0.9
    assert drawn.share_above == pytest.approx((anomaly_map > 0.5).mean(), abs=0.01)


def test_a_hole_stays_a_hole():
    mask = np.zeros((UNITS, UNITS), dtype=bool)
    mask[100:300, 100:300] = True
    mask[180:220, 180:220] = False
    image, anomaly_map, _ = scene(UNITS, UNITS)
    shown = filled(thumbnail(image, anomaly_map, mask, threshold=0.5).truth, UNITS, UNITS)
    assert not shown[190:210, 190:210].any()
    assert shown[110:170, 110:290].all()


def test_a_scratch_of_one_pixel_is_not_lost():
    image, anomaly_map, mask = scene(2048, 2048)
    mask[:] = False
    mask[1000, 300:1500] = True
    truth = thumbnail(shrunk(image), anomaly_map, mask, threshold=0.5).truth
    assert truth.startswith("M")


def test_a_good_part_has_an_empty_mask_and_an_unknown_one_none():
    image, anomaly_map, mask = scene()
    assert thumbnail(image, anomaly_map, np.zeros_like(mask), threshold=2.0).truth == ""
    nothing = thumbnail(image, anomaly_map, None, threshold=2.0)
    assert (nothing.truth, nothing.outline, nothing.share_above) == (None, "", 0)


@pytest.mark.parametrize("photo_bytes", [4_000, 13_000, thumbnails.PHOTO_BYTES])
@pytest.mark.parametrize("shape", [(700, 900), (90, 4000), (16, 16)], ids=["photo", "line scan", "tiny"])
def test_noise_keeps_every_bound(shape, photo_bytes):
    noise = np.random.default_rng(1)
    image = noise.integers(0, 256, (*shape, 3), dtype=np.uint8)
    anomaly_map = noise.random((64, 64), dtype=np.float32)
    drawn = thumbnail(
        shrunk(image), anomaly_map, noise.random((128, 128)) > 0.5, threshold=0.5, photo_bytes=photo_bytes
    )
    assert len(drawn.photo) <= photo_bytes
    assert len(drawn.map_image) <= thumbnails.MAP_BYTES
    assert max(len(drawn.outline), len(drawn.truth)) <= thumbnails.PATH_CHARACTERS
    assert max(drawn.width, drawn.height) == UNITS
    photo = cv2.imdecode(np.frombuffer(drawn.photo, np.uint8), cv2.IMREAD_COLOR)
    assert photo.shape[1] / photo.shape[0] == pytest.approx(shape[1] / shape[0], rel=0.12)


def test_a_image_is_shrunk_to_a_number_of_pixels_and_never_enlarged():
    assert shrunk(np.zeros((1024, 1024, 3), np.uint8)).shape == (480, 480, 3)
    assert shrunk(np.zeros((500, 8000, 3), np.uint8)).shape == (75, 1200, 3)
    assert shrunk(np.zeros((40, 60, 3), np.uint8)).shape == (40, 60, 3)
