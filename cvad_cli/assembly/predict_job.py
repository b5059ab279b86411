"""What `cvad predict` spreads over workers: shots to results, files about them included."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, final

from cvad_cli.adapters.devices import choose_device
from cvad_cli.assembly.detectors import open_detector
from cvad_cli.assembly.pipeline import Failed, Loader, Pipeline
from cvad_cli.assembly.results import Finished, Finisher
from cvad_cli.assembly.shots import Shot
from cvad_cli.assembly.sources import Sources
from cvad_cli.config.schema import RunConfig


@final
class PredictJob:
    """Shots -> results, through a pipeline of the worker's own; an unreadable picture comes as its failure."""

    def __init__(self, settings: RunConfig, bundle: Path, *, maps: Path | None, overlays: Path | None) -> None:
        """`maps` and `overlays`: folders that workers write to, so every node has to see them."""
        self.bundle = bundle
        self._settings, self._maps, self._overlays = settings, maps, overlays
        self._parts: tuple[Pipeline, Loader, Finisher] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return _predict_job, (self._settings, self.bundle, self._maps, self._overlays)

    def at(self, bundle: Path) -> PredictJob:
        """The same work, with the bundle in another place."""
        return _predict_job(self._settings, bundle, self._maps, self._overlays)

    def __call__(self, items: Iterable[Shot]) -> Iterator[Finished | Failed]:
        """Judge the shots in full batches."""
        self._parts = self._parts or self._opened()
        pipeline, loader, finish = self._parts
        yield from pipeline.run(items, partial(Sources.load, loader), finish)

    def _opened(self) -> tuple[Pipeline, Loader, Finisher]:
        settings, runtime = self._settings, self._settings.runtime
        opened = open_detector(settings, choose_device(settings.device), self.bundle)
        keep = self._overlays is not None
        return (
            Pipeline(opened.detector, batch_size=runtime.batch_size, workers=runtime.worker_count),
            Loader(opened.detector.image_size, max_megapixels=settings.data.max_megapixels, keep=keep),
            Finisher(opened, settings, maps=self._maps, overlays=self._overlays),
        )


def _predict_job(settings: RunConfig, bundle: Path, maps: Path | None, overlays: Path | None) -> PredictJob:
    return PredictJob(settings, bundle, maps=maps, overlays=overlays)
