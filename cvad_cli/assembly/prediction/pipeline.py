"""Runs images through a detector: reads ahead in threads, judges in batches, finishes in threads, keeps the order.

    image items -> decode, resize (threads) -> network, search (one thread) -> regions, files (threads) -> results

All commands that judge images use this pipeline, so a file has the same score, map and regions in each of them, up to
rounding that depends on the other images of its batch. A command passes its own `finish`.

Every queue is bounded, so a slow stage slows the stages before it. An image that cannot be read becomes an error among
the results, in order. The time that an image waits (for a full batch, for its turn) is measured too, so that the stages
add up to the latency.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, TypeVar, final

import numpy as np

from cvad_cli.adapters.images import read_image, read_reduced, resize_image
from cvad_cli.adapters.prefetch import Prefetch, ready_batches
from cvad_cli.assembly.prediction.image_item import ImageId, ImageItem
from cvad_cli.errors import DataError
from cvad_cli.ports import Detector, TimedDetector
from cvad_cli.records import Prediction

Result = TypeVar("Result")

Keep = Callable[[ImageId, np.ndarray, tuple[int, int]], np.ndarray | None]
"""What to keep of an image for its finish: (image id, image as decoded, rows and columns of the file) -> kept image.

The image as decoded, uint8 RGB (h, w, 3), has the size of the file; a large JPEG may be decoded at a reduced scale.
"""

MAX_KEPT_MEGAPIXELS: Final = 12.0
"""Larger images are read again when needed: a pipeline holds about 3 batches of images, 1 GB at this size."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """An image at the network's size."""

    image_id: ImageId
    small: np.ndarray
    """uint8 RGB (h, w, 3), at the detector's `image_size`."""
    size: tuple[int, int]
    """Rows and columns of the file's image, upright."""
    kept: np.ndarray | None
    """uint8 RGB (h, w, 3): the result of the loader's `keep`."""
    read_again: Callable[[], np.ndarray] | None
    """Decodes the whole file again; None for a frame of a video."""
    started: float
    """When reading began, by `time.perf_counter`."""
    loaded: float
    stages: Mapping[str, float]
    """Seconds by stage so far."""

    def original(self) -> np.ndarray:
        """The image at its own size, uint8 RGB (h, w, 3): the kept image, or the file read again.

        Raises DataError if the file was removed or changed.
        """
        if self.kept is not None and self.kept.shape[:2] == self.size:
            return self.kept
        if self.read_again is None:
            raise ValueError(f"{self.image_id.image}: a frame that is needed at its own size has to be kept")
        image = self.read_again()
        if image.shape[:2] != self.size:
            raise DataError(f"{self.image_id.image}: was changed while it was inspected; inspect it again")
        return image


@dataclass(frozen=True, slots=True)
class Failed:
    """An image that has no verdict, and why."""

    image_id: ImageId
    error: DataError


@dataclass(frozen=True, slots=True)
class Judged:
    """An image and its prediction."""

    loaded: Loaded
    prediction: Prediction
    judged: float
    """When its batch was done, by `time.perf_counter`."""
    stages: Mapping[str, float]
    """Seconds by stage so far; each image of a batch counts the whole time of the batch."""


def keep_original(_image_id: ImageId, decoded: np.ndarray, size: tuple[int, int]) -> np.ndarray | None:
    """Keep an image that was decoded whole; `Loaded.original` reads a reduced one again."""
    return decoded if decoded.shape[:2] == size else None


def is_large(image: np.ndarray) -> bool:
    """Whether an image is too large to be kept for its finish."""
    return bool(image.shape[0] * image.shape[1] > 1e6 * MAX_KEPT_MEGAPIXELS)


def keep_nothing(_image_id: ImageId, _decoded: np.ndarray, _size: tuple[int, int]) -> None:
    """For a finish that needs only the prediction."""


