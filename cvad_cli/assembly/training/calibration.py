"""Decides which good images a model is fitted on and which it is calibrated on, and computes the threshold."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from cvad_cli.adapters.prefetch import batched
from cvad_cli.config.schema import CalibrationConfig
from cvad_cli.core.calibration import conformal_threshold, cross_conformal_threshold, fold_assignment
from cvad_cli.ports import Detector, Reporter
from cvad_cli.records import Calibration, Prediction

Fold = tuple[np.ndarray, np.ndarray]
"""Indices of the images fitted on, and of those held out."""


@dataclass(frozen=True, slots=True)
class CalibrationPlan:
    """Indices of the images that the final model is fitted on, and the folds whose held-out scores calibrate it."""

    final: np.ndarray
    folds: tuple[Fold, ...]


def plan_calibration(config: CalibrationConfig, images: int, *, seed: int, cheap_refit: bool = True) -> CalibrationPlan:
    """Split `images` good images (at least 2). `auto`: cross-conformal where refitting is cheap, else split.

    In a split-conformal plan the only fold is the final model, so nothing is fitted twice.
    """
    rng = np.random.default_rng([seed, 0])
    if config.method == "split_conformal" or (config.method == "auto" and not cheap_refit):
        held = min(max(1, round(images * config.fraction)), images - 1)
        order = rng.permutation(images)
        final = np.sort(order[held:])
        return CalibrationPlan(final, ((final, np.sort(order[:held])),))
    fold_of = fold_assignment(images, min(config.folds, images), rng=rng)
    folds = tuple(
        (np.flatnonzero(fold_of != fold), np.flatnonzero(fold_of == fold)) for fold in range(fold_of.max() + 1)
    )
    return CalibrationPlan(np.arange(images), folds)


def held_out_scores(
    detector: Detector, images: Iterable[np.ndarray], *, count: int, batch_size: int, reporter: Reporter
) -> tuple[np.ndarray, np.ndarray]:
    """Image scores and map peaks, (n,) each, of `count` good images that the detector was not fitted on."""
    with reporter.stage("Calibrating the threshold", count) as advance:
        found = []
        for batch in batched(images, batch_size):
            found += detector.predict(batch)
            advance(len(batch))
    return scores_and_peaks(found)


def scores_and_peaks(found: Sequence[Prediction]) -> tuple[np.ndarray, np.ndarray]:
    """Image scores and the maps' largest values, (n,) each."""
    scores = np.array([prediction.score for prediction in found])
    return scores, np.array([prediction.anomaly_map.max() for prediction in found])


def calibrate(held_out: Sequence[tuple[np.ndarray, np.ndarray]], *, false_alarm_rate: float) -> Calibration:
    """Thresholds on image scores and on map peaks, by the same rule, from images that the model was not fitted on."""
    cross = len(held_out) > 1
    image, pixel = (
        cross_conformal_threshold(values, false_alarm_rate=false_alarm_rate)
        if cross
        else conformal_threshold(values[0], false_alarm_rate=false_alarm_rate)
        for values in zip(*held_out, strict=True)
    )
    return Calibration(
        threshold=image.threshold,
        pixel_threshold=pixel.threshold,
        method="cross_conformal" if cross else "split_conformal",
        requested_rate=false_alarm_rate,
        stated_rate=image.stated_rate,
        images=image.images,
        rate_kind=image.rate_kind,
        rate_bound=image.rate_bound,
        caveat=image.caveat,
    )
