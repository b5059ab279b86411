"""Reads defect masks, checks them against their images, and resizes them.

Image and mask are each turned by their own EXIF orientation before their shapes are compared. A mask of the same aspect
and another size is resized to the image's size; any other shape is refused: a stretched mask would mark good surface.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from PIL import TiffImagePlugin

from cvad_cli.adapters.images.levels import levels_of, orientation
from cvad_cli.adapters.images.opening import Opened, opened
from cvad_cli.core.masks import covered
from cvad_cli.errors import DataError
from cvad_cli.records import ImageRecord

ASPECT_TOLERANCE: Final = 0.01
"""The aspects of an image and its mask may differ by this share, or by what rounding to whole pixels explains."""

Size = tuple[int, int]
"""Rows and columns."""


@dataclass(frozen=True, slots=True)
class Layout:
    """The size and orientation of an image, from its header."""

    size: Size
    """Rows and columns after the EXIF orientation is applied."""
    orientation: int
    """The EXIF orientation, 1 to 8; 1 where there is none."""


@dataclass(frozen=True, slots=True)
class LabelledMask:
    """The mask of an image, at that image's size."""

    mask: np.ndarray
    """bool (h, w)."""
    caution: str | None = None
    """Why the mask may be oriented differently from its image; None if there is no sign of it."""


def layout(path: Path, *, max_megapixels: float = 100.0) -> Layout:
    """Read size and orientation, without decoding the pixels if possible. Raises DataError like `read_image`."""
    with opened(path, max_megapixels, proven=False) as found:
        return _layout(found)


def _layout(found: Opened) -> Layout:
    """Call before decoding: Pillow turns a TIFF while it decodes, and drops its orientation."""
    image, turn = found.image, 1 if found.plain else orientation(found.image)
    rows, columns = found.size
    if isinstance(image, TiffImagePlugin.TiffImageFile):  # some versions of Pillow turn its size before
        rows, columns = image.tag_v2[TiffImagePlugin.IMAGELENGTH], image.tag_v2[TiffImagePlugin.IMAGEWIDTH]
    return Layout((columns, rows) if turn >= 5 else (rows, columns), turn)


def read_mask(path: Path, *, max_megapixels: float = 100.0) -> np.ndarray:
    """Decode a defect mask to bool (h, w): any non-zero pixel is a defect. Raises DataError like `read_image`.

    Levels are not scaled first, so labels 1, 2, 3 in 16 bits count. JPEG blurs the edges of a mask:
    there a pixel counts if it is above half of the brightest one.
    """
    return _decoded(path, max_megapixels)[0]


def _decoded(path: Path, max_megapixels: float) -> tuple[np.ndarray, int]:
    """The mask, and the orientation that was applied to it."""
    with opened(path, max_megapixels) as found:
        turn = _layout(found).orientation
        levels = levels_of(found)
        lossy = found.image.format == "JPEG"
    marked = levels > levels.max() / 2 if lossy else levels != 0
    return np.asarray(marked.any(axis=2) if marked.ndim == 3 else marked), turn


def read_labelled_mask(record: ImageRecord, *, max_megapixels: float = 100.0) -> LabelledMask | None:
    """Read the mask of an image at the size of that image; None where the record names none.

    Raises DataError where a file cannot be read, and where the mask is transposed or of another aspect than its image.
    """
    if record.mask_path is None:
        return None
    image = layout(record.path, max_megapixels=max_megapixels)
    mask, turn = _decoded(record.mask_path, max_megapixels)
    size = (mask.shape[0], mask.shape[1])
    if not _fits(size, image.size):
        raise _misfit(record.mask_path, Layout(size, turn), record.path, image)
    caution = _caution(record.mask_path, turn, record.path, image.orientation)
    return LabelledMask(mask if size == image.size else resize_mask(mask, image.size), caution)


def _fits(mask: Size, image: Size) -> bool:
    """Whether two sizes differ in scale alone."""
    if mask == image[::-1] and mask != image:
        return False  # transposed, even where the aspect is nearly 1
    scales = [length / whole for length, whole in zip(mask, image, strict=True)]
    if max(scales) <= min(scales) * (1 + ASPECT_TOLERANCE):
        return True
    # One scale can explain both sides, each rounded up or down to whole pixels.
    lowest = max((length - 1) / whole for length, whole in zip(mask, image, strict=True))
    return lowest < min((length + 1) / whole for length, whole in zip(mask, image, strict=True))


def _misfit(mask_path: Path, mask: Layout, path: Path, image: Layout) -> DataError:
    turns = [
        f"EXIF orientation {lies.orientation} of the {name} was applied"
        for name, lies in (("image", image), ("mask", mask))
        if lies.orientation != 1
    ]
    if _fits(mask.size, image.size[::-1]):
        what = "the mask is transposed; turn it to match the image as shown"
    else:
        what = f"their aspects differ by more than {ASPECT_TOLERANCE:.0%}; export it at the size of its image"
    return DataError(
        f"{mask_path}: the mask has {mask.size[1]} x {mask.size[0]} pixels (width x height), its image {path} has "
        f"{image.size[1]} x {image.size[0]}: {'; '.join([what, *turns])}. Or remove the mask: the image then counts "
        "without one"
    )


def _caution(mask_path: Path, mask_turn: int, path: Path, turn: int) -> str | None:
    if (turn == 1) == (mask_turn == 1):
        return None
    tagged, plain = ("image", "mask") if mask_turn == 1 else ("mask", "image")
    return (
        f"{mask_path}: EXIF orientation {max(turn, mask_turn)} turns the {tagged} alone, since the {plain} has none "
        f"(image: {path}); check that both have the same orientation, then save both upright without the tag"
    )


def one_warning(cautions: Sequence[str]) -> str:
    """The first caution, with the number of the others."""
    others = len(cautions) - 1
    return f"{cautions[0]} ({others} more masks have the same problem)" if others else cautions[0]


def resize_mask(mask: np.ndarray, size: Size) -> np.ndarray:
    """Resize a bool mask (h, w) to `size` (rows, columns): nearest pixel, as anomalib does.

    If the nearest pixel would lose a whole mask, such as a scratch one pixel wide, every marked pixel counts: no defect
    disappears from the ground truth. Always counting every marked pixel would enlarge grid's masks by 20 % at 256
    pixels.
    """
    import cv2

    resized = cv2.resize(mask.astype(np.uint8), (size[1], size[0]), interpolation=cv2.INTER_NEAREST) != 0
    return np.asarray(resized) if resized.any() or not mask.any() else covered(mask, size)
