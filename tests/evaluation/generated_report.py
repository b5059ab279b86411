"""Reports without a network: images, maps and scores are generated, all else is what `cvad evaluate` does.

    python tests/evaluation/generated_report.py FOLDER [IMAGES] [--portable]

writes one and tells time, size and memory.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cvad_cli.adapters.image_panels.report_thumbnails import UNITS, shrunk, thumbnail
from cvad_cli.assembly.evaluation.image_output import REPORT_IMAGES_NAME
from cvad_cli.assembly.evaluation.report import REPORT_NAME, Findings, write_report
from cvad_cli.assembly.evaluation.report_images import ReportImages
from cvad_cli.core.metrics import measure_images
from cvad_cli.core.pixel_metrics import PixelScores
from cvad_cli.records import GOOD, Calibration, ImageRecord

THRESHOLD = 3.0
MANIFEST = {
    "model": {"backbone": "resnet10t"},
    "versions": {"anomalib": "2.7.0", "numpy": "2.0.0", "torch": "2.4.0", "timm": "1.0.12"},
}


def record(number: int, defect_type: str, name: str | None = None) -> ImageRecord:
    key = name or f"test/{defect_type}/{number:03d}.png"
    return ImageRecord(Path(key), key, defect_type)


def generated(folder: Path, records: Sequence[ImageRecord], **options: object) -> dict:
    """Write a report of the records into `folder`; its metrics. `options` are those of `drawn`."""
    found, images = drawn(folder, records, **options)
    (folder / "metrics.json").write_text(json.dumps(found.metrics, ensure_ascii=False), encoding="utf-8")
    write_report(folder, found, images)
    return dict(found.metrics)


def drawn(
    folder: Path,
    records: Sequence[ImageRecord],
    *,
    portable: bool = False,
    masks: bool = True,
    side: int = 256,
    images: int | None = None,
    seed: int = 7,
    **found: object,
) -> tuple[Findings, ReportImages]:
    """All that a page needs but the page. Every fourth defect scores like a good part."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    report_images = ReportImages(folder / REPORT_IMAGES_NAME, images=images or len(records), portable=portable)
    pixels, scores = PixelScores(), []
    weave = 128 + 60 * np.sin(np.arange(side) / 3.0)[:, None] * np.sin(np.arange(side) / 2.0)[None, :]
    for number, item in enumerate(records):
        shown = item.is_normal or number % 4
        height = rng.normal(4.5, 0.8) if shown and not item.is_normal else rng.normal(2.0, 0.5)
        image, anomaly_map, mask = scene(weave, item, height, rng)
        known = mask if masks or item.is_normal else None
        score = float(anomaly_map.max())
        scores.append(score)
        pixels.add(
            anomaly_map,
            None if known is None else known[:: len(known) // len(anomaly_map), :: len(known) // len(anomaly_map)],
        )
        bound = report_images.photo_bytes
        shown = thumbnail(shrunk(image), anomaly_map, known, threshold=THRESHOLD, photo_bytes=bound)
        report_images.add(item, score, score, shown)
    metrics = as_metrics(records, scores, pixels, seed)
    if "classification" in found:
        metrics["classification"] = classification_metrics(records)
    calibration = Calibration(THRESHOLD, THRESHOLD, "cross_conformal", 0.02, 0.019, 264, "expected", 0.068)
    return Findings(metrics, MANIFEST, calibration, pixels, **found), report_images


def scene(weave: np.ndarray, item: ImageRecord, height: float, rng: np.random.Generator):
    """A woven image, a map of half its size with one bump, and the mask of that bump."""
    side = len(weave)
    rows, columns = np.mgrid[: side // 2, : side // 2] * 2.0
    y, x = rng.uniform(0.2, 0.8, 2) * side
    bump = np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / (2 * (0.06 * side) ** 2))
    anomaly_map = (rng.uniform(0.6, 0.9, bump.shape) + height * bump).astype(np.float32)
    plane = weave + rng.normal(0, 12, weave.shape)
    mask = np.zeros(weave.shape, dtype=bool)
    if not item.is_normal:
        rows, columns = np.mgrid[:side, :side]
        mask = (rows - y) ** 2 + (columns - x) ** 2 < (0.08 * side) ** 2
        plane[mask] -= 70
    image = np.clip(plane, 0, 255).astype(np.uint8)
    return np.repeat(image[:, :, None], 3, axis=2), anomaly_map, mask


def as_metrics(records: Sequence[ImageRecord], scores: list[float], pixels: PixelScores, seed: int) -> dict:
    images = measure_images(
        scores,
        [item.defect_type for item in records],
        threshold=THRESHOLD,
        stated_false_alarm_rate=0.019,
        rng=np.random.default_rng(seed),
    ).as_dict()
    localised = pixels.measure().as_dict()
    good = sum(item.is_normal for item in records)
    return {
        **images,
        "pixel": localised["pixel"],
        "unavailable": {**images["unavailable"], **localised["unavailable"]},
        "counts": {
            "train": 264,
            "test": len(records),
            "good": good,
            "defective": len(records) - good,
            "masks": len(records) - good,
            "skipped": 0,
        },
        "skipped": [],
        "provenance": {
            "name": "generated",
            "model": "patchcore",
            "seed": seed,
            "trained": {"data": "weave", "fingerprint": "0" * 64, "seed": seed},
            "data": "weave",
            "test_fingerprint": "1" * 64,
            "bundle_fingerprint": "2" * 64,
            "image_size": 128,
            "pixel_metrics_at": "input",
            "auroc_interval": "95 % stratified percentile bootstrap over test images",
            "false_alarm_interval": "95 % Clopper-Pearson",
            "cvad_version": "0.1.0",
            "created": "2025-01-02T03:04:05+00:00",
        },
    }


def classification_metrics(records: Sequence[ImageRecord]) -> dict:
    """Every image named after the first type."""
    kinds = [item.defect_type for item in records if not item.is_normal]
    types = sorted(set(kinds))
    table = [[kinds.count(name) if index == 0 else 0 for index in range(len(types))] for name in types]
    return {
        "types": {name: kinds.count(name) for name in types},
        "images": len(kinds),
        "regions": len(kinds),
        "leave_one_out": {
            "accuracy": 0.25,
            "macro_f1": 0.125,
            "recall": {name: float(index == 0) for index, name in enumerate(types)},
            "confusion": {"types": types, "rows_are_true": table},
            "reliability": {"expected_calibration_error": 0.5, "bins": []},
        },
        "shots": {"1": None},
        "open_set": None,
        "unavailable": {"shots.1": "the rarest type has 1 images, so none would be left to test"},
    }


def usual(images: int) -> list[ImageRecord]:
    """A third good parts, the rest of three types."""
    return [record(number, (GOOD, "bent", "glue", GOOD, "thread", "bent")[number % 6]) for number in range(images)]


if __name__ == "__main__":
    target, count = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 78
    options = {"portable": "--portable" in sys.argv, "side": UNITS}
    clocks = time.perf_counter, time.process_time
    began = [clock() for clock in clocks]
    generated(target, usual(count), **options)
    wall, cpu = (clock() - start for clock, start in zip(clocks, began, strict=True))
    size = (target / REPORT_NAME).stat().st_size / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    figures = f"{wall:.1f} s ({cpu:.1f} s of CPU) with their generation, {size:.1f} MB, peak memory {peak:.0f} MB"
    sys.stdout.write(f"{count} images: {figures}\n")
