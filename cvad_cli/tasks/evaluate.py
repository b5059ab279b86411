"""`cvad evaluate`: measures the trained detector on labelled test images."""

from __future__ import annotations

import csv
import dataclasses
import datetime as dt
import json
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, final

import numpy as np

from cvad_cli import __version__
from cvad_cli.adapters.charts.evaluation import precision_recall_chart, roc_chart, score_histogram
from cvad_cli.adapters.datasets import fingerprint
from cvad_cli.adapters.images.masks import one_warning
from cvad_cli.adapters.machine.devices import choose_device
from cvad_cli.assembly.data.images import open_dataset, read_mask_of
from cvad_cli.assembly.defect_types.evaluation import DescribedDefect, measure_classification
from cvad_cli.assembly.defect_types.inspector import RegionInspector
from cvad_cli.assembly.evaluation.image_output import Drawer
from cvad_cli.assembly.evaluation.job import EvaluatedImage, EvaluationStep, Evaluator
from cvad_cli.assembly.evaluation.report import REPORT_NAME, Findings, write_report
from cvad_cli.assembly.execution.executors import keeping_threads, run_job
from cvad_cli.assembly.gates.evaluation_gates import open_gates
from cvad_cli.assembly.prediction.image_item import ImageId, ImageItem, record_of
from cvad_cli.assembly.prediction.job import ImageJob
from cvad_cli.assembly.prediction.pipeline import Failed, Judged, is_large, keep_original
from cvad_cli.assembly.run_folders import evaluation_folder
from cvad_cli.assembly.serving.open_bundle import OpenBundle, open_detector
from cvad_cli.config.gates import GatePlan
from cvad_cli.config.load import to_plain
from cvad_cli.config.schema import RunConfig
from cvad_cli.core.metrics import measure_images
from cvad_cli.core.pixel_metrics import PixelScores
from cvad_cli.errors import DataError
from cvad_cli.files import replacing_folder
from cvad_cli.ports import Reporter
from cvad_cli.records import Dataset, EvaluationSummary, ImageRecord, SkippedImage


@dataclass
class _Scored:
    """What is stored of each test image: scores and counts, but no map."""

    records: list[ImageRecord] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    peaks: list[float] = field(default_factory=list)
    pixels: PixelScores = field(default_factory=PixelScores)
    skipped: list[SkippedImage] = field(default_factory=list)
    described: list[DescribedDefect] = field(default_factory=list)
    cautions: list[str] = field(default_factory=list)
    """Warnings about masks that may not be aligned with their images."""

    def count(self, image: EvaluatedImage) -> None:
        """Count one image."""
        self.records.append(image.record)
        self.scores.append(image.score)
        self.peaks.append(image.peak)
        self.pixels.add(*image.aligned())
        self.cautions += [] if image.caution is None else [image.caution]


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateRequest:
    """What an evaluation measures and writes beside the metrics."""

    classification: bool = False
    """Also measure the classification of defect types: each image with the labels of the others."""
    portable: bool = False
    """Put the images into the report, whatever `evaluation.report` says."""
    plan: GatePlan | None = None
    """Gates for the figures. Their verdicts go to gates.json and into the record; the caller acts on them."""


