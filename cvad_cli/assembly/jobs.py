"""What is spread over workers: judging test pictures, inspecting new ones, describing labelled ones.

A job keeps what it has opened where it is, and travels as its settings alone: a worker opens the bundle for itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, final

import numpy as np

from cvad_cli.adapters.devices import choose_device
from cvad_cli.adapters.images.masks import LabelledMask
from cvad_cli.adapters.prefetch import batched, prefetch
from cvad_cli.assembly.detectors import OpenBundle, open_detector
from cvad_cli.assembly.inspecting import Inspection, Inspector
from cvad_cli.assembly.pictures import View, read_with_view
from cvad_cli.config.schema import RunConfig
from cvad_cli.core.regions import Region
from cvad_cli.digests import file_sha256
from cvad_cli.errors import DataError
from cvad_cli.records import ImageRecord, Prediction

Judged = tuple[Prediction, np.ndarray | None]
"""What a detector says of a picture, and the picture's view where one was asked for."""

Described = tuple[str, tuple[Region, ...], np.ndarray, str | None]
"""SHA-256 of a labelled picture's file, its labelled regions, a vector for each, (n, d), and its mask's caution."""


@final
class JudgeJob:
    """Records of pictures -> predictions and views; an unreadable picture comes as its error, at its place."""

    def __init__(
        self, settings: RunConfig, bundle: Path, opened: OpenBundle | None = None, *, view: View | None = None
    ) -> None:
        """`view` makes of each picture what is shown of it: it is decoded once."""
        self.bundle = bundle
        self._settings, self._opened, self._view = settings, opened, view

    def __reduce__(self) -> tuple[Any, ...]:
        return _judge_job, (self._settings, self.bundle, self._view)

    def at(self, bundle: Path) -> JudgeJob:
        """The same work, with the bundle in another place."""
        return JudgeJob(self._settings, bundle, view=self._view)

    def __call__(self, items: Iterable[ImageRecord]) -> Iterator[Judged | DataError]:
        """Judge pictures in batches cut by place, so that an unreadable one changes no other's batch."""
        if self._opened is None:
            self._opened = open_detector(self._settings, choose_device(self._settings.device), self.bundle)
        for batch in batched(prefetch(items, self._read), self._settings.runtime.batch_size):
            pictures = [read[0] for read in batch if not isinstance(read, DataError)]
            predictions = iter(self._opened.detector.predict(pictures) if pictures else [])
            for read in batch:
                yield read if isinstance(read, DataError) else (next(predictions), read[1])

    def _read(self, record: ImageRecord) -> tuple[np.ndarray, np.ndarray | None] | DataError:
        try:
            return read_with_view(record.path, self._settings.data, self._view)
        except DataError as error:
            return error


def _judge_job(settings: RunConfig, bundle: Path, view: View | None) -> JudgeJob:
    return JudgeJob(settings, bundle, view=view)


@final
class InspectJob:
    """Paths of pictures -> what was found in them; an unreadable picture comes as its error, at its place."""

    def __init__(
        self, settings: RunConfig, bundle: Path, inspector: Inspector | None = None, *, with_pictures: bool
    ) -> None:
        """`with_pictures`: they come back with what was found in them, even from another machine."""
        self.bundle = bundle
        self._settings, self._inspector, self._with_pictures = settings, inspector, with_pictures

    def __reduce__(self) -> tuple[Any, ...]:
        return _inspect_job, (self._settings, self.bundle, self._with_pictures)

    def at(self, bundle: Path) -> InspectJob:
        """The same work, with the bundle in another place."""
        return InspectJob(self._settings, bundle, with_pictures=self._with_pictures)

    def __call__(self, items: Iterable[Path]) -> Iterator[Inspection | DataError]:
        """Inspect pictures one by one, at their own size."""
        if self._inspector is None:
            self._inspector = Inspector.open(self._settings, choose_device(self._settings.device), self.bundle)
        for _, picture in self._inspector.pictures(list(items)):
            if isinstance(picture, DataError):
                yield picture
            else:
                inspection = self._inspector.inspect(picture)
                yield inspection if self._with_pictures else _slim(inspection)


def _inspect_job(settings: RunConfig, bundle: Path, with_pictures: bool) -> InspectJob:
    return InspectJob(settings, bundle, with_pictures=with_pictures)


def _slim(inspection: Inspection) -> Inspection:
    """What a name is made from, without the picture and the map that it was found on."""
    nothing = np.zeros((0, 0), dtype=np.float32)
    return replace(inspection, picture=nothing, anomaly_map=nothing)


@final
class DescribeJob:
    """Records of labelled defects -> their regions and vectors; what cannot be used comes as its error."""

    def __init__(self, settings: RunConfig, bundle: Path, inspector: Inspector | None = None) -> None:
        self.bundle = bundle
        self._settings, self._inspector = settings, inspector

    def __reduce__(self) -> tuple[Any, ...]:
        return DescribeJob, (self._settings, self.bundle)

    def at(self, bundle: Path) -> DescribeJob:
        """The same work, with the bundle in another place."""
        return DescribeJob(self._settings, bundle)

    def __call__(self, items: Iterable[ImageRecord]) -> Iterator[Described | DataError]:
        """Describe the regions that each picture's label is true of."""
        if self._inspector is None:
            self._inspector = Inspector.open(self._settings, choose_device(self._settings.device), self.bundle)
        records = list(items)
        for record, read in zip(records, self._inspector.labelled_pictures(records), strict=True):
            yield read if isinstance(read, DataError) else _described(self._inspector, record, *read)


def _described(inspector: Inspector, record: ImageRecord, picture: np.ndarray, mask: LabelledMask | None) -> Described:
    regions, vectors = inspector.labelled(inspector.inspect(picture, always=True), mask)
    return file_sha256(record.path), regions, vectors, None if mask is None else mask.caution
