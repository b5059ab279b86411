"""Pictures on their way through a detector: read ahead in threads, judged in batches, finished in threads, in order.

    shots -> decode, resize (threads) -> network, search (one thread) -> regions, files (threads) -> results

Every queue is bounded, so a slow part holds the ones before it back. A picture that cannot be read travels as its
error and takes its place among the results. What a picture waits for (a full batch, its turn) is measured too, so that
the parts of its latency explain the whole.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, final

import numpy as np

from cvad_cli.adapters.images import read_image, read_reduced, resize_image
from cvad_cli.adapters.prefetch import Prefetch, ready_batches
from cvad_cli.assembly.shots import Shot, Subject
from cvad_cli.errors import DataError
from cvad_cli.ports import Detector, TimedDetector
from cvad_cli.records import Prediction

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Loaded:
    """A picture at the network's size."""

    subject: Subject
    small: np.ndarray
    """uint8 RGB (h, w, 3), at the detector's `image_size`."""
    size: tuple[int, int]
    """Rows and columns of the picture itself."""
    picture: np.ndarray | None
    """The picture at its own size, where that was asked for."""
    started: float
    """When reading it began, by the clock of `time.perf_counter`."""
    loaded: float
    stages: Mapping[str, float]
    """Seconds by stage so far."""


@dataclass(frozen=True, slots=True)
class Failed:
    """A picture that has no verdict, and why."""

    subject: Subject
    error: DataError


@dataclass(frozen=True, slots=True)
class Judged:
    """A picture and what the detector says of it."""

    loaded: Loaded
    prediction: Prediction
    judged: float
    """When its batch came back, by the clock of `time.perf_counter`."""
    stages: Mapping[str, float]
    """Seconds by stage so far; what a batch took counts in full for each of its pictures, which waited for it."""


@final
class Loader:
    """Brings shots to a detector's size. `keep`: also give the picture at its own size."""

    def __init__(self, image_size: tuple[int, int], *, max_megapixels: float, keep: bool = False) -> None:
        self._image_size = image_size
        self._max_megapixels = max_megapixels
        self._keep = keep

    def __call__(self, shot: Shot) -> Loaded:
        """Read and resize. Raises DataError naming what cannot be read."""
        started = time.perf_counter()
        source, size = self._read(shot.origin)
        decoded = time.perf_counter()
        small = resize_image(source, self._image_size)
        resized = time.perf_counter()
        picture = self._at_own_size(shot.origin, source, size) if self._keep else None
        stages = {"decode": decoded - started, "resize": resized - decoded}
        return Loaded(shot.subject, small, size, picture, started, resized, stages)

    def _read(self, origin: Path | np.ndarray | DataError) -> tuple[np.ndarray, tuple[int, int]]:
        if isinstance(origin, DataError):
            raise origin
        if isinstance(origin, Path):
            return read_reduced(origin, max(self._image_size), max_megapixels=self._max_megapixels)
        return origin, (origin.shape[0], origin.shape[1])

    def _at_own_size(self, origin: object, source: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """What was reduced is read anew: the network sees the same pixels whether or not the picture is drawn on."""
        if isinstance(origin, Path) and source.shape[:2] != size:
            return read_image(origin, max_megapixels=self._max_megapixels)
        return source


@final
class Pipeline:
    """The way of pictures through one detector. Its threads live as long as a `run`."""

    def __init__(self, detector: Detector, *, batch_size: int, workers: int) -> None:
        self._detector = detector
        self._batch_size = batch_size
        self._workers = workers

    def run(
        self,
        shots: Iterable[Shot],
        load: Callable[[Shot], Loaded | Failed | None],
        finish: Callable[[Judged], Result],
        *,
        live: bool = False,
        stop: threading.Event | None = None,
    ) -> Generator[Result | Failed, None, None]:
        """Yield `finish` of each picture that was judged, and each failure, in the order of the shots.

        `load` says None for a shot that is to be left out. `live`: pictures are judged as they come, else in full
        batches. Leaving the loop early, or setting `stop`, begins nothing more and ends the threads.
        """
        halt = stop or threading.Event()
        # A live picture that waits grows stale: the camera may keep it, or drop it for a newer one.
        ahead = (1 if live else 2) * self._batch_size + self._workers
        with Prefetch(shots, load, ahead=ahead, workers=self._workers, stop=halt) as loaded:
            judged = self._judge(ready_batches(loaded, self._batch_size, patient=not live))

            def finished(one: Judged | Failed) -> Result | Failed:
                return one if isinstance(one, Failed) else finish(one)

            room = self._batch_size + self._workers
            with Prefetch(judged, finished, ahead=room, workers=self._workers, stop=halt) as results:
                yield from results

    def _judge(self, batches: Iterable[list[Loaded | Failed | None]]) -> Iterator[Judged | Failed]:
        for batch in batches:
            pictures = [one for one in batch if isinstance(one, Loaded)]
            verdicts = iter(self._predict(pictures) if pictures else ())
            for one in batch:
                if isinstance(one, Loaded):
                    yield next(verdicts)
                elif one is not None:
                    yield one

    def _predict(self, pictures: list[Loaded]) -> list[Judged | Failed]:
        begun = time.perf_counter()
        predictions = self._detector.predict([picture.small for picture in pictures])
        done = time.perf_counter()
        split = split_of(self._detector, done - begun)
        return [
            _checked(Judged(picture, prediction, done, {**picture.stages, "wait": begun - picture.loaded, **split}))
            for picture, prediction in zip(pictures, predictions, strict=True)
        ]


def split_of(detector: Detector, whole_s: float) -> dict[str, float]:
    """Seconds of the detector's last call by stage; one stage, `engine`, where it does not say."""
    return dict(detector.last_split) if isinstance(detector, TimedDetector) else {"engine": whole_s}


def _checked(judged: Judged) -> Judged | Failed:
    """A score that is no number would pass every threshold: such a picture has no verdict."""
    prediction = judged.prediction
    if math.isfinite(prediction.score) and np.isfinite(prediction.anomaly_map).all():
        return judged
    subject = judged.loaded.subject
    return Failed(
        subject, DataError(f"{subject.image}: the detector gives no number for it; see what the picture shows")
    )
