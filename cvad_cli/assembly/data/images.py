"""From a config to images at the network's size: opens the data set and reads its images ahead, in order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import overload

import numpy as np

from cvad_cli.adapters.datasets import FolderLayout, load_folders, load_mvtec
from cvad_cli.adapters.images import read_labelled_mask, read_reduced, resize_image
from cvad_cli.adapters.images.masks import LabelledMask
from cvad_cli.adapters.prefetch import prefetch
from cvad_cli.config.processors import reading_threads
from cvad_cli.config.schema import DataConfig
from cvad_cli.errors import DataError
from cvad_cli.records import Dataset, ImageRecord, SkippedImage


def open_dataset(data: DataConfig) -> Dataset:
    """List the images that the config names. Raises DataError where folders or labels do not fit."""
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
    """The folder that the keys of the config's images are relative to, whether or not it exists."""
    root = Path(data.root).expanduser()
    below = root / (data.category or "")
    return below if data.format == "mvtec" and below.is_dir() else root


class ImageStream:
    """Images of some records, decoded in threads ahead of the network, in the records' order.

    With `data.on_error: skip` an unreadable image is skipped and listed in `skipped`; else it raises DataError.
    """

    def __init__(self, records: Sequence[ImageRecord], data: DataConfig) -> None:
        self.records = records
        self.skipped: list[SkippedImage] = []
        self._data = data

    @property
    def readable(self) -> list[ImageRecord]:
        """The records of the readable images; valid after all images were read."""
        skipped = {image.key for image in self.skipped}
        return [record for record in self.records if record.key not in skipped]

    def __iter__(self) -> Iterator[tuple[ImageRecord, np.ndarray]]:
        """Yield (record, uint8 RGB image (s, s, 3) with s = `data.image_size`)."""

        def attempt(record: ImageRecord) -> np.ndarray | DataError:
            try:
                return read_image(record.path, self._data)
            except DataError as error:
                return error

        outcomes = prefetch(self.records, attempt, workers=reading_threads())
        for record, outcome in zip(self.records, outcomes, strict=True):
            if isinstance(outcome, DataError):
                if self._data.on_error == "stop":
                    raise outcome
                self.skipped.append(SkippedImage(record.key, str(outcome)))
            else:
                yield record, outcome


class LazyImages(Sequence[np.ndarray]):
    """Images that are read on access: an epoch over them needs memory for one batch."""

    def __init__(self, records: Sequence[ImageRecord], data: DataConfig) -> None:
        self._records = records
        self._data = data

    def __len__(self) -> int:
        return len(self._records)

    @overload
    def __getitem__(self, index: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, index: slice) -> LazyImages: ...
    def __getitem__(self, index: int | slice) -> np.ndarray | LazyImages:
        if isinstance(index, slice):
            return LazyImages(self._records[index], self._data)
        return read_image(self._records[index].path, self._data)


def read_image(path: Path, data: DataConfig) -> np.ndarray:
    """One image at the network's size: uint8 RGB (s, s, 3). Raises DataError naming the file."""
    decoded, _ = read_reduced(path, data.image_size, max_megapixels=data.max_megapixels)
    return resize_image(decoded, (data.image_size, data.image_size))


def read_part(path: Path, data: DataConfig, part: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """What `part` cuts out of the image as decoded, at the network's size: uint8 RGB (s, s, 3)."""
    decoded, _ = read_reduced(path, data.image_size, max_megapixels=data.max_megapixels)
    return resize_image(np.ascontiguousarray(part(decoded)), (data.image_size, data.image_size))


def read_mask_of(record: ImageRecord, data: DataConfig) -> LabelledMask | None:
    """The defect mask at the image's size; None where there is none. Raises DataError naming what does not fit."""
    return read_labelled_mask(record, max_megapixels=data.max_megapixels)
