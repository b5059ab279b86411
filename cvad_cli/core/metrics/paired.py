"""Whether a run is worse than an earlier one on the same test images, or only luckier or unluckier.

Both runs judged the same images, so what is resampled is the image, with both of its scores: what makes an image
hard for both cancels out of the difference. Good and defective images are drawn apart, as in the interval of a single
run. The limits are percentiles of the bootstrap distribution: on 80 nearly separated images BCa and studentised
limits fail up to 16 % of unchanged detectors where 5 % are meant, percentiles 1 to 7 % (docs/gates.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cvad_cli.core.metrics import BATCH_ELEMENTS, RESAMPLES, auroc_along
from cvad_cli.records import GOOD

SAME_SCORE: Final = 1e-5
"""Relative: float32 on other hardware, or with another number of threads, differs by less; training again by more."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class PairedRuns:
    """The same n test images as two runs judged them: first the baseline, then the present one."""

    defect_types: NDArray[np.str_]
    """(n,), `GOOD` for a good part."""
    scores: Floats
    """(2, n), finite. Each run has a scale of its own: only ranks within a run are compared."""
    rejected: NDArray[np.bool_]
    """(2, n), each at the run's own threshold."""

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
    """How much worse the present run is than the baseline; negative where it is better."""

    estimate: float
    low: float
    """One-sided limit: the true worsening is at least this, with the confidence asked for."""
    high: float
    """One-sided limit: the true worsening is at most this, with the same confidence."""


@dataclass(frozen=True, slots=True)
class _Drawn:
    """Resampled images of one run, images along the last axis."""

    good: Floats
    defective: Floats
    good_rejected: NDArray[np.bool_]
    defective_rejected: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class _Paired:
    """A metric of image scores: how it is computed, which sign is worse, which images its noise comes from."""

    measure: Callable[[_Drawn], Floats]
    worse: int
    of_good: bool
    of_defective: bool


def has_paired_bootstrap(metric: str) -> bool:
    """Whether `metric`, a dotted path into metrics.json, follows from the images' scores and verdicts alone."""
    return _described(metric) is not None


def why_undecidable(metric: str, runs: PairedRuns, *, confidence: float) -> str | None:
    """Why these images cannot tell anything about `metric` at that confidence; None where they may.

    As in a sign test: k images that all change for the worse are evidence where k coin flips would all fall on one
    side less often than 1 - confidence, so fewer images of a class than that say nothing, whatever their scores.
    Only the same detector again is no worse on any number of images.
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
    """The fewest images of a class that can show anything: the smallest k with 0.5^k <= 1 - confidence.

    >>> images_needed(0.95)
    5
    """
    return math.ceil(math.log(1 - confidence) / math.log(0.5) - 1e-9)


def worsening(metric: str, runs: PairedRuns, *, confidence: float, rng: np.random.Generator) -> Worsening:
    """The worsening of `metric` from the baseline to now, with one-sided bootstrap limits.

    Where no resample changes the difference although the runs differ, percentiles would claim a certainty that nobody
    has: `high` is then what m independent images without a change can prove, 1 - (1 - confidence)^(1/m).

    Args:
        metric: one of those that `has_paired_bootstrap`.
        runs: both runs.
        confidence: of each of the two limits, 0.5 to 1.
        rng: draws the resamples.

    Raises:
        ValueError: another metric, or `why_undecidable` has a reason.
    """
    from scipy.stats import bootstrap

    described = _require_described(metric)
    reason = why_undecidable(metric, runs, confidence=confidence)
    if reason:
        raise ValueError(f"{metric}: {reason}")
    good, defective = _classes(metric, runs)
    if _same(runs, np.concatenate([good, defective])):
        return Worsening(0.0, 0.0, 0.0)

    def difference(good_rows: Floats, defective_rows: Floats, axis: int) -> Floats:
        del axis  # SciPy puts the images last
        rows = good_rows.astype(np.intp), defective_rows.astype(np.intp)
        before, now = (described.measure(_drawn(runs, run, good[rows[0]], defective[rows[1]])) for run in (0, 1))
        return described.worse * (now - before) + 0.0  # no -0.0

    indices = np.arange(len(good), dtype=np.float64), np.arange(len(defective), dtype=np.float64)
    estimate = float(difference(indices[0], indices[1], axis=-1))
    result = bootstrap(
        indices,
        difference,
        n_resamples=RESAMPLES,
        batch=max(1, BATCH_ELEMENTS // (len(good) + len(defective))),
        vectorized=True,
        confidence_level=2 * confidence - 1,  # two-sided limits, each of which has the one-sided confidence
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
        raise ValueError(f"{metric}: does not follow from the scores of images alone")
    return described


def _classes(metric: str, runs: PairedRuns) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows of the good images, and of the defective ones that count for this metric."""
    types = runs.defect_types
    wanted = types != GOOD
    if metric.startswith("defect_types."):
        wanted = types == metric.partition(".")[2].rpartition(".")[0]
    return np.flatnonzero(types == GOOD), np.flatnonzero(wanted)


