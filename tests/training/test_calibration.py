"""Conformal thresholds: the order statistic, how far its rate can be relied on, and what is said where it cannot."""

from __future__ import annotations

import math

import numpy as np
import pytest

from cvad_cli.core.calibration import (
    conformal_threshold,
    cross_conformal_bound,
    cross_conformal_threshold,
    fold_assignment,
)
from cvad_cli.records import rate_kind_of


@pytest.mark.parametrize(
    ("n", "rate", "rank"),
    [
        pytest.param(49, 0.02, 49, id="50 * 0.98 is 49"),
        pytest.param(149, 0.18, 123, id="150 * 0.82 is 123, though floats put it above"),
        pytest.param(999, 0.059, 941, id="1000 * 0.941 is 941, though floats put it above"),
        pytest.param(99, 0.01, 99, id="100 * 0.99 is 99"),
        pytest.param(99, 0.3, 70, id="100 * 0.7 is 70"),
        pytest.param(9, 0.1, 9, id="the smallest n for a tenth"),
        pytest.param(100, 0.05, 96, id="101 * 0.95 = 95.95 rounds up"),
        pytest.param(264, 0.02, 260, id="grid's 264 good images"),
        pytest.param(1, 0.5, 1, id="one image promises one half"),
        pytest.param(4, 0.99, 1, id="never below the lowest score"),
    ],
)
def test_threshold_is_the_conformal_order_statistic(n, rate, rank):
    scores = np.random.default_rng(0).permutation(np.arange(1.0, n + 1))
    found = conformal_threshold(scores, false_alarm_rate=rate)
    assert found.threshold == rank
    assert found.stated_rate == (n + 1 - rank) / (n + 1)
    assert found.stated_rate <= rate
    assert (found.images, found.requested_rate, found.attainable, found.caveat) == (n, rate, True, None)


@pytest.mark.parametrize("denominator", [10, 20, 49, 50, 100, 125, 1000])
def test_exactly_the_needed_number_of_images_makes_a_rate_attainable(denominator):
    rate = 1 / denominator
    needed = conformal_threshold([0.0], false_alarm_rate=rate).images_needed
    assert needed in (denominator - 1, denominator)  # 1/49 is not a finite decimal: what was written counts
    assert conformal_threshold(np.arange(needed), false_alarm_rate=rate).attainable
    assert not conformal_threshold(np.arange(needed - 1), false_alarm_rate=rate).attainable


def test_too_few_images_promise_a_higher_rate():
    found = conformal_threshold([3.0, 1.0, 2.0], false_alarm_rate=0.01)
    assert found.threshold == 3.0
    assert found.stated_rate == 0.25
    assert not found.attainable
    assert found.images_needed == 99
    assert found.caveat is not None
    assert "0.01 cannot be promised with 3 good" in found.caveat
    assert "1/4 = 0.25" in found.caveat
    assert "at least 99 images" in found.caveat


@pytest.mark.parametrize(("n", "rate"), [(19, 0.05), (30, 0.1), (12, 0.01)])
def test_false_alarms_come_at_the_promised_rate_for_exchangeable_scores(n, rate):
    draws = np.random.default_rng(1).gamma(2.0, size=(20_000, n + 1))
    stated = conformal_threshold(draws[0, :n], false_alarm_rate=rate).stated_rate
    alarms = np.mean([row[n] > conformal_threshold(row[:n], false_alarm_rate=rate).threshold for row in draws])
    assert abs(alarms - stated) < 4 * math.sqrt(stated * (1 - stated) / len(draws))


def test_ties_only_lower_the_false_alarm_rate():
    draws = np.random.default_rng(2).integers(0, 4, size=(5_000, 21))
    alarms = np.mean([row[20] > conformal_threshold(row[:20], false_alarm_rate=0.3).threshold for row in draws])
    assert alarms < 0.3


def test_pooled_folds_give_the_quantile_of_all_their_scores():
    scores = np.random.default_rng(3).normal(size=60)
    pooled = cross_conformal_threshold([scores[:25], scores[25:40], scores[40:]], false_alarm_rate=0.05)
    split = conformal_threshold(scores, false_alarm_rate=0.05)
    assert (pooled.threshold, pooled.stated_rate, pooled.images) == (split.threshold, split.stated_rate, 60)


@pytest.mark.parametrize(
    ("method", "kind"),
    [("split_conformal", "promised"), ("cross_conformal", "expected"), ("a later method", "estimated")],
)
def test_each_method_has_its_word_for_the_rate(method, kind):
    assert rate_kind_of(method) == kind


def test_split_conformal_promises_its_rate_and_cross_conformal_expects_it():
    scores = np.arange(60.0)
    split = conformal_threshold(scores, false_alarm_rate=0.05)
    assert (split.rate_kind, split.rate_bound) == ("promised", split.stated_rate)
    cross = cross_conformal_threshold(scores.reshape(5, 12), false_alarm_rate=0.05)
    assert cross.rate_kind == "expected"
    assert cross.rate_bound == pytest.approx(2 * cross.stated_rate + 2 * 4 / 65)
    tight = cross_conformal_threshold(np.arange(12.0).reshape(3, 4), false_alarm_rate=0.01)
    assert tight.caveat is not None
    assert "0.01 cannot be expected with 12 good" in tight.caveat


