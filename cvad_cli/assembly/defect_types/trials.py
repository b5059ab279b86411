"""Measures the classification of types on labelled images; a tested image is never among the indexed ones.

All trials use the same descriptors; only the indexed and the tested images change. Everything that depends on labels,
including the temperature of the confidences, is learnt again in each trial.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from cvad_cli.core.voting import (
    LabelledRegions,
    TypeClassifier,
    conformal_p,
    nonconformity,
    own_nonconformity,
    vote,
)

MAX_FOLDS: Final = 100
"""If there are more images than this, several are left out at a time."""

BINS: Final = 10
"""Number of bins of the reliability table."""


@dataclass(frozen=True)
class TrialSet:
    """The regions found in p labelled images of C types."""

    vectors: np.ndarray
    """(n, d), length 1."""
    images: np.ndarray
    """int (n,): the image of each region, each of 0..p - 1 present."""
    masses: np.ndarray
    """(n,)."""
    labels: LabelledRegions
    """The regions to index; they are not always those that are found."""
    types: np.ndarray
    """int (p,): the type of each image, each of 0..C - 1 present."""

    @property
    def count(self) -> int:
        """How many types there are, C."""
        return int(self.types.max()) + 1

    def indexed(self, images: np.ndarray) -> tuple[np.ndarray, LabelledRegions]:
        """The types among `images`, and their labelled regions with types numbered in that order."""
        chosen = np.isin(self.labels.images, images)
        seen, numbers = np.unique(self.labels.types[chosen], return_inverse=True)
        return seen, LabelledRegions(self.labels.views[chosen], numbers, self.labels.images[chosen])


@dataclass(frozen=True, slots=True)
class Outcome:
    """The results of k tested images."""

    images: np.ndarray
    """int (k,): which image of the trial set each is."""
    truth: np.ndarray
    """int (k,)."""
    predicted: np.ndarray
    """int (k,): the vote of the regions of each image; unknown is no answer here."""
    confidence: np.ndarray
    """(k,)."""

    @property
    def accuracy(self) -> float:
        """Share of images with the correct type."""
        return float((self.truth == self.predicted).mean())

    def confusion(self, count: int) -> np.ndarray:
        """int (C, C): rows are the true types."""
        from sklearn.metrics import confusion_matrix

        return np.asarray(confusion_matrix(self.truth, self.predicted, labels=range(count)))

    def macro_f1(self, count: int) -> float:
        """Mean over the types of 2 TP / (2 TP + FP + FN); a type that neither occurs nor is predicted counts 0."""
        from sklearn.metrics import f1_score

        return float(f1_score(self.truth, self.predicted, labels=range(count), average="macro", zero_division=0))


def leave_one_out(trials: TrialSet) -> Outcome:
    """Classify each image with all others; with more than `MAX_FOLDS` images, with the other folds."""
    from sklearn.model_selection import LeaveOneGroupOut

    everyone = np.arange(len(trials.types))
    folds = LeaveOneGroupOut().split(everyone, groups=everyone % MAX_FOLDS)
    return joined([_named(trials, others, left_out) for others, left_out in folds])


def few_shots(trials: TrialSet, shots: int, *, rng: np.random.Generator) -> Outcome | None:
    """Index `shots` images per type and test all others; None if a type would have no image left to test."""
    members = [np.flatnonzero(trials.types == kind) for kind in range(trials.count)]
    if min(map(len, members)) <= shots:
        return None
    chosen = np.concatenate([rng.permutation(mine)[:shots] for mine in members])
    return _named(trials, chosen, np.setdiff1d(np.arange(len(trials.types)), chosen))


def joined(outcomes: list[Outcome]) -> Outcome:
    """Join several outcomes."""
    return Outcome(
        np.concatenate([outcome.images for outcome in outcomes]),
        np.concatenate([outcome.truth for outcome in outcomes]),
        np.concatenate([outcome.predicted for outcome in outcomes]),
        np.concatenate([outcome.confidence for outcome in outcomes]),
    )


@dataclass(frozen=True, slots=True)
class OpenSet:
    """How well the images of a type without labels are separated from those of known types; each type in turn."""

    auroc: np.ndarray
    """(C,): AUROC of image nonconformity, of the held-out type against the others; each known image is left out too."""
    unknown_flagged: float
    """Share of images of held-out types that are called unknown at the requested rate."""
    known_flagged: float
    """Share of images of known types that are called unknown."""


def open_set(trials: TrialSet, *, rate: float) -> OpenSet:
    """Hold out each type in turn. The nonconformity of an image is the mean of its regions, weighted by mass.

    As in `cvad classify`, an image is unknown if regions with more than half of its mass have p <= rate. Needs two
    types.
    """
    from sklearn.metrics import roc_auc_score

    aurocs, flagged = [], []
    everyone = np.arange(len(trials.types))
    for kind in range(trials.count):
        _, labelled = trials.indexed(everyone[trials.types != kind])
        anomalous = np.nan_to_num(nonconformity(trials.vectors, labelled, trials.images), posinf=1e6)
        own = own_nonconformity(labelled)
        by_image, called = np.empty(len(everyone)), np.empty(len(everyone), dtype=bool)
        for image in everyone:
            mine = trials.images == image
            p_values = conformal_p(own[labelled.has_mate & (labelled.images != image)], anomalous[mine])
            shares = np.stack([anomalous[mine], p_values <= rate], axis=1)
            by_image[image], share = vote(shares, trials.masses[mine])
            called[image] = share > 0.5
        aurocs.append(roc_auc_score(trials.types == kind, by_image))
        flagged.append(called)
    held_out = trials.types == np.arange(trials.count)[:, None]
    called_unknown = np.stack(flagged)
    return OpenSet(np.array(aurocs), float(called_unknown[held_out].mean()), float(called_unknown[~held_out].mean()))


def reliability(outcome: Outcome) -> dict[str, Any]:
    """Confidence against accuracy, in ten bins, and the expected calibration error (Guo et al. 2017, eq. 3)."""
    right = outcome.truth == outcome.predicted
    bins = np.minimum((outcome.confidence * BINS).astype(int), BINS - 1)
    rows = []
    for number in range(BINS):
        inside = bins == number
        if inside.any():
            rows.append(
                {
                    "from": number / BINS,
                    "to": (number + 1) / BINS,
                    "images": int(inside.sum()),
                    "confidence": float(outcome.confidence[inside].mean()),
                    "accuracy": float(right[inside].mean()),
                }
            )
    error = sum(row["images"] * abs(row["confidence"] - row["accuracy"]) for row in rows) / len(right)
    return {"expected_calibration_error": float(error), "bins": rows}


def _named(trials: TrialSet, indexed: np.ndarray, tested: np.ndarray) -> Outcome:
    """Classify the images `tested` with the images `indexed`."""
    seen, labelled = trials.indexed(indexed)
    classifier = TypeClassifier.learn(labelled)
    asked = np.flatnonzero(np.isin(trials.images, tested))
    confidences = classifier.judge(trials.vectors[asked]).confidences
    predicted, confidence = np.empty(len(tested), dtype=int), np.empty(len(tested))
    for index, image in enumerate(tested):
        mine = trials.images[asked] == image
        voted = vote(confidences[mine], trials.masses[asked][mine])
        predicted[index], confidence[index] = seen[voted.argmax()], voted.max()
    return Outcome(tested, trials.types[tested], predicted, confidence)
