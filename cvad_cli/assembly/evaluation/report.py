"""`report.html`: all results of an evaluation on one page for people.

Its figures are exactly those of metrics.json; nothing is measured here.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cvad_cli.adapters.pages import data_uri, write_page
from cvad_cli.assembly.evaluation.report_charts import SQUARE, Axis, curve_path, histogram, rugs, score_axis
from cvad_cli.assembly.evaluation.report_images import ImageRow, ReportImages
from cvad_cli.core.curves import Curve, precision_recall, roc
from cvad_cli.core.pixel_metrics import PixelScores
from cvad_cli.records import Calibration, GateResult

REPORT_NAME: Final = "report.html"

MODEL_NAMES: Final = {"patchcore": "PatchCore", "efficient_ad": "EfficientAD"}


@dataclass(frozen=True, slots=True)
class Findings:
    """The content of the page."""

    metrics: Mapping[str, Any]
    """The content of metrics.json."""
    manifest: Mapping[str, Any]
    """The bundle's."""
    calibration: Calibration
    pixels: PixelScores
    gates: Sequence[GateResult] = ()
    classification: Mapping[str, Mapping[str, Any]] | None = None
    """Key of a defective image -> its classification; None if that was not evaluated."""


def write_report(folder: Path, found: Findings, images: ReportImages) -> None:
    """Write `report.html` into `folder`; the images are beside it, or in it if they are portable.

    Raises ResourceError if it cannot be written.
    """
    rows = sorted(images.rows, key=lambda row: _worst_first(row, found.calibration.threshold))
    content = {
        "metrics": found.metrics,
        "calibration": found.calibration,
        "facts": _facts(found),
        "verdict": _verdict(found.metrics),
        "gates": found.gates,
        "classification": found.classification,
        "cards": _cards(rows, found, images),
        "square": SQUARE,
        **_charts(images.rows, found),
    }
    write_page(
        folder / REPORT_NAME,
        "evaluation.html.j2",
        content,
        styles=("evaluation.css",),
        scripts=("evaluation.js",),
    )
    if images.portable:
        shutil.rmtree(images.folder)


def _worst_first(row: ImageRow, threshold: float) -> tuple[int, float, str]:
    """Missed defects, lowest score first; false alarms, highest score first; then the others, the closest first."""
    away = abs(row.score - threshold)
    mistake = (row.score > threshold) == row.record.is_normal
    rank = (1 if row.record.is_normal else 0) if mistake else 2
    return rank, -away if mistake else away, row.record.key


def _cards(rows: Sequence[ImageRow], found: Findings, images: ReportImages) -> Iterator[dict[str, Any]]:
    """The gallery, one image at a time, so that a portable page is never in memory as a whole."""
    for row in rows:
        photo, map_image = (_address(images, name) for name in (row.photo, row.map_image))
        yield {
            "key": row.record.key,
            "type": row.record.defect_type,
            "good": row.record.is_normal,
            "score": row.score,
            "peak": row.peak,
            "rejected": row.score > found.calibration.threshold,
            "width": row.width,
            "height": row.height,
            "outline": row.outline,
            "truth": row.truth,
            "share_above": row.share_above,
            "photo": photo,
            "map_image": map_image,
            "classification": (found.classification or {}).get(row.record.key),
        }


def _address(images: ReportImages, name: str) -> str:
    if images.portable:
        return data_uri((images.folder / name).read_bytes(), "image/jpeg")
    return f"{images.folder.name}/{name}"


def _charts(rows: Sequence[ImageRow], found: Findings) -> dict[str, Any]:
    """Geometry of the plots; a curve is None if the test set does not allow it."""
    scores = [row.score for row in rows]
    defective = [not row.record.is_normal for row in rows]
    threshold = found.calibration.threshold
    axis: Axis = score_axis(scores, threshold)
    both = any(defective) and not all(defective)
    limit = found.metrics["pixel"]["aupro_fpr_limit"]
    regions = found.pixels.region_curve(fpr_limit=limit)
    return {
        "axis": axis,
        "histogram": histogram(axis, scores, defective, threshold),
        "rugs": rugs(axis, scores, [row.record.defect_type for row in rows], threshold),
        "curves": {
            "roc": curve_path(roc(scores, defective)) if both else None,
            "precision_recall": curve_path(precision_recall(scores, defective)) if both else None,
            "aupro": curve_path(Curve(*regions), x_end=limit) if regions else None,
        },
    }


def _facts(found: Findings) -> dict[str, str]:
    """Model, data and software, for the head of the page."""
    metrics, manifest = found.metrics, found.manifest
    provenance, counts, model = metrics["provenance"], metrics["counts"], manifest["model"]
    name = MODEL_NAMES.get(provenance["model"], provenance["model"])
    backbone = model.get("backbone")
    trained = provenance["trained"]
    seeds = {provenance["seed"], trained["seed"]}
    return {
        "Model": f"{name}, {backbone}" if backbone else name,
        "Test data": f"{provenance['data']}, {counts['test']} images",
        "Trained on": f"{trained['data']}, {counts['train']} good images",
        "Seed": str(provenance["seed"]) if len(seeds) == 1 else f"{provenance['seed']} (training: {trained['seed']})",
        "Bundle fingerprint": provenance["bundle_fingerprint"][:12],
        "Test set fingerprint": provenance["test_fingerprint"][:12],
        "Software": ", ".join(
            [f"cvad {provenance['cvad_version']}", *(f"{name} {number}" for name, number in _versions(manifest))]
        ),
        "Measured": provenance["created"].replace("T", " ").replace("+00:00", " UTC"),
    }


def _versions(manifest: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The versions of the libraries that a bundle was trained with and that affect scores."""
    known = manifest.get("versions", {})
    return [(name, known[name]) for name in ("anomalib", "torch", "timm") if name in known]


def _verdict(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The outcome at the calibrated threshold, and how the measured false-alarm rate compares with the stated one.

    `rate`: 'exceeded' if the interval of the measured rate is above the stated one, else 'kept'; None without good
    images.
    """
    decision = metrics["decision"]
    interval = decision["false_alarm_interval"]
    rate = None
    if interval is not None:
        rate = "exceeded" if interval[0] > decision["stated_false_alarm_rate"] else "kept"
    return {
        "defective": decision["true_positives"] + decision["false_negatives"],
        "good": decision["true_negatives"] + decision["false_positives"],
        "rate": rate,
    }
