"""Decodes an opened image: gray or RGB levels in the file's own depth, upright, then in 8 bits."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import IO, Final

import numpy as np
from PIL import ExifTags, ImageFile, TiffImagePlugin

from cvad_cli.adapters.images.opening import DECODER_FAULTS, Opened, quiet, undecodable, warnings_lock
from cvad_cli.errors import DataError

PNG_DEPTH_BYTE: Final = 24  # IHDR: bits a channel


def levels_of(found: Opened) -> np.ndarray:
    """Decode to (h, w) gray or (h, w, 3) RGB in the file's own depth, upright, transparency over black."""
    if found.plain and (quick := _plain_levels(found)) is not None:
        return quick
    image = found.image
    deep = _is_deep_colour(image, found.file)
    if image.format == "TIFF":  # the only plug-in that warns while it decodes
        with quiet():
            image.load()
    else:
        image.load()
    if not deep:
        return _upright(_shallow_levels(image), image)
    # Pillow keeps only the upper 8 bits of 16-bit colour: it has checked the file, and OpenCV decodes all bits.
    levels = _deep_levels(image, found.file, found.path)
    return levels if image.format == "TIFF" else _upright(levels, image)


def _plain_levels(found: Opened) -> np.ndarray | None:
    """The levels of a plain PNG by OpenCV, in five sixths of Pillow's time; None if OpenCV cannot decode it."""
    import cv2

    found.file.seek(0)
    try:
        decoded = cv2.imdecode(np.frombuffer(found.file.read(), np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:  # OpenCV's own limit is 2^30 pixels
        return None
    if decoded is None or decoded.dtype != np.uint8 or decoded.shape[:2] != found.size:
        return None
    return np.asarray(decoded if decoded.ndim == 2 else cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB))


def _is_deep_colour(image: ImageFile.ImageFile, file: IO[bytes]) -> bool:
    if image.mode not in {"RGB", "RGBA", "LA"}:
        return False
    if image.format == "PNG":
        file.seek(PNG_DEPTH_BYTE)
        return file.read(1) == b"\x10"
    return (
        isinstance(image, TiffImagePlugin.TiffImageFile)
        and max(image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (8,))) == 16
    )


def _deep_levels(image: ImageFile.ImageFile, file: IO[bytes], path: Path) -> np.ndarray:
    """16-bit colour as uint16 (h, w, 3). OpenCV turns a TIFF upright by itself."""
    import cv2

    file.seek(0)
    logging = getattr(cv2.utils, "logging", cv2)  # OpenCV 5 moved it there
    with warnings_lock:
        before = logging.setLogLevel(0)
        decoded = cv2.imdecode(np.frombuffer(file.read(), np.uint8), cv2.IMREAD_UNCHANGED)
        logging.setLogLevel(before)
    if decoded is None or decoded.dtype != np.uint16 or decoded.ndim != 3:
        raise undecodable(path, "16-bit colour in an unusual layout")
    colour = np.ascontiguousarray(decoded[:, :, 2::-1])
    return _over_black(colour, decoded[:, :, 3]) if decoded.shape[2] == 4 and _has_alpha(image) else colour


def _has_alpha(image: ImageFile.ImageFile) -> bool:
    """Whether a fourth channel is alpha still to apply; not if a TIFF declares it as filler or as premultiplied."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return image.mode == "RGBA" and image.tag_v2.get(TiffImagePlugin.EXTRASAMPLES) != (1,)
    return True


def _shallow_levels(image: ImageFile.ImageFile) -> np.ndarray:
    """Everything but 16-bit colour: uint8, uint16, int32 or float32, (h, w) or (h, w, 3)."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        return _gray_16(image)
    if image.mode in {"I", "F"}:
        return np.asarray(image)
    if image.has_transparency_data:
        gray = image.mode in {"1", "L", "LA", "La"}
        pixels = np.asarray(image.convert("RGBA"))
        return _over_black(pixels[:, :, 0] if gray else pixels[:, :, :3], pixels[:, :, 3])
    plain = "L" if image.mode in {"1", "L"} else "RGB"
    return np.asarray(image if image.mode == plain else image.convert(plain))


def _gray_16(image: ImageFile.ImageFile) -> np.ndarray:
    levels: np.ndarray = np.asarray(image).astype(np.uint16)
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        if image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE) == (12,):
            levels = (levels << 4) | (levels >> 8)
        return (
            ~levels if image.tag_v2.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0 else levels
        )  # 0: white is zero
    transparent = image.info.get("transparency")
    return levels if transparent is None else np.where(levels == transparent, np.uint16(0), levels)


def _over_black(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Composite (h, w) or (h, w, 3) over black with alpha (h, w) of the same depth, rounded to the nearest level."""
    full = np.iinfo(colour.dtype).max
    if alpha.min() == full:
        return colour
    weight = alpha.astype(np.uint32) if colour.ndim == 2 else alpha.astype(np.uint32)[:, :, np.newaxis]
    return np.asarray((colour * weight + full // 2) // full, dtype=colour.dtype)


def orientation(image: ImageFile.ImageFile) -> int:
    """The EXIF orientation, 1 to 8; 1 if the EXIF block cannot be read."""
    try:
        with quiet():
            found = image.getexif().get(ExifTags.Base.Orientation, 1)
    except DECODER_FAULTS:
        return 1
    return int(found) if found in range(2, 9) else 1


def _upright(levels: np.ndarray, image: ImageFile.ImageFile) -> np.ndarray:
    """Turn and mirror as the EXIF orientation says."""
    way = orientation(image)
    if way == 1:
        return levels
    turned = levels.swapaxes(0, 1) if way >= 5 else levels
    down, across = way in {3, 4, 7, 8}, way in {2, 3, 6, 7}
    return np.ascontiguousarray(turned[:: -1 if down else 1, :: -1 if across else 1])


def to_uint8(levels: np.ndarray, path: Path) -> np.ndarray:
    """Convert any depth to 8 bits over its full range. Raises DataError if the range is not known."""
    if levels.dtype == np.uint8:
        return levels
    if levels.dtype == np.uint16:
        return np.take(_scale_16(), levels)
    if levels.dtype != np.float32:
        raise DataError(f"{path}: has signed or 32-bit integers, whose range is unknown; save it as 8- or 16-bit gray")
    low, high = float(levels.min()), float(levels.max())
    if not 0 <= low <= high <= 1:
        raise DataError(
            f"{path}: has floating-point levels from {low:g} to {high:g}; scale them to 0..1 or save 16-bit"
        )
    return np.rint(levels * np.float32(255)).astype(np.uint8)


@cache
def _scale_16() -> np.ndarray:
    """Table from 16 to 8 bits over the full range: 65,536 entries of `round(v / 257)`."""
    return np.asarray((np.arange(65536) * 255 + 32767) // 65535, dtype=np.uint8)
