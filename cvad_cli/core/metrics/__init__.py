"""How well good and defective images are separated: the ranking, and the decision at the calibrated threshold.

scikit-learn and SciPy compute the figures. A figure that a test set cannot give (it has one class, or too few images)
is None, and `unavailable` says why.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from jaxtyping import Bool, Float, Float64, Shaped

from cvad_cli.records import GOOD

CONFIDENCE: Final = 0.95
RESAMPLES: Final = 2000  # the 2.5 % tail has 50 resamples: the error of a limit is about a tenth of the interval
BATCH_ELEMENTS: Final = 4_000_000  # scores resampled at once: 32 MB per temporary array

Interval = tuple[float, float]


@dataclass(frozen=True, slots=True)
class ImageMetrics:
    """Quality of the ranking over all thresholds, 0..1."""

    auroc: float | None
    auroc_interval: Interval | None
    """Stratified bootstrap, 95 %."""
    average_precision: float | None
    f1_max: float | None
    f1_max_threshold: float | None
    """`score > f1_max_threshold` gives `f1_max`. It is chosen with the test labels: never deploy it."""


@dataclass(frozen=True, slots=True)
class DecisionMetrics:
    """The result of `score > threshold` on this test set. Rates are 0..1; positives are rejected parts."""

    threshold: float
    stated_false_alarm_rate: float
    false_alarm_rate: float | None
    false_alarm_interval: Interval | None
    """Clopper-Pearson, 95 %."""
    precision: float | None
    recall: float | None
    true_positives: int
    false_positives: int
    true_negatives: int
    false_negatives: int


@dataclass(frozen=True, slots=True)
class DefectTypeMetrics:
    """One defect type against the good images."""

    images: int
    auroc: float | None
    recall: float
    """Share of its images that score above the threshold."""
    mean_score: float


@dataclass(frozen=True, slots=True)
class ImageReport:
    """All figures from image scores, and why others are missing."""

    image: ImageMetrics
    decision: DecisionMetrics
    defect_types: Mapping[str, DefectTypeMetrics]
    unavailable: Mapping[str, str]
    """Dotted name of a value that is None -> the reason."""

    def as_dict(self) -> dict[str, Any]:
        """The parts `image`, `decision`, `defect_types` and `unavailable` of metrics.json, in JSON's own types."""
        return {
            "image": _json(self.image),
            "decision": _json(self.decision),
            "defect_types": {name: _json(row) for name, row in self.defect_types.items()},
            "unavailable": dict(self.unavailable),
        }


def measure_images(
    scores: Sequence[float] | Float[np.ndarray, " n"],
    defect_types: Sequence[str],
    *,
    threshold: float,
    stated_false_alarm_rate: float,
    rng: np.random.Generator,
) -> ImageReport:
    """Measure a labelled test set.

    Args:
        scores: n finite image scores, larger = more anomalous.
        defect_types: n names, `GOOD` for a good part.
        threshold: the calibrated threshold; a part is rejected if its score is above it.
        stated_false_alarm_rate: the rate that the calibration states, 0..1.
        rng: draws the bootstrap resamples.

    Raises:
        ValueError: there are no images, more or fewer names than scores, or a score that is not finite.
    """
    values, types = _checked(scores, defect_types)
    defective = types != GOOD
    unavailable: dict[str, str] = {}
    return ImageReport(
        image=_ranking(values, defective, rng, unavailable),
        decision=_decision(values > threshold, defective, (threshold, stated_false_alarm_rate), unavailable),
        defect_types=_by_type(values, types, threshold, unavailable),
        unavailable=unavailable,
    )


