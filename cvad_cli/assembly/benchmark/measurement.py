"""Measures a benchmark target in a new process: images per second, latency, memory, time to open."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from typing import Any, Final, Protocol, TypeVar, final

from cvad_cli.adapters.machine.system_info import memory_bytes, peak_memory_bytes
from cvad_cli.assembly.benchmark.latency import single_image_latency
from cvad_cli.assembly.prediction.image_item import ImageId, ImageItem
from cvad_cli.assembly.prediction.pipeline import Failed, Loader, Pipeline
from cvad_cli.assembly.serving.open_bundle import OpenBundle, open_detector
from cvad_cli.config.schema import RunConfig
from cvad_cli.core.latency import latency_summary
from cvad_cli.records import ImageRecord, Prediction

Given = TypeVar("Given")

WHOLE: Final = "whole"
WARM_UP_IMAGES: Final = 8
MIN_SECONDS: Final = 5.0
"""Minimum duration of the measurement of images per second, which repeats the files: in a short pass, filling and
emptying the pipeline takes much of the time."""


class BenchmarkTarget(Protocol):
    """Takes files, returns predictions: one file alone, or many as fast as the target can."""

    @property
    def serving(self) -> Mapping[str, Any] | None:
        """Engine and precision, with the result of their verification; None if the target does not say."""

    def one(self, file: Path) -> Prediction:
        """Judge a file, from the disk to score and map in memory."""

    def stream(self, files: Sequence[Path]) -> Iterator[Prediction]:
        """Judge files, in order."""


@dataclass(frozen=True, slots=True)
class BenchmarkJob:
    """The settings and images of a measurement; it is sent to the measuring process."""

    settings: RunConfig
    device: str
    records: tuple[ImageRecord, ...]
    started: float = 0.0
    """`time.time()` when the process was requested."""

    @property
    def files(self) -> list[Path]:
        """The image files."""
        return [record.path for record in self.records]

    def started_now(self) -> BenchmarkJob:
        """The job with its clock started; call it when the process is requested."""
        return replace(self, started=time.time())

    def open_target(self) -> CvadTarget:
        """cvad with the batch size of the settings."""
        return CvadTarget(self.settings, self.device, self.settings.runtime.batch_size)


@dataclass(frozen=True, slots=True)
class Measured:
    """What one process measured."""

    images_per_s: float
    latencies: tuple[float, ...]
    """Seconds of single images, from the file to score and map."""
    to_first_result_s: float
    """From asking for the process: Python, imports, opening, the first file."""
    open_s: float
    """Imports of the libraries and opening, without Python's own start and without the first file."""
    peak_memory: int
    """Resident bytes of this process; processes that read ahead for it are not counted."""
    serving: Mapping[str, Any] | None
    """Engine and precision, with the result of their verification, if the target says so."""


@final
class CvadTarget:
    """cvad itself, as `cvad predict` runs it."""

    def __init__(self, settings: RunConfig, device: str, batch_size: int) -> None:
        self._opened: OpenBundle = open_detector(settings, device)
        self._load = Loader(self._opened.detector.image_size, max_megapixels=settings.data.max_megapixels)
        workers = settings.runtime.worker_count
        self._pipeline = Pipeline(self._opened.detector, batch_size=batch_size, workers=workers)

    @property
    def serving(self) -> Mapping[str, Any]:
        """Engine and precision, with the result of their verification."""
        return _plain(asdict(self._opened.serving))

    def one(self, file: Path) -> Prediction:
        """Judge a file in the calling thread."""
        return self._opened.detector.predict([self._load(_image_item(file)).small])[0]

    def stream(self, files: Sequence[Path]) -> Iterator[Prediction]:
        """Judge files, decoded ahead of the network. Raises DataError at the first file that has no verdict."""
        for outcome in self._pipeline.run(map(_image_item, files), self._load, lambda judged: judged.prediction):
            if isinstance(outcome, Failed):
                raise outcome.error
            yield outcome