@final
class Loader:
    """Reads and resizes image items for the detector, in the same way for all commands.

    A large JPEG is decoded at reduced scale, as in training (docs/predict.md). `keep` runs in the loading threads and
    does not change the input of the network.
    """

    def __init__(self, image_size: tuple[int, int], *, max_megapixels: float, keep: Keep = keep_nothing) -> None:
        self._image_size = image_size
        self._max_megapixels = max_megapixels
        self._keep = keep

    def __call__(self, image_item: ImageItem) -> Loaded:
        """Read and resize. Raises DataError naming what cannot be read."""
        started = time.perf_counter()
        decoded, size = self._read(image_item.origin)
        read = time.perf_counter()
        small = resize_image(decoded, self._image_size)
        resized = time.perf_counter()
        kept, read_again = self._keep(image_item.image_id, decoded, size), None
        if isinstance(image_item.origin, Path):  # a frame could not be read again
            kept = None if kept is None or is_large(kept) else kept
            read_again = partial(read_image, image_item.origin, max_megapixels=self._max_megapixels)
        stages = {"decode": read - started, "resize": resized - read}
        return Loaded(image_item.image_id, small, size, kept, read_again, started, resized, stages)

    def _read(self, origin: Path | np.ndarray | DataError) -> tuple[np.ndarray, tuple[int, int]]:
        if isinstance(origin, DataError):
            raise origin
        if isinstance(origin, Path):
            return read_reduced(origin, max(self._image_size), max_megapixels=self._max_megapixels)
        return origin, (origin.shape[0], origin.shape[1])


@final
class Pipeline:
    """Runs images through one detector. Its threads live as long as a `run`."""

    def __init__(self, detector: Detector, *, batch_size: int, workers: int) -> None:
        self._detector = detector
        self._batch_size = batch_size
        self._workers = workers

    def run(
        self,
        image_items: Iterable[ImageItem],
        load: Callable[[ImageItem], Loaded | Failed | None],
        finish: Callable[[Judged], Result],
        *,
        live: bool = False,
        ending: threading.Event | None = None,
    ) -> Generator[Result | Failed, None, None]:
        """Yield `finish` of each judged image, and each failure, in the order of the image items.

        If `finish` raises DataError, the image has failed; any other error ends the run. `load` returns None for an
        item to leave out. `live`: judge images as they come, otherwise in full batches. If the caller leaves the loop
        early, no further work starts and the threads end; `ending` is set first, so that a waiting source stops.
        """
        halt, ending = threading.Event(), ending or threading.Event()
        # A live image must not wait long: the camera may drop it for a newer one.
        ahead = (1 if live else 2) * self._batch_size + self._workers
        with Prefetch(image_items, load, ahead=ahead, workers=self._workers, stop=halt) as loaded:
            judged = self._judge(ready_batches(loaded, self._batch_size, patient=not live))

            def finished(one: Judged | Failed) -> Result | Failed:
                if isinstance(one, Failed):
                    return one
                try:
                    return finish(one)
                except DataError as error:
                    return Failed(one.loaded.image_id, error)

            room = self._batch_size + self._workers
            with Prefetch(judged, finished, ahead=room, workers=self._workers, stop=halt) as results:
                try:
                    yield from results
                finally:
                    ending.set()

    def _judge(self, batches: Iterable[list[Loaded | Failed | None]]) -> Iterator[Judged | Failed]:
        for batch in batches:
            images = [one for one in batch if isinstance(one, Loaded)]
            verdicts = iter(self._predict(images) if images else ())
            for one in batch:
                if isinstance(one, Loaded):
                    yield next(verdicts)
                elif one is not None:
                    yield one

    def _predict(self, images: list[Loaded]) -> list[Judged | Failed]:
        begun = time.perf_counter()
        predictions = self._detector.predict([image.small for image in images])
        done = time.perf_counter()
        split = split_of(self._detector, done - begun)
        return [
            _checked(Judged(image, prediction, done, {**image.stages, "wait": begun - image.loaded, **split}))
            for image, prediction in zip(images, predictions, strict=True)
        ]


def split_of(detector: Detector, whole_s: float) -> dict[str, float]:
    """Seconds of the detector's last call by stage; one stage, `engine`, if it does not measure stages."""
    return dict(detector.last_split) if isinstance(detector, TimedDetector) else {"engine": whole_s}


def _checked(judged: Judged) -> Judged | Failed:
    """A failure if the score is not finite: a part with NaN as its score would always pass."""
    prediction = judged.prediction
    if math.isfinite(prediction.score) and np.isfinite(prediction.anomaly_map).all():
        return judged
    image_id = judged.loaded.image_id
    return Failed(image_id, DataError(f"{image_id.image}: the detector gives no finite score for it; check the image"))
