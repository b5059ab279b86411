"""One way of judging files, measured in a process of its own: cvad's, or one of anomalib's on the same bundle."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar, final

import numpy as np

from cvad_cli.adapters.images import read_mask, resize_mask
from cvad_cli.adapters.machine import memory_bytes, peak_memory_bytes
from cvad_cli.assembly.detectors import OpenBundle, open_detector
from cvad_cli.assembly.peer_models import PeerFiles, RunSetting, open_peer
from cvad_cli.assembly.pipeline import Failed, Loader, Pipeline
from cvad_cli.assembly.serving import as_reference
from cvad_cli.assembly.shots import Shot, Subject
from cvad_cli.assembly.single_latency import single_image_latency
from cvad_cli.config.schema import RunConfig
from cvad_cli.core.pixel_metrics import PixelScores
from cvad_cli.records import ImageRecord, Prediction

Given = TypeVar("Given")

OURS: Final = "cvad"
EXACT: Final = "cvad_exact"
"""cvad in float32 on torch with the exact search: what the accuracy of the quick engine is held against."""

WHOLE: Final = "whole"
WARM_UP_IMAGES: Final = 8
LEAST_SECONDS: Final = 5.0
"""Images a second are taken over at least that long, the files again and again: else filling and emptying the pipeline
counts for much of a quick contender's pass."""
TRIAL_SECONDS: Final = 10.0
"""A trial of a setting ends at the first whole batch after that."""
LATENCY_IMAGES: Final = {"engine": 16}
"""Single images timed at most, where one takes a whole prediction run; others: as many as there are."""


class Contender(Protocol):
    """Files in, predictions out: one alone, or many as quickly as it can."""

    def one(self, file: Path) -> Prediction:
        """Judge a file, from the disk to score and map in memory."""

    def stream(self, files: Sequence[Path]) -> Iterator[Prediction]:
        """Judge files, in order."""


@dataclass(frozen=True, slots=True)
class Job:
    """Who is to be measured on what. It travels to the process that measures."""

    contender: str
    settings: RunConfig
    device: str
    records: tuple[ImageRecord, ...]
    peer_files: PeerFiles | None = None
    """What anomalib's ways need; None for cvad's own."""
    started: float = 0.0
    """`time.time()` when the process was asked for."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What one process found."""

    images_per_s: float
    latencies: tuple[float, ...]
    """Seconds of single images, from the file to score and map."""
    to_first_result_s: float
    """From asking for the process: Python, imports, opening, the first file."""
    open_s: float
    """Imports of the libraries and opening, without Python's own start and without the first file."""
    peak_memory: int
    """Bytes resident, of this process; processes that read ahead for it are not counted."""
    accuracy: Mapping[str, float | None] | None
    """`image_auroc` and `pixel_auroc`, where asked for."""
    serving: Mapping[str, Any] | None
    """Engine and precision, with the proof of it, where it is cvad."""


@final
class Cvad:
    """cvad itself, as `cvad predict` runs it."""

    def __init__(self, settings: RunConfig, device: str, setting: RunSetting) -> None:
        self.opened: OpenBundle = open_detector(settings, device)
        self._load = Loader(self.opened.detector.image_size, max_megapixels=settings.data.max_megapixels)
        workers = settings.runtime.worker_count
        self._pipeline = Pipeline(self.opened.detector, batch_size=setting.batch_size, workers=workers)

    def one(self, file: Path) -> Prediction:
        """Judge a file in the calling thread."""
        return self.opened.detector.predict([self._load(_shot(file)).small])[0]

    def stream(self, files: Sequence[Path]) -> Iterator[Prediction]:
        """Judge files, decoded ahead of the network. Raises DataError at the first that has no verdict."""
        for outcome in self._pipeline.run(map(_shot, files), self._load, lambda judged: judged.prediction):
            if isinstance(outcome, Failed):
                raise outcome.error
            yield outcome


def _shot(file: Path) -> Shot:
    return Shot(Subject(str(file), file.name), file)


def exactly(settings: RunConfig) -> RunConfig:
    """The settings with the engine that takes no short cut."""
    return replace(settings, runtime=as_reference(settings.runtime))


def measure(job: Job, setting: RunSetting, accuracy: bool) -> Measured:
    """Open, warm up, then time passes over all files and single files one after another. Meant for a fresh process.

    The warm-up also brings the files into the system's cache: what is timed is reading from memory, decoding and all
    that follows. With `accuracy` the warm-up is a whole pass, on which AUROC is measured.
    """
    began = time.perf_counter()
    contender = _open(job, setting)
    opened = time.perf_counter() - began
    files = [record.path for record in job.records]
    contender.one(files[0])
    first = time.time() - job.started
    found = None
    if accuracy:
        found = _accuracy(contender, job)
    else:
        _consume(contender.stream(files[:WARM_UP_IMAGES]))
    rate = _images_per_s(contender, files)
    limit = LATENCY_IMAGES.get(job.contender, len(files))
    latencies = tuple(_timed(contender.one, file) for file in files[:limit])
    serving = _plain(asdict(contender.opened.serving)) if isinstance(contender, Cvad) else None
    return Measured(rate, latencies, first, opened, peak_memory_bytes(), found, serving)


