"""`cvad evaluate --classification`: describes the labelled defects of a test set once, classifies them in trials."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from cvad_cli.adapters.charts.evaluation import confusion_chart, reliability_chart
from cvad_cli.assembly.defect_types.inspector import LabelledInspection
from cvad_cli.assembly.defect_types.trials import (
    Outcome,
    TrialSet,
    few_shots,
    joined,
    leave_one_out,
    open_set,
    reliability,
)
from cvad_cli.config.schema import RunConfig
from cvad_cli.core.voting import LabelledRegions
from cvad_cli.errors import DataError
from cvad_cli.ports import Reporter
from cvad_cli.records import ImageRecord

SHOTS: Final = (1, 5, 10)
REPEATS: Final = 10
"""Number of draws of the shots, each with its own seed."""

CONFUSION_CHART: Final = "confusion.png"
RELIABILITY_CHART: Final = "reliability.png"


@dataclass(frozen=True, slots=True)
class ClassificationReport:
    """Figures of the classification, and the result for each image."""

    metrics: Mapping[str, Any]
    """The section `classification` of metrics.json."""
    images: Mapping[str, Mapping[str, Any]]
    """Key of an image -> `named`, its `confidence` and the nearest labelled regions of others, `neighbours`."""


@dataclass(frozen=True, slots=True)
class DescribedDefect:
    """A labelled defect for the trials, without masks and outlines, so that a test set fits in memory."""

    record: ImageRecord
    vectors: np.ndarray
    """float32 (n, d), one per region."""
    masses: np.ndarray
    """(n,), one per region."""
    label_vectors: np.ndarray
    """float32 (m, d), of the regions that the label belongs to."""

    @classmethod
    def of(cls, record: ImageRecord, inspection: LabelledInspection) -> DescribedDefect:
        """Keep the part of an inspection that the trials need."""
        masses = np.array([region.mass for region in inspection.found.regions])
        return cls(record, inspection.found.vectors, masses, inspection.vectors)


def measure_classification(
    settings: RunConfig, described: Sequence[DescribedDefect], folder: Path, reporter: Reporter
) -> ClassificationReport:
    """Classify each defective image with the labels of the others, in several ways; write two charts to `folder`.

    Uses only the bundle, not the defect index. Raises DataError if there is no defective image.
    """
    if not described:
        raise DataError(f"{settings.data.root}: no defective test image to measure the classification on")
    names, trials = _trial_set(described)
    counts = Counter(names[kind] for kind in trials.types)
    found: dict[str, Any] = {
        "types": {name: counts[name] for name in names},
        "images": len(trials.types),
        "regions": len(trials.images),
        "leave_one_out": None,
        "shots": {str(shots): None for shots in SHOTS},
        "open_set": None,
        "unavailable": {},
    }
    if len(names) < 2:
        found["unavailable"] = dict.fromkeys(("leave_one_out", "shots", "open_set"), "there is only one defect type")
        return ClassificationReport(found, {})
    with reporter.stage("Classifying each defect with the others", 2 + len(SHOTS)) as advance:
        outcome = leave_one_out(trials)
        found["leave_one_out"] = _one(outcome, names)
        advance(1)
        for shots in SHOTS:
            _measure_shots(found, trials, shots, settings.seed)
            advance(1)
        found["open_set"] = _open(trials, names, settings.classify.unknown_rate)
        advance(1)
    title = f"{settings.name}: each image classified with the others"
    confusion_chart(folder / CONFUSION_CHART, outcome.confusion(len(names)), names, title=title)
    reliability_chart(folder / RELIABILITY_CHART, found["leave_one_out"]["reliability"], title=title)
    return ClassificationReport(
        found, _by_image(outcome, trials, names, [defect.record.key for defect in described], settings)
    )


def _by_image(
    outcome: Outcome, trials: TrialSet, names: Sequence[str], keys: Sequence[str], settings: RunConfig
) -> dict[str, dict[str, Any]]:
    """The leave-one-out result of each image, and the nearest neighbours of its region with the largest mass."""
    by_image = {}
    for image, predicted, confidence in zip(outcome.images, outcome.predicted, outcome.confidence, strict=True):
        mine = np.flatnonzero(trials.images == image)
        main = trials.vectors[mine[np.argmax(trials.masses[mine])]]
        likeness = (trials.labels.views @ main).max(axis=1)
        likeness[trials.labels.images == image] = -np.inf
        nearest = np.argsort(-likeness, kind="stable")[: settings.classify.neighbors]
        by_image[keys[image]] = {
            "named": names[predicted],
            "confidence": float(confidence),
            "neighbours": [
                {"key": keys[trials.labels.images[index]], "similarity": float(likeness[index])}
                for index in nearest
                if np.isfinite(likeness[index])
            ],
        }
    return by_image


def _one(outcome: Outcome, names: Sequence[str]) -> dict[str, Any]:
    table = outcome.confusion(len(names))
    recall = np.diag(table) / np.maximum(table.sum(1), 1)
    return {
        "accuracy": outcome.accuracy,
        "macro_f1": outcome.macro_f1(len(names)),
        "recall": dict(zip(names, map(float, recall), strict=True)),
        "confusion": {"types": list(names), "rows_are_true": table.tolist()},
        "reliability": reliability(outcome),
    }


def _measure_shots(found: dict[str, Any], trials: TrialSet, shots: int, seed: int) -> None:
    rows = [few_shots(trials, shots, rng=np.random.default_rng([seed, 4, shots, turn])) for turn in range(REPEATS)]
    outcomes = [outcome for outcome in rows if outcome is not None]
    if not outcomes:
        smallest = min(Counter(trials.types.tolist()).values())
        found["unavailable"][f"shots.{shots}"] = f"the rarest type has {smallest} images, so none would be left to test"
        return
    accuracies = np.array([outcome.accuracy for outcome in outcomes])
    scores = np.array([outcome.macro_f1(trials.count) for outcome in outcomes])
    found["shots"][str(shots)] = {
        "accuracy_mean": float(accuracies.mean()),
        "accuracy_std": float(accuracies.std()),
        "macro_f1_mean": float(scores.mean()),
        "repeats": len(outcomes),
        "tested": len(outcomes[0].truth),
        "expected_calibration_error": reliability(joined(outcomes))["expected_calibration_error"],
    }


def _open(trials: TrialSet, names: Sequence[str], rate: float) -> dict[str, Any]:
    result = open_set(trials, rate=rate)
    return {
        "auroc_mean": float(result.auroc.mean()),
        "auroc": dict(zip(names, map(float, result.auroc), strict=True)),
        "unknown_rate": rate,
        "unknown_called_unknown": result.unknown_flagged,
        "known_called_unknown": result.known_flagged,
    }


def _trial_set(described: Sequence[DescribedDefect]) -> tuple[tuple[str, ...], TrialSet]:
    """The names of the types, and the regions of all images, rejected or not."""
    names, types = np.unique([defect.record.defect_type for defect in described], return_inverse=True)
    regions, labels = (
        np.repeat(np.arange(len(described)), counts)
        for counts in (
            [len(defect.masses) for defect in described],
            [len(defect.label_vectors) for defect in described],
        )
    )
    views = np.concatenate([defect.label_vectors for defect in described]).astype(np.float64)[:, None, :]
    trials = TrialSet(
        vectors=np.concatenate([defect.vectors for defect in described]).astype(np.float64),
        images=regions,
        masses=np.concatenate([defect.masses for defect in described]),
        labels=LabelledRegions(views, types[labels], labels),
        types=types,
    )
    return tuple(map(str, names)), trials
