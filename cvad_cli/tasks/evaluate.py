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
from cvad_cli.adapters.charts import precision_recall_chart, roc_chart, score_histogram
from cvad_cli.adapters.datasets import fingerprint
from cvad_cli.adapters.devices import choose_device
from cvad_cli.adapters.images import read_image, read_mask, resize_map, resize_mask
from cvad_cli.adapters.panels import anomaly_panel
from cvad_cli.adapters.prefetch import batched
from cvad_cli.assembly.detectors import OpenBundle, evaluation_folder, open_detector
from cvad_cli.assembly.gatekeeper import open_gates
from cvad_cli.assembly.naming_evaluation import measure_naming
from cvad_cli.assembly.pictures import PictureStream, open_dataset
from cvad_cli.config.gates import GatePlan
from cvad_cli.config.schema import RunConfig
from cvad_cli.core.metrics import measure_images
from cvad_cli.core.pixel_metrics import PixelScores
from cvad_cli.errors import DataError
from cvad_cli.files import replacing_folder
from cvad_cli.ports import Reporter
from cvad_cli.records import Dataset, EvaluationSummary, ImageRecord, Prediction


@dataclass
class _Scored:
    """What is kept of the test set while it streams past: a row an image, never its map."""

    records: list[ImageRecord] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    peaks: list[float] = field(default_factory=list)
    pixels: PixelScores = field(default_factory=PixelScores)


def evaluate(
    settings: RunConfig, reporter: Reporter, *, classification: bool = False, plan: GatePlan | None = None
) -> EvaluationSummary:
    """Judge the test images with the trained bundle; write metrics.json, per_image.csv, curves and pictures.

    `classification`: also measure how well the types of the defects are named, each after the others.
    `plan`: gates that the figures are held to; their verdicts go to gates.json and into the record, and fail nothing.

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
    gatekeeper = open_gates(plan, settings, dataset, reporter) if plan else None
    stream = PictureStream(dataset.test, settings.data)
    folder = evaluation_folder(settings)
    with replacing_folder(folder) as staged:
        drawer = _Drawer(staged / "pictures", settings, opened, dataset.test)
        scored = _judge(settings, opened, stream, drawer, reporter)
        if not scored.records:
            raise DataError(f"{settings.data.root}: none of the {len(dataset.test)} test images can be read")
        metrics = _measure(settings, opened, dataset, scored)
        metrics["counts"]["skipped"] = len(stream.skipped)
        metrics["skipped"] = [dataclasses.asdict(image) for image in stream.skipped]
        if classification:
            metrics["classification"] = measure_naming(settings, opened, scored.records, staged, reporter)
        gates = gatekeeper.judge(metrics, scored.records, scored.scores, staged) if gatekeeper else ()
        (staged / "metrics.json").write_text(json.dumps(metrics, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        _write_rows(staged / "per_image.csv", scored, opened)
        _draw_curves(staged, dataset.name, scored, opened.calibration.threshold)
    for image in stream.skipped:
        reporter.warn(f"skipped {image.key}: {image.reason}")
    return EvaluationSummary(folder=folder, metrics=metrics, pictures=drawer.drawn, gates=gates)


def _judge(
    settings: RunConfig, opened: OpenBundle, stream: PictureStream, drawer: _Drawer, reporter: Reporter
) -> _Scored:
    scored = _Scored()
    with reporter.stage("Judging the test images", len(stream.records)) as advance:
        for batch in batched(stream, settings.runtime.batch_size):
            predictions = opened.detector.predict([picture for _, picture in batch])
            for (record, _), prediction in zip(batch, predictions, strict=True):
                mask = _mask_of(record, settings)
                scored.records.append(record)
                scored.scores.append(prediction.score)
                scored.peaks.append(float(prediction.anomaly_map.max()))
                scored.pixels.add(*_aligned(prediction, mask, settings))
                drawer.offer(record, prediction, mask)
            advance(len(batch))
    return scored


def _mask_of(record: ImageRecord, settings: RunConfig) -> np.ndarray | None:
    """The defect mask at its own size; a good part's is empty; None where a defective part has none."""
    if record.is_normal:
        return np.zeros(_good_size(record, settings), dtype=np.bool_)
    if record.mask_path is None:
        return None
    return read_mask(record.mask_path, max_megapixels=settings.data.max_megapixels)


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
        "decision": images["decision"],
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
            "calibration": {"method": calibration.method, "images": calibration.images},
            "auroc_interval": "95 % stratified percentile bootstrap over test images",
            "false_alarm_interval": "95 % Clopper-Pearson",
            "cvad_version": __version__,
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


class _Drawer:
    """Draws a bounded number of side-by-side pictures while the test set streams past: each type in turn."""

    def __init__(self, folder: Path, settings: RunConfig, opened: OpenBundle, records: Sequence[ImageRecord]) -> None:
        self.drawn = 0
        self._folder = folder
        self._settings = settings
        self._calibration = opened.calibration
        self._wanted = _spread(records, settings.evaluation.pictures)

    def offer(self, record: ImageRecord, prediction: Prediction, mask: np.ndarray | None) -> None:
        """Draw the picture if it is one of those wanted."""
        if record.key not in self._wanted:
            return
        image = read_image(record.path, max_megapixels=self._settings.data.max_megapixels)
        verdict = "rejected" if prediction.score > self._calibration.threshold else "passed"
        anomaly_panel(
            self._folder / (record.key if record.key.endswith(".png") else f"{record.key}.png"),
            image,
            prediction.anomaly_map,
            mask,
            threshold=self._calibration.pixel_threshold,
            title=f"{record.key}: {verdict}, score {prediction.score:.4g}, threshold {self._calibration.threshold:.4g}",
        )
        self.drawn += 1


def _spread(records: Sequence[ImageRecord], count: int) -> set[str]:
    """Keys of `count` records, taken from each defect type in turn."""
    by_type: dict[str, list[str]] = {}
    for record in records:
        by_type.setdefault(record.defect_type, []).append(record.key)
    in_turn = [(place, kind, key) for kind, keys in by_type.items() for place, key in enumerate(keys)]
    return {key for _, _, key in sorted(in_turn)[:count]}
