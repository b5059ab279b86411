"""From a config to pictures at the network's size: the data set, and its images read ahead, in order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from cvad_cli.adapters.datasets import FolderLayout, load_folders, load_mvtec
from cvad_cli.adapters.images import read_reduced, resize_image
from cvad_cli.adapters.prefetch import prefetch
from cvad_cli.config.schema import DataConfig, default_workers
from cvad_cli.errors import DataError
from cvad_cli.records import Dataset, ImageRecord, SkippedImage

Loaded = TypeVar("Loaded")
View = TypeVar("View")


def open_dataset(data: DataConfig) -> Dataset:
    """List the pictures that the config names. Raises DataError where folders or labels do not fit."""
    root = Path(data.root).expanduser()
    if data.format == "mvtec":
        return load_mvtec(root, data.category or "")
    layout = FolderLayout(
        normal_dir=data.normal_dir,
        abnormal_dirs=data.abnormal_dirs,
        mask_dir=data.mask_dir,
        test_normal_dir=data.test_normal_dir,
        labels=data.labels,
    )
    return load_folders(root, layout, name=data.category or root.resolve().name)


def dataset_home(data: DataConfig) -> Path:
    """The folder that the keys of the config's pictures are relative to, whether or not it is there."""
    root = Path(data.root).expanduser()
    below = root / (data.category or "")
    return below if data.format == "mvtec" and below.is_dir() else root


class PictureStream:
    """Pictures of some records, decoded in threads ahead of the network, in the records' order.

    With `data.on_error: skip` an unreadable picture is passed over and listed in `skipped`; else it raises DataError.
    """

    def __init__(self, records: Sequence[ImageRecord], data: DataConfig) -> None:
        self.records = records
        self.skipped: list[SkippedImage] = []
        self._data = data

    def __iter__(self) -> Iterator[tuple[ImageRecord, np.ndarray]]:
        """Yield (record, uint8 RGB picture (s, s, 3) with s = `data.image_size`)."""
        return self._stream(lambda record: read_picture(record.path, self._data))

    def with_views(self, view: Callable[[np.ndarray], View]) -> Iterator[tuple[ImageRecord, tuple[np.ndarray, View]]]:
        """Yield (record, (picture, `view` of it as decoded)): decoded once; `view` runs in the reading threads."""

        def read(record: ImageRecord) -> tuple[np.ndarray, View]:
            image = _decoded(record.path, self._data)
            return resize_image(image, (self._data.image_size, self._data.image_size)), view(image)

        return self._stream(read)

    def _stream(self, read: Callable[[ImageRecord], Loaded]) -> Iterator[tuple[ImageRecord, Loaded]]:
        def attempt(record: ImageRecord) -> Loaded | DataError:
            try:
                return read(record)
            except DataError as error:
                return error

        outcomes = prefetch(self.records, attempt, workers=default_workers())
        for record, outcome in zip(self.records, outcomes, strict=True):
            if isinstance(outcome, DataError):
                if self._data.on_error == "stop":
                    raise outcome
                self.skipped.append(SkippedImage(record.key, str(outcome)))
            else:
                yield record, outcome


def read_picture(path: Path, data: DataConfig) -> np.ndarray:
    """One picture at the network's size: uint8 RGB (s, s, 3). Raises DataError naming the file."""
    return resize_image(_decoded(path, data), (data.image_size, data.image_size))


def _decoded(path: Path, data: DataConfig) -> np.ndarray:
    """The picture at its own size, or reduced where a JPEG is much larger than what becomes of it."""
    return read_reduced(path, data.image_size, max_megapixels=data.max_megapixels)[0]
