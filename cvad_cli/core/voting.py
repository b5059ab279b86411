"""From labelled regions to the type of a new one: class scores, a calibrated confidence, and the answer "unknown".

- **Which type**: class-balanced one-against-rest ridge regression on the vectors of the labelled regions.
- **How sure**: a softmax whose temperature is fitted to leave-one-out scores of the labelled images.
- **Known at all**: the nonconformity score is the distance to the nearest region of a type, in units of that type's
  scale; its conformal p-value compares it with the leave-one-out scores of the labelled regions.
- **An image with several regions**: its type is the vote of its regions, weighted by their mass.

Training solves one linear system of the size of the labelled set, so a new type needs one labelled image.

    Saunders, Gammerman, Vovk: Ridge regression learning algorithm in dual variables, ICML 1998
    Guo, Pleiss, Sun, Weinberger: On calibration of modern neural networks, ICML 2017 (temperature, section 4.2)
    Platt: Probabilistic outputs for support vector machines, 1999 (targets short of 0 and 1)
    Vovk, Gammerman, Shafer: Algorithmic learning in a random world, 2005 (conformal p-values)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import special
from scipy.linalg import cho_factor, cho_solve
from scipy.optimize import minimize_scalar

RIDGE: Final = 0.3
"""Ridge penalty, in units of the mean squared length of the centred labelled vectors."""

MAX_REFITS: Final = 200
"""If there are more labelled images than this, several are left out at a time."""

TEMPERATURES: Final = (0.01, 10.0)
"""The range in which the temperature is searched; ridge scores are roughly in -1..1."""

UNCALIBRATED: Final = 0.2
"""The temperature if no type has two images, so that leave-one-out scores say nothing."""

LOWEST_LOG: Final = math.log(1e-12)
"""Lower bound on a log-confidence while the temperature is fitted: one outlier must not outweigh all other regions."""

MIN_TYPE_SCALE: Final = 1e-3
"""Lower bound on a type's scale, which copies of one image would make 0; distances of unit vectors are in 0..2."""


@dataclass(frozen=True)
class LabelledRegions:
    """Regions whose type is known: n of them, o orientations each, from p images, of C types."""

    views: Float[np.ndarray, "n o d"]
    """Unit vectors: the descriptor of each region in each orientation, or o = 1, their unit mean alone."""
    types: Int[np.ndarray, " n"]
    """In 0..C - 1, each of them present."""
    images: Int[np.ndarray, " n"]
    """The image that each region was found in."""

    def __post_init__(self) -> None:
        n = len(self.views)
        if self.views.ndim != 3 or n == 0 or self.types.shape != (n,) or self.images.shape != (n,):
            raise ValueError(
                f"labelled regions: expected (n, o, d), (n,) and (n,) with n >= 1, got {self.views.shape}, "
                f"{self.types.shape} and {self.images.shape}"
            )
        present = np.unique(self.types)
        if len(present) != present[-1] + 1 or present[0] != 0:
            raise ValueError(f"types: expected every one of 0..{present[-1]} to be present, saw {present.tolist()}")

    @property
    def count(self) -> int:
        """How many types there are, C."""
        return int(self.types.max()) + 1

    @cached_property
    def centres(self) -> Float[np.ndarray, "n d"]:
        """Each region as a query, the unit mean of its orientations."""
        mean = self.views.mean(1)
        length = np.linalg.norm(mean, axis=1, keepdims=True)
        centres: np.ndarray = mean / np.where(length > 0, length, 1)
        return centres

    @cached_property
    def type_scales(self) -> Float[np.ndarray, " C"]:
        """The scale of each type: the median distance of its regions to their nearest mate from another image.

        A type of one image gets the median scale of the others, or 1 if there is none.
        """
        mates = _gaps(self.centres, self.views)
        mates[self.images[:, None] == self.images] = np.inf
        mates[self.types[:, None] != self.types] = np.inf
        nearest = mates.min(1)
        type_scales = np.asarray([np.median(nearest[self.types == kind]) for kind in range(self.count)])
        measured = np.isfinite(type_scales)
        type_scales[~measured] = np.median(type_scales[measured]) if measured.any() else 1.0
        return np.asarray(np.maximum(type_scales, MIN_TYPE_SCALE))

    @cached_property
    def has_mate(self) -> Bool[np.ndarray, " n"]:
        """Whether another image shows the region's type too, so that leave-one-out can judge it."""
        types_of_images = np.unique(np.stack([self.types, self.images]), axis=1)[0]
        return np.asarray(np.bincount(types_of_images)[self.types] > 1)

    @cached_property
    def ridge(self) -> Ridge:
        """The regression on every orientation of every region."""
        return Ridge.learn(*_flat(self.views, self.types))


