"""One image to inspect, before it is read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cvad_cli.errors import DataError
from cvad_cli.records import ImageRecord


@dataclass(frozen=True, slots=True)
class Stamp:
    """Identifies one content of a file: a file that is written again gets another stamp."""

    name: str
    """Below the watched folder, with forward slashes."""
    size: int
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class ImageId:
    """Identifies an image."""

    image: str
    """Its name in results: the path as given, `line.mp4#12` or `camera:0#12`."""
    name: str
    """A unique relative name, for files about the image."""
    stamp: Stamp | None = None
    """Only for a watched file."""
    record: ImageRecord | None = None
    """Only for an image of a data set."""


@dataclass(frozen=True, slots=True)
class ImageItem:
    """One image to inspect: a file, a frame, or the error that prevented its listing."""

    image_id: ImageId
    origin: Path | np.ndarray | DataError


def image_item_of(record: ImageRecord) -> ImageItem:
    """An image of a data set."""
    return ImageItem(ImageId(str(record.path), record.key, record=record), record.path)


def record_of(image_id: ImageId) -> ImageRecord:
    """The record of an image from `image_item_of`."""
    if image_id.record is None:
        raise ValueError(f"{image_id.image}: is not from a data set")
    return image_id.record
