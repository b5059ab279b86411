"""Thresholds from good images alone: conformal thresholds and their false-alarm rate.

The detector must not have been fitted on the images whose scores come here. Either some good images are held out
(split-conformal: the rate is promised), or each fold of them is scored by a detector fitted on the other folds
(cross-conformal: the rate is expected, `cross_conformal_bound` is what the theorem allows).

    Vovk, Gammerman, Shafer: Algorithmic Learning in a Random World, 2005 (conformal prediction)
    Lei et al.: Distribution-Free Predictive Inference for Regression, JASA 2018 (split-conformal, theorem 2.2)
    Vovk: Conditional validity of inductive conformal predictors, ACML 2012 (the rate for one calibration set)
    Vovk: Cross-conformal predictors, Annals of Mathematics and Artificial Intelligence 2015
    Vovk, Wang: Combining p-values via averaging, Biometrika 2020 (twice a mean of p-values is a p-value)
    Barber, Candes, Ramdas, Tibshirani: Predictive inference with the jackknife+, Annals of Statistics 2021 (theorem 4)
    Angelopoulos, Bates: A Gentle Introduction to Conformal Prediction, 2021
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cvad_cli.records import RateKind, rate_kind_of


@dataclass(frozen=True, slots=True)
class ConformalThreshold:
    """A part is rejected when its score is above `threshold`."""

    threshold: float
    requested_rate: float
    """The false-alarm rate that was asked for, in 0..1."""
    stated_rate: float
    """(n + 1 - k) / (n + 1): the requested rate or lower, or 1 / (n + 1) where n is too small."""
    rate_kind: RateKind
    """How far `stated_rate` can be relied on."""
    rate_bound: float
    """The largest rate that the method's theorem allows, in 0..1."""
    images: int
    """How many good images the threshold was taken from, n."""

    @property
    def attainable(self) -> bool:
        """True when n images are enough for the requested rate."""
        return self.images >= self.images_needed

    @property
    def images_needed(self) -> int:
        """The smallest n that is enough for the requested rate, ceil(1 / rate) - 1."""
        return math.ceil(1 / _exact(self.requested_rate)) - 1

    @property
    def caveat(self) -> str | None:
        """What to tell the user where n images are too few for the requested rate; None where they are enough."""
        if self.attainable:
            return None
        return (
            f"a false-alarm rate of {self.requested_rate:.3g} cannot be {self.rate_kind} with {self.images} good "
            f"calibration images: the lowest is 1/{self.images + 1} = {self.stated_rate:.3g}, and the threshold is "
            f"their highest score; use at least {self.images_needed} images, or ask for a rate of 1/{self.images + 1} "
            "or more"
        )


def conformal_threshold(scores: ArrayLike, *, false_alarm_rate: float) -> ConformalThreshold:
    """The k-th smallest of n good scores, k = ceil((n + 1)(1 - rate)); k = n where that would exceed n.

    If the n scores and that of a new good image are exchangeable, the new one is among the n + 1 - k highest of the
    n + 1 with probability (n + 1 - k) / (n + 1) at most: this is the chance that `score > threshold`, equal to it when
    no two scores tie. It holds on average over calibration sets; for one given set the rate follows
    Beta(n + 1 - k, k) (Vovk 2012), so that with few images the measured rate may well lie above it.

    Args:
        scores: (n,) finite image scores of good images that the detector was not fitted on, larger = more anomalous.
        false_alarm_rate: wanted share of good parts rejected, strictly between 0 and 1.

    Raises:
        ValueError: no scores, not one-dimensional, a score that is not finite, or a rate outside (0, 1).
    """
    values = _checked(scores)
    if not 0 < false_alarm_rate < 1:
        raise ValueError(f"false_alarm_rate: expected a number between 0 and 1, got {false_alarm_rate!r}")
    n = len(values)
    k = min(math.ceil((n + 1) * (1 - _exact(false_alarm_rate))), n)
    return ConformalThreshold(
        threshold=float(np.partition(values, k - 1)[k - 1]),
        requested_rate=float(false_alarm_rate),
        stated_rate=(n + 1 - k) / (n + 1),
        rate_kind=rate_kind_of("split_conformal"),
        rate_bound=(n + 1 - k) / (n + 1),
        images=n,
    )