@keeping_threads
def evaluate(settings: RunConfig, request: EvaluateRequest, reporter: Reporter) -> EvaluationSummary:
    """Judge the test images with the trained bundle; write metrics.json, per_image.csv, report.html, curves, images.

    The threshold comes from the bundle: test labels are used only for metrics. An earlier evaluation stays unchanged
    until the new one is complete. Raises a CvadError that names the remedy.
    """
    opened, dataset = _opened(settings, reporter)
    inspector = RegionInspector.of(opened, settings) if request.classification else None
    gate_evaluator = open_gates(request.plan, settings, dataset, reporter) if request.plan else None
    folder = evaluation_folder(settings)
    with replacing_folder(folder) as staged:
        drawer = Drawer(staged, settings, dataset.test, portable=request.portable)
        step = _Step(drawer.step, inspector, classification=request.classification)
        scored = _judge(
            ImageJob(settings, opened.bundle.folder, step, opened), settings, dataset.test, drawer, reporter
        )
        if not scored.records:
            raise DataError(f"{settings.data.root}: none of the {len(dataset.test)} test images can be read")
        metrics = _measure(settings, opened, dataset, scored)
        metrics["counts"]["skipped"] = len(scored.skipped)
        metrics["skipped"] = [dataclasses.asdict(image) for image in scored.skipped]
        classification = (
            measure_classification(settings, scored.described, staged, reporter) if request.classification else None
        )
        if classification is not None:
            metrics["classification"] = classification.metrics
        gates = gate_evaluator.judge(metrics, scored.records, scored.scores, staged) if gate_evaluator else ()
        (staged / "metrics.json").write_text(json.dumps(metrics, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        _write_rows(staged / "per_image.csv", scored, opened)
        _draw_curves(staged, dataset.name, scored, opened.calibration.threshold)
        if drawer.report is not None:
            named = None if classification is None else classification.images
            manifest = opened.bundle.manifest
            found = Findings(metrics, manifest, opened.calibration, scored.pixels, gates, named)
            write_report(staged, found, drawer.report)
    for image in scored.skipped:
        reporter.warn(f"skipped {image.key}: {image.reason}")
    if scored.cautions:
        reporter.warn(one_warning(scored.cautions))
    report = None if drawer.report is None else folder / REPORT_NAME
    return EvaluationSummary(folder, metrics, drawer.drawn, report, gates)


def _opened(settings: RunConfig, reporter: Reporter) -> tuple[OpenBundle, Dataset]:
    opened = open_detector(settings, choose_device(settings.device))
    if opened.serving.note is not None:
        reporter.note(opened.serving.note)
    dataset = open_dataset(settings.data)
    if not dataset.test:
        raise DataError(f"{settings.data.root}: {dataset.name} has no test images to evaluate on")
    trained_on = opened.bundle.manifest["data"]["name"]
    if trained_on != dataset.name:
        reporter.warn(f"the detector was trained on {trained_on}, the test images are those of {dataset.name}")
    return opened, dataset


_Outcome = tuple[EvaluatedImage, DescribedDefect | None]


@final
class _Step:
    """Evaluates test images; with `classification`, it also describes their defects."""

    def __init__(
        self, evaluation: EvaluationStep, inspector: RegionInspector | None = None, *, classification: bool
    ) -> None:
        self._evaluation, self._inspector, self._classification = evaluation, inspector, classification

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(_Step, self._evaluation, classification=self._classification), ()

    def image_item(self, item: ImageRecord) -> ImageItem:
        """An image of the data set."""
        return self._evaluation.image_item(item)

    def keep(self, image_id: ImageId, decoded: np.ndarray, size: tuple[int, int]) -> np.ndarray | None:
        """Defects are described on the image at its own size."""
        if self._classification and not record_of(image_id).is_normal:
            original = keep_original(image_id, decoded, size)
            if original is not None and not is_large(original):
                return original
        return self._evaluation.keep(image_id, decoded, size)

    def start(self, settings: RunConfig, opened: OpenBundle) -> Callable[[Judged], _Outcome]:
        """Read the mask once for both uses."""
        evaluate = self._evaluation.evaluator(settings, opened)
        inspector = self._inspector
        if self._classification and inspector is None:
            inspector = RegionInspector.of(opened, settings)
        return partial(_outcome, settings, evaluate, inspector)


def _outcome(settings: RunConfig, evaluate: Evaluator, inspector: RegionInspector | None, judged: Judged) -> _Outcome:
    record = record_of(judged.loaded.image_id)
    mask = None if record.is_normal else read_mask_of(record, settings.data)
    described = None
    if inspector is not None and not record.is_normal:
        described = DescribedDefect.of(record, inspector.labelled(judged, mask))
    return evaluate(judged, mask), described


def _judge(
    job: ImageJob[ImageRecord, _Outcome],
    settings: RunConfig,
    records: Sequence[ImageRecord],
    drawer: Drawer,
    reporter: Reporter,
) -> _Scored:
    """Workers judge the images; this process counts them in order, so that the figures do not depend on the workers."""
    scored = _Scored()
    with (
        closing(run_job(settings, job, records, reporter.warn)) as outcomes,
        reporter.stage("Judging the test images", len(records)) as advance,
    ):
        for record, outcome in zip(records, outcomes, strict=True):
            advance(1)
            if isinstance(outcome, Failed):
                if settings.data.on_error == "stop":
                    raise outcome.error
                scored.skipped.append(SkippedImage(record.key, str(outcome.error)))
                continue
            image, described = outcome
            scored.count(image)
            drawer.take(image)
            if described is not None:
                scored.described.append(described)
    return scored


def _measure(settings: RunConfig, opened: OpenBundle, dataset: Dataset, scored: _Scored) -> dict[str, Any]:
    calibration = opened.calibration
    images = measure_images(
        scored.scores,
        [record.defect_type for record in scored.records],
        threshold=calibration.threshold,
        stated_false_alarm_rate=calibration.stated_rate,
        rng=np.random.default_rng([settings.seed, 2]),
    ).as_dict()
    pixels = scored.pixels.measure(fpr_limit=settings.evaluation.aupro_limit).as_dict()
    return {
        "image": images["image"],
        "pixel": pixels["pixel"],
        "decision": {**images["decision"], "stated_rate_kind": calibration.rate_kind},
        "defect_types": images["defect_types"],
        "counts": _counts(opened, scored),
        "unavailable": {**images["unavailable"], **pixels["unavailable"]},
        "provenance": {
            "name": settings.name,
            "model": settings.model.name,
            "seed": settings.seed,
            "trained": _training_of(opened),
            "data": dataset.name,
            "data_root": settings.data.root,
            "test_fingerprint": fingerprint(scored.records),
            "bundle_fingerprint": opened.bundle.fingerprint,
            "serving": _serving_of(opened),
            "image_size": settings.data.image_size,
            "pixel_metrics_at": settings.evaluation.resolution,
            "calibration": {
                "method": calibration.method,
                "images": calibration.images,
                "rate_bound": calibration.rate_bound,
            },
            "auroc_interval": "95 % stratified percentile bootstrap over test images",
            "false_alarm_interval": "95 % Clopper-Pearson",
            "cvad_version": __version__,
            "settings": to_plain(settings),
            "created": dt.datetime.now(dt.timezone.utc).isoformat(timespec="seconds"),
        },
    }


def _training_of(opened: OpenBundle) -> dict[str, Any]:
    """The data that the detector was trained on, whatever the config says now."""
    manifest = opened.bundle.manifest
    return {
        "data": manifest["data"]["name"],
        "fingerprint": manifest["data"]["fingerprint"],
        "seed": manifest["settings"]["seed"],
    }


def _serving_of(opened: OpenBundle) -> dict[str, Any]:
    """The engine that judged the images, and how it was verified."""
    serving = dataclasses.asdict(opened.serving)
    return {key: value for key, value in serving.items() if key != "cache"}


def _counts(opened: OpenBundle, scored: _Scored) -> dict[str, Any]:
    by_type = Counter(record.defect_type for record in scored.records)
    good = sum(record.is_normal for record in scored.records)
    return {
        "train": opened.bundle.manifest["data"]["train_images"],
        "test": len(scored.records),
        "good": good,
        "defective": len(scored.records) - good,
        "masks": sum(record.mask_path is not None for record in scored.records),
        "by_type": dict(sorted(by_type.items())),
    }


def _write_rows(path: Path, scored: _Scored, opened: OpenBundle) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "defect_type", "score", "map_peak", "rejected"])
        for record, score, peak in zip(scored.records, scored.scores, scored.peaks, strict=True):
            rejected = score > opened.calibration.threshold
            writer.writerow([record.key, record.defect_type, f"{score:.9g}", f"{peak:.6g}", int(rejected)])


def _draw_curves(folder: Path, title: str, scored: _Scored, threshold: float) -> None:
    types = [record.defect_type for record in scored.records]
    defective = np.array([not record.is_normal for record in scored.records])
    score_histogram(folder / "score_histogram.png", scored.scores, types, threshold=threshold, title=title)
    if defective.any() and not defective.all():
        roc_chart(folder / "roc.png", scored.scores, defective, threshold=threshold, title=title)
        precision_recall_chart(
            folder / "precision_recall.png", scored.scores, defective, threshold=threshold, title=title
        )