def try_setting(job: Job, setting: RunSetting) -> float:
    """Images a second over the job's files, after a warm-up. Meant for a fresh process."""
    files = [record.path for record in job.records]
    contender = _open(job, setting)
    _consume(contender.stream(files[:WARM_UP_IMAGES]))
    done, began = 0, time.perf_counter()
    for done, _ in enumerate(contender.stream(files), 1):
        if done % setting.batch_size == 0 and time.perf_counter() - began > TRIAL_SECONDS:
            break
    return done / (time.perf_counter() - began)


def memory_over(job: Job, setting: RunSetting, counts: Sequence[int]) -> list[dict[str, float]]:
    """Seconds and resident memory after so many images of one run, the files again and again. For a fresh process."""
    contender = _open(job, setting)
    files = [record.path for record in job.records]
    _consume(contender.stream(files[:WARM_UP_IMAGES]))
    rows, began = [], time.perf_counter()
    endless = list(islice(cycle(files), max(counts)))
    for done, _ in enumerate(contender.stream(endless), 1):
        if done in counts:
            rows.append({"value": done, "seconds": time.perf_counter() - began, "memory": memory_bytes()})
    return rows


def time_stages(job: Job) -> dict[str, dict[str, float]]:
    """Percentiles of cvad's stages over single images; `whole` is all of an image. Meant for a fresh process."""
    opened = open_detector(job.settings, job.device)
    found = single_image_latency(opened, job.settings, [record.path for record in job.records], warm_up=WARM_UP_IMAGES)
    return {name: asdict(spread) for name, spread in (*found.stages.items(), (WHOLE, found.whole))}


def _plain(serving: Mapping[str, Any]) -> dict[str, Any]:
    return {key: str(value) if isinstance(value, Path) else value for key, value in serving.items()}


def _open(job: Job, setting: RunSetting) -> Contender:
    if job.contender == OURS:
        return Cvad(job.settings, job.device, setting)
    if job.contender == EXACT:
        return Cvad(exactly(job.settings), job.device, setting)
    if job.peer_files is None:
        raise ValueError(f"{job.contender}: needs anomalib's exported files")
    os.chdir(job.peer_files.folder)  # anomalib leaves caches where it runs
    peer: Contender = open_peer(job.contender, job.peer_files, job.device, setting)
    return peer


def _accuracy(contender: Contender, job: Job) -> dict[str, float | None]:
    from sklearn.metrics import roc_auc_score

    scores, pixels = [], PixelScores()
    for record, prediction in zip(job.records, contender.stream([record.path for record in job.records]), strict=True):
        scores.append(prediction.score)
        pixels.add(prediction.anomaly_map, _mask_of(record, prediction.anomaly_map.shape, job.settings))
    defective = np.array([not record.is_normal for record in job.records])
    both = defective.any() and not defective.all()
    return {
        "image_auroc": float(roc_auc_score(defective, scores)) if both else None,
        "pixel_auroc": pixels.measure().pixel.auroc,
    }


def _mask_of(record: ImageRecord, shape: tuple[int, ...], settings: RunConfig) -> np.ndarray | None:
    """The defect mask at the map's size; None where a defective part has none."""
    if record.is_normal:
        return np.zeros(shape, dtype=np.bool_)
    if record.mask_path is None:
        return None
    mask = read_mask(record.mask_path, max_megapixels=settings.data.max_megapixels)
    return resize_mask(mask, (shape[0], shape[1]))


def _consume(predictions: Iterator[Prediction]) -> None:
    for _ in predictions:
        pass


def _images_per_s(contender: Contender, files: Sequence[Path]) -> float:
    def judge(these: Sequence[Path]) -> None:
        _consume(contender.stream(these))

    seconds = _timed(judge, files)
    rounds = math.ceil(LEAST_SECONDS / seconds)
    if rounds > 1:
        seconds = _timed(judge, [*files] * rounds)
    return len(files) * rounds / seconds


def _timed(act: Callable[[Given], Any], given: Given) -> float:
    began = time.perf_counter()
    act(given)
    return time.perf_counter() - began


def started_now(job: Job) -> Job:
    """The job with its clock started: call it where the process is asked for."""
    return replace(job, started=time.time())
