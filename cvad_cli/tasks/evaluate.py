"""`cvad evaluate`: how well the trained detector does on labelled test images, honestly measured."""

from __future__ import annotations

import csv
import dataclasses
import datetime as dt
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cvad_cli import __version__
from cvad_cli.adapters.charts.evaluation import precision_recall_chart, roc_chart, score_histogram
from cvad_cli.adapters.datasets import fingerprint
from cvad_cli.adapters.devices import choose_device
from cvad_cli.adapters.images import read_image, read_labelled_mask, resize_map, resize_mask
from cvad_cli.adapters.images.masks import LabelledMask, one_warning
from cvad_cli.assembly.detectors import OpenBundle, evaluation_folder, open_detector
from cvad_cli.assembly.drawing import Drawer
from cvad_cli.assembly.executing import keeping_threads, open_executor, shard_size
from cvad_cli.assembly.gatekeeper import open_gates
from cvad_cli.assembly.jobs import Judged, JudgeJob
from cvad_cli.assembly.naming_evaluation import measure_naming
from cvad_cli.assembly.pictures import open_dataset
from cvad_cli.assembly.report import REPORT_NAME, Findings, write_report
from cvad_cli.config.gates import GatePlan
from cvad_cli.config.load import to_plain
from cvad_cli.config.schema import RunConfig
from cvad_cli.core.metrics import measure_images
from cvad_cli.core.pixel_metrics import PixelScores
from cvad_cli.errors import DataError
from cvad_cli.files import replacing_folder
from cvad_cli.ports import Reporter
from cvad_cli.records import Dataset, EvaluationSummary, ImageRecord, Prediction, SkippedImage


@dataclass
class _Scored:
    """What is kept of the test set while it streams past: a row an image, never its map."""

    records: list[ImageRecord] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    peaks: list[float] = field(default_factory=list)
    pixels: PixelScores = field(default_factory=PixelScores)
    skipped: list[SkippedImage] = field(default_factory=list)
    cautions: list[str] = field(default_factory=list)
    """Why masks may lie otherwise than their images."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateRequest:
    """What an evaluation measures and writes beside the metrics."""

    classification: bool = False
    """Also measure how well the types of the defects are named, each after the others."""
    portable: bool = False
    """The report holds its images, whatever `evaluation.report` says."""
    plan: GatePlan | None = None
    """Gates for the figures; their verdicts go to gates.json and into the record, and fail nothing."""


@keeping_threads
def evaluate(settings: RunConfig, request: EvaluateRequest, reporter: Reporter) -> EvaluationSummary:
    """Judge the test images with the trained bundle; write metrics.json, per_image.csv, report.html, curves, pictures.

    The threshold is the bundle's: test labels are used for metrics alone. An earlier evaluation stays as it was until
    the new one is whole. Raises the CvadError that names what to mend.
    """
    opened = open_detector(settings, choose_device(settings.device))
    if opened.serving.note is not None:
        reporter.note(opened.serving.note)
    dataset = open_dataset(settings.data)
    if not dataset.test:
        raise DataError(f"{settings.data.root}: {dataset.name} has no test images to evaluate on")
    trained_on = opened.bundle.manifest["data"]["name"]
    if trained_on != dataset.name:
        reporter.warn(f"the detector was trained on {trained_on}, the test images are those of {dataset.name}")
    gatekeeper = open_gates(request.plan, settings, dataset, reporter) if request.plan else None
    folder = evaluation_folder(settings)
    with replacing_folder(folder) as staged:
        drawer = Drawer(staged, settings, opened.calibration, dataset.test, portable=request.portable)
        scored = _judge(settings, opened, dataset.test, drawer, reporter)
        if not scored.records:
            raise DataError(f"{settings.data.root}: none of the {len(dataset.test)} test images can be read")
        metrics = _measure(settings, opened, dataset, scored)
        metrics["counts"]["skipped"] = len(scored.skipped)
        metrics["skipped"] = [dataclasses.asdict(image) for image in scored.skipped]
        naming = measure_naming(settings, opened, scored.records, staged, reporter) if request.classification else None
        if naming is not None:
            metrics["classification"] = naming.metrics
        gates = gatekeeper.judge(metrics, scored.records, scored.scores, staged) if gatekeeper else ()
        (staged / "metrics.json").write_text(json.dumps(metrics, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        _write_rows(staged / "per_image.csv", scored, opened)
        _draw_curves(staged, dataset.name, scored, opened.calibration.threshold)
        if drawer.report is not None:
            named = None if naming is None else naming.pictures
            manifest = opened.bundle.manifest
            found = Findings(metrics, manifest, opened.calibration, scored.pixels, gates, named)
            write_report(staged, found, drawer.report)
    for image in scored.skipped:
        reporter.warn(f"skipped {image.key}: {image.reason}")
    if scored.cautions:
        reporter.warn(one_warning(scored.cautions))
    report = None if drawer.report is None else folder / REPORT_NAME
    return EvaluationSummary(folder, metrics, drawer.drawn, report, gates)


def _judge(
    settings: RunConfig, opened: OpenBundle, records: Sequence[ImageRecord], drawer: Drawer, reporter: Reporter
) -> _Scored:
    """Workers judge, here is counted and drawn, in the records' order: the figures do not depend on who judged."""
    scored = _Scored()
    job = JudgeJob(settings, opened.bundle.folder, opened, view=drawer.view)
    with (
        open_executor(settings, reporter.warn) as executor,
        reporter.stage("Judging the test images", len(records)) as advance,
    ):
        for record, outcome in zip(records, executor.map(job, records, shard=shard_size(settings)), strict=True):
            advance(1)
            judged = _with_mask(record, outcome, settings)
            if isinstance(judged, DataError):
                if settings.data.on_error == "stop":
                    raise judged
                scored.skipped.append(SkippedImage(record.key, str(judged)))
                continue
            prediction, view, found = judged
            mask = None if found is None else found.mask
            if found is not None and found.caution is not None:
                scored.cautions.append(found.caution)
            scored.records.append(record)
            scored.scores.append(prediction.score)
            scored.peaks.append(float(prediction.anomaly_map.max()))
            scored.pixels.add(*_aligned(prediction, mask, settings))
            drawer.offer(record, view, prediction, mask)
    return scored


