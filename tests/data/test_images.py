from __future__ import annotations

import io
import os
import struct
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from cvad_cli.adapters.images import (
    is_self_checking,
    read_image,
    read_mask,
    read_reduced,
    resize_image,
    resize_map,
    resize_mask,
    write_image,
    write_map,
)
from cvad_cli.errors import DataError, ResourceError

RGB = np.array([[[255, 0, 10], [1, 2, 3]], [[7, 80, 200], [9, 9, 9]], [[0, 0, 0], [255, 255, 255]]], dtype=np.uint8)
GRAY = np.array([[0, 1], [127, 128], [254, 255]], dtype=np.uint8)
BITS = np.array([[0, 255], [255, 0], [0, 0]], dtype=np.uint8)
ALPHA = np.array([[255, 0], [128, 255], [1, 254]], dtype=np.uint8)
DEEP = np.array([[0, 128], [129, 1000], [32768, 65535]], dtype=np.uint16)
DEEP_AS_8 = np.array([[0, 0], [1, 4], [128, 255]], dtype=np.uint8)
"""round(v / 257): 128 / 257 is just below a half, 129 / 257 just above, 1000 / 257 = 3.89."""


def over_black(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    weight = alpha / 255 if colour.ndim == 2 else alpha[:, :, None] / 255
    return np.floor(colour * weight + 0.5).astype(np.uint8)


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pillow(levels: np.ndarray, kind: str, mode: str | None = None, **options: object) -> bytes:
    image = Image.fromarray(levels)
    return saved(image if mode is None else image.convert(mode), kind, **options)


def with_alpha(levels: np.ndarray, kind: str, **options: object) -> bytes:
    return saved(Image.fromarray(np.dstack([levels, ALPHA])), kind, **options)


def opencv(levels: np.ndarray, suffix: str) -> bytes:
    """OpenCV writes what Pillow cannot: 16 bits a channel. Its colours are BGR(A)."""
    order = [2, 1, 0, 3][: levels.shape[2]]
    return cv2.imencode(suffix, np.ascontiguousarray(levels[:, :, order]))[1].tobytes()


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(size: tuple[int, int], depth: int, colour_type: int, rows: list[bytes], extra: bytes = b"") -> bytes:
    """A PNG from raw rows, for what no library here writes. `size` is (columns, rows)."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", *size, depth, colour_type, 0, 0, 0))
    pixels = png_chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
    return b"\x89PNG\r\n\x1a\n" + header + extra + pixels + png_chunk(b"IEND", b"")


def tiff(size: tuple[int, int], pixels: bytes, **tags: tuple[int, ...]) -> bytes:
    """An uncompressed little-endian TIFF of one strip. Tags by name: bits, photometric, samples, extra, format."""
    numbers = {"bits": 258, "photometric": 262, "samples": 277, "extra": 338, "format": 339}
    entries = {256: (size[0],), 257: (size[1],), 258: (8,), 259: (1,), 262: (1,), 277: (1,), 278: (size[1],)}
    entries |= {numbers[name]: values for name, values in tags.items()} | {273: (8,), 279: (len(pixels),)}
    start = 8 + len(pixels) + len(pixels) % 2
    spill = start + 2 + 12 * len(entries) + 4
    directory, beyond = struct.pack("<H", len(entries)), b""
    for tag, values in sorted(entries.items()):
        packed = struct.pack(f"<{len(values)}H", *values)
        value = packed.ljust(4, b"\0") if len(packed) <= 4 else struct.pack("<I", spill + len(beyond))
        directory += struct.pack("<HHI", tag, 3, len(values)) + value
        beyond += packed if len(packed) > 4 else b""
    return b"II*\0" + struct.pack("<I", start) + pixels.ljust(start - 8, b"\0") + directory + b"\0" * 4 + beyond


DEEP_RGB = np.dstack([DEEP, DEEP[::-1], DEEP])
DEEP_RGB_AS_8 = np.dstack([DEEP_AS_8, DEEP_AS_8[::-1], DEEP_AS_8])
DEEP_ALPHA = np.array([[65535, 65535], [65535, 0], [32768, 65535]], dtype=np.uint16)
DEEP_OVER_BLACK = np.array([[0, 0], [1, 0], [64, 255]], dtype=np.uint8)
"""32768 at half opacity is a quarter: 16384 / 257 = 63.75."""
UNIT = np.array([[0, 0.25], [0.5, 0.75], [0.999, 1]], dtype=np.float32)
BIG_ENDIAN = DEEP.astype(">u2").tobytes()
TWELVE = bytes([0x00, 0x0F, 0xFF, 0x80, 0x00, 0x01])  # packed: 0, 4095 / 2048, 1
TWELVE_AS_8 = np.array([[0, 255], [128, 0]], dtype=np.uint8)

LOSSLESS = [
    pytest.param(pillow(GRAY, "PNG"), GRAY, id="PNG gray"),
    pytest.param(pillow(BITS, "PNG", "1"), BITS, id="PNG 1 bit"),
    pytest.param(with_alpha(GRAY, "PNG"), over_black(GRAY, ALPHA), id="PNG gray and alpha"),
    pytest.param(pillow(RGB, "PNG"), RGB, id="PNG RGB"),
    pytest.param(with_alpha(RGB, "PNG"), over_black(RGB, ALPHA), id="PNG RGBA"),
    pytest.param(saved(Image.fromarray(RGB).quantize(16), "PNG"), RGB, id="PNG palette"),
    pytest.param(pillow(DEEP, "PNG"), DEEP_AS_8, id="PNG gray 16"),
    pytest.param(opencv(DEEP_RGB, ".png"), DEEP_RGB_AS_8, id="PNG RGB 16"),
    pytest.param(
        opencv(np.dstack([DEEP, DEEP, DEEP, DEEP_ALPHA]), ".png"), np.dstack([DEEP_OVER_BLACK] * 3), id="PNG RGBA 16"
    ),
    pytest.param(
        png((2, 3), 16, 4, [np.dstack([DEEP, DEEP_ALPHA])[row].astype(">u2").tobytes() for row in range(3)]),
        np.dstack([DEEP_OVER_BLACK] * 3),
        id="PNG gray and alpha 16",
    ),
    pytest.param(
        png((2, 3), 8, 0, [bytes(row) for row in GRAY], png_chunk(b"tRNS", b"\0\xff")),
        np.where(GRAY == 255, 0, GRAY),
        id="PNG gray, one level transparent",
    ),
    pytest.param(
        png((2, 3), 16, 0, [BIG_ENDIAN[:4], BIG_ENDIAN[4:8], BIG_ENDIAN[8:]], png_chunk(b"tRNS", b"\xff\xff")),
        np.where(DEEP == 65535, 0, DEEP_AS_8),
        id="PNG gray 16, one level transparent",
    ),
    pytest.param(
        png((2, 1), 8, 2, [bytes([1, 2, 3, 4, 5, 6])], png_chunk(b"tRNS", bytes([0, 1, 0, 2, 0, 3]))),
        np.array([[[0, 0, 0], [4, 5, 6]]]),
        id="PNG RGB, one colour transparent",
    ),
    pytest.param(
        png((2, 1), 8, 3, [b"\0\1"], png_chunk(b"PLTE", bytes([200, 100, 50, 9, 8, 7])) + png_chunk(b"tRNS", b"\x80")),
        np.array([[[100, 50, 25], [9, 8, 7]]]),
        id="PNG palette, one entry half transparent",
    ),
    pytest.param(png((4, 1), 2, 0, [b"\x1b"]), np.array([[0, 85, 170, 255]]), id="PNG gray 2 bits"),
    pytest.param(pillow(GRAY, "BMP"), GRAY, id="BMP gray"),
    pytest.param(pillow(BITS, "BMP", "1"), BITS, id="BMP 1 bit"),
    pytest.param(pillow(RGB, "BMP"), RGB, id="BMP RGB"),
    pytest.param(saved(Image.fromarray(RGB).quantize(16), "BMP"), RGB, id="BMP palette"),
    pytest.param(with_alpha(RGB, "BMP"), RGB, id="BMP of 32 bits, the fourth channel unused"),
    pytest.param(pillow(GRAY, "TIFF"), GRAY, id="TIFF gray"),
    pytest.param(pillow(BITS, "TIFF", "1"), BITS, id="TIFF 1 bit"),
    pytest.param(pillow(BITS, "TIFF", "1", compression="group4"), BITS, id="TIFF fax"),
    pytest.param(with_alpha(GRAY, "TIFF"), over_black(GRAY, ALPHA), id="TIFF gray and alpha"),
    pytest.param(pillow(RGB, "TIFF"), RGB, id="TIFF RGB"),
    pytest.param(pillow(RGB, "TIFF", compression="tiff_lzw"), RGB, id="TIFF LZW"),
    pytest.param(pillow(RGB, "TIFF", compression="tiff_adobe_deflate"), RGB, id="TIFF deflate"),
    pytest.param(with_alpha(RGB, "TIFF"), over_black(RGB, ALPHA), id="TIFF RGBA"),
    pytest.param(saved(Image.fromarray(RGB).quantize(16), "TIFF"), RGB, id="TIFF palette"),
    pytest.param(pillow(RGB, "TIFF", "CMYK"), RGB, id="TIFF CMYK"),
    pytest.param(pillow(DEEP, "TIFF"), DEEP_AS_8, id="TIFF gray 16"),
    pytest.param(
        tiff((2, 3), DEEP.tobytes(), bits=(16,), photometric=(0,)), 255 - DEEP_AS_8, id="TIFF gray 16, white is zero"
    ),
    pytest.param(tiff((2, 2), TWELVE, bits=(12,)), TWELVE_AS_8, id="TIFF gray 12"),
    pytest.param(opencv(DEEP_RGB, ".tiff"), DEEP_RGB_AS_8, id="TIFF RGB 16"),
    pytest.param(
        opencv(np.dstack([DEEP, DEEP, DEEP, DEEP_ALPHA]), ".tiff"), np.dstack([DEEP_OVER_BLACK] * 3), id="TIFF RGBA 16"
    ),
    pytest.param(
        tiff((1, 1), bytes([0, 128, 0, 64, 0, 32, 0, 0]), bits=(16,) * 4, samples=(4,), photometric=(2,), extra=(0,)),
        np.array([[[128, 64, 32]]]),
        id="TIFF RGB 16 and filler",
    ),
    pytest.param(
        tiff((1, 1), bytes([0, 128, 0, 64, 0, 32, 0, 128]), bits=(16,) * 4, samples=(4,), photometric=(2,), extra=(1,)),
        np.array([[[128, 64, 32]]]),
        id="TIFF RGBA 16, alpha already applied",
    ),
    pytest.param(pillow(UNIT, "TIFF"), np.array([[0, 64], [128, 191], [255, 255]]), id="TIFF float in 0..1"),
    pytest.param(
        saved(Image.fromarray(GRAY), "TIFF", save_all=True, append_images=[Image.fromarray(255 - GRAY)]),
        GRAY,
        id="TIFF of two pages",
    ),
    pytest.param(pillow(RGB, "WEBP", lossless=True), RGB, id="WebP"),
    pytest.param(with_alpha(RGB, "WEBP", lossless=True, exact=True), over_black(RGB, ALPHA), id="WebP RGBA"),
]


@pytest.fixture
def put(tmp_path: Path) -> Callable[..., Path]:
    def write(content: bytes, name: str = "part.png") -> Path:
        path = tmp_path / name
        path.write_bytes(content)
        return path

    return write


@pytest.mark.parametrize(("content", "expected"), LOSSLESS)
def test_every_lossless_kind_becomes_the_same_8_bit_rgb(put, capfd, content: bytes, expected: np.ndarray) -> None:
    image = read_image(put(content))
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, expected if expected.ndim == 3 else np.dstack([expected] * 3))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("mode", "kind"), [("L", "JPEG"), ("RGB", "JPEG"), ("CMYK", "JPEG"), ("RGB", "WEBP"), ("RGB", "MPO")]
)
def test_lossy_kinds_come_close(put, mode: str, kind: str) -> None:
    rows, columns = np.mgrid[:32, :48]
    smooth = np.dstack([rows * 8, columns * 5, rows + columns]).astype(np.uint8)
    expected = np.asarray(Image.fromarray(smooth).convert("L" if mode == "L" else "RGB").convert("RGB"))
    image = read_image(put(saved(Image.fromarray(smooth).convert(mode), kind, quality=95)))
    assert image.shape == (32, 48, 3)
    assert np.abs(image.astype(int) - expected).max() <= 12


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP"])
def test_the_exif_orientation_is_applied(put, kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    path = put(saved(Image.fromarray(np.kron(RGB, np.ones((8, 8, 1), np.uint8))), kind, exif=exif))
    with Image.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    np.testing.assert_array_equal(read_image(path), expected)


def test_16_bit_colour_is_turned_upright_too(put) -> None:
    exif = Image.Exif()
    exif[274] = 6
    content = opencv(DEEP_RGB, ".png")
    oriented = content[:33] + png_chunk(b"eXIf", exif.tobytes()[6:]) + content[33:]
    np.testing.assert_array_equal(read_image(put(oriented)), np.rot90(DEEP_RGB_AS_8, -1))


def test_an_exif_block_that_cannot_be_read_says_nothing(put) -> None:
    content = pillow(RGB, "PNG")
    for block in (b"rubbish", b"MM\0*\0\0\0\x08\xff\xff"):
        path = put(content[:33] + png_chunk(b"eXIf", block) + content[33:])
        np.testing.assert_array_equal(read_image(path), RGB)


def test_an_orientation_in_xmp_counts_beside_harmless_text(put) -> None:
    content = pillow(RGB, "PNG")
    for xmp, expected in ((b'tiff:Orientation="6"', np.rot90(RGB, -1)), (b"a comment", RGB)):
        text = png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0<x:xmpmeta " + xmp + b"/>")
        path = put(content[:33] + text + png_chunk(b"tEXt", b"Comment\0part") + content[33:])
        np.testing.assert_array_equal(read_image(path), expected)


SMOOTH = np.dstack([np.mgrid[:640, :960][0] // 3, np.mgrid[:640, :960][1] // 4, np.full((640, 960), 90)]).astype(
    np.uint8
)


@pytest.mark.parametrize(
    ("side", "shape"),
    [(400, (640, 960)), (160, (320, 480)), (161, (640, 960)), (80, (160, 240)), (40, (80, 120)), (10, (80, 120))],
)
def test_a_jpeg_is_decoded_smaller_while_it_stays_twice_as_large_as_its_use(put, side: int, shape) -> None:
    path = put(pillow(SMOOTH, "JPEG", quality=95), "part.jpg")
    image, size = read_reduced(path, side)
    assert (image.shape, size) == ((*shape, 3), (640, 960))
    whole = resize_image(read_image(path), (side, side)).astype(int)
    assert np.abs(resize_image(image, (side, side)) - whole).max() <= 3


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_the_original_size_is_that_of_the_upright_image(put, orientation: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    path = put(saved(Image.fromarray(SMOOTH[:633]), "JPEG", exif=exif), "part.jpg")
    image, size = read_reduced(path, 40)
    assert size == read_image(path).shape[:2] == ((960, 633) if orientation >= 5 else (633, 960))
    assert (image.shape[0] > image.shape[1]) == (size[0] > size[1])


def test_other_kinds_are_never_reduced(put) -> None:
    for kind in ("PNG", "BMP", "TIFF", "WEBP"):
        image, size = read_reduced(put(pillow(SMOOTH, kind)), 20)
        assert image.shape[:2] == size == (640, 960)


def test_a_reduced_jpeg_that_is_cut_short_is_still_refused(put) -> None:
    content = pillow(SMOOTH, "JPEG")
    with pytest.raises(DataError, match="cannot be decoded"):
        read_reduced(put(content[: len(content) // 2], "part.jpg"), 40)


def test_a_png_proves_itself_and_nothing_else_does(put) -> None:
    assert is_self_checking(put(pillow(RGB, "PNG"), "named.jpg"))
    for kind in ("JPEG", "BMP", "TIFF", "WEBP"):
        assert not is_self_checking(put(pillow(RGB, kind), "named.png"))


def test_content_counts_not_the_suffix(put) -> None:
    np.testing.assert_array_equal(read_image(put(pillow(RGB, "BMP"), "photo.PNG")), RGB)


HUGE = png((60000, 60000), 8, 0, [])
WRONG = [
    pytest.param(b"", "is empty (0 bytes); copy or export it again", id="empty"),
    pytest.param(b"not an image\n" * 9, "is not a PNG, JPEG, BMP, TIFF or WebP image; convert it", id="text"),
    pytest.param(pillow(GRAY, "GIF"), "is not a PNG, JPEG, BMP, TIFF or WebP image; convert it", id="GIF"),
    pytest.param(b"RIFF\x24\0\0\0WAVEfmt ", "is not a PNG", id="sound in RIFF"),
    pytest.param(HUGE, "60000 x 60000 pixels are 3600.0 megapixels, above the bound of 100; shrink", id="huge PNG"),
    pytest.param(HUGE[:33], "is cut short, its end is missing", id="only a header"),
    pytest.param(pillow(RGB, "PNG")[:60], "is cut short, its end is missing; copy", id="cut PNG"),
    pytest.param(pillow(RGB, "PNG")[:-5], "is cut short, its end is missing; copy", id="PNG without its end"),
    pytest.param(
        pillow(RGB, "PNG").replace(b"IDATx", b"IDATX"), "the checksum of its IDAT data is wrong", id="changed PNG"
    ),
    pytest.param(png((0, 4), 8, 0, [b""] * 4), "cannot be decoded", id="no columns"),
    pytest.param(pillow(RGB, "JPEG")[:-30], "cannot be decoded (image file is truncated", id="cut JPEG"),
    pytest.param(pillow(GRAY.astype(np.int32), "TIFF"), "has signed or 32-bit integers", id="32-bit integers"),
    pytest.param(pillow(UNIT * 300, "TIFF"), "has floating-point levels from 0 to 300; scale them", id="float to 300"),
    pytest.param(pillow(UNIT * np.nan, "TIFF"), "has floating-point levels from nan to nan", id="not a number"),
    pytest.param(
        tiff((1, 1), b"\0" * 8, bits=(64,), format=(3,)), "cannot be decoded (unknown pixel mode)", id="double"
    ),
]


@pytest.mark.parametrize(("content", "message"), WRONG)
def test_an_unusable_file_is_named_with_what_is_wrong(put, content: bytes, message: str) -> None:
    path = put(content)
    with pytest.raises(DataError) as caught:
        read_image(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)


def test_what_is_no_readable_file_is_named(tmp_path: Path) -> None:
    folder, pipe, loop = (tmp_path / name for name in ("folder.png", "pipe.png", "loop.png"))
    folder.mkdir()
    os.mkfifo(pipe)
    loop.symlink_to(loop)
    cases = {
        tmp_path / "absent.png": "no such file; check the path",
        folder: "is a folder, not an image",
        pipe: "is not a regular file",
        loop: "cannot be opened",
        tmp_path / ("x" * 300): "cannot be opened",
        tmp_path / "nul\0.png": "cannot be opened",
    }
    for path, message in cases.items():
        with pytest.raises(DataError, match=message):
            read_image(path)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read every file")
def test_a_forbidden_file_is_named(put) -> None:
    path = put(pillow(RGB, "PNG"))
    path.chmod(0)
    with pytest.raises(DataError, match="may not be read; give this user permission"):
        read_image(path)


NOISE = np.random.default_rng(7).integers(0, 256, (40, 56, 3), dtype=np.uint8)
NOISE_DEEP = NOISE.astype(np.uint16) * 257
ENCODED = {
    "PNG": pillow(NOISE, "PNG"),
    "PNG 16": opencv(NOISE_DEEP, ".png"),
    "JPEG": pillow(NOISE, "JPEG"),
    "JPEG progressive": pillow(NOISE, "JPEG", progressive=True),
    "BMP": pillow(NOISE, "BMP"),
    "TIFF": pillow(NOISE, "TIFF"),
    "TIFF LZW": pillow(NOISE, "TIFF", compression="tiff_lzw"),
    "TIFF deflate": pillow(NOISE, "TIFF", compression="tiff_adobe_deflate"),
    "TIFF JPEG": pillow(NOISE, "TIFF", compression="jpeg"),
    "TIFF 16": opencv(NOISE_DEEP, ".tiff"),
    "WebP": pillow(NOISE, "WEBP"),
    "WebP lossless": pillow(NOISE, "WEBP", lossless=True),
}


@pytest.mark.parametrize("kind", ENCODED)
def test_a_file_cut_anywhere_is_never_half_an_image(put, kind: str) -> None:
    content = ENCODED[kind]
    read_image(put(content))
    for share in (*np.arange(0, 1, 0.1), 0.99):
        with pytest.raises(DataError, match=r"part\.png"):
            read_image(put(content[: int(len(content) * share)]))
    for missing in (1, 2, 5, 12):
        with pytest.raises(DataError, match=r"part\.png"):
            read_image(put(content[:-missing]))


@pytest.mark.parametrize("kind", ["PNG", "PNG 16"])
def test_a_png_filled_up_with_zeros_is_never_half_an_image(put, kind: str) -> None:
    content = ENCODED[kind]
    for share in np.arange(0, 1, 0.1):
        kept = content[: int(len(content) * share)]
        with pytest.raises(DataError, match=r"part\.png"):
            read_image(put(kept.ljust(len(content), b"\0")))


@pytest.mark.parametrize("kind", ENCODED)
def test_changed_bytes_give_a_image_or_a_data_error(put, kind: str) -> None:
    rng = np.random.default_rng(zlib.crc32(kind.encode()))
    refused = 0
    for _ in range(40):
        content = bytearray(ENCODED[kind])
        for place in rng.integers(0, min(len(content), 400), 3):
            content[place] = rng.integers(256)
        try:
            read_image(put(bytes(content)))
        except DataError:
            refused += 1
    assert refused > 0


def test_an_image_just_within_the_bound_is_read_without_a_warning(put) -> None:
    path = put(saved(Image.new("1", (9500, 10000)), "PNG"))
    assert read_image(path).shape == (10000, 9500, 3)  # 95 megapixels: Pillow alone would warn above 89
    with pytest.raises(DataError, match=r"95\.0 megapixels, above the bound of 94\.5; .*data\.max_megapixels"):
        read_image(path, max_megapixels=94.5)


def test_threads_leave_the_warning_filters_as_they_were(put) -> None:
    path = put(ENCODED["TIFF"])
    before = list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        assert len(list(pool.map(lambda _: read_image(path), range(64)))) == 64
    assert warnings.filters == before


def test_a_gray_image_costs_one_channel_and_cannot_be_written_to(put) -> None:
    image = read_image(put(pillow(GRAY, "PNG")))
    assert image.strides[2] == 0
    assert not image.flags.writeable


MASKS = [
    pytest.param(pillow(GRAY, "PNG"), GRAY > 0, id="gray"),
    pytest.param(pillow(BITS, "PNG", "1"), BITS > 0, id="1 bit"),
    pytest.param(pillow(DEEP // 128, "PNG"), DEEP >= 128, id="16-bit labels from 1"),
    pytest.param(opencv(DEEP_RGB, ".png"), DEEP_RGB.any(axis=2), id="RGB 16"),
    pytest.param(pillow(RGB, "PNG"), RGB.any(axis=2), id="RGB"),
    pytest.param(saved(Image.fromarray(RGB).quantize(16), "PNG"), RGB.any(axis=2), id="palette: colours, not indices"),
    pytest.param(with_alpha(RGB, "PNG"), over_black(RGB, ALPHA).any(axis=2), id="transparent is no defect"),
    pytest.param(pillow(GRAY.astype(np.int32), "TIFF"), GRAY > 0, id="32-bit labels"),
    pytest.param(pillow(UNIT * 300, "TIFF"), UNIT > 0, id="float of any range"),
]


@pytest.mark.parametrize(("content", "expected"), MASKS)
def test_any_pixel_of_a_mask_that_is_not_zero_is_a_defect(put, content: bytes, expected: np.ndarray) -> None:
    mask = read_mask(put(content))
    assert mask.dtype == np.bool_
    np.testing.assert_array_equal(mask, expected)


def test_a_jpeg_mask_does_not_grow_where_its_edges_ring(put) -> None:
    exact = np.zeros((64, 64), dtype=np.uint8)
    exact[13:30, 21:45] = 255
    content = pillow(exact, "JPEG")
    assert (np.asarray(Image.open(io.BytesIO(content))) > 0).sum() > exact.astype(bool).sum()
    np.testing.assert_array_equal(read_mask(put(content)), exact > 0)


def test_a_mask_is_bounded_and_checked_like_an_image(put) -> None:
    with pytest.raises(DataError, match="megapixels"):
        read_mask(put(HUGE))
    with pytest.raises(DataError, match="is cut short"):
        read_mask(put(pillow(GRAY, "PNG")[:-4]))


@pytest.mark.parametrize(
    "size", [(32, 32), (13, 17), (64, 20), (90, 100), (40, 56)], ids=["half", "odd", "both ways", "larger", "same"]
)
def test_resizing_gray_as_one_channel_equals_resizing_three(put, size: tuple[int, int]) -> None:
    gray = read_image(put(pillow(NOISE[:, :, 0], "PNG")))
    small = resize_image(gray, size)
    np.testing.assert_array_equal(small, resize_image(np.array(gray, order="C"), size))
    assert small.shape == (*size, 3)
    assert small.flags.c_contiguous
    assert small.flags.writeable


def test_shrinking_by_two_follows_the_cubic_filter_over_twice_its_width() -> None:
    step = np.zeros((4, 16, 3), dtype=np.uint8)
    step[:, 8:] = 240
    x = np.array([0.25, 0.75, 1.25, 1.75])  # distances of eight pixels to the middle, in pixels of the result
    near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * (x**3 - 5 * x**2 + 8 * x - 4)  # Keys' cubic, a = -0.5
    weights = np.where(x < 1, near, far) / 2
    edge = 240 * np.array([0, 0, weights[3], weights[1:].sum(), 1 - weights[1:].sum(), 1 - weights[3], 1, 1])
    expected = np.rint(edge.clip(0, 255))
    np.testing.assert_array_equal(resize_image(step, (2, 8))[0, :, 0], expected)


def test_shrinking_lets_hardly_any_moire_through() -> None:
    stripes = np.round(127.5 + 127.5 * np.cos(2 * np.pi * np.arange(1024) / 2.6)).astype(np.uint8)
    texture = np.broadcast_to(stripes[None, :, None], (64, 1024, 3))
    contrast = np.ptp(resize_image(np.array(texture), (16, 256))[8, 4:-4, 0].astype(int)) / 255
    aliased = np.ptp(cv2.resize(np.array(texture), (256, 16), interpolation=cv2.INTER_AREA)[8, 4:-4, 0]) / 255
    assert contrast < 0.05
    assert aliased > 0.2


@pytest.mark.parametrize(
    "image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3), np.float32)]
)
def test_only_8_bit_rgb_is_resized(image: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"expected uint8 \(h, w, 3\)"):
        resize_image(image, (2, 2))


def test_a_mask_is_resized_to_the_nearest_pixel() -> None:
    mask = np.zeros((8, 8), dtype=np.bool_)
    mask[2:6, 4:] = True
    expected = np.array([[0, 0, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 0, 0]], dtype=np.bool_)
    np.testing.assert_array_equal(resize_mask(mask, (4, 4)), expected)
    np.testing.assert_array_equal(resize_mask(resize_mask(mask, (16, 16)), (8, 8)), mask)


def test_a_scratch_between_the_nearest_pixels_does_not_disappear() -> None:
    mask = np.zeros((16, 16), dtype=np.bool_)
    mask[5, 2:14] = True
    expected = np.zeros((4, 4), dtype=np.bool_)
    expected[1] = True
    np.testing.assert_array_equal(resize_mask(mask, (4, 4)), expected)
    assert not resize_mask(np.zeros((16, 16), np.bool_), (4, 4)).any()


def test_a_map_is_enlarged_between_its_values_and_never_beyond() -> None:
    values = np.array([[0, 4], [8, 12]], dtype=np.float32)
    large = resize_map(values, (4, 4))
    np.testing.assert_array_equal(large[0], [0, 1, 3, 4])
    np.testing.assert_array_equal(large[:, 0], [0, 2, 6, 8])


def test_a_map_that_shrinks_keeps_its_mean() -> None:
    peak = np.zeros((4, 8), dtype=np.float32)
    peak[0, 0] = 16
    np.testing.assert_array_equal(resize_map(peak, (1, 2)), [[1, 0]])


@pytest.mark.parametrize("image", [RGB, GRAY, BITS > 0], ids=["RGB", "gray", "mask"])
def test_a_written_image_reads_back_the_same(tmp_path: Path, image: np.ndarray) -> None:
    path = tmp_path / "new" / "part.png"
    write_image(path, image)
    read_back = read_mask(path) if image.dtype == np.bool_ else read_image(path)
    np.testing.assert_array_equal(read_back, np.dstack([image] * 3) if image is GRAY else image)
    assert [entry.name for entry in path.parent.iterdir()] == ["part.png"]


def test_a_image_that_cannot_be_written_leaves_the_former_one(tmp_path: Path) -> None:
    path = tmp_path / "part.png"
    write_image(path, GRAY)
    with pytest.raises(ValueError, match="expected uint8"):
        write_image(path, RGB.astype(np.float64))
    with pytest.raises(ResourceError, match=r"part\.png"):
        write_image(path / "below.png", GRAY)
    np.testing.assert_array_equal(read_mask(path), GRAY > 0)
    assert [entry.name for entry in tmp_path.iterdir()] == ["part.png"]


def test_a_map_is_written_to_the_last_bit(tmp_path: Path) -> None:
    values = np.random.default_rng(3).normal(0, 1e3, (37, 53)).astype(np.float32)
    write_map(tmp_path / "new" / "map.tiff", values)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "new" / "map.tiff")), values)
    with pytest.raises(ValueError, match=r"expected \(h, w\)"):
        write_map(tmp_path / "map.tiff", values[None])
