"""Pictures and masks from disk, within bounds: Pillow decodes, OpenCV fills in what Pillow cannot do.

What counts is the content, not the suffix: PNG, JPEG, BMP, TIFF (its first page) and WebP (its first frame). The EXIF
orientation is applied. Every picture becomes uint8 RGB:

- 16 bits a channel are scaled by the full range, `round(v / 257)`; packed 12-bit TIFF by its own full range.
- Floating point must lie within 0..1 and is scaled by 255. 32-bit and signed integers have no known range: an error.
- Transparency is composited over black. What a viewer does not show must not sway a score, and colours that an editor
  left under a cut-out background would.
- Colour profiles are ignored, as the networks' training did.

A PNG proves itself whole by its checksums. Other formats have none: a file that is cut short is detected, but bytes
that were changed inside a BMP, JPEG or uncompressed TIFF cannot be.
"""

from __future__ import annotations

import stat
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import IO, Final

import numpy as np
from PIL import (
    BmpImagePlugin,
    ExifTags,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from cvad_cli.errors import DataError
from cvad_cli.files import replacing

PNG_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
PNG_DEPTH_BYTE: Final = 24  # IHDR: bits a channel

# The plug-ins are called directly: `Image.open` would warn at a pixel bound of its own, and try fifty formats.
_OPENERS: Final[tuple[tuple[tuple[bytes, ...], type[ImageFile.ImageFile]], ...]] = (
    ((PNG_SIGNATURE,), PngImagePlugin.PngImageFile),
    ((b"\xff\xd8\xff",), JpegImagePlugin.JpegImageFile),
    ((b"BM",), BmpImagePlugin.BmpImageFile),
    ((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), TiffImagePlugin.TiffImageFile),
    ((b"RIFF",), WebPImagePlugin.WebPImageFile),
)

# What Pillow raises on damaged files; the first three and the last were met by cutting and changing every format.
_DECODER_FAULTS: Final = (
    *(OSError, SyntaxError, ValueError, EOFError),
    *(struct.error, zlib.error, Image.DecompressionBombError),
)

_warnings_lock = threading.Lock()


def read_image(path: Path, *, max_megapixels: float = 100.0) -> np.ndarray:
    """Decode a picture to uint8 RGB (h, w, 3). Raises DataError naming the file, what is wrong and what to do.

    The size is read from the header and bounded before anything is decoded. A gray picture comes back as a read-only
    view whose three channels share memory: `resize_image` then works on one.
    """
    with _opened(path, max_megapixels) as (picture, file):
        levels = _to_uint8(_levels(picture, file, path), path)
    return np.broadcast_to(levels[:, :, np.newaxis], (*levels.shape, 3)) if levels.ndim == 2 else levels


def read_mask(path: Path, *, max_megapixels: float = 100.0) -> np.ndarray:
    """Decode a defect mask to bool (h, w): any non-zero pixel is a defect. Raises DataError like `read_image`.

    Levels are not scaled first, so labels 1, 2, 3 in 16 bits count. JPEG cannot hold a mask exactly, its edges ring:
    there a pixel counts above half of the brightest one.
    """
    with _opened(path, max_megapixels) as (picture, file):
        levels = _levels(picture, file, path)
        lossy = picture.format == "JPEG"
    marked = levels > levels.max() / 2 if lossy else levels != 0
    return np.asarray(marked.any(axis=2) if marked.ndim == 3 else marked)


def resize_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize uint8 RGB (h, w, 3) to `size` (rows, columns): bicubic, antialiased where it shrinks. A fresh array.

    Bicubic is how the ImageNet pictures were resized that the backbones learnt from (timm's `interpolation`). Pillow's
    filter widens with the shrinking; OpenCV's INTER_AREA is quicker and lets ten times as much moiré through.
    """
    _require_rgb(image)
    if image.shape[:2] == size:
        return np.array(image, order="C")
    gray = image.strides[2] == 0
    source = Image.fromarray(image[:, :, 0] if gray else np.ascontiguousarray(image))
    small = np.asarray(source.resize((size[1], size[0]), Image.Resampling.BICUBIC))
    return np.repeat(small[:, :, np.newaxis], 3, axis=2) if gray else np.array(small)


def resize_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize a bool mask (h, w) to `size` (rows, columns): nearest pixel, as anomalib does.

    "Any pixel" would enlarge grid's masks by a fifth at 256 pixels. Where nearest would lose a mask altogether, as it
    can a scratch one pixel wide, any pixel counts: no defect disappears from the ground truth.
    """
    import cv2

    levels = mask.astype(np.uint8)
    shape = (size[1], size[0])
    resized = cv2.resize(levels, shape, interpolation=cv2.INTER_NEAREST) != 0
    if mask.any() and not resized.any():
        resized = cv2.resize(levels.astype(np.float32), shape, interpolation=cv2.INTER_AREA) > 0
    return np.asarray(resized)


def resize_map(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize a float32 map (h, w) to `size` (rows, columns): bilinear, as anomalib enlarges its maps."""
    import cv2

    shrinks = size[0] < values.shape[0] and size[1] < values.shape[1]
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(values.astype(np.float32), (size[1], size[0]), interpolation=method))


def write_image(path: Path, image: np.ndarray) -> None:
    """Write uint8 RGB (h, w, 3), uint8 gray (h, w) or a bool mask (h, w) as PNG, whole or not at all.

    Raises ResourceError where the file cannot be written.
    """
    if image.ndim != 2:
        _require_rgb(image)
    levels = image.astype(np.uint8) * 255 if image.dtype == np.bool_ else image
    with replacing(path) as temporary:
        Image.fromarray(np.ascontiguousarray(levels)).save(temporary, "PNG")


def _require_rgb(image: np.ndarray) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"image: expected uint8 (h, w, 3), got {image.dtype} {image.shape}")


@contextmanager
def _opened(path: Path, max_megapixels: float) -> Iterator[tuple[ImageFile.ImageFile, IO[bytes]]]:
    """Yield the picture, header read and size bounded, and its file. What fails inside becomes a DataError."""
    with _open_file(path) as file:
        try:
            picture = _header(file, path)
            _require_bounded(picture.size, path, max_megapixels)
            yield picture, file
        except _DECODER_FAULTS as error:
            raise _undecodable(path, str(error)) from error


def _undecodable(path: Path, reason: str) -> DataError:
    return DataError(
        f"{path}: cannot be decoded ({reason}); the file is cut short, damaged or of an unsupported kind: "
        "copy it again or save it as 8- or 16-bit PNG"
    )


def _open_file(path: Path) -> IO[bytes]:
    """Open a file that holds something. A pipe is refused before it is opened: that would wait for ever."""
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise DataError(f"{path}: is a folder, not an image; name a file")
        if not stat.S_ISREG(status.st_mode):
            raise DataError(f"{path}: is not a regular file; only files on disk can be read")
        if status.st_size == 0:
            raise DataError(f"{path}: is empty (0 bytes); copy or export it again")
        return path.open("rb")
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; check the path") from error
    except PermissionError as error:
        raise DataError(f"{path}: may not be read; give this user permission to read it") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be opened ({error}); check the path and the disk") from error


def _header(file: IO[bytes], path: Path) -> ImageFile.ImageFile:
    start = file.read(12)
    if start.startswith(PNG_SIGNATURE):
        _require_whole_png(file, path)
    file.seek(0)
    for signatures, opener in _OPENERS:
        if start.startswith(signatures) and (start[:4] != b"RIFF" or start[8:] == b"WEBP"):
            with _quiet():
                return opener(file)
    raise DataError(f"{path}: is not a PNG, JPEG, BMP, TIFF or WebP image; convert it or take it out of the folder")


def _require_bounded(size: tuple[int, int], path: Path, max_megapixels: float) -> None:
    columns, rows = size
    megapixels = columns * rows / 1e6
    if megapixels > max_megapixels:
        raise DataError(
            f"{path}: {columns} x {rows} pixels are {megapixels:.1f} megapixels, above the bound of "
            f"{max_megapixels:g}; shrink the image or raise data.max_megapixels"
        )


def _require_whole_png(file: IO[bytes], path: Path) -> None:
    """Walk the chunks up to IEND and check the checksum of each that pixels depend on; Pillow skips that of IDAT."""
    file.seek(len(PNG_SIGNATURE))
    kind = b""
    while kind != b"IEND":
        start = file.read(8)
        length, kind = int.from_bytes(start[:4], "big"), start[4:]
        content = file.read(length)
        checksum = file.read(4)
        if len(start) < 8 or len(checksum) < 4:
            raise DataError(f"{path}: is cut short, its end is missing; copy or export it again")
        if kind[:1].isupper() and zlib.crc32(content, zlib.crc32(kind)) != int.from_bytes(checksum, "big"):
            name = kind.decode("latin-1")
            raise DataError(f"{path}: is damaged, the checksum of its {name} data is wrong; copy or export it again")


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence Python warnings. The filters belong to the whole process, so one thread at a time may hold them."""
    with _warnings_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _levels(picture: ImageFile.ImageFile, file: IO[bytes], path: Path) -> np.ndarray:
    """Decode to (h, w) gray or (h, w, 3) RGB in the file's own depth, upright, transparency over black."""
    deep = _is_deep_colour(picture, file)
    if picture.format == "TIFF":  # the only plug-in that warns while it decodes
        with _quiet():
            picture.load()
    else:
        picture.load()
    if not deep:
        return _upright(_shallow_levels(picture), picture)
    # Pillow keeps the upper 8 bits of 16-bit colour: it has proven the file whole, OpenCV now reads all of it.
    levels = _deep_levels(picture, file, path)
    return levels if picture.format == "TIFF" else _upright(levels, picture)


def _is_deep_colour(picture: ImageFile.ImageFile, file: IO[bytes]) -> bool:
    if picture.mode not in {"RGB", "RGBA", "LA"}:
        return False
    if picture.format == "PNG":
        file.seek(PNG_DEPTH_BYTE)
        return file.read(1) == b"\x10"
    return (
        isinstance(picture, TiffImagePlugin.TiffImageFile)
        and max(picture.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (8,))) == 16
    )


def _deep_levels(picture: ImageFile.ImageFile, file: IO[bytes], path: Path) -> np.ndarray:
    """16-bit colour as uint16 (h, w, 3). OpenCV turns a TIFF upright by itself."""
    import cv2

    file.seek(0)
    logging = getattr(cv2.utils, "logging", cv2)  # OpenCV 5 moved it there
    with _warnings_lock:
        before = logging.setLogLevel(0)
        decoded = cv2.imdecode(np.frombuffer(file.read(), np.uint8), cv2.IMREAD_UNCHANGED)
        logging.setLogLevel(before)
    if decoded is None or decoded.dtype != np.uint16 or decoded.ndim != 3:
        raise _undecodable(path, "16-bit colour in an unusual layout")
    colour = np.ascontiguousarray(decoded[:, :, 2::-1])
    return _over_black(colour, decoded[:, :, 3]) if decoded.shape[2] == 4 and _has_alpha(picture) else colour


def _has_alpha(picture: ImageFile.ImageFile) -> bool:
    """Whether a fourth channel is alpha still to be applied: not where a TIFF calls it filler, or applied already."""
    if isinstance(picture, TiffImagePlugin.TiffImageFile):
        return picture.mode == "RGBA" and picture.tag_v2.get(TiffImagePlugin.EXTRASAMPLES) != (1,)
    return True


def _shallow_levels(picture: ImageFile.ImageFile) -> np.ndarray:
    """Everything but 16-bit colour: uint8, uint16, int32 or float32, (h, w) or (h, w, 3)."""
    if picture.mode.startswith("I;16") or (picture.mode == "I" and picture.format == "PNG"):
        return _gray_16(picture)
    if picture.mode in {"I", "F"}:
        return np.asarray(picture)
    if picture.has_transparency_data:
        gray = picture.mode in {"1", "L", "LA", "La"}
        pixels = np.asarray(picture.convert("RGBA"))
        return _over_black(pixels[:, :, 0] if gray else pixels[:, :, :3], pixels[:, :, 3])
    plain = "L" if picture.mode in {"1", "L"} else "RGB"
    return np.asarray(picture if picture.mode == plain else picture.convert(plain))


def _gray_16(picture: ImageFile.ImageFile) -> np.ndarray:
    levels: np.ndarray = np.asarray(picture).astype(np.uint16)
    if isinstance(picture, TiffImagePlugin.TiffImageFile):
        if picture.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE) == (12,):
            levels = (levels << 4) | (levels >> 8)
        return (
            ~levels if picture.tag_v2.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0 else levels
        )  # 0: white is zero
    transparent = picture.info.get("transparency")
    return levels if transparent is None else np.where(levels == transparent, np.uint16(0), levels)


def _over_black(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Composite (h, w) or (h, w, 3) over black with alpha (h, w) of the same depth, rounded to the nearest level."""
    full = np.iinfo(colour.dtype).max
    if alpha.min() == full:
        return colour
    weight = alpha.astype(np.uint32) if colour.ndim == 2 else alpha.astype(np.uint32)[:, :, np.newaxis]
    return np.asarray((colour * weight + full // 2) // full, dtype=colour.dtype)


def _upright(levels: np.ndarray, picture: ImageFile.ImageFile) -> np.ndarray:
    """Turn and mirror as the EXIF orientation says; an EXIF block that cannot be read says nothing."""
    try:
        with _quiet():
            orientation = picture.getexif().get(ExifTags.Base.Orientation, 1)
    except _DECODER_FAULTS:
        return levels
    if orientation not in range(2, 9):
        return levels
    turned = levels.swapaxes(0, 1) if orientation >= 5 else levels
    down = orientation in {3, 4, 7, 8}
    across = orientation in {2, 3, 6, 7}
    return np.ascontiguousarray(turned[:: -1 if down else 1, :: -1 if across else 1])


def _to_uint8(levels: np.ndarray, path: Path) -> np.ndarray:
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