def _with_mask(
    record: ImageRecord, outcome: Judged | DataError, settings: RunConfig
) -> tuple[Prediction, np.ndarray | None, LabelledMask | None] | DataError:
    """What was said of an image, with its mask; an image whose mask cannot be used comes as the error."""
    if isinstance(outcome, DataError):
        return outcome
    try:
        return (*outcome, _mask_of(record, settings))
    except DataError as error:
        return error


def _mask_of(record: ImageRecord, settings: RunConfig) -> LabelledMask | None:
    """The defect mask at the image's size; a good part's is empty; None where a defective part has none."""
    if record.is_normal:
        return LabelledMask(np.zeros(_good_size(record, settings), dtype=np.bool_))
    return read_labelled_mask(record, max_megapixels=settings.data.max_megapixels)


def _good_size(record: ImageRecord, settings: RunConfig) -> tuple[int, int]:
    """A good part has as many normal pixels as a defective one of its size: its own, at original resolution."""
    if settings.evaluation.resolution == "input":
        return settings.data.image_size, settings.data.image_size
    height, width = read_image(record.path, max_megapixels=settings.data.max_megapixels).shape[:2]
    return height, width


def _aligned(
    prediction: Prediction, mask: np.ndarray | None, settings: RunConfig
) -> tuple[np.ndarray, np.ndarray | None]:
    """Map and mask at one size: the network's input, or the mask's own where `evaluation.resolution` is original."""
    if mask is None or mask.shape == prediction.anomaly_map.shape:
        return prediction.anomaly_map, mask
    if settings.evaluation.resolution == "original":
        return resize_map(prediction.anomaly_map, (mask.shape[0], mask.shape[1])), mask
    return prediction.anomaly_map, resize_mask(mask, (settings.data.image_size, settings.data.image_size))


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
    """What the detector was trained on, whatever the config says now."""
    manifest = opened.bundle.manifest
    return {
        "data": manifest["data"]["name"],
        "fingerprint": manifest["data"]["fingerprint"],
        "seed": manifest["settings"]["seed"],
    }


def _serving_of(opened: OpenBundle) -> dict[str, Any]:
    """What judged the pictures, and how it was shown to judge as the trained model does."""
    said = dataclasses.asdict(opened.serving)
    return {key: value for key, value in said.items() if key != "cache"}


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
