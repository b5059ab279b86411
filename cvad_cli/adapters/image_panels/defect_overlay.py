"""An image with its defects marked: outline, box and name of each, under a title with the verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from cvad_cli.adapters.image_panels.text import Pixels, as_pixels, blank, length, one_line, write_png, written

LONGEST_PX: Final = 1280  # larger images are shrunk to this
SHORTEST_PX: Final = 640  # smaller images are enlarged, so that names do not cover the defects
TEXT_PX: Final = 18
TAG_PX: Final = 26
MARGIN_PX: Final = 6  # between a region and its box

PALETTE: Final = (
    *((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66)),
    *((0, 114, 178), (213, 94, 0), (204, 121, 167)),
)
"""Okabe and Ito (2008), which people with any common colour blindness can tell apart."""

NEUTRAL: Final = (255, 255, 255)
"""The colour of regions of unknown type."""

Colour = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Mark:
    """One region to draw, in pixels of the original image."""

    box: tuple[int, int, int, int]
    """(top, left, bottom, right)."""
    contours: Sequence[np.ndarray]
    """Closed polygons (k, 2) of corners (y, x)."""
    caption: str
    colour: Colour


def defect_overlay(path: Path, image: Pixels, marks: Sequence[Mark], *, title: str) -> None:
    """Draw the marks over an image, uint8 RGB (h, w, 3), below a title, and write it as PNG.

    Raises ResourceError where the file cannot be written.
    """
    import cv2

    height, width = image.shape[:2]
    title, scale = one_line(title), _scale(height, width)
    shape = (max(1, round(width * scale)), max(1, round(height * scale)))
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    canvas = as_pixels(cv2.resize(np.ascontiguousarray(image), shape, interpolation=method))
    for mark in marks:
        _outline(canvas, mark, scale)
    taken: list[tuple[int, int, int, int]] = []
    for mark in marks:
        canvas = _tagged(canvas, mark, scale, taken)
    header = blank(TAG_PX + 10, max(canvas.shape[1], length(title, TEXT_PX) + 20))
    sheet = blank(header.shape[0] + canvas.shape[0], header.shape[1])
    sheet[: header.shape[0]] = written(header, [(10, header.shape[0] // 2, title, TEXT_PX)])
    sheet[header.shape[0] :, : canvas.shape[1]] = canvas
    write_png(path, sheet)


def _scale(height: int, width: int) -> float:
    longest = max(height, width)
    return min(LONGEST_PX / longest, max(1.0, SHORTEST_PX / longest))


def _outline(canvas: Pixels, mark: Mark, scale: float) -> None:
    """Outline and box, each with a dark border: visible on bright and on dark parts."""
    import cv2

    loops = [np.rint(contour[:, ::-1] * scale).astype(np.int32) for contour in mark.contours]
    top, left, bottom, right = _frame(mark, scale, canvas.shape[:2])
    for colour, seam in (((0, 0, 0), 2), (mark.colour, 0)):
        cv2.polylines(canvas, loops, isClosed=True, color=colour, thickness=2 + seam, lineType=cv2.LINE_AA)
        cv2.rectangle(canvas, (left, top), (right, bottom), colour, 2 + seam)


def _frame(mark: Mark, scale: float, shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    """The box with a margin, on the canvas."""
    top, left, bottom, right = (round(edge * scale) for edge in mark.box)
    return (
        max(top - MARGIN_PX, 0),
        max(left - MARGIN_PX, 0),
        min(bottom + MARGIN_PX, shape[0] - 1),
        min(right + MARGIN_PX, shape[1] - 1),
    )


def _tagged(canvas: Pixels, mark: Mark, scale: float, taken: list[tuple[int, int, int, int]]) -> Pixels:
    """The caption above the box, or below or inside it if that position is taken or outside the image."""
    top, left, bottom, _ = _frame(mark, scale, canvas.shape[:2])
    width = min(length(mark.caption, TEXT_PX) + 12, canvas.shape[1])
    column = max(0, min(left, canvas.shape[1] - width))
    rows = (top - TAG_PX, bottom + 1, top + 1, bottom - TAG_PX, *range(0, canvas.shape[0] - TAG_PX, TAG_PX))
    candidates = [(row, column, row + TAG_PX, column + width) for row in rows if 0 <= row <= canvas.shape[0] - TAG_PX]
    tag = next((tag for tag in candidates if not any(_meet(tag, other) for other in taken)), None)
    if tag is None:
        return canvas
    taken.append(tag)
    row = tag[0]
    canvas[row : row + TAG_PX, column : column + width] = mark.colour
    ink = (255, 255, 255) if np.dot(mark.colour, (0.299, 0.587, 0.114)) < 110 else (0, 0, 0)
    return written(canvas, [(column + 6, row + TAG_PX // 2, mark.caption, TEXT_PX)], ink)


def _meet(one: tuple[int, int, int, int], other: tuple[int, int, int, int]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
