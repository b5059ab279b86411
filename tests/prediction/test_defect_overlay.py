"""Marked images: every region has its outline, its box and its name, and no name covers another."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cvad_cli.adapters.image_panels import defect_overlay as overlays
from cvad_cli.adapters.image_panels.defect_overlay import Mark, defect_overlay
from cvad_cli.adapters.images import read_image

ORANGE, GREEN = overlays.PALETTE[0], overlays.PALETTE[2]


def square(top: int, left: int, side: int) -> list[np.ndarray]:
    return [np.array([[top, left], [top, left + side], [top + side, left + side], [top + side, left]], dtype=float)]


def drawn(path: Path, marks: list[Mark], size: tuple[int, int] = (700, 700)) -> np.ndarray:
    defect_overlay(path, np.full((*size, 3), 90, np.uint8), marks, title="part 7: rejected")
    return read_image(path)


def rows_of(sheet: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    return np.flatnonzero((sheet == colour).all(axis=2).any(axis=1))


def test_a_region_is_outlined_boxed_and_named_in_its_colour(tmp_path: Path) -> None:
    sheet = drawn(tmp_path / "one.png", [Mark((300, 300, 400, 400), square(300, 300, 100), "thread 97 %", ORANGE)])
    header = sheet.shape[0] - 700
    rows = rows_of(sheet, ORANGE) - header
    assert rows.min() == 300 - overlays.MARGIN_PX - overlays.TAG_PX
    assert 400 <= rows.max() <= 400 + overlays.MARGIN_PX + 2
    assert (sheet[:header] == 255).all(axis=2).mean() > 0.8


def test_names_of_neighbouring_regions_do_not_cover_each_other(tmp_path: Path) -> None:
    box = (300, 300, 340, 340)
    marks = [
        Mark(box, square(300, 300, 40), "thread 97 %", ORANGE),
        Mark(box, square(300, 300, 40), "glue 51 %", GREEN),
    ]
    sheet = drawn(tmp_path / "two.png", marks)
    filled = [int(((sheet == colour).all(axis=2)).sum()) for colour in (ORANGE, GREEN)]
    assert min(filled) > 0.5 * overlays.TAG_PX * 80


@pytest.mark.parametrize("box", [(0, 0, 20, 20), (680, 680, 700, 700), (0, 0, 700, 700), (0, 650, 700, 700)])
def test_a_name_stays_in_the_image(tmp_path: Path, box: tuple[int, int, int, int]) -> None:
    sheet = drawn(tmp_path / "edge.png", [Mark(box, square(box[0], box[1], 20), "metal_contamination 88 %", ORANGE)])
    assert ((sheet == ORANGE).all(axis=2)).sum() > 0.4 * overlays.TAG_PX * 200


@pytest.mark.parametrize(
    ("size", "width"),
    [((64, 64), 640), ((256, 256), 640), ((1000, 1000), 1000), ((3000, 2000), 853), ((20, 4000), 1280)],
)
def test_small_images_are_enlarged_and_large_ones_shrunk(tmp_path: Path, size: tuple[int, int], width: int) -> None:
    sheet = drawn(tmp_path / "size.png", [Mark((1, 1, 9, 9), square(1, 1, 8), "x 50 %", GREEN)], size)
    assert sheet.shape[1] == pytest.approx(width, abs=1)


def test_letters_of_any_script_can_be_written(tmp_path: Path) -> None:
    drawn(tmp_path / "wide.png", [Mark((300, 300, 400, 400), square(300, 300, 100), "划痕 Riß $5", ORANGE)])
