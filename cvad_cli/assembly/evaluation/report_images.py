"""The images of the evaluation's page, drawn while the test set streams past: files of bounded size, rows of text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cvad_cli.adapters.image_panels.report_thumbnails import PHOTO_BYTES, Thumbnail
from cvad_cli.records import ImageRecord

PORTABLE_BYTES: Final = 13_000_000
"""For the photos of a portable page. With maps, outlines and base64's third on top, 1,000 images stay under 30 MB."""

MIN_PHOTO_BYTES: Final = 4_000
"""Of a portable page of very many images: a photo of some 130 pixels."""


@dataclass(frozen=True, slots=True)
class ImageRow:
    """One test image as the page shows it. Its photo and its map are files of the folder."""

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
    """SVG path of the mask; '' for a good part, None where it is not known."""
    share_above: float


class ReportImages:
    """Writes what the page shows of every test image into a folder."""

    def __init__(self, folder: Path, *, images: int, portable: bool) -> None:
        self.folder = folder
        self.portable = portable
        self.rows: list[ImageRow] = []
        self.photo_bytes = PHOTO_BYTES
        """Bound on a photo: a sketch is to keep it."""
        if portable:
            self.photo_bytes = min(PHOTO_BYTES, max(PORTABLE_BYTES // max(images, 1), MIN_PHOTO_BYTES))
        folder.mkdir()

    def add(self, record: ImageRecord, score: float, peak: float, drawn: Thumbnail) -> None:
        """Write the files of one image. `peak`: the highest value of its map."""
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