@dataclass(frozen=True, slots=True)
class Ridge:
    """A solved regression: scores are (queries - centre) @ solution."""

    centre: Float[np.ndarray, " d"]
    solution: Float[np.ndarray, "d C"]

    @classmethod
    def learn(cls, labelled: Float[np.ndarray, "n d"], types: Int[np.ndarray, " n"]) -> Ridge:
        """From labelled vectors of types in 0..C - 1, each present: see `ridge_scores`."""
        counts = np.bincount(types)
        weight = len(types) / (len(counts) * counts[types])
        centre = weight @ labelled / weight.sum()
        a = labelled - centre
        target = (types[:, None] == np.arange(len(counts))).astype(float)
        penalty = RIDGE * float((a * a).sum()) / len(a)
        if penalty == 0:  # one vector, or copies of it: no score can separate types
            return cls(centre, np.zeros((a.shape[1], len(counts))))
        if len(a) <= a.shape[1]:
            return cls(centre, a.T @ _solved(a @ a.T + np.diag(penalty / weight), target))
        weighted = a.T * weight
        return cls(centre, _solved(weighted @ a + penalty * np.eye(a.shape[1]), weighted @ target))

    def scores(self, queries: Float[np.ndarray, "q d"]) -> Float[np.ndarray, "q C"]:
        """The score of each type for each query."""
        scores: np.ndarray = (queries - self.centre) @ self.solution
        return scores


def ridge_scores(
    labelled: Float[np.ndarray, "n d"], types: Int[np.ndarray, " n"], queries: Float[np.ndarray, "q d"]
) -> Float[np.ndarray, "q C"]:
    """Class scores of queries from labelled vectors of types in 0..C - 1, each present.

    The weights w have the same sum over every type. After the weighted mean of the labelled vectors is subtracted, and
    with a target t of 1 for a vector's own type and 0 for others, W minimises sum w |x W - t|^2 + penalty |W|^2. The
    smaller of the two equivalent systems, (n, n) or (d, d), is solved. The scores of a query sum to 0.
    """
    return Ridge.learn(labelled, types).scores(queries)


def leave_one_out_scores(labelled: LabelledRegions, *, max_refits: int = MAX_REFITS) -> Float[np.ndarray, "n C"]:
    """Scores of the labelled regions, each learnt from the other images; minus infinity for a type not seen there.

    With more than `max_refits` images, several are left out at a time. If no image is left to learn from, the whole row
    is minus infinity.
    """
    _, image = np.unique(labelled.images, return_inverse=True)
    scores = np.full((len(labelled.types), labelled.count), -np.inf)
    for fold in range(min(image.max() + 1, max_refits)):
        out = image % max_refits == fold
        if out.all():
            continue
        seen, types = np.unique(labelled.types[~out], return_inverse=True)
        vectors, flat = _flat(labelled.views[~out], types)
        scores[np.ix_(out, seen)] = ridge_scores(vectors, flat, labelled.centres[out])
    return scores


def softmax(scores: Float[np.ndarray, "q C"], temperature: float) -> Float[np.ndarray, "q C"]:
    """Confidences that sum to 1 over the types; a lower temperature makes them more extreme."""
    return np.asarray(special.softmax(scores / temperature, axis=1))


def calibrate_temperature(scores: Float[np.ndarray, "n C"], types: Int[np.ndarray, " n"]) -> float:
    """The temperature that maximises the likelihood of leave-one-out scores, given the true types.

    Regions whose own type was left out with them are ignored. The target is (m + 1) / (m + C) for the true one of C
    types and 1 / (m + C) for the others (Laplace's rule), because m correct regions do not prove certainty. The result
    is `UNCALIBRATED` if no region remains.
    """
    is_scored = np.isfinite(scores[np.arange(len(types)), types])
    known, own = np.where(np.isfinite(scores[is_scored]), scores[is_scored], -1e9), types[is_scored]
    if not is_scored.any() or scores.shape[1] < 2:
        return UNCALIBRATED
    m, count = known.shape
    target = np.where(own[:, None] == np.arange(count), (m + 1) / (m + count), 1 / (m + count))

    def surprise(log_temperature: float) -> float:
        logs = special.log_softmax(known / np.exp(log_temperature), axis=1)
        return -float((target * np.maximum(logs, LOWEST_LOG)).sum())

    low, high = np.log(TEMPERATURES)
    found = minimize_scalar(surprise, bounds=(low, high), method="bounded")
    return float(np.exp(found.x))


def nonconformity(
    queries: Float[np.ndarray, "q d"],
    labelled: LabelledRegions,
    query_images: Int[np.ndarray, " q"] | None = None,
) -> Float[np.ndarray, " q"]:
    """Distance of each query to its nearest known type, in units of that type's scale; large means unknown.

    The distance to a region is the minimum over its orientations; `LabelledRegions.type_scales` defines the scale.
    `query_images`: regions of the same image do not count (leave-one-out). The result is infinite if none remains.
    """
    away = _gaps(queries, labelled.views)
    if query_images is not None:
        away[query_images[:, None] == labelled.images] = np.inf
    ratio = [away[:, labelled.types == kind].min(1) / labelled.type_scales[kind] for kind in range(labelled.count)]
    nearest: np.ndarray = np.min(ratio, axis=0)
    return nearest


