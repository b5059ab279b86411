"""The job that judges images, in this process or on workers: it turns items into outcomes through a pipeline.

Commands differ only in their `Step`: the image of an item, what is kept of the image, and the outcome of a verdict. A
job is sent as its settings and its step; each worker opens the bundle itself.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, final

import numpy as np

from cvad_cli.adapters.machine.devices import choose_device
from cvad_cli.assembly.prediction.image_item import ImageId, ImageItem
from cvad_cli.assembly.prediction.pipeline import Failed, Judged, Loaded, Loader, Pipeline, keep_nothing, keep_original
from cvad_cli.assembly.prediction.results import Finished, PostProcessor
from cvad_cli.assembly.prediction.sources import Sources
from cvad_cli.assembly.serving.open_bundle import OpenBundle, open_detector
from cvad_cli.config.schema import RunConfig

Item = TypeVar("Item", contravariant=True)  # noqa: PLC0105 - a step takes them
Result = TypeVar("Result", covariant=True)  # noqa: PLC0105
In = TypeVar("In")
Out = TypeVar("Out")

Load = Callable[[Loader, ImageItem], Loaded | Failed | None]
"""How a source reads an image; None for one that is left out."""


class Step(Protocol[Item, Result]):
    """The command's part of the work on an image. It is pickled for workers without what it has opened."""

    def image_item(self, item: Item, /) -> ImageItem:
        """The image that an item stands for."""

    def keep(self, image_id: ImageId, decoded: np.ndarray, size: tuple[int, int], /) -> np.ndarray | None:
        """What `start`'s function needs of the image: see `pipeline.Keep`. Runs in several threads."""

    def start(self, settings: RunConfig, opened: OpenBundle, /) -> Callable[[Judged], Result]:
        """A function from verdict to outcome, called in several threads; its DataError fails only that image."""


@final
class ImageJob(Generic[In, Out]):
    """Items to outcomes, in order, judged in full batches; an unreadable image becomes a failure."""

    def __init__(
        self, settings: RunConfig, bundle: Path, step: Step[In, Out], opened: OpenBundle | None = None
    ) -> None:
        """`opened`: the bundle, if it is already open here."""
        self.bundle = bundle
        self._settings, self._step, self._opened = settings, step, opened
        self._parts: tuple[Pipeline, Loader, Callable[[Judged], Out]] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return ImageJob, (self._settings, self.bundle, self._step)

    def at(self, bundle: Path) -> ImageJob[In, Out]:
        """The same work, with the bundle at another path."""
        return ImageJob(self._settings, bundle, self._step)

    def __call__(self, items: Iterable[In]) -> Generator[Out | Failed, None, None]:
        """Judge the items."""
        yield from self.run(map(self._step.image_item, items), Sources.load)

    def run(
        self, image_items: Iterable[ImageItem], load: Load, *, live: bool = False, ending: threading.Event | None = None
    ) -> Generator[Out | Failed, None, None]:
        """Judge image items of a source with its own `load`; `live` and `ending` as in `Pipeline.run`."""
        pipeline, loader, finish = self.opened()
        yield from pipeline.run(image_items, partial(load, loader), finish, live=live, ending=ending)

    def opened(self) -> tuple[Pipeline, Loader, Callable[[Judged], Out]]:
        """Open the bundle on the first call; raises what `open_detector` and the step raise."""
        if self._parts is None:
            settings, runtime = self._settings, self._settings.runtime
            opened = self._opened or open_detector(settings, choose_device(settings.device), self.bundle)
            bound = settings.data.max_megapixels
            self._parts = (
                Pipeline(opened.detector, batch_size=runtime.batch_size, workers=runtime.worker_count),
                Loader(opened.detector.image_size, max_megapixels=bound, keep=self._step.keep),
                self._step.start(settings, opened),
            )
        return self._parts


@final
@dataclass(frozen=True)
class PredictStep:
    """Image items to results and files. Workers write to the folders, so every node must see them."""

    maps: Path | None = None
    overlays: Path | None = None

    def image_item(self, item: ImageItem) -> ImageItem:
        """Sources give image items."""
        return item

    def keep(self, image_id: ImageId, decoded: np.ndarray, size: tuple[int, int]) -> np.ndarray | None:
        """Overlays are drawn on the image at its own size."""
        return (keep_nothing if self.overlays is None else keep_original)(image_id, decoded, size)

    def start(self, settings: RunConfig, opened: OpenBundle) -> Callable[[Judged], Finished]:
        """Regions and files."""
        return PostProcessor(opened, settings, maps=self.maps, overlays=self.overlays)
