"""Checks an image file before it is decoded: its size, its format by its content, and whether a PNG is complete."""

from __future__ import annotations

import io
import stat
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from PIL import (
    BmpImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from cvad_cli.errors import DataError

PNG_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"

# The plug-ins are called directly: `Image.open` would warn at a pixel bound of its own, and try fifty formats.
_OPENERS: Final[tuple[tuple[tuple[bytes, ...], type[ImageFile.ImageFile]], ...]] = (
    ((PNG_SIGNATURE,), PngImagePlugin.PngImageFile),
    ((b"\xff\xd8\xff",), JpegImagePlugin.JpegImageFile),
    ((b"BM",), BmpImagePlugin.BmpImageFile),
    ((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), TiffImagePlugin.TiffImageFile),
    ((b"RIFF",), WebPImagePlugin.WebPImageFile),
)

# What Pillow raises on damaged files; the first three and the last were met by cutting and changing every format.
DECODER_FAULTS: Final = (
    *(OSError, SyntaxError, ValueError, EOFError),
    *(struct.error, zlib.error, Image.DecompressionBombError),
)

_HARMLESS: Final = frozenset({b"IDAT", b"IEND", b"pHYs", b"tIME", b"gAMA", b"cHRM", b"sRGB", b"iCCP", b"bKGD", b"sBIT"})
"""PNG chunks that do not change the levels: colour profiles are ignored."""

warnings_lock = threading.Lock()


@dataclass(frozen=True, slots=True)
class Opened:
    """An image whose header was read and whose size is within bounds."""

    path: Path
    file: IO[bytes]
    image: ImageFile.ImageFile
    plain: bool
    """A PNG of 8-bit gray or RGB with nothing that changes how it is shown: its levels are the image."""

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns as stored, before the EXIF orientation is applied."""
        columns, rows = self.image.size
        return rows, columns


@contextmanager
def opened(path: Path, max_megapixels: float, *, proven: bool = True) -> Iterator[Opened]:
    """Yield the image, header read and size bounded. What fails inside becomes a DataError.

    `proven`: a PNG must be whole; without it, its pixels are not read from the disk.
    """
    with _open_file(path) as file:
        try:
            found = _header(file, path, proven=proven)
            _require_bounded(found.image.size, path, max_megapixels)
            yield found
        except DECODER_FAULTS as error:
            raise undecodable(path, str(error)) from error


def is_self_checking(path: Path) -> bool:
    """Whether the format shows if a file is complete: a PNG does, by its checksums and its end mark.

    Raises DataError if the file cannot be opened.
    """
    with _open_file(path) as file:
        return file.read(len(PNG_SIGNATURE)) == PNG_SIGNATURE


def undecodable(path: Path, reason: str) -> DataError:
    """The error for a file that the decoder cannot read."""
    return DataError(
        f"{path}: cannot be decoded ({reason}); the file is cut short, damaged or of an unsupported kind: "
        "copy it again or save it as 8- or 16-bit PNG"
    )


def _open_file(path: Path) -> IO[bytes]:
    """Open a file that is not empty. A pipe is refused before it is opened, because opening it would block."""
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


def _header(file: IO[bytes], path: Path, *, proven: bool) -> Opened:
    start = file.read(12)
    plain = start.startswith(PNG_SIGNATURE) and _require_whole_png(file, path, proven=proven)
    file.seek(0)
    for signatures, opener in _OPENERS:
        if start.startswith(signatures) and (start[:4] != b"RIFF" or start[8:] == b"WEBP"):
            with quiet():
                return Opened(path, file, opener(file), plain)
    raise DataError(f"{path}: is not a PNG, JPEG, BMP, TIFF or WebP image; convert it or take it out of the folder")


def _require_bounded(size: tuple[int, int], path: Path, max_megapixels: float) -> None:
    columns, rows = size
    megapixels = columns * rows / 1e6
    if megapixels > max_megapixels:
        raise DataError(
            f"{path}: {columns} x {rows} pixels are {megapixels:.1f} megapixels, above the bound of "
            f"{max_megapixels:g}; shrink the image or raise data.max_megapixels"
        )


def _require_whole_png(file: IO[bytes], path: Path, *, proven: bool) -> bool:
    """Walk the chunks up to IEND and check the checksum of each that pixels depend on; Pillow skips that of IDAT.

    Gives whether the image is plain, see `Opened`. Unless `proven`, IDAT is skipped here too.
    """
    file.seek(len(PNG_SIGNATURE))
    kind, plain = b"", True
    while kind != b"IEND":
        start = file.read(8)
        length, kind = int.from_bytes(start[:4], "big"), start[4:]
        if kind == b"IDAT" and not proven:
            file.seek(length + 4, io.SEEK_CUR)
            continue
        content = file.read(length)
        checksum = file.read(4)
        if len(start) < 8 or len(checksum) < 4:
            raise DataError(f"{path}: is cut short, its end is missing; copy or export it again")
        if kind[:1].isupper() and zlib.crc32(content, zlib.crc32(kind)) != int.from_bytes(checksum, "big"):
            name = kind.decode("latin-1")
            raise DataError(f"{path}: is damaged, the checksum of its {name} data is wrong; copy or export it again")
        plain = plain and _is_plain(kind, content)
    return plain


def _is_plain(kind: bytes, content: bytes) -> bool:
    """Whether a chunk leaves 8-bit gray or RGB levels as they are: no alpha, no palette, no orientation in metadata."""
    if kind == b"IHDR":
        return content[8:10] in {b"\x08\x00", b"\x08\x02"}
    if kind in {b"tEXt", b"iTXt"}:
        keyword, _, rest = content.partition(b"\0")
        packed = kind == b"iTXt" and not rest.startswith(b"\0")
        return not (packed or keyword.startswith(b"Raw profile") or b"rientation" in rest)
    return kind in _HARMLESS


@contextmanager
def quiet() -> Iterator[None]:
    """Silence Python warnings. The filters belong to the whole process, so only one thread at a time changes them."""
    with warnings_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
