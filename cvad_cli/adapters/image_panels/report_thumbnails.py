"""One test image as a web page shows it: a small photo, a small map, and outlines that the browser draws.

A page lays these over each other: four views (image, map, mask, outline) from two small JPEG files and two paths.
Every item has a size limit, so the size of a page is bounded too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cvad_cli.adapters.image_panels.colormap import colours, levels
from cvad_cli.adapters.image_panels.resizing import resized
from cvad_cli.adapters.image_panels.text import Pixels, as_pixels
from cvad_cli.core.masks import covered

PHOTO_PX: Final = 480  # side of a square photo; others have as many pixels
PHOTO_BYTES: Final = 64_000
MAP_PX: Final = 160
MAP_BYTES: Final = 4_000
PATH_CHARACTERS: Final = 2_500
UNITS: Final = 512  # longer side of the image in the units of paths

_LONGEST_SHARE: Final = 2.5  # a line-scan image's longer side, in sides of a square photo
_BYTES_PER_PIXEL: Final = 0.22  # of a JPEG of a fine texture at quality 80, measured on MVTec AD grid and leather
_SMALLEST_PX: Final = 64
_MAX_LOOPS: Final = 150  # of a map that is noise, the longest
_QUALITIES: Final = (80, 65, 50)


@dataclass(frozen=True, slots=True)
class Thumbnail:
    """The data that a page needs to show one image."""

    photo: bytes
    """JPEG of the part."""
    map_image: bytes
    """JPEG of the anomaly map's colours, stretched over the photo."""
    width: int
    """Of the image, in the units of the paths."""
    height: int
    outline: str
    """SVG path around the regions above the map's threshold; '' if there is none."""
    truth: str | None
    """SVG path of the defect mask: '' for a good part, None if there is no mask."""
    share_above: float
    """Share of the map above its threshold, 0..1."""


def shrunk(image: Pixels, *, side: int = PHOTO_PX) -> Pixels:
    """The image, uint8 RGB (h, w, 3), with at most as many pixels as a square of `side`; never enlarged."""
    import cv2

    height, width = image.shape[:2]
    scale = min(side / (height * width) ** 0.5, _LONGEST_SHARE * side / max(height, width))
    if scale >= 1:
        return image
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return as_pixels(cv2.resize(image, size, interpolation=cv2.INTER_AREA))


def thumbnail(
    image: Pixels,
    anomaly_map: NDArray[np.float32],
    mask: NDArray[np.bool_] | None,
    *,
    threshold: float,
    photo_bytes: int = PHOTO_BYTES,
) -> Thumbnail:
    """Thumbnail one image.

    Args:
        image: uint8 RGB (h, w, 3), of any size; `shrunk` keeps the work small.
        anomaly_map: finite scores (h, w) of any size, stretched over the image.
        mask: ground truth (h, w) of any size, all False for a good part; None where it is not known.
        threshold: map value above which a pixel counts as anomalous.
        photo_bytes: bound on the photo, from 4,000; its size and quality are chosen to keep it.
    """
    import cv2

    longer = max(image.shape[:2])
    height, width = (max(1, round(edge * UNITS / longer)) for edge in image.shape[:2])
    scores = resized(anomaly_map.astype(np.float32), width, height, cv2.INTER_LINEAR)
    above = scores > threshold
    side = int(np.clip((photo_bytes / _BYTES_PER_PIXEL) ** 0.5, _SMALLEST_PX, PHOTO_PX))
    map_image = shrunk(colours(levels(scores, threshold)), side=MAP_PX)
    return Thumbnail(
        photo=_jpeg(shrunk(image, side=side), photo_bytes),
        map_image=_jpeg(map_image, MAP_BYTES),
        width=width,
        height=height,
        outline=_path(above),
        truth=None if mask is None else _path(covered(mask, (height, width))),
        share_above=float(above.mean()),
    )


def _path(inside: NDArray[np.bool_]) -> str:
    """The edge of a plane as an SVG path, to be filled by the even-odd rule: as exact as `PATH_CHARACTERS` allow."""
    import cv2

    if not inside.any():
        return ""
    loops, _ = cv2.findContours(inside.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    longest = sorted(loops, key=len, reverse=True)[:_MAX_LOOPS]
    tolerance = 0.7
    while True:
        path = "".join(_loop(_corners(cv2.approxPolyDP(loop, tolerance, closed=True))) for loop in longest)
        if len(path) <= PATH_CHARACTERS:
            return path
        tolerance *= 2
        if tolerance > UNITS / 16:
            longest = longest[: (len(longest) + 1) // 2]


def _corners(polygon: object) -> list[list[int]]:
    """OpenCV's polygons (k, 1, 2) as x, y pairs."""
    corners: list[list[int]] = np.asarray(polygon, dtype=np.int64).reshape(-1, 2).tolist()
    return corners


def _loop(corners: list[list[int]]) -> str:
    """One closed loop with relative steps. A lone point becomes a dot that a stroke makes visible."""
    (x, y), *rest = corners
    text = f"M{x} {y}l0 0" if not rest else f"M{x} {y}l"
    steps = []
    for across, down in rest:
        steps.append(f"{across - x} {down - y}")
        x, y = across, down
    return text + " ".join(steps).replace(" -", "-") + "z"


def _jpeg(pixels: Pixels, max_bytes: int) -> bytes:
    """A JPEG of at most `max_bytes`: lowers the quality, then the size, until it fits or has the smallest size."""
    import cv2

    bgr = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    while True:
        for quality in _QUALITIES:
            _, encoded = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])
            if encoded.nbytes <= max_bytes:
                return bytes(encoded.tobytes())
        height, width = bgr.shape[:2]
        if max(height, width) <= _SMALLEST_PX:
            return bytes(encoded.tobytes())
        bgr = cv2.resize(bgr, (max(1, width * 3 // 4), max(1, height * 3 // 4)), interpolation=cv2.INTER_AREA)
