"""An earlier evaluation to compare with: its metrics.json and, beside it, the scores of its test images."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from cvad_cli.core.metrics import auroc_along
from cvad_cli.errors import ConfigError
from cvad_cli.files import recover
from cvad_cli.records import GOOD

METRICS_FILE: Final = "metrics.json"
ROWS_FILE: Final = "per_image.csv"
LARGEST_FILE: Final = 256 * 2**20
"""Bytes: a million images take about 100 MB. A larger file is no evaluation of cvad."""
_AUROC_SLACK: Final = 1e-4  # per_image.csv of older versions holds six digits: a tie or two


@dataclass(frozen=True, slots=True)
class ImageRow:
    """How an earlier run judged one test image."""

    defect_type: str
    score: float
    rejected: bool


@dataclass(frozen=True, slots=True)
class Baseline:
    """An earlier evaluation."""

    path: Path
    """The path of its metrics.json."""
    metrics: Mapping[str, Any]
    rows: Mapping[str, ImageRow]
    """Key of a test image -> how it was judged."""

    @property
    def provenance(self) -> Mapping[str, Any]:
        """The section `provenance` of metrics.json."""
        provenance: Mapping[str, Any] = self.metrics["provenance"]
        return provenance


def open_baseline(path: Path, run: str) -> Baseline:
    """Read an earlier evaluation: a metrics.json, the folder that holds it, a run's folder, or a folder of runs.

    Raises ConfigError naming the file and what is wrong with it.
    """
    file = _find(path, run)
    metrics = _read_metrics(file)
    rows = dict(_read_rows(file.with_name(ROWS_FILE)))
    baseline = Baseline(file, metrics, rows)
    _require_one_evaluation(baseline)
    return baseline


def require_same_images(baseline: Baseline, fingerprint: str, data: str) -> None:
    """Refuse a baseline of other test images: their figures cannot be compared. Raises ConfigError with the reason."""
    theirs = baseline.provenance.get("test_fingerprint")
    if theirs == fingerprint:
        return
    images, data_then = baseline.metrics["counts"].get("test"), baseline.provenance.get("data")
    raise ConfigError(
        f"--baseline {baseline.path}: was measured on other test images ({images} of {data_then}, "
        f"fingerprint {str(theirs)[:12]}) than this run ({data}, fingerprint {fingerprint[:12]}). "
        "Images, masks and types must be the same: evaluate the earlier detector on these images for a new baseline"
    )


def _find(path: Path, run: str) -> Path:
    if path.name == METRICS_FILE:
        recover(path.parent)
    if path.is_file():
        return path
    tried = [path / part / METRICS_FILE for part in ("", "evaluation", f"{run}/evaluation", run)]
    for file in tried:
        recover(file.parent)
    found = next((file for file in tried if file.is_file()), None)
    if found is None:
        paths = ", ".join(str(file.relative_to(path)) for file in tried)
        what = f"holds none of {paths}" if path.is_dir() else "no such file or folder"
        raise ConfigError(f"--baseline {path}: {what}; give the {METRICS_FILE} of an earlier `cvad evaluate`")
    return found


def _read_metrics(file: Path) -> dict[str, Any]:
    try:
        loaded = json.loads(_text(file))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"--baseline {file}: is not JSON: {error}") from error
    sections = ("image", "pixel", "decision", "defect_types", "counts", "unavailable", "provenance")
    if not isinstance(loaded, dict) or not all(isinstance(loaded.get(section), dict) for section in sections):
        raise ConfigError(f"--baseline {file}: is not the {METRICS_FILE} of an evaluation")
    if not isinstance(loaded["image"].get("auroc"), (int, float, type(None))):
        raise ConfigError(f"--baseline {file}: image.auroc: expected a number, got {loaded['image']['auroc']!r}")
    return loaded


def _read_rows(file: Path) -> Iterator[tuple[str, ImageRow]]:
    if not file.is_file():
        raise ConfigError(
            f"--baseline: {file} is missing: a paired comparison needs the score of every image. Keep the two files "
            "of an evaluation together"
        )
    reader = csv.DictReader(_text(file).splitlines())
    wanted = {"image", "defect_type", "score", "rejected"}
    if not wanted <= set(reader.fieldnames or ()):
        raise ConfigError(f"--baseline {file}: expected the columns {', '.join(sorted(wanted))}")
    seen: set[str] = set()
    try:
        for row in reader:
            key = row["image"]
            if key in seen:
                raise ConfigError(f"--baseline {file}: line {reader.line_num}: {key} is listed twice")
            seen.add(key)
            score, rejected = float(row["score"]), row["rejected"]
            if not math.isfinite(score) or rejected not in {"0", "1"}:
                raise ValueError(f"score {row['score']}, rejected {rejected}")
            yield key, ImageRow(row["defect_type"], score, rejected == "1")
    except (csv.Error, TypeError, ValueError) as error:
        raise ConfigError(f"--baseline {file}: line {reader.line_num}: cannot be read: {error}") from error


def _text(file: Path) -> str:
    try:
        if file.stat().st_size > LARGEST_FILE:
            raise ConfigError(f"--baseline {file}: is larger than {LARGEST_FILE >> 20} MB: not an evaluation of cvad")
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"--baseline {file}: is not UTF-8 text (byte {error.start})") from error
    except OSError as error:
        raise ConfigError(f"--baseline {file}: cannot be read: {error.strerror}") from error


def _require_one_evaluation(baseline: Baseline) -> None:
    """Raise ConfigError unless the scores give the AUROC of metrics.json: then the files belong together."""
    recorded = baseline.metrics["image"].get("auroc")
    good, defective = (
        np.array([row.score for row in baseline.rows.values() if (row.defect_type == GOOD) is wanted])
        for wanted in (True, False)
    )
    found = float(auroc_along(good, defective, axis=-1)) if len(good) and len(defective) else None
    if recorded is None and found is None:
        return
    if recorded is None or found is None or not abs(recorded - found) <= _AUROC_SLACK:
        raise ConfigError(
            f"--baseline {baseline.path}: says image.auroc {recorded}, but the scores in {ROWS_FILE} beside it "
            f"give {found}: the two files are not of one evaluation"
        )
