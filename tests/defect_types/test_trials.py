"""Trials of naming: what is tested has never been indexed, and the figures are those of their definitions."""

from __future__ import annotations

import numpy as np
import pytest

from cvad_cli.assembly.defect_types.trials import (
    MAX_FOLDS,
    Outcome,
    TrialSet,
    few_shots,
    leave_one_out,
    open_set,
    reliability,
)
from cvad_cli.core.voting import LabelledRegions


def trials(*, scale: float, images: int = 8, types: int = 3, regions: int = 2, seed: int = 0) -> TrialSet:
    """Images of several regions each: a region is its type's direction, plus its image's own of length `scale`."""
    rng = np.random.default_rng(seed)
    kinds = np.repeat(np.arange(types), images)
    own = rng.normal(size=(len(kinds), 40))
    own *= scale / np.linalg.norm(own, axis=1, keepdims=True)
    vectors = np.repeat(np.eye(types, 40)[kinds] + own, regions, axis=0)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    numbers = np.repeat(np.arange(len(kinds)), regions)
    labels = LabelledRegions(vectors[:, None, :], kinds[numbers], numbers)
    return TrialSet(vectors, numbers, np.ones(len(numbers)), labels, kinds)


def test_types_that_stand_apart_are_named_rightly() -> None:
    clear = trials(scale=0.3)
    assert leave_one_out(clear).accuracy == 1
    shots = few_shots(clear, 1, rng=np.random.default_rng(0))
    assert shots is not None
    assert (shots.accuracy, len(shots.truth)) == (1, 21)
    assert open_set(clear, rate=0.1).auroc.min() > 0.99


def test_a_image_is_never_named_after_itself() -> None:
    """Both regions of an image are the same vector: an index that held one would name the other."""
    noise = trials(scale=1e6, images=20)
    assert leave_one_out(noise).accuracy < 0.6
    shots = few_shots(noise, 10, rng=np.random.default_rng(0))
    assert shots is not None
    assert shots.accuracy < 0.6
    assert 0.3 < open_set(noise, rate=0.1).auroc.mean() < 0.7


def test_shots_that_would_use_up_all_images_are_not_measured() -> None:
    assert few_shots(trials(scale=0.1, images=5), 5, rng=np.random.default_rng(0)) is None
    four = few_shots(trials(scale=0.1, images=5), 4, rng=np.random.default_rng(0))
    assert four is not None
    assert sorted(four.truth.tolist()) == [0, 1, 2]


def test_the_same_seed_draws_the_same_shots() -> None:
    unclear = trials(scale=2.0, images=12)
    first, second = (few_shots(unclear, 2, rng=np.random.default_rng(5)) for _ in range(2))
    assert first is not None
    assert second is not None
    assert (first.predicted == second.predicted).all()


def test_known_images_are_called_unknown_no_more_often_than_the_given_rate() -> None:
    result = open_set(trials(scale=0.8, images=30, regions=1), rate=0.1)
    assert result.known_flagged <= 0.15
    assert result.unknown_flagged > result.known_flagged


def test_each_left_out_image_comes_with_its_number_however_many_there_are() -> None:
    many = trials(scale=0.4, images=MAX_FOLDS // 2, regions=1)
    outcome = leave_one_out(many)
    assert len(many.types) > MAX_FOLDS
    assert sorted(outcome.images) == list(range(len(many.types)))
    assert (outcome.truth == many.types[outcome.images]).all()


def test_figures_follow_their_definitions() -> None:
    truth, predicted = np.array([0, 0, 0, 1, 1, 2]), np.array([0, 0, 1, 1, 1, 0])
    outcome = Outcome(np.arange(6), truth, predicted, confidence=np.linspace(0.5, 1, 6))
    assert outcome.accuracy == pytest.approx(4 / 6)
    assert outcome.confusion(3).tolist() == [[2, 1, 0], [0, 2, 0], [1, 0, 0]]
    # F1 = 2 TP / (2 TP + FP + FN): 4 / 6, 4 / 5 and 0.
    assert outcome.macro_f1(3) == pytest.approx((4 / 6 + 4 / 5 + 0) / 3)


def test_calibration_error_is_the_gap_of_each_bin_weighed_by_its_images() -> None:
    confidence = np.array([0.95, 0.95, 0.55, 0.55, 0.55, 1.0])
    right = np.array([1, 1, 0, 1, 0, 1])
    outcome = Outcome(np.arange(6), truth=np.ones(6, int), predicted=right, confidence=confidence)
    table = reliability(outcome)
    assert [(row["from"], row["images"]) for row in table["bins"]] == [(0.5, 3), (0.9, 3)]
    gap = 3 * abs(0.55 - 1 / 3) + 3 * abs((0.95 * 2 + 1) / 3 - 1)
    assert table["expected_calibration_error"] == pytest.approx(gap / 6)