@pytest.mark.parametrize(
    ("sizes", "extra"),
    [
        pytest.param([12] * 5, 2 * (1 - 1 / 5) / (12 + 1), id="few large folds: the first term of the theorem"),
        pytest.param([2] * 50, (1 - 50 / 100) / 51, id="many small folds: the second term"),
        pytest.param([1] * 40, 0.0, id="leave-one-out: twice the rate and no more"),
        pytest.param([13, 13, 12, 11, 11], 2 * (1 - 1 / 5) / (12 + 1), id="unequal folds"),
    ],
)
def test_the_bound_is_that_of_the_theorem(sizes, extra):
    assert cross_conformal_bound(0.02, sizes) == pytest.approx(0.04 + extra)
    assert cross_conformal_bound(0.02, sizes) <= 0.04 + math.sqrt(2 / sum(sizes))
    assert cross_conformal_bound(0.7, sizes) == 1.0


def test_fold_detectors_together_keep_the_bound_where_the_refitted_detector_does_not():
    """Scores grow with the number of images fitted on, cubed: a detector of all images scores everything higher."""
    rng = np.random.default_rng(9)
    together, refitted = [], []
    for _ in range(400):
        parts, new = rng.exponential(size=40), rng.exponential(size=25)
        fold = fold_assignment(40, 5, rng=rng)
        detectors = [rng.uniform(0.5, 2.0) * np.median(parts[fold != k]) * 32**3 for k in range(5)]
        held_out = [parts[fold == k] * detectors[k] for k in range(5)]
        found = cross_conformal_threshold(held_out, false_alarm_rate=0.1)
        lower = sum((scores[:, None] < new * detectors[k]).sum(0) for k, scores in enumerate(held_out))
        together.append(np.mean(lower >= round(41 * (1 - found.stated_rate))))
        refitted.append(np.mean(new * np.median(parts) * 2 * 40**3 > found.threshold))
    bound = cross_conformal_bound(0.1, [8] * 5)
    assert np.mean(together) < bound < np.mean(refitted)


def test_pooled_folds_keep_the_expected_rate_when_distances_can_only_shrink():
    rng = np.random.default_rng(4)
    alarms = []
    for _ in range(400):
        parts, new = rng.normal(size=(40, 2)), rng.normal(size=(20, 2))
        fold = fold_assignment(40, 5, rng=rng)
        held_out = [_nearest(parts[fold == k], parts[fold != k]) for k in range(5)]
        threshold = cross_conformal_threshold(held_out, false_alarm_rate=0.1).threshold
        alarms.append(np.mean(_nearest(new, parts) > threshold))
    assert 0.05 < np.mean(alarms) < 0.11


@pytest.mark.parametrize(("n", "folds"), [(10, 2), (11, 3), (7, 7), (264, 5)])
def test_folds_are_balanced_and_cover_every_image(n, folds):
    sizes = np.bincount(fold_assignment(n, folds, rng=np.random.default_rng(5)))
    assert len(sizes) == folds
    assert sizes.sum() == n
    assert sizes.max() - sizes.min() <= 1


def test_folds_are_random_and_repeat_with_the_seed():
    first, again, other = (fold_assignment(50, 5, rng=np.random.default_rng(seed)) for seed in (6, 6, 7))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert not np.array_equal(first, np.arange(50) % 5)


@pytest.mark.parametrize(
    ("scores", "rate", "message"),
    [
        pytest.param([], 0.1, r"scores: .* got shape \(0,\)", id="no images"),
        pytest.param([[1.0, 2.0]], 0.1, r"got shape \(1, 2\)", id="a matrix"),
        pytest.param([1.0, float("nan")], 0.1, r"scores\[1\]: .* got nan", id="not a number"),
        pytest.param([float("inf"), 1.0], 0.1, r"scores\[0\]: .* got inf", id="infinite"),
        pytest.param([1.0], 0.0, "false_alarm_rate: .* got 0.0", id="never"),
        pytest.param([1.0], 1.0, "false_alarm_rate: .* got 1.0", id="always"),
        pytest.param([1.0], float("nan"), "false_alarm_rate: .* got nan", id="a rate that is not a number"),
    ],
)
def test_unusable_arguments_are_refused(scores, rate, message):
    with pytest.raises(ValueError, match=message):
        conformal_threshold(scores, false_alarm_rate=rate)


@pytest.mark.parametrize("folds", [0, 1, 11])
def test_impossible_fold_counts_are_refused(folds):
    with pytest.raises(ValueError, match=f"from 2 to the 10 images, got {folds}"):
        fold_assignment(10, folds, rng=np.random.default_rng(8))


@pytest.mark.parametrize(
    ("fold_scores", "message"),
    [
        pytest.param([[1.0, 2.0]], "at least 2 folds, got 1", id="one fold"),
        pytest.param([[1.0], []], r"fold_scores\[1\]: ", id="an empty fold"),
        pytest.param([[1.0], [2.0, float("nan")]], r"fold_scores\[1\]\[1\]: .* got nan", id="a bad score"),
    ],
)
def test_unusable_folds_are_refused(fold_scores, message):
    with pytest.raises(ValueError, match=message):
        cross_conformal_threshold(fold_scores, false_alarm_rate=0.1)


def _nearest(points, bank):
    return np.linalg.norm(points[:, None] - bank[None], axis=2).min(axis=1)
