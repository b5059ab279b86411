"""One test image side by side: image, anomaly map, ground truth, outline.

Composed from pixels by OpenCV, with Pillow for the text: an evaluation writes dozens of these, and matplotlib takes
several times as long for one. The background is opaque white.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from cvad_cli.adapters.image_panels.colormap import colours, levels, score_range
from cvad_cli.adapters.image_panels.resizing import resized
from cvad_cli.adapters.image_panels.text import Pixels, as_pixels, blank, length, one_line, write_png, written
from cvad_cli.core.masks import covered

__all__ = ["CONTOUR_RGB", "LONG_TILE_PX", "TILE_PX", "anomaly_panel", "write_png"]

TILE_PX: Final = 360  # longer side of an image
LONG_TILE_PX: Final = 900  # the same for line-scan images, with one side more than twice the other
CONTOUR_RGB: Final = (0, 255, 255)  # cyan on a dark seam: seen on any part, and hardly a part is cyan

_GAP_PX: Final = 16
_CAPTION_PX: Final = 26
_BAR_PX: Final = 92  # colour bar and its numbers


def anomaly_panel(
    image: Pixels,
    anomaly_map: NDArray[np.float32],
    mask: NDArray[np.bool_] | None,
    *,
    threshold: float,
    title: str,
) -> Pixels:
    """Side by side: the image, its anomaly map, the ground truth, and the outline of what is above the threshold.

    Returns uint8 RGB (h, w, 3).
    The map's colours run from its lowest value to as far above the threshold as that is below it, or to its highest
    value if that is more: a good part never glows, and a strong defect keeps its shape. Images more than twice as
    wide as high are stacked instead.

    Args:
        image: (h, w, 3) uint8 RGB.
        anomaly_map: finite scores of any resolution, stretched over the image.
        mask: ground truth of any resolution, all False for a good part; None where it is not known.
        threshold: map value above which a pixel counts as anomalous.
        title: one line.

    Raises:
        ValueError: the image is not 8-bit RGB, or the map or the mask not two-dimensional, or a score not finite.
    """
    import cv2

    _check_panel(image, anomaly_map, mask)
    width, height = _tile_size(image.shape[1], image.shape[0])
    part = as_pixels(resized(image, width, height, cv2.INTER_CUBIC))
    scores = resized(anomaly_map.astype(np.float32), width, height, cv2.INTER_LINEAR)
    above = scores > threshold
    cells = [
        _cell("image", part),
        _cell("anomaly map", _colormap(part, scores, threshold), _colour_bar(scores, threshold, height)),
        _truth_cell(mask, width, height),
        _cell(f"above the threshold: {above.mean():.1%}" if above.any() else "nothing above", _outlined(part, above)),
    ]
    return _sheet(one_line(title), cells, stacked=width > 2 * height)


def _check_panel(image: Pixels, anomaly_map: NDArray[np.float32], mask: NDArray[np.bool_] | None) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ValueError(f"image: expected (h, w, 3) uint8, got {image.shape} {image.dtype}")
    for name, plane in (("anomaly_map", anomaly_map), ("mask", mask)):
        if plane is not None and (plane.ndim != 2 or not plane.size):
            raise ValueError(f"{name}: expected (h, w), got {plane.shape}")
    if not np.isfinite(anomaly_map).all():
        raise ValueError("anomaly_map: expected finite scores")


def _tile_size(width: int, height: int) -> tuple[int, int]:
    longer = LONG_TILE_PX if max(width, height) > 2 * min(width, height) else TILE_PX
    scale = longer / max(width, height)
    return max(round(width * scale), 40), max(round(height * scale), 40)


def _colormap(part: Pixels, scores: NDArray[np.float32], threshold: float) -> Pixels:
    return _tinted(levels(scores, threshold), part)


def _tinted(shades: Pixels, part: Pixels) -> Pixels:
    """The colours of `shades` over a pale gray image of the part."""
    import cv2

    gray = cv2.cvtColor(cv2.cvtColor(part, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    return as_pixels(cv2.addWeighted(colours(shades), 0.7, gray, 0.3, 0))


def _colour_bar(scores: NDArray[np.float32], threshold: float, height: int) -> Pixels:
    """(height, 92, 3): the scale beside the map, with its ends and the threshold written on it."""
    import cv2

    low, high = score_range(scores, threshold)
    bar = np.full((height, _BAR_PX, 3), 255, dtype=np.uint8)
    ramp = np.repeat(np.linspace(255, 0, height).astype(np.uint8)[:, None], 14, axis=1)
    bar[:, 6:20] = _tinted(ramp, np.full((height, 14, 3), 128, dtype=np.uint8))
    at = round((high - threshold) / (high - low) * (height - 1))
    marks = [(8, f"{high:.3g}"), (height - 9, f"{low:.3g}")]
    if 0 <= at < height:
        cv2.line(bar, (2, at), (24, at), (0, 0, 0), 2)
        inside = int(np.clip(at, 17, height - 18))
        marks = [(row, text) for row, text in marks if abs(row - inside) > 28]
        marks.append((inside, f"{threshold:.3g}\nthreshold"))
    return written(bar, [(26, row, text, 13) for row, text in marks])


def _truth_cell(mask: NDArray[np.bool_] | None, width: int, height: int) -> Pixels:
    import cv2

    if mask is None:
        return _cell("ground truth: no mask", np.full((height, width, 3), 225, dtype=np.uint8))
    plane = covered(mask, (height, width)).astype(np.uint8) * 255
    caption = "ground truth" if mask.any() else "ground truth: no defect"
    return _cell(caption, as_pixels(cv2.cvtColor(plane, cv2.COLOR_GRAY2RGB)))


def _outlined(part: Pixels, above: NDArray[np.bool_]) -> Pixels:
    import cv2

    contours, _ = cv2.findContours(above.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    drawn = part.copy()
    cv2.drawContours(drawn, contours, -1, (0, 0, 0), 5, cv2.LINE_AA)
    cv2.drawContours(drawn, contours, -1, CONTOUR_RGB, 2, cv2.LINE_AA)
    return as_pixels(drawn)


def _cell(caption: str, tile: Pixels, beside: Pixels | None = None) -> Pixels:
    """A tile under its caption, at least as wide as the caption."""
    image = tile if beside is None else np.hstack([tile, beside])
    height, width = image.shape[:2]
    cell = blank(height + _CAPTION_PX, max(width, length(caption, 16)))
    cell[_CAPTION_PX:, :width] = image
    return written(cell, [(0, _CAPTION_PX // 2 - 2, caption, 16)])


def _sheet(title: str, cells: list[Pixels], *, stacked: bool) -> Pixels:
    """The cells in a row, or in a column where `stacked`, below the title."""
    heights, widths = zip(*(cell.shape[:2] for cell in cells), strict=True)
    gaps, top = _GAP_PX * (len(cells) - 1), _GAP_PX + _CAPTION_PX + 4
    inner = (sum(heights) + gaps, max(widths)) if stacked else (max(heights), sum(widths) + gaps)
    sheet = blank(top + inner[0] + _GAP_PX, max(inner[1], min(length(title, 18), LONG_TILE_PX)) + 2 * _GAP_PX)
    row, column = top, _GAP_PX
    for cell, height, width in zip(cells, heights, widths, strict=True):
        sheet[row : row + height, column : column + width] = cell
        row, column = (row + height + _GAP_PX, column) if stacked else (row, column + width + _GAP_PX)
    return written(sheet, [(_GAP_PX, _GAP_PX + 9, title, 18)])
