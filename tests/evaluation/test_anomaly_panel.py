"""Panels show one image four ways, on one sheet."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from cvad_cli.adapters.image_panels import anomaly_panel as panels
from cvad_cli.errors import ResourceError


def scene(height=60, width=80, peak=5.0):
    rng = np.random.default_rng(0)
    image = np.repeat(rng.integers(90, 160, size=(height, width, 1), dtype=np.uint8), 3, axis=2)
    anomaly_map = rng.uniform(1.0, 1.5, size=(30, 40)).astype(np.float32)  # half the image's resolution
    anomaly_map[10:20, 10:20] = peak
    mask = np.zeros((height, width), dtype=bool)
    mask[height // 3 : 2 * height // 3, width // 4 : width // 2] = True
    return image, anomaly_map, mask


def panel(path, image, anomaly_map, mask, threshold=3.0, title="bent/000.png"):
    panels.write_png(path, panels.anomaly_panel(image, anomaly_map, mask, threshold=threshold, title=title))
    with Image.open(path) as written:
        assert (written.format, written.mode) == ("PNG", "RGB")
        return np.asarray(written).astype(int)


def is_contour(sheet):
    return (sheet == panels.CONTOUR_RGB).all(axis=2)


def test_the_outline_is_drawn_in_the_last_image_around_what_is_above_the_threshold(tmp_path):
    sheet = panel(tmp_path / "panel.png", *scene())
    rows, columns = np.nonzero(is_contour(sheet))
    tile, left = panels.TILE_PX, sheet.shape[1] - 16 - panels.TILE_PX
    assert columns.min() > left
    assert (columns.min() - left, columns.max() - left) == pytest.approx((tile / 4, tile / 2), abs=8)
    top = sheet.shape[0] - 16 - tile * 60 / 80
    assert (rows.min() - top, rows.max() - top) == pytest.approx((tile / 4, tile / 2), abs=8)


def test_a_good_part_has_no_outline_and_does_not_glow(tmp_path):
    image, anomaly_map, mask = scene(peak=1.4)
    good = panel(tmp_path / "good.png", image, anomaly_map, mask)
    bad = panel(tmp_path / "bad.png", *scene())
    coloured = np.s_[100:300, 400:700]
    assert not is_contour(good).any()
    assert good[coloured].max() < 140
    assert bad[coloured].max() > 180


def test_a_missing_mask_is_a_pale_tile_and_an_empty_one_is_black(tmp_path):
    image, anomaly_map, mask = scene()
    unknown, empty = (
        panel(tmp_path / f"{name}.png", image, anomaly_map, value)
        for name, value in (("unknown", None), ("empty", np.zeros_like(mask)))
    )
    truth = np.s_[150, -2 * panels.TILE_PX]
    assert unknown[truth].tolist() == [225] * 3
    assert empty[truth].tolist() == [0] * 3


@pytest.mark.parametrize(
    ("height", "width", "stacked"),
    [
        pytest.param(100, 100, False, id="square"),
        pytest.param(300, 100, False, id="tall"),
        pytest.param(100, 300, True, id="wide"),
        pytest.param(4, 2000, True, id="one line of a line scan"),
    ],
)
def test_wide_images_are_stacked_and_the_sheet_stays_small(tmp_path, height, width, stacked):
    sheet = panel(tmp_path / "panel.png", *scene(height, width))
    assert (sheet.shape[1] < 1100 and sheet.shape[0] > 4 * 40) == stacked
    assert max(sheet.shape[:2]) < 4 * 500


@pytest.mark.parametrize("value", [0.0, 3.0, 7.5, -2.0])
def test_a_flat_map_is_drawn_whatever_the_threshold(tmp_path, value):
    image, anomaly_map, mask = scene()
    sheet = panel(tmp_path / "panel.png", image, np.full_like(anomaly_map, value), mask)
    assert is_contour(sheet).any() == (value > 3.0)


def test_the_background_is_white_and_the_title_is_written(tmp_path):
    plain, titled = (panel(tmp_path / "panel.png", *scene(), title=title) for title in ("", "bent/000.png 划痕 $_{"))
    assert (plain[:40] == 255).all()
    assert (titled[:40] < 100).any()
    assert (titled[:, :16] == 255).all()
    assert [path.name for path in tmp_path.iterdir()] == ["panel.png"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"image": np.zeros((4, 4, 3))}, r"image: .* got \(4, 4, 3\) float64", id="a float image"),
        pytest.param({"image": np.zeros((4, 4), np.uint8)}, r"image: .* got \(4, 4\)", id="a gray image"),
        pytest.param({"anomaly_map": np.zeros((1, 4, 4), np.float32)}, r"anomaly_map: .* \(1, 4, 4\)", id="a batch"),
        pytest.param({"anomaly_map": np.full((4, 4), np.nan, np.float32)}, "anomaly_map: .* finite", id="not a number"),
        pytest.param({"mask": np.zeros(16, bool)}, r"mask: expected \(h, w\), got \(16,\)", id="a flat mask"),
    ],
)
def test_unusable_arrays_are_refused(tmp_path, change, message):
    image, anomaly_map, mask = scene()
    with pytest.raises(ValueError, match=message):
        panel(tmp_path / "panel.png", **({"image": image, "anomaly_map": anomaly_map, "mask": mask} | change))


def test_a_file_that_cannot_be_written_is_named_and_leaves_nothing_behind(tmp_path):
    (tmp_path / "panel.png").mkdir()
    with pytest.raises(ResourceError, match=r"panel\.png: cannot be written"):
        panel(tmp_path / "panel.png", *scene())
    assert [path.name for path in tmp_path.iterdir()] == ["panel.png"]