def cross_conformal_threshold(fold_scores: Sequence[ArrayLike], *, false_alarm_rate: float) -> ConformalThreshold:
    """The same quantile over the pooled scores of K folds, each scored by a detector that did not see it.

    Every good image serves both to fit and to calibrate. The price: the rate is expected, not promised.

    - A new image that the K fold detectors judge together raises a false alarm with a probability of
      `cross_conformal_bound` at most, about twice the rate; in practice it is close to the rate.
    - The detector in use is fitted on all n images instead. Where more good images can only lower a score, as with
      distances to a memory bank that only grows, it alarms on no image that the fold detectors would pass, and the
      bound carries over: the threshold errs towards fewer false alarms. For a detector without that property (a
      coreset, gradient training) no theorem holds: the rate assumes that refitting changes scores little.

    Args:
        fold_scores: K arrays of good scores, (n_1,) .. (n_K,).
        false_alarm_rate: wanted share of good parts rejected, strictly between 0 and 1.

    Raises:
        ValueError: fewer than two folds, an empty one, or what `conformal_threshold` refuses.
    """
    if len(fold_scores) < 2:
        raise ValueError(f"fold_scores: expected the scores of at least 2 folds, got {len(fold_scores)}")
    folds = [_checked(scores, name=f"fold_scores[{fold}]") for fold, scores in enumerate(fold_scores)]
    pooled = conformal_threshold(np.concatenate(folds), false_alarm_rate=false_alarm_rate)
    bound = cross_conformal_bound(pooled.stated_rate, [len(scores) for scores in folds])
    return replace(pooled, rate_kind=rate_kind_of("cross_conformal"), rate_bound=bound)


def cross_conformal_bound(rate: float, sizes: Sequence[int]) -> float:
    """The largest false-alarm rate of K fold detectors that judge together, from the rate and the fold sizes.

    An image is an alarm when the share of the n held-out scores, each compared with the image's score by the detector
    of its fold, is as at the threshold. With K folds of n / K images, Barber et al. (2021), theorem 4, proves

        rate <= 2 alpha + min{2 (1 - 1/K) / (n/K + 1), (1 - K/n) / (K + 1)} <= 2 alpha + sqrt(2 / n)

    for n + 1 exchangeable images and detectors that do not depend on their order. The first term is Vovk's: the fold
    p-values, weighted by n_k + 1, have a mean that is valid when doubled (Vovk and Wang 2020). It needs no equal folds,
    the second term does and is left out where they differ.
    """
    n, folds = sum(sizes), len(sizes)
    extra = 2 * (folds - 1) / (n + folds)  # 2 (1 - 1/K) / (n/K + 1), multiplied out
    if len(set(sizes)) == 1:
        extra = min(extra, (1 - folds / n) / (folds + 1))
    return min(2 * rate + extra, 1.0)


def fold_assignment(n: int, folds: int, *, rng: np.random.Generator) -> NDArray[np.intp]:
    """The fold of each of `n` images, drawn at random; fold sizes differ by one at most.

    Returns:
        (n,) integers in 0..folds - 1.

    Raises:
        ValueError: fewer than 2 folds, or more folds than images.
    """
    if not 2 <= folds <= n:
        raise ValueError(f"folds: expected a number from 2 to the {n} images, got {folds}")
    return rng.permutation(np.arange(n, dtype=np.intp) % folds)


def _exact(rate: float) -> Fraction:
    """The rate exactly as it was written: 0.18 is 9/50, so that 150 * (1 - 0.18) is 123 without a rounding error."""
    return Fraction(repr(float(rate)))


def _checked(scores: ArrayLike, *, name: str = "scores") -> NDArray[np.float64]:
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 1 or values.size == 0:
        raise ValueError(f"{name}: expected one score per good image, got shape {values.shape}")
    bad = np.flatnonzero(~np.isfinite(values))
    if bad.size:
        raise ValueError(f"{name}[{bad[0]}]: expected a finite score, got {values[bad[0]]}")
    return values