def _drawn(runs: PairedRuns, run: int, good: NDArray[np.intp], defective: NDArray[np.intp]) -> _Drawn:
    scores, rejected = runs.scores[run], runs.rejected[run]
    return _Drawn(scores[good], scores[defective], rejected[good], rejected[defective])


def _same(runs: PairedRuns, rows: NDArray[np.intp]) -> bool:
    """Whether both runs say the same of these images, but for rounding: then it is one detector, without a doubt."""
    return bool(
        np.allclose(runs.scores[0, rows], runs.scores[1, rows], rtol=SAME_SCORE, atol=0)
        and np.array_equal(runs.rejected[0, rows], runs.rejected[1, rows])
    )


def _auroc(drawn: _Drawn) -> Floats:
    return auroc_along(drawn.good, drawn.defective, axis=-1)


def _average_precision(drawn: _Drawn) -> Floats:
    """scikit-learn's definition: the sum of precision times the step in recall, ties taken together."""
    positive, found, alarms = _ranked(drawn)
    return np.asarray((positive * found / (found + alarms)).sum(axis=-1) / drawn.defective.shape[-1])


def _f1_max(drawn: _Drawn) -> Floats:
    _, found, alarms = _ranked(drawn)
    return np.asarray((2 * found / (found + alarms + drawn.defective.shape[-1])).max(axis=-1))


def _ranked(drawn: _Drawn) -> tuple[Floats, Floats, Floats]:
    """From the strangest image down: whether it is defective, and what a cut just below its score finds and alarms.

    Images that tie share a cut, the one below the last of them.
    """
    scores = np.concatenate([drawn.good, drawn.defective], axis=-1)
    order = np.argsort(-scores, axis=-1)
    positive = (order >= drawn.good.shape[-1]).astype(np.float64)
    ranked = np.take_along_axis(scores, order, axis=-1)
    size = ranked.shape[-1]
    last = np.ones(ranked.shape, dtype=np.bool_)
    last[..., :-1] = ranked[..., :-1] != ranked[..., 1:]
    # The nearest end of a group of ties at or after each place: a running minimum from the right.
    ends = np.where(last, np.arange(size), size)
    ends = np.minimum.accumulate(ends[..., ::-1], axis=-1)[..., ::-1]
    found = np.take_along_axis(positive.cumsum(axis=-1), ends, axis=-1)
    return positive, found, ends + 1 - found


def _recall(drawn: _Drawn) -> Floats:
    return np.asarray(drawn.defective_rejected.mean(axis=-1))


def _false_alarm_rate(drawn: _Drawn) -> Floats:
    return np.asarray(drawn.good_rejected.mean(axis=-1))


def _precision(drawn: _Drawn) -> Floats:
    """0 where nothing is rejected: scikit-learn's `zero_division=0`."""
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