def bootstrap_auroc_interval(
    good: Sequence[float] | Float[np.ndarray, " g"],
    defective: Sequence[float] | Float[np.ndarray, " d"],
    *,
    rng: np.random.Generator,
) -> Interval:
    """95 % percentile bootstrap interval of the AUROC; good and defective images are resampled separately.

    BCa intervals need variation in the jackknife samples, which a nearly perfect detector does not have.

    Args:
        good: scores of good images, g >= 2.
        defective: scores of defective images, d >= 2.
        rng: draws the resamples.

    Raises:
        ValueError: fewer than two scores in one class.
    """
    from scipy.stats import bootstrap

    samples = (np.asarray(good, dtype=np.float64), np.asarray(defective, dtype=np.float64))
    result = bootstrap(
        samples,
        auroc_along,
        n_resamples=RESAMPLES,
        batch=max(1, BATCH_ELEMENTS // (len(samples[0]) + len(samples[1]))),
        vectorized=True,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=rng,
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def auroc_along(
    good: Float[np.ndarray, "*resamples g"], defective: Float[np.ndarray, "*resamples d"], axis: int = -1
) -> Float64[np.ndarray, "*resamples"]:
    """AUROC of many resamples at once: the Mann-Whitney U statistic divided by the number of pairs.

    Args:
        good: scores of good images along the last axis; the other axes are resamples.
        defective: the same for defective images.
        axis: the axis of the images, which SciPy names; the last.
    """
    from scipy.stats import rankdata

    g, d = good.shape[axis], defective.shape[axis]
    ranks = np.take(rankdata(np.concatenate([good, defective], axis=axis), axis=axis), range(g, g + d), axis=axis)
    return np.asarray((ranks.sum(axis=axis) - d * (d + 1) / 2) / (g * d))


def _ranking(
    scores: Float64[np.ndarray, " n"],
    defective: Bool[np.ndarray, " n"],
    rng: np.random.Generator,
    unavailable: dict[str, str],
) -> ImageMetrics:
    from sklearn.metrics import average_precision_score, roc_auc_score

    reason = _one_class(defective)
    if reason:
        fields = ("auroc", "auroc_interval", "average_precision", "f1_max", "f1_max_threshold")
        unavailable.update({f"image.{field}": reason for field in fields})
        return ImageMetrics(None, None, None, None, None)
    f1_max, f1_max_threshold = _best_f1(scores, defective)
    auroc = float(roc_auc_score(defective, scores))
    return ImageMetrics(
        auroc=auroc,
        auroc_interval=_interval_of(auroc, scores, defective, rng, unavailable),
        average_precision=float(average_precision_score(defective, scores)),
        f1_max=f1_max,
        f1_max_threshold=f1_max_threshold,
    )


def _interval_of(
    auroc: float,
    scores: Float64[np.ndarray, " n"],
    defective: Bool[np.ndarray, " n"],
    rng: np.random.Generator,
    unavailable: dict[str, str],
) -> Interval | None:
    """The bootstrap interval, or None if all resamples agree: [1, 1] would claim a certainty that does not exist."""
    good, bad = scores[~defective], scores[defective]
    pairs = min(len(good), len(bad))
    if pairs < 2:
        unavailable["image.auroc_interval"] = "a bootstrap needs at least 2 good and 2 defective images"
        return None
    low, high = bootstrap_auroc_interval(good, bad, rng=rng)
    if low < high:
        return low, high
    reason = f"every bootstrap resample gives the same AUROC of {auroc:.4g}"
    if auroc == 1:
        bound, _ = _proportion_interval(pairs, pairs)
        reason += f"; {pairs} independent good-defective pairs, all ranked correctly, show {bound:.3g} or more (95 %)"
    unavailable["image.auroc_interval"] = reason
    return None


def _best_f1(scores: Float64[np.ndarray, " n"], defective: Bool[np.ndarray, " n"]) -> tuple[float, float]:
    """The highest F1 and its cut, midway between the scores on its two sides; the lowest cut if several are equal."""
    from sklearn.metrics import precision_recall_curve

    precision, recall, cuts = precision_recall_curve(defective, scores)
    total = precision + recall
    f1 = np.divide(2 * precision * recall, total, out=np.zeros_like(total), where=total > 0)[:-1]
    best = int(np.argmax(f1))
    lowest_rejected = float(cuts[best])
    below = np.nextafter(lowest_rejected, -np.inf)
    highest_passed = scores[scores < lowest_rejected].max(initial=-np.inf)
    midway = highest_passed + (lowest_rejected - highest_passed) / 2 if np.isfinite(highest_passed) else below
    return float(f1[best]), float(min(midway, below))


def _decision(
    rejected: Bool[np.ndarray, " n"],
    defective: Bool[np.ndarray, " n"],
    calibrated: tuple[float, float],
    unavailable: dict[str, str],
) -> DecisionMetrics:
    from sklearn.metrics import confusion_matrix

    counts = confusion_matrix(defective, rejected, labels=[False, True])
    passed_good, false_alarms, missed, found = (int(count) for count in counts.ravel())
    good, bad = passed_good + false_alarms, missed + found
    if not good:
        for field in ("false_alarm_rate", "false_alarm_interval"):
            unavailable[f"decision.{field}"] = "the test set has no good image"
    if not bad:
        unavailable["decision.recall"] = "the test set has no defective image"
    if not found + false_alarms:
        unavailable["decision.precision"] = "no image scores above the threshold"
    return DecisionMetrics(
        threshold=float(calibrated[0]),
        stated_false_alarm_rate=float(calibrated[1]),
        false_alarm_rate=false_alarms / good if good else None,
        false_alarm_interval=_proportion_interval(false_alarms, good) if good else None,
        precision=found / (found + false_alarms) if found + false_alarms else None,
        recall=found / bad if bad else None,
        true_positives=found,
        false_positives=false_alarms,
        true_negatives=passed_good,
        false_negatives=missed,
    )


def _proportion_interval(successes: int, trials: int) -> Interval:
    """Clopper-Pearson interval: it contains the true rate at least 95 % of the time for any n.

    Wilson's interval is narrower, but it covers less than 95 % near 0, where a good detector's false-alarm rate is.
    """
    from scipy.stats import binomtest

    interval = binomtest(successes, trials).proportion_ci(confidence_level=CONFIDENCE, method="exact")
    return float(interval.low), float(interval.high)


def _by_type(
    scores: Float64[np.ndarray, " n"],
    types: Shaped[np.ndarray, " n"],
    threshold: float,
    unavailable: dict[str, str],
) -> dict[str, DefectTypeMetrics]:
    from sklearn.metrics import roc_auc_score

    good = scores[types == GOOD]
    rows = {}
    for name in sorted(set(types.tolist()) - {GOOD}):
        own = scores[types == name]
        labels = np.repeat([False, True], [len(good), len(own)])
        rows[name] = DefectTypeMetrics(
            images=len(own),
            auroc=float(roc_auc_score(labels, np.concatenate([good, own]))) if len(good) else None,
            recall=float(np.mean(own > threshold)),
            mean_score=float(own.mean()),
        )
        if not len(good):
            unavailable[f"defect_types.{name}.auroc"] = "the test set has no good image"
    return rows


def _one_class(defective: Bool[np.ndarray, " n"]) -> str | None:
    if defective.all():
        return "the test set has no good image"
    return None if defective.any() else "the test set has no defective image"


def _checked(
    scores: Sequence[float] | Float[np.ndarray, " n"], defect_types: Sequence[str]
) -> tuple[Float64[np.ndarray, " n"], Shaped[np.ndarray, " n"]]:
    values, types = np.asarray(scores, dtype=np.float64), np.asarray(defect_types, dtype=np.str_)
    if values.ndim != 1 or values.size == 0 or values.shape != types.shape:
        raise ValueError(f"expected n scores and n defect types, got shapes {values.shape} and {types.shape}")
    bad = np.flatnonzero(~np.isfinite(values))
    if bad.size:
        raise ValueError(f"scores[{bad[0]}]: expected a finite score, got {values[bad[0]]}")
    return values, types


def _json(metrics: ImageMetrics | DecisionMetrics | DefectTypeMetrics) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(metrics).items()}
