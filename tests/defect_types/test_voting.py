"""Voting: one ridge in both of its forms, confidence that is earned, and unknown at the rate that is asked for."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge

from cvad_cli.core.voting import (
    RIDGE,
    TEMPERATURES,
    UNCALIBRATED,
    LabelledRegions,
    TypeClassifier,
    Verdicts,
    calibrate_temperature,
    conformal_p,
    leave_one_out_scores,
    nonconformity,
    own_nonconformity,
    ridge_scores,
    softmax,
    vote,
)


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def clusters(*sizes: int, seed: int = 0, scale: float = 0.1, width: int = 12, orientations: int = 8) -> LabelledRegions:
    """Types of so many regions each, one region an image, about axes of their own."""
    rng = np.random.default_rng(seed)
    types = np.repeat(np.arange(len(sizes)), sizes)
    regions = np.eye(width)[types] + scale * rng.normal(size=(len(types), width))
    views = regions[:, None] + scale / 4 * rng.normal(size=(len(types), orientations, width))
    return LabelledRegions(unit(views), types, np.arange(len(types)))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(2, 4), st.integers(2, 30), st.integers(1, 30))
def test_the_dual_ridge_is_the_primal_solution(seed: int, count: int, more: int, width: int) -> None:
    """Columns of zeros change nothing but the form that is solved: with more columns than rows it is the dual."""
    rng = np.random.default_rng(seed)
    types = rng.permutation(np.concatenate([np.arange(count), rng.integers(0, count, more)]))
    labelled, queries = rng.normal(size=(len(types), width)), rng.normal(size=(5, width))
    weight = 1 / np.bincount(types)[types]
    weight /= weight.mean()
    centred = labelled - np.average(labelled, axis=0, weights=weight)
    reference = Ridge(alpha=RIDGE * (centred**2).sum(1).mean()).fit(labelled, np.eye(count)[types], weight)
    expected = reference.predict(queries) - 1 / count
    np.testing.assert_allclose(ridge_scores(labelled, types, queries), expected, atol=1e-8)
    wide, wide_queries = (np.pad(vectors, ((0, 0), (0, len(types)))) for vectors in (labelled, queries))
    np.testing.assert_allclose(ridge_scores(wide, types, wide_queries), expected, atol=1e-8)


def test_a_type_with_a_hundred_samples_does_not_drown_one_with_a_single_sample() -> None:
    labelled = clusters(100, 1, scale=0.05)
    vectors = labelled.views.reshape(-1, 12)
    scores = ridge_scores(vectors, np.repeat(labelled.types, 8), np.eye(12)[:2])
    assert scores.argmax(1).tolist() == [0, 1]
    many = np.concatenate([np.repeat(vectors[:800], 3, 0), vectors[800:]])  # copies change nothing
    more = ridge_scores(many, np.repeat([0, 1], [2400, 8]), np.eye(12)[:2])
    assert (more.argmax(1) == [0, 1]).all()


def test_scores_of_all_types_sum_to_zero() -> None:
    labelled = clusters(3, 4, 5)
    scores = ridge_scores(labelled.centres, labelled.types, np.random.default_rng(0).normal(size=(9, 12)))
    np.testing.assert_allclose(scores.sum(1), 0, atol=1e-12)


def test_one_sample_of_one_type_is_an_index_already() -> None:
    one = LabelledRegions(unit(np.ones((1, 1, 4))), np.zeros(1, int), np.zeros(1, int))
    verdicts = TypeClassifier.learn(one).judge(unit(np.random.default_rng(0).normal(size=(3, 4))))
    assert verdicts.confidences.tolist() == [[1.0]] * 3
    assert not verdicts.unknown(0.05).any()  # with nothing to compare with, nothing is called unknown


def test_one_sample_a_type_is_learnt_without_a_calibration() -> None:
    classifier = TypeClassifier.learn(clusters(1, 1, 1))
    assert classifier.temperature == UNCALIBRATED
    verdicts = classifier.judge(np.eye(12)[:3])
    assert verdicts.types.tolist() == [0, 1, 2]
    assert np.isfinite(verdicts.nonconformity).all()


def test_equal_confidences_go_to_the_first_type() -> None:
    verdicts = Verdicts(np.full((2, 3), 1 / 3), np.ones(2), np.ones(2))
    assert verdicts.types.tolist() == [0, 0]
    same = LabelledRegions(unit(np.ones((4, 8, 5))), np.asarray([0, 0, 1, 1]), np.arange(4))
    judged = TypeClassifier.learn(same).judge(unit(np.ones((1, 5))))
    assert judged.confidences.tolist() == [[0.5, 0.5]]
    assert judged.types.tolist() == [0]


def test_leaving_one_out_is_fitting_without_it() -> None:
    labelled = clusters(3, 4, 2)
    scores = leave_one_out_scores(labelled)
    for region in (0, 5, 8):
        rest = np.arange(9) != region
        vectors, types = labelled.views[rest].reshape(-1, 12), np.repeat(labelled.types[rest], 8)
        expected = ridge_scores(vectors, types, labelled.centres[region : region + 1])
        np.testing.assert_allclose(scores[region : region + 1], expected)


def test_regions_of_one_image_are_left_out_together() -> None:
    labelled = clusters(2, 2)
    together = LabelledRegions(labelled.views, labelled.types, np.asarray([0, 0, 1, 2]))
    scores = leave_one_out_scores(together)
    assert np.isneginf(scores[:2, 0]).all()  # the type's only image
    assert np.isfinite(scores[:, 1]).all()
    alone = leave_one_out_scores(LabelledRegions(labelled.views, labelled.types, np.zeros(4, int)))
    assert np.isneginf(alone).all()


def test_many_images_are_left_out_a_share_at_a_time() -> None:
    labelled = clusters(9, 9)
    scores = leave_one_out_scores(labelled, max_refits=4)
    assert (scores.argmax(1) == labelled.types).all()
    out = labelled.images % 4 == 1
    expected = ridge_scores(
        labelled.views[~out].reshape(-1, 12), np.repeat(labelled.types[~out], 8), labelled.centres[out]
    )
    np.testing.assert_allclose(scores[out], expected)


def test_confidences_sum_to_one_and_sharpen_as_the_temperature_falls() -> None:
    scores = np.random.default_rng(0).normal(size=(20, 4))
    sharp, soft = softmax(scores, 0.05), softmax(scores, 5.0)
    np.testing.assert_allclose(sharp.sum(1), 1)
    assert (sharp.max(1) > soft.max(1)).all()
    assert (sharp.argmax(1) == scores.argmax(1)).all()
    assert np.isfinite(softmax(scores * 1e6, 0.01)).all()


def test_the_temperature_that_made_the_labels_is_found_again() -> None:
    rng = np.random.default_rng(0)
    scores = rng.uniform(-0.5, 0.5, (20_000, 4))
    for temperature in (0.1, 0.3, 1.0):
        chance = softmax(scores, temperature)
        types = (chance.cumsum(1) > rng.random((len(scores), 1))).argmax(1)
        assert calibrate_temperature(scores, types) == pytest.approx(temperature, rel=0.06)


def test_a_few_right_answers_are_not_certainty() -> None:
    scores = np.eye(3)[[0, 1, 2] * 2] * 0.8
    types = np.asarray([0, 1, 2] * 2)
    few = softmax(scores, calibrate_temperature(scores, types)).max()
    assert few == pytest.approx(7 / 9, abs=1e-3)  # Laplace: 6 of 6 right, 3 types
    many = softmax(scores, calibrate_temperature(np.tile(scores, (50, 1)), np.tile(types, 50))).max()
    assert few < many < 1


def test_scores_that_say_nothing_give_the_softest_confidence() -> None:
    rng = np.random.default_rng(0)
    found = calibrate_temperature(rng.normal(size=(500, 3)), rng.integers(0, 3, 500))
    assert found > TEMPERATURES[1] / 3


def test_a_region_of_a_known_type_has_a_lower_nonconformity_than_one_of_none() -> None:
    labelled = clusters(8, 8)
    found = nonconformity(np.eye(12)[[0, 1, 5]], labelled)
    assert found[2] > 3 * found[:2].max()


def test_nonconformity_is_in_units_of_each_types_own_scale() -> None:
    tight, loose = clusters(10, seed=1, scale=0.02), clusters(10, seed=1, scale=0.2)
    away = unit(np.eye(12)[[0]] + 0.3 * np.eye(12)[[7]])
    assert nonconformity(away, tight)[0] > 5 * nonconformity(away, loose)[0]
    turned = LabelledRegions(np.roll(loose.views, 1, axis=2), loose.types, loose.images)
    both = LabelledRegions(np.concatenate([tight.views, turned.views]), np.repeat([0, 1], 10), np.arange(20))
    queries = unit(np.random.default_rng(0).normal(size=(30, 12)))
    alone = np.minimum(nonconformity(queries, tight), nonconformity(queries, turned))
    np.testing.assert_allclose(nonconformity(queries, both), alone)


def test_a_type_of_one_image_borrows_the_scale_of_the_others() -> None:
    labelled = clusters(6, 6, 1)
    query = unit(np.eye(12)[[2]] + 0.2 * np.eye(12)[[9]])
    others = LabelledRegions(labelled.views[:12], labelled.types[:12], labelled.images[:12])
    gap = np.sqrt(2 - 2 * (labelled.views[12] @ query[0]).max())
    scales = []
    for kind in (0, 1):
        members = np.flatnonzero(others.types == kind)
        likeness = np.einsum("id,jkd->ijk", others.centres[members], others.views[members]).max(2)
        np.fill_diagonal(likeness, -1)
        scales.append(np.median(np.sqrt(2 - 2 * likeness.max(1))))
    assert nonconformity(query, labelled)[0] == pytest.approx(gap / np.median(scales))


def test_regions_of_the_same_image_are_no_witnesses() -> None:
    labelled = clusters(3, 3)
    twins = LabelledRegions(
        np.concatenate([labelled.views, labelled.views]), np.tile(labelled.types, 2), np.tile(labelled.images, 2)
    )
    np.testing.assert_allclose(own_nonconformity(twins)[:6], own_nonconformity(labelled), rtol=1e-6)


def test_copies_of_one_region_leave_every_other_nonconformity_finite() -> None:
    same = LabelledRegions(np.repeat(unit(np.ones((1, 8, 5))), 3, 0), np.zeros(3, int), np.arange(3))
    assert np.isfinite(nonconformity(unit(np.random.default_rng(0).normal(size=(4, 5))), same)).all()
    assert np.isfinite(own_nonconformity(same)).all()


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=30), st.lists(st.integers(-1, 6), min_size=1, max_size=9))
def test_the_p_value_counts_the_labelled_regions_of_at_least_that_nonconformity(
    own: list[int], queries: list[int]
) -> None:
    found = conformal_p(np.asarray(own, float), np.asarray(queries, float))
    expected = [(1 + sum(mine >= query for mine in own)) / (len(own) + 1) for query in queries]
    assert found.tolist() == pytest.approx(expected)
    assert (found >= 1 / (len(own) + 1)).all()


@pytest.mark.parametrize("ties", [False, True])
def test_p_values_of_exchangeable_data_are_super_uniform(ties: bool) -> None:
    draws = np.random.default_rng(0).gamma(2.0, size=(20_000, 20))
    draws = np.floor(draws) if ties else draws
    p = np.asarray([conformal_p(row[1:], row[:1])[0] for row in draws])
    for rate in np.arange(1, 20) / 20:
        margin = 4 * math.sqrt(rate * (1 - rate) / len(p))
        assert (p <= rate).mean() <= rate + margin
        if not ties:
            assert (p <= rate).mean() >= rate - margin  # and exact, where nothing ties


def test_known_regions_are_called_unknown_at_the_given_rate_and_others_every_time() -> None:
    called = []
    for seed in range(10):
        everything = clusters(80, 80, seed=seed)
        order = np.random.default_rng(seed).permutation(160)
        learn, rest = order[:80], order[80:]
        classifier = TypeClassifier.learn(
            LabelledRegions(everything.views[learn], everything.types[learn], np.arange(80))
        )
        known = classifier.judge(everything.centres[rest])
        assert (known.types == everything.types[rest]).mean() > 0.95
        assert classifier.judge(np.eye(12)[5:]).unknown(0.1).all()
        called.append(known.unknown(0.1).mean())
    assert np.mean(called) == pytest.approx(0.1, abs=0.05)  # ten sets of 80: standard deviation 0.015


def test_types_with_a_single_image_do_not_hide_an_unknown_region() -> None:
    """Left out, such a region is of an unknown type itself: to compare with it says nothing of known ones."""
    classifier = TypeClassifier.learn(clusters(10, 10, *[1] * 8))
    assert classifier.lowest_p == pytest.approx(1 / 21)
    assert classifier.judge(np.eye(12)[10:]).unknown(0.1).all()


def test_regions_of_one_image_alone_allow_no_rate() -> None:
    labelled = clusters(10, 10)
    alone = TypeClassifier.learn(LabelledRegions(labelled.views, labelled.types, np.zeros(20, int)))
    assert alone.lowest_p == 1
    assert not alone.judge(np.eye(12)[5:]).unknown(0.99).any()


def test_a_p_value_at_the_rate_is_unknown() -> None:
    verdicts = Verdicts(np.ones((3, 1)), np.ones(3), np.asarray([0.05, 0.1, 0.15]))
    assert verdicts.unknown(0.1).tolist() == [True, True, False]


def test_a_labelled_region_of_infinite_nonconformity_makes_nothing_unknown_by_mistake() -> None:
    assert conformal_p(np.asarray([np.inf, 1.0]), np.asarray([5.0, np.inf])).tolist() == [2 / 3, 2 / 3]


def test_the_vote_of_a_image_weighs_its_regions_by_mass() -> None:
    confidences = np.asarray([[0.9, 0.1], [0.2, 0.8]])
    np.testing.assert_allclose(vote(confidences, np.asarray([1.0, 3.0])), [0.375, 0.625])
    np.testing.assert_allclose(vote(confidences, np.zeros(2)), [0.55, 0.45])
    np.testing.assert_allclose(vote(confidences[:1], np.asarray([7.0])), confidences[0])
    for masses in (np.ones(3), np.asarray([1.0, -1.0])):
        with pytest.raises(ValueError, match="masses: expected one from 0 for each of 2 regions"):
            vote(confidences, masses)


@pytest.mark.parametrize(
    ("types", "message"),
    [
        pytest.param([0, 2, 2], r"every one of 0..2 to be present, saw \[0, 2\]", id="a gap"),
        pytest.param([1, 1, 1], r"saw \[1\]", id="does not start at 0"),
        pytest.param([0, 1], "expected .n, o, d", id="too few"),
    ],
)
def test_labels_that_do_not_fit_are_refused(types: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LabelledRegions(np.ones((3, 8, 4)), np.asarray(types), np.arange(3))
