"""The paired bootstrap against exact answers: known distributions, DeLong's variance, and how often it is wrong."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binom, norm
from sklearn.metrics import average_precision_score, f1_score, precision_score, roc_auc_score

from cvad_cli.core.metrics import bootstrap_auroc_interval, measure_images
from cvad_cli.core.metrics.paired import (
    PairedRuns,
    has_paired_bootstrap,
    images_needed,
    why_undecidable,
    worsening,
)

GRID = (21, 57)
"""Good and defective test images of MVTec AD grid."""


def paired(before, now, types, *, thresholds=(0.5, 0.5)) -> PairedRuns:
    scores = np.array([before, now], dtype=float)
    return PairedRuns(np.array(types), scores, scores > np.array(thresholds)[:, None])


def types_of(good: int, defective: int) -> list[str]:
    return ["good"] * good + ["bent"] * defective


def two_detectors(rng, sizes, aurocs, correlation: float) -> PairedRuns:
    """Normal scores of two detectors of known true AUROC, whose errors on an image correlate."""
    good, defective = sizes
    common, own = rng.normal(size=good + defective), rng.normal(size=(2, good + defective))
    scores = math.sqrt(correlation) * common + math.sqrt(1 - correlation) * own
    scores[:, good:] += math.sqrt(2) * norm.ppf(aurocs)[:, None]
    return paired(*scores, types_of(good, defective))


def delong_error(runs: PairedRuns) -> tuple[float, float]:
    """The difference of two correlated AUROCs and its standard error: DeLong, DeLong and Clarke-Pearson 1988."""
    defective = runs.defect_types != "good"
    wins = [
        (run[defective][:, None] > run[~defective]) + 0.5 * (run[defective][:, None] == run[~defective])
        for run in runs.scores
    ]
    lost = wins[0] - wins[1]
    variances = [lost.mean(axis=axis).var(ddof=1) / lost.shape[1 - axis] for axis in (0, 1)]
    return float(lost.mean()), math.sqrt(sum(variances))


def auroc_worsening(runs: PairedRuns, confidence=0.95, seed=0):
    return worsening("image.auroc", runs, confidence=confidence, rng=np.random.default_rng(seed))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("metric", "of_scikit_learn", "sign"),
    [
        ("image.auroc", lambda labels, scores, _: roc_auc_score(labels, scores), -1),
        ("image.average_precision", lambda labels, scores, _: average_precision_score(labels, scores), -1),
        ("image.f1_max", lambda labels, scores, _: max(f1_score(labels, scores >= cut) for cut in scores), -1),
        ("decision.recall", lambda labels, _, rejected: rejected[labels].mean(), -1),
        ("decision.false_alarm_rate", lambda labels, _, rejected: rejected[~labels].mean(), 1),
        ("decision.precision", lambda labels, _, rejected: precision_score(labels, rejected), -1),
        ("defect_types.glue.auroc", None, -1),
    ],
)
def test_the_estimate_is_the_difference_of_scikit_learns_figures(metric, of_scikit_learn, sign, seed):
    rng = np.random.default_rng(seed)
    types = np.array(["good"] * 12 + ["bent"] * 9 + ["glue"] * 8)
    scores = np.round(rng.normal(types != "good", 1.0, size=(2, 29)), 1)  # rounded: many ties
    runs = paired(*scores, types)
    if of_scikit_learn is None:
        kept = types != "bent"
        figures = [roc_auc_score(types[kept] == "glue", run[kept]) for run in scores]
    else:
        figures = [of_scikit_learn(types != "good", *run) for run in zip(scores, runs.rejected, strict=True)]
    found = worsening(metric, runs, confidence=0.9, rng=np.random.default_rng(0))
    assert found.estimate == pytest.approx(sign * (figures[1] - figures[0]))
    assert found.low < found.estimate < found.high


def test_limits_of_a_lost_recall_are_binomial():
    # 12 of 80 defects that the baseline found are missed now: a resample misses Binomial(80, 0.15) of its 80.
    now = np.repeat([0.0, 1.0], [12, 80 - 12])
    runs = paired([0.0] * 6 + [1.0] * 80, [*[0.0] * 6, *now], types_of(6, 80))
    found = worsening("decision.recall", runs, confidence=0.95, rng=np.random.default_rng(0))
    exact = binom.ppf([0.05, 0.95], 80, 0.15) / 80
    assert found.estimate == pytest.approx(0.15)
    assert (found.low, found.high) == pytest.approx(exact, abs=0.0126)


@pytest.mark.parametrize("seed", range(4))
def test_limits_of_a_lost_auroc_are_those_of_delong(seed):
    runs = two_detectors(np.random.default_rng(seed), (200, 150), (0.88, 0.84), 0.6)
    lost, error = delong_error(runs)
    found = auroc_worsening(runs)
    assert found.estimate == pytest.approx(lost)
    assert (found.low, found.high) == pytest.approx((lost - 1.645 * error, lost + 1.645 * error), abs=0.2 * error)


def test_what_is_hard_for_both_runs_cancels_out():
    rng = np.random.default_rng(5)
    types = types_of(60, 60)
    before = rng.normal(np.array(types) != "good", 1.0)
    now = before + rng.normal(0, 0.05, len(types))
    found = auroc_worsening(paired(before, now, types))
    alone = bootstrap_auroc_interval(now[:60], now[60:], rng=rng)
    assert found.high - found.low < 0.1 * (alone[1] - alone[0])


def test_scales_of_the_scores_do_not_matter():
    runs = two_detectors(np.random.default_rng(6), GRID, (0.9, 0.9), 0.5)
    rescaled = PairedRuns(runs.defect_types, np.array([runs.scores[0], 1e4 + 7 * runs.scores[1]]), runs.rejected)
    assert auroc_worsening(rescaled) == auroc_worsening(runs)


@pytest.mark.parametrize(("auroc", "correlation"), [(0.90, 0.5), (0.98, 0.9)])
def test_a_change_by_chance_is_called_a_drop_no_more_often_than_promised(auroc, correlation):
    rng, trials = np.random.default_rng([7, int(auroc * 100), int(correlation * 10)]), 120
    found = [
        auroc_worsening(two_detectors(rng, GRID, (auroc, auroc), correlation), seed=trial) for trial in range(trials)
    ]
    any_drop = np.mean([one.low > 0 for one in found])
    beyond_tolerance = np.mean([one.low > 0.01 for one in found])
    assert any_drop <= 13 / 120  # at 5 % more are less likely than 0.3 %
    assert beyond_tolerance <= any_drop


def test_one_sided_limits_cover_the_truth_as_often_as_they_say():
    rng, trials = np.random.default_rng(8), 150
    found = [auroc_worsening(two_detectors(rng, (40, 40), (0.90, 0.86), 0.6), seed=trial) for trial in range(trials)]
    for covered in (np.mean([one.low <= 0.04 for one in found]), np.mean([one.high >= 0.04 for one in found])):
        assert 0.895 <= covered < 1  # 95 % of 150, three standard errors either way


def test_the_interval_of_a_single_run_covers_the_true_auroc():
    rng, trials, covered = np.random.default_rng(9), 120, 0
    for _ in range(trials):
        runs = two_detectors(rng, (50, 50), (0.85, 0.85), 0.5)
        low, high = bootstrap_auroc_interval(runs.scores[0, :50], runs.scores[0, 50:], rng=rng)
        covered += low <= 0.85 <= high
    assert 0.89 <= covered / trials < 1


def test_a_true_drop_of_three_hundredths_is_found_on_eighty_images():
    # Four of the 57 defects are no longer seen: they score like good parts. The other images keep their places.
    rng, failed, trials = np.random.default_rng(10), 0, 40
    for trial in range(trials):
        before = np.concatenate([rng.normal(0, 1, 21), rng.normal(5, 1, 57)])
        now = before + rng.normal(0, 0.1, 78)
        now[21:25] = rng.normal(0, 1, 4)
        found = auroc_worsening(paired(before, now, types_of(*GRID)), seed=trial)
        failed += found.low > 0
    assert failed >= 34


def test_a_drop_within_the_tolerance_is_proved_where_images_suffice():
    runs = two_detectors(np.random.default_rng(11), (600, 600), (0.95, 0.95), 0.9)
    assert auroc_worsening(runs).high < 0.01


def test_the_same_detector_leaves_no_doubt_and_another_one_without_a_difference_does():
    types = types_of(21, 57)
    before = np.concatenate([np.linspace(0, 0.4, 21), np.linspace(0.6, 1, 57)])
    same = auroc_worsening(paired(before, before * (1 + 1e-7), types))
    assert (same.estimate, same.low, same.high) == (0, 0, 0)
    other = auroc_worsening(paired(before, before[::1] ** 2, types))
    assert (other.estimate, other.low) == (0, 0)
    assert other.high == pytest.approx(1 - 0.05 ** (1 / 21))  # what 21 independent pairs can prove


def test_the_seed_decides_and_nothing_else():
    runs = two_detectors(np.random.default_rng(12), GRID, (0.9, 0.85), 0.5)
    assert auroc_worsening(runs, seed=1) == auroc_worsening(runs, seed=1)
    assert auroc_worsening(runs, seed=1) != auroc_worsening(runs, seed=2)


@pytest.mark.parametrize(("confidence", "needed"), [(0.9, 4), (0.95, 5), (0.975, 6), (0.99, 7), (0.75, 2)])
def test_fewer_images_than_a_sign_test_needs_say_nothing(confidence, needed):
    assert images_needed(confidence) == needed
    few = paired([0.0] * 30 + [1.0] * (needed - 1), [0.0] * 30 + [0.2] * (needed - 1), types_of(30, needed - 1))
    assert f"{needed - 1} defective images are too few" in why_undecidable("image.auroc", few, confidence=confidence)
    assert why_undecidable("decision.false_alarm_rate", few, confidence=confidence) is None
    with pytest.raises(ValueError, match="too few"):
        worsening("decision.recall", few, confidence=confidence, rng=np.random.default_rng(0))


def test_only_figures_of_image_scores_have_a_paired_bootstrap():
    assert has_paired_bootstrap("defect_types.no.7.recall")
    for metric in ("pixel.aupro", "counts.test", "defect_types.glue.images", "classification.leave_one_out.accuracy"):
        assert not has_paired_bootstrap(metric)


def test_metrics_agree_with_those_of_the_report():
    runs = two_detectors(np.random.default_rng(13), GRID, (0.93, 0.88), 0.5)
    reports = [
        measure_images(
            scores, runs.defect_types.tolist(), threshold=0.5, stated_false_alarm_rate=0.1, rng=np.random.default_rng(0)
        ).as_dict()
        for scores in runs.scores
    ]
    for metric, sign in [
        ("image.auroc", -1),
        ("image.average_precision", -1),
        ("image.f1_max", -1),
        ("decision.recall", -1),
        ("decision.precision", -1),
        ("decision.false_alarm_rate", 1),
    ]:
        section, _, name = metric.partition(".")
        change = reports[1][section][name] - reports[0][section][name]
        found = worsening(metric, runs, confidence=0.95, rng=np.random.default_rng(0))
        assert found.estimate == pytest.approx(sign * change), metric


@pytest.mark.parametrize(
    ("types", "scores", "message"),
    [
        pytest.param(["good", "bent"], [[0.0, 1.0]], r"got \(2,\), \(1, 2\)", id="one run"),
        pytest.param(["good"], [[0.0], [math.nan]], "finite", id="not a number"),
    ],
)
def test_runs_that_are_no_pair_are_refused(types, scores, message):
    with pytest.raises(ValueError, match=message):
        PairedRuns(np.array(types), np.array(scores), np.zeros(np.shape(scores), dtype=bool))
