"""Whether a run is worse than an earlier one on the same test images, or whether the difference may be chance.

Both runs judged the same images, so the bootstrap resamples images, each with both scores: what makes an image
difficult for both runs cancels in the difference. Good and defective images are resampled separately, as for the
interval of a single run. The limits are percentiles of the bootstrap distribution: on 80 nearly separated images, BCa
and studentised limits fail up to 16 % of unchanged detectors instead of 5 %, and percentiles 1 to 7 % (docs/gates.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Bool, Float64, Int64, Shaped

from cvad_cli.core.metrics import BATCH_ELEMENTS, RESAMPLES, auroc_along
from cvad_cli.records import GOOD

SAME_SCORE: Final = 1e-5
"""Relative: other hardware or another number of threads changes float32 scores by less, training again by more."""

Ranked = Float64[np.ndarray, "*resamples n"]
"""A value of each image, along the last axis; the other axes are resamples."""
Rates = Float64[np.ndarray, "*resamples"]


@dataclass(frozen=True, slots=True)
class PairedRuns:
    """How two runs judged the same n test images: first the baseline, then the present run."""

    defect_types: Shaped[np.ndarray, " n"]
    """`GOOD` for a good part."""
    scores: Float64[np.ndarray, "2 n"]
    """Finite. Each run has a scale of its own: only ranks within a run are compared."""
    rejected: Bool[np.ndarray, "2 n"]
    """Each at the threshold of its run."""

    def __post_init__(self) -> None:
        wanted = (2, *self.defect_types.shape)
        if self.defect_types.ndim != 1 or self.scores.shape != wanted or self.rejected.shape != wanted:
            raise ValueError(
                f"expected types (n,), scores (2, n) and rejected (2, n), got {self.defect_types.shape}, "
                f"{self.scores.shape} and {self.rejected.shape}"
            )
        if not np.isfinite(self.scores).all():
            raise ValueError("scores: expected finite values")


@dataclass(frozen=True, slots=True)
class Worsening:
    """How much worse the present run is than the baseline; negative if it is better."""

    estimate: float
    low: float
    """One-sided limit: the true worsening is at least this, with the requested confidence."""
    high: float
    """One-sided limit: the true worsening is at most this, with the same confidence."""


@dataclass(frozen=True, slots=True)
class _Drawn:
    """Resampled images of one run."""

    good: Float64[np.ndarray, "*resamples g"]
    defective: Float64[np.ndarray, "*resamples d"]
    good_rejected: Bool[np.ndarray, "*resamples g"]
    defective_rejected: Bool[np.ndarray, "*resamples d"]


@dataclass(frozen=True, slots=True)
class _Paired:
    """A metric of image scores: how to compute it, which sign is worse, and which images cause its noise."""

    measure: Callable[[_Drawn], Rates]
    worse: int
    of_good: bool
    of_defective: bool


def has_paired_bootstrap(metric: str) -> bool:
    """Whether `metric`, a dotted path into metrics.json, can be computed from the images' scores and verdicts alone."""
    return _described(metric) is not None


def why_undecidable(metric: str, runs: PairedRuns, *, confidence: float) -> str | None:
    """Why these images cannot decide about `metric` at that confidence; None if they can.

    As in a sign test, k images that all become worse are evidence only if k coin flips would all show the same side
    with a probability of at most 1 - confidence. Fewer images of a class decide nothing, whatever their scores. The
    exception is the same detector again: it is no worse on any number of images.
    """
    described = _require_described(metric)
    min_images = images_needed(confidence)
    good, defective = _classes(metric, runs)
    if _same(runs, np.concatenate([good, defective])):
        return None
    for needed, found, kind in (
        (described.of_good, len(good), "good"),
        (described.of_defective, len(defective), "defective"),
    ):
        if needed and found < min_images:
            return f"{found} {kind} images are too few: {confidence:.0%} confidence needs {min_images} or more"
    return None


def images_needed(confidence: float) -> int:
    """The minimum number of images of a class that can decide: the smallest k with 0.5^k <= 1 - confidence.

    >>> images_needed(0.95)
    5
    """
    return math.ceil(math.log(1 - confidence) / math.log(0.5) - 1e-9)


