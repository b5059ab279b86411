"""One target of the comparison, cvad or an anomalib inferencer on the same bundle, measured in a process of its own."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np

from anomalib_comparison.exports import InferencerFiles, open_inferencer
from anomalib_comparison.inferencers import LoaderSetting
from cvad_cli.adapters.images import read_labelled_mask, resize_mask
from cvad_cli.assembly.benchmark.measurement import (
    MIN_SECONDS,
    BenchmarkTarget,
    CvadTarget,
    Measured,
    judge_some,
    measure_target,
)
from cvad_cli.assembly.serving.engine_choice import as_reference
from cvad_cli.config.schema import RunConfig
from cvad_cli.core.pixel_metrics import PixelScores
from cvad_cli.records import ImageRecord

OURS: Final = "cvad"
EXACT: Final = "cvad_exact"
"""cvad in float32 on torch with the exact search: the reference for the accuracy of the fast engine."""

TRIAL_SECONDS: Final = 10.0
"""The trial of a setting ends at the first whole batch after that."""
SINGLE_IMAGES: Final = {"engine": 16}
"""How many single images are timed where each takes a whole prediction run; other targets: all of them."""


@dataclass(frozen=True, slots=True)
class ComparisonJob:
    """Which target is measured on what. It travels to the process that measures."""

    target: str
    settings: RunConfig
    device: str
    records: tuple[ImageRecord, ...]
    inferencer_files: InferencerFiles
    """What anomalib's inferencers need."""
    min_seconds: float = MIN_SECONDS
    """Images per second are measured over at least that long."""
    started: float = 0.0
    """`time.time()` when the process was asked for."""

    @property
    def files(self) -> list[Path]:
        """The image files."""
        return [record.path for record in self.records]

    def started_now(self) -> ComparisonJob:
        """The job with its clock started: call it where the process is asked for."""
        return replace(self, started=time.time())


@dataclass(frozen=True, slots=True)
class TargetFigures:
    """What one process measured of a target."""

    measured: Measured
    accuracy: Mapping[str, float | None] | None
    """`image_auroc` and `pixel_auroc`, where asked for."""


def measure_speed(job: ComparisonJob, setting: LoaderSetting, accuracy: bool) -> TargetFigures:
    """Measure the target. With `accuracy` the warm-up is a pass over all files, on which AUROC is measured."""
    found: dict[str, float | None] = {}

    def measure_accuracy(target: BenchmarkTarget) -> None:
        found.update(_accuracy(target, job))

    measured = measure_target(
        partial(open_target, job, setting),
        job.files,
        started=job.started,
        warm_up=measure_accuracy if accuracy else None,
        single_images=SINGLE_IMAGES.get(job.target),
        min_seconds=job.min_seconds,
    )
    return TargetFigures(measured, found or None)


def try_setting(job: ComparisonJob, setting: LoaderSetting) -> float:
    """Images per second over the job's files, after a warm-up. Run it in a fresh process."""
    target = open_target(job, setting)
    judge_some(target, job.files)
    done, began = 0, time.perf_counter()
    for done, _ in enumerate(target.stream(job.files), 1):
        if done % setting.batch_size == 0 and time.perf_counter() - began > TRIAL_SECONDS:
            break
    return done / (time.perf_counter() - began)


def open_target(job: ComparisonJob, setting: LoaderSetting) -> BenchmarkTarget:
    """The job's target, ready to judge files."""
    if job.target == OURS:
        return CvadTarget(job.settings, job.device, setting.batch_size)
    if job.target == EXACT:
        exact = replace(job.settings, runtime=as_reference(job.settings.runtime))
        return CvadTarget(exact, job.device, setting.batch_size)
    os.chdir(job.inferencer_files.folder)  # anomalib leaves caches where it runs
    return open_inferencer(job.target, job.inferencer_files, job.device, setting)


def _accuracy(target: BenchmarkTarget, job: ComparisonJob) -> dict[str, float | None]:
    from sklearn.metrics import roc_auc_score

    scores, pixels = [], PixelScores()
    for record, prediction in zip(job.records, target.stream(job.files), strict=True):
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
    found = read_labelled_mask(record, max_megapixels=settings.data.max_megapixels)
    return None if found is None else resize_mask(found.mask, (shape[0], shape[1]))
