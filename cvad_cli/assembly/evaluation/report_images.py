"""The images of the evaluation's page: files of bounded size, and one row of data per image."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cvad_cli.adapters.image_panels.report_thumbnails import PHOTO_BYTES, Thumbnail
from cvad_cli.records import ImageRecord

PORTABLE_BYTES: Final = 13_000_000
"""Total bytes of the photos of a portable page: with maps, outlines and base64, 1,000 images take less than 30 MB."""

MIN_PHOTO_BYTES: Final = 4_000
"""Minimum bytes of a photo on a portable page with very many images: about 130 pixels."""


@dataclass(frozen=True, slots=True)
class ImageRow:
    """One test image on the page. Its photo and its map are files in the folder."""

    record: ImageRecord
    score: float
    peak: float
    photo: str
    map_image: str
    width: int
    """Of the image, in the units of the outlines."""
    height: int
    outline: str
    truth: str | None
    """SVG path of the mask; '' for a good part, None if it is not known."""
    share_above: float


class ReportImages:
    """Writes the images of the page into a folder."""

    def __init__(self, folder: Path, *, images: int, portable: bool) -> None:
        self.folder = folder
        self.portable = portable
        self.rows: list[ImageRow] = []
        self.photo_bytes = PHOTO_BYTES
        """Maximum bytes of a photo."""
        if portable:
            self.photo_bytes = min(PHOTO_BYTES, max(PORTABLE_BYTES // max(images, 1), MIN_PHOTO_BYTES))
        folder.mkdir()

    def add(self, record: ImageRecord, score: float, peak: float, drawn: Thumbnail) -> None:
        """Write the files of one image. `peak`: the maximum of its map."""
        number = len(self.rows) + 1
        photo, map_image = f"{number:05d}.jpg", f"{number:05d}-map.jpg"
        (self.folder / photo).write_bytes(drawn.photo)
        (self.folder / map_image).write_bytes(drawn.map_image)
        self.rows.append(
            ImageRow(
                record=record,
                score=score,
                peak=peak,
                photo=photo,
                map_image=map_image,
                width=drawn.width,
                height=drawn.height,
                outline=drawn.outline,
                truth=drawn.truth,
                share_above=drawn.share_above,
            )
        )
