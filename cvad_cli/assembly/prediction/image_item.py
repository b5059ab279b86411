"""One image to inspect, before it is read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cvad_cli.errors import DataError
from cvad_cli.records import ImageRecord


@dataclass(frozen=True, slots=True)
class Stamp:
    """Which content of a file is meant: a file that is written again is another one."""

    name: str
    """Below the watched folder, with forward slashes."""
    size: int
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class ImageId:
    """Which image is spoken of."""

    image: str
    """What results call it: the path as it was given, `line.mp4#12`, `camera:0#12`."""
    name: str
    """Relative, of this image alone: what files about it are called."""
    stamp: Stamp | None = None
    """Of a watched file."""
    record: ImageRecord | None = None
    """Of an image of a data set."""


@dataclass(frozen=True, slots=True)
class ImageItem:
    """One image to inspect: a file, a frame, or what could not even be listed."""

    image_id: ImageId
    origin: Path | np.ndarray | DataError


def image_item_of(record: ImageRecord) -> ImageItem:
    """An image of a data set."""
    return ImageItem(ImageId(str(record.path), record.key, record=record), record.path)


def record_of(image_id: ImageId) -> ImageRecord:
    """What a data set says of an image that came from `image_item_of`."""
    if image_id.record is None:
        raise ValueError(f"{image_id.image}: is not from a data set")
    return image_id.record