def _image_item(file: Path) -> ImageItem:
    return ImageItem(ImageId(str(file), file.name), file)


def measure(job: BenchmarkJob) -> Measured:
    """Measure cvad on the job's files. Run it in a fresh process."""
    return measure_target(job.open_target, job.files, started=job.started)


def measure_target(
    open_target: Callable[[], BenchmarkTarget],
    files: Sequence[Path],
    *,
    started: float,
    warm_up: Callable[[BenchmarkTarget], object] | None = None,
    single_images: int | None = None,
    min_seconds: float = MIN_SECONDS,
) -> Measured:
    """Open the target, warm up, then time passes over all files and single files one after another.

    The warm-up also brings the files into the system's cache: what is timed is reading from memory, decoding and all
    that follows. `warm_up` replaces the usual one; `single_images` limits how many files are timed alone.
    """
    began = time.perf_counter()
    target = open_target()
    opened = time.perf_counter() - began
    target.one(files[0])
    first = time.time() - started
    (warm_up or partial(judge_some, files=files))(target)
    rate = _images_per_s(target, files, min_seconds)
    latencies = tuple(_timed(target.one, file) for file in files[:single_images])
    return Measured(rate, latencies, first, opened, peak_memory_bytes(), target.serving)


def judge_some(target: BenchmarkTarget, files: Sequence[Path]) -> None:
    """The usual warm-up."""
    _consume(target.stream(files[:WARM_UP_IMAGES]))


def as_figures(runs: Sequence[Measured]) -> dict[str, Any]:
    """Medians of several processes' measurements, their latencies pooled; JSON-ready."""
    return {
        "images_per_s": median(run.images_per_s for run in runs),
        "images_per_s_runs": [run.images_per_s for run in runs],
        "latency": asdict(latency_summary([each for run in runs for each in run.latencies])),
        "to_first_result_s": median(run.to_first_result_s for run in runs),
        "open_s": median(run.open_s for run in runs),
        "peak_memory_mb": median(run.peak_memory for run in runs) / 1e6,
        "serving": runs[0].serving,
    }


def memory_over(job: BenchmarkJob, counts: Sequence[int]) -> list[dict[str, float]]:
    """Seconds and resident memory after each of `counts` images of one run. Run it in a fresh process."""
    target, files = job.open_target(), job.files
    judge_some(target, files)
    rows, began = [], time.perf_counter()
    endless = list(islice(cycle(files), max(counts)))
    for done, _ in enumerate(target.stream(endless), 1):
        if done in counts:
            rows.append({"value": done, "seconds": time.perf_counter() - began, "memory": memory_bytes()})
    return rows


def time_stages(job: BenchmarkJob) -> dict[str, dict[str, float]]:
    """Percentiles of cvad's stages over single images; `whole` is all of an image. Run it in a fresh process."""
    opened = open_detector(job.settings, job.device)
    found = single_image_latency(opened, job.settings, job.files, warm_up=WARM_UP_IMAGES)
    return {name: asdict(summary) for name, summary in (*found.stages.items(), (WHOLE, found.whole))}


def _plain(serving: Mapping[str, Any]) -> dict[str, Any]:
    return {key: str(value) if isinstance(value, Path) else value for key, value in serving.items()}


def _consume(predictions: Iterator[Prediction]) -> None:
    for _ in predictions:
        pass


def _images_per_s(target: BenchmarkTarget, files: Sequence[Path], min_seconds: float) -> float:
    def judge(these: Sequence[Path]) -> None:
        _consume(target.stream(these))

    seconds = _timed(judge, files)
    rounds = math.ceil(min_seconds / seconds)
    if rounds > 1:
        seconds = _timed(judge, [*files] * rounds)
    return len(files) * rounds / seconds


def _timed(act: Callable[[Given], Any], given: Given) -> float:
    began = time.perf_counter()
    act(given)
    return time.perf_counter() - began