def worsening(metric: str, runs: PairedRuns, *, confidence: float, rng: np.random.Generator) -> Worsening:
    """The worsening of `metric` from the baseline to the present run, with one-sided bootstrap limits.

    If the runs differ but all resamples give the same difference, percentiles would claim a certainty that does not
    exist: `high` is then the limit that m independent images without a change support, 1 - (1 - confidence)^(1/m).

    Args:
        metric: a metric for which `has_paired_bootstrap` is true.
        runs: both runs.
        confidence: the confidence of each of the two limits, 0.5 to 1.
        rng: draws the resamples.

    Raises:
        ValueError: another metric, or `why_undecidable` gives a reason.
    """
    from scipy.stats import bootstrap

    described = _require_described(metric)
    reason = why_undecidable(metric, runs, confidence=confidence)
    if reason:
        raise ValueError(f"{metric}: {reason}")
    good, defective = _classes(metric, runs)
    if _same(runs, np.concatenate([good, defective])):
        return Worsening(0.0, 0.0, 0.0)

    def difference(
        good_rows: Float64[np.ndarray, "*resamples g"], defective_rows: Float64[np.ndarray, "*resamples d"], axis: int
    ) -> Rates:
        del axis  # SciPy puts the images on the last axis
        rows = good_rows.astype(np.intp), defective_rows.astype(np.intp)
        before, now = (described.measure(_drawn(runs, run, good[rows[0]], defective[rows[1]])) for run in (0, 1))
        return np.asarray(described.worse * (now - before) + 0.0)  # no -0.0

    indices = np.arange(len(good), dtype=np.float64), np.arange(len(defective), dtype=np.float64)
    estimate = float(difference(indices[0], indices[1], axis=-1))
    result = bootstrap(
        indices,
        difference,
        n_resamples=RESAMPLES,
        batch=max(1, BATCH_ELEMENTS // (len(good) + len(defective))),
        vectorized=True,
        confidence_level=2 * confidence - 1,  # each of the two-sided limits then has the one-sided confidence
        method="percentile",
        rng=rng,
    )
    low, high = float(result.confidence_interval.low), float(result.confidence_interval.high)
    if low == high:
        classes = [len(good)] * described.of_good + [len(defective)] * described.of_defective
        high = estimate + 1 - (1 - confidence) ** (1 / min(classes))
    return Worsening(estimate, low, high)


def _described(metric: str) -> _Paired | None:
    if metric in _METRICS:
        return _METRICS[metric]
    section, _, rest = metric.partition(".")
    field = rest.rpartition(".")[2]
    return _TYPE_METRICS.get(field) if section == "defect_types" and "." in rest else None


def _require_described(metric: str) -> _Paired:
    described = _described(metric)
    if described is None:
        raise ValueError(f"{metric}: cannot be computed from the scores of images alone")
    return described


def _classes(metric: str, runs: PairedRuns) -> tuple[Int64[np.ndarray, " g"], Int64[np.ndarray, " d"]]:
    """Rows of the good images, and of the defective images that count for this metric."""
    types = runs.defect_types
    wanted = types != GOOD
    if metric.startswith("defect_types."):
        wanted = types == metric.partition(".")[2].rpartition(".")[0]
    return np.flatnonzero(types == GOOD), np.flatnonzero(wanted)


def _drawn(
    runs: PairedRuns, run: int, good: Int64[np.ndarray, "*resamples g"], defective: Int64[np.ndarray, "*resamples d"]
) -> _Drawn:
    scores, rejected = runs.scores[run], runs.rejected[run]
    return _Drawn(scores[good], scores[defective], rejected[good], rejected[defective])


def _same(runs: PairedRuns, rows: Int64[np.ndarray, " n"]) -> bool:
    """Whether both runs agree on these images up to rounding: then they are the same detector."""
    return bool(
        np.allclose(runs.scores[0, rows], runs.scores[1, rows], rtol=SAME_SCORE, atol=0)
        and np.array_equal(runs.rejected[0, rows], runs.rejected[1, rows])
    )


def _auroc(drawn: _Drawn) -> Rates:
    return auroc_along(drawn.good, drawn.defective, axis=-1)


def _average_precision(drawn: _Drawn) -> Rates:
    """scikit-learn's definition: the sum of precision times the step in recall, ties taken together."""
    positive, found, alarms = _ranked(drawn)
    return np.asarray((positive * found / (found + alarms)).sum(axis=-1) / drawn.defective.shape[-1])


def _f1_max(drawn: _Drawn) -> Rates:
    _, found, alarms = _ranked(drawn)
    return np.asarray((2 * found / (found + alarms + drawn.defective.shape[-1])).max(axis=-1))


def _ranked(drawn: _Drawn) -> tuple[Ranked, Ranked, Ranked]:
    """Of each image, highest score first: whether it is defective, and the hits and false alarms of a cut below it.

    Images with equal scores share a cut, below the last of them.
    """
    scores = np.concatenate([drawn.good, drawn.defective], axis=-1)
    order = np.argsort(-scores, axis=-1)
    positive = (order >= drawn.good.shape[-1]).astype(np.float64)
    ranked = np.take_along_axis(scores, order, axis=-1)
    size = ranked.shape[-1]
    last = np.ones(ranked.shape, dtype=np.bool_)
    last[..., :-1] = ranked[..., :-1] != ranked[..., 1:]
    # The nearest end of a group of ties at or after each index: a running minimum from the right.
    ends = np.where(last, np.arange(size), size)
    ends = np.minimum.accumulate(ends[..., ::-1], axis=-1)[..., ::-1]
    found = np.take_along_axis(positive.cumsum(axis=-1), ends, axis=-1)
    return positive, found, ends + 1 - found


def _recall(drawn: _Drawn) -> Rates:
    return np.asarray(drawn.defective_rejected.mean(axis=-1))


def _false_alarm_rate(drawn: _Drawn) -> Rates:
    return np.asarray(drawn.good_rejected.mean(axis=-1))


def _precision(drawn: _Drawn) -> Rates:
    """0 if nothing is rejected: scikit-learn's `zero_division=0`."""
    found, alarms = drawn.defective_rejected.sum(axis=-1), drawn.good_rejected.sum(axis=-1)
    return np.asarray(found / np.maximum(found + alarms, 1))


_METRICS: Final = {
    "image.auroc": _Paired(_auroc, -1, of_good=True, of_defective=True),
    "image.average_precision": _Paired(_average_precision, -1, of_good=True, of_defective=True),
    "image.f1_max": _Paired(_f1_max, -1, of_good=True, of_defective=True),
    "decision.recall": _Paired(_recall, -1, of_good=False, of_defective=True),
    "decision.false_alarm_rate": _Paired(_false_alarm_rate, 1, of_good=True, of_defective=False),
    "decision.precision": _Paired(_precision, -1, of_good=True, of_defective=True),
}
_TYPE_METRICS: Final = {
    "auroc": _Paired(_auroc, -1, of_good=True, of_defective=True),
    "recall": _Paired(_recall, -1, of_good=False, of_defective=True),
}