def own_nonconformity(labelled: LabelledRegions) -> Float[np.ndarray, " n"]:
    """Nonconformity of the labelled regions, each compared with those of other images.

    P-values use only regions that have a mate: without its own image, any other region is one of an unknown type.
    """
    return nonconformity(labelled.centres, labelled, labelled.images)


def conformal_p(own: Float[np.ndarray, " n"], queries: Float[np.ndarray, " q"]) -> Float[np.ndarray, " q"]:
    """P-values of nonconformity scores against those of n labelled regions, `own`: unknown where p <= rate.

    If a region of a known type is exchangeable with the n labelled ones, P(p <= rate) <= rate. They are only nearly
    exchangeable (docs/derivations.md), so the rate is an estimate. p is never below 1 / (n + 1).
    """
    not_below = len(own) - np.searchsorted(np.sort(own), queries, side="left")
    p: np.ndarray = (1 + not_below) / (len(own) + 1)
    return p


def vote(confidences: Float[np.ndarray, "r C"], masses: Float[np.ndarray, " m"]) -> Float[np.ndarray, " C"]:
    """Confidences of an image: the mean of those of its regions, weighted by their mass.

    If every mass is 0, all regions have the same weight.

    Raises:
        ValueError: there is no region, or the masses do not fit.
    """
    if len(confidences) == 0 or masses.shape != (len(confidences),) or (masses < 0).any():
        raise ValueError(f"masses: expected one from 0 for each of {len(confidences)} regions, got {masses}")
    weights = masses if masses.sum() > 0 else np.ones(len(masses))
    voted: np.ndarray = weights @ confidences / weights.sum()
    return voted


@dataclass(frozen=True, slots=True)
class Verdicts:
    """The classification of q regions. If confidences are equal, the type with the lowest number wins."""

    confidences: Float[np.ndarray, "q C"]
    nonconformity: Float[np.ndarray, " q"]
    p_values: Float[np.ndarray, " q"]
    """How often a region of a known type has such a nonconformity score or a higher one."""

    @property
    def types(self) -> Int[np.ndarray, " q"]:
        """The most likely of the known types."""
        return np.asarray(self.confidences.argmax(1))

    def unknown(self, rate: float) -> Bool[np.ndarray, " q"]:
        """Which regions are of no known type; about `rate` of the regions of known types are wrongly among them."""
        return np.asarray(self.p_values <= rate)


@dataclass(frozen=True, slots=True)
class TypeClassifier:
    """Labelled regions with the temperature and the nonconformity scores learnt from them by leave-one-out."""

    labelled: LabelledRegions
    temperature: float
    own: Float[np.ndarray, " m"]
    """Nonconformity of the labelled regions that have a mate."""

    @classmethod
    def learn(cls, labelled: LabelledRegions) -> TypeClassifier:
        """Calibrate on the labelled regions alone."""
        temperature = calibrate_temperature(leave_one_out_scores(labelled), labelled.types)
        return cls(labelled, temperature, own_nonconformity(labelled)[labelled.has_mate])

    @property
    def lowest_p(self) -> float:
        """The lowest p-value that any region can get, 1 / (m + 1): no region is unknown at a lower rate."""
        return 1 / (len(self.own) + 1)

    def judge(self, queries: Float[np.ndarray, "q d"]) -> Verdicts:
        """Type, confidence and nonconformity of queries, which are unit vectors."""
        confidences = softmax(self.labelled.ridge.scores(queries), self.temperature)
        anomalous = nonconformity(queries, self.labelled)
        return Verdicts(confidences, anomalous, conformal_p(self.own, anomalous))


def _solved(system: Float[np.ndarray, "k k"], target: Float[np.ndarray, "k C"]) -> Float[np.ndarray, "k C"]:
    """The X that solves system @ X = target; the system is positive definite."""
    return np.asarray(cho_solve(cho_factor(system, check_finite=False), target, check_finite=False))


def _flat(
    views: Float[np.ndarray, "n o d"], types: Int[np.ndarray, " n"]
) -> tuple[Float[np.ndarray, "n*o d"], Int[np.ndarray, " n*o"]]:
    """Each orientation as a separate vector, and the types of these vectors."""
    n, orientations, width = views.shape
    return views.reshape(n * orientations, width), np.repeat(types, orientations)


def _gaps(queries: Float[np.ndarray, "q d"], views: Float[np.ndarray, "n o d"]) -> Float[np.ndarray, "q n"]:
    """Distances of unit vectors to regions: the minimum over the orientations."""
    n, orientations, width = views.shape
    likeness = (queries @ views.reshape(-1, width).T).reshape(len(queries), n, orientations).max(2)
    gaps: np.ndarray = np.sqrt(np.maximum(2 - 2 * likeness, 0))
    return gaps
