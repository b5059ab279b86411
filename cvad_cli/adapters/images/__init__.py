"""Reads images and masks from disk, within bounds: Pillow decodes, and OpenCV does what Pillow cannot.

The content decides the format, not the suffix: PNG, JPEG, BMP, TIFF (first page) or WebP (first frame). The EXIF
orientation is applied. Every image becomes uint8 RGB:

- 16 bits a channel are scaled by the full range, `round(v / 257)`; packed 12-bit TIFF by its own full range.
- Floating point must lie within 0..1 and is scaled by 255. 32-bit and signed integers have no known range: an error.
- Transparency is composited over black: colours that an editor left under a transparent background must not change a
  score.
- Colour profiles are ignored, as in the training of the networks.

Checksums show whether a PNG is intact. Other formats have none: truncated files are detected, but changed bytes inside
a BMP, JPEG or uncompressed TIFF are not.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image

from cvad_cli.adapters.images.levels import levels_of, orientation, to_uint8
from cvad_cli.adapters.images.masks import read_labelled_mask, read_mask, resize_mask
from cvad_cli.adapters.images.opening import is_self_checking, opened
from cvad_cli.files import replacing

__all__ = [
    "REDUCED_MARGIN",
    "is_self_checking",
    "read_image",
    "read_labelled_mask",
    "read_mask",
    "read_reduced",
    "resize_image",
    "resize_map",
    "resize_mask",
    "write_image",
    "write_map",
]

REDUCED_MARGIN: Final = 2
"""A JPEG decoded at reduced scale keeps this many times the side that it is resized to."""

MAP_COMPRESSION: Final = "tiff_adobe_deflate"
"""Lossless, and read by Pillow, OpenCV and other TIFF readers."""


def read_image(path: Path, *, max_megapixels: float = 100.0) -> np.ndarray:
    """Decode an image to uint8 RGB (h, w, 3). Raises DataError naming the file, what is wrong and what to do.

    The size is read from the header and bounded before anything is decoded. A gray image comes back as a read-only
    view whose three channels share memory: `resize_image` then works on one.
    """
    with opened(path, max_megapixels) as found:
        return _rgb(to_uint8(levels_of(found), path))


def read_reduced(path: Path, side: int, *, max_megapixels: float = 100.0) -> tuple[np.ndarray, tuple[int, int]]:
    """Decode an image that will be resized to `side`: uint8 RGB (h, w, 3), and the (rows, columns) of the original.

    A JPEG is decoded at a half, a quarter or an eighth where both its sides then still measure `REDUCED_MARGIN` times
    `side`: docs/predict.md has what that saves and what it changes. Everything else is as in `read_image`.
    """
    with opened(path, max_megapixels) as found:
        is_jpeg, (rows, columns) = found.image.format == "JPEG", found.size
        if is_jpeg:
            found.image.draft(None, (REDUCED_MARGIN * side, REDUCED_MARGIN * side))
        image = _rgb(to_uint8(levels_of(found), path))
        turned = is_jpeg and orientation(found.image) >= 5
    if not is_jpeg:
        return image, (image.shape[0], image.shape[1])
    return image, (columns, rows) if turned else (rows, columns)


def _rgb(levels: np.ndarray) -> np.ndarray:
    return np.broadcast_to(levels[:, :, np.newaxis], (*levels.shape, 3)) if levels.ndim == 2 else levels


def resize_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize uint8 RGB (h, w, 3) to `size` (rows, columns): bicubic, antialiased where it shrinks. A fresh array.

    Bicubic is how the ImageNet images were resized that the backbones learnt from (timm's `interpolation`). Pillow's
    filter widens with the shrinking; OpenCV's INTER_AREA is faster but passes ten times as much moiré.
    """
    _require_rgb(image)
    if image.shape[:2] == size:
        return np.array(image, order="C")
    gray = image.strides[2] == 0
    source = Image.fromarray(image[:, :, 0] if gray else np.ascontiguousarray(image))
    small = np.asarray(source.resize((size[1], size[0]), Image.Resampling.BICUBIC))
    return np.repeat(small[:, :, np.newaxis], 3, axis=2) if gray else np.array(small)


def resize_map(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize a float32 map (h, w) to `size` (rows, columns): bilinear, as anomalib enlarges its maps.

    A side that shrinks is averaged first: OpenCV's area filter does not average if the other side grows in the same
    call, and bilinear alone skips rows.
    """
    import cv2

    resized: np.ndarray = values.astype(np.float32)
    small = min(size[0], values.shape[0]), min(size[1], values.shape[1])
    if small != values.shape:
        resized = cv2.resize(resized, small[::-1], interpolation=cv2.INTER_AREA)
    if small != size:
        resized = cv2.resize(resized, size[::-1], interpolation=cv2.INTER_LINEAR)
    return np.asarray(resized)


def write_image(path: Path, image: np.ndarray) -> None:
    """Write uint8 RGB (h, w, 3), uint8 gray (h, w) or a bool mask (h, w) as PNG, whole or not at all.

    Raises ResourceError where the file cannot be written.
    """
    if image.ndim != 2:
        _require_rgb(image)
    levels = image.astype(np.uint8) * 255 if image.dtype == np.bool_ else image
    with replacing(path) as temporary:
        Image.fromarray(np.ascontiguousarray(levels)).save(temporary, "PNG")


def write_map(path: Path, values: np.ndarray) -> None:
    """Write a map (h, w) as TIFF of one 32-bit float channel, every value as it is, whole or not at all.

    Raises ResourceError where the file cannot be written.
    """
    if values.ndim != 2:
        raise ValueError(f"map: expected (h, w), got {values.shape}")
    content = io.BytesIO()  # libtiff takes no name that is not UTF-8
    Image.fromarray(np.ascontiguousarray(values, dtype=np.float32)).save(content, "TIFF", compression=MAP_COMPRESSION)
    with replacing(path) as temporary:
        temporary.write_bytes(content.getbuffer())


def _require_rgb(image: np.ndarray) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"image: expected uint8 (h, w, 3), got {image.dtype} {image.shape}")
