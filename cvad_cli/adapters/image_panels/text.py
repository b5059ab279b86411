"""Pixels and text on them, from which every panel is composed."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from cvad_cli.files import replacing
from cvad_cli.fonts import WIDE_FONTS

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont

INK: Final = (34, 34, 34)

_FIRST_WIDE_LETTER: Final = "\u2e80"

Pixels = NDArray[np.uint8]
Text = tuple[int, int, str, int]
"""Left edge and vertical middle in pixels, what to write, and its size in pixels."""


def blank(height: int, width: int) -> Pixels:
    """A white sheet."""
    return np.full((height, width, 3), 255, dtype=np.uint8)


def written(pixels: Pixels, texts: list[Text], ink: tuple[int, int, int] = INK) -> Pixels:
    """The pixels with text on them."""
    from PIL import Image, ImageDraw

    page = Image.fromarray(pixels)
    pen = ImageDraw.Draw(page)
    for left, middle, text, size in texts:
        pen.text((left, middle), text, fill=ink, font=_font(size, _is_wide(text)), anchor="lm", spacing=1)
    return np.array(page)


def one_line(text: str) -> str:
    """The text with unprintable characters replaced: a file name may hold line ends or undecodable bytes."""
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in text)


def length(text: str, size: int) -> int:
    """The width in pixels of a text of this size."""
    return int(_font(size, _is_wide(text)).getlength(text)) + 2


def as_pixels(pixels: object) -> Pixels:
    """Give OpenCV's untyped arrays a type."""
    return np.asarray(pixels, dtype=np.uint8)


def write_png(path: Path, pixels: Pixels) -> None:
    """Write RGB pixels as PNG, atomically."""
    import cv2

    _, png = cv2.imencode(".png", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_PNG_COMPRESSION, 4])
    with replacing(path) as staged:
        staged.write_bytes(png.tobytes())


def _is_wide(text: str) -> bool:
    return any(letter >= _FIRST_WIDE_LETTER for letter in text)


@functools.cache
def _font(size: int, wide: bool) -> FreeTypeFont:
    import matplotlib as mpl
    from PIL import ImageFont

    path = Path(mpl.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    if wide:
        from matplotlib.font_manager import fontManager

        path = next((Path(font.fname) for font in fontManager.ttflist if font.name in WIDE_FONTS), path)
    return ImageFont.truetype(str(path), size)
