"""Image metrics: rankings, intervals and decisions against cases with a known answer."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from scipy.stats import binom
from sklearn.metrics import f1_score

from cvad_cli.core.metrics import bootstrap_auroc_interval, measure_images


def measure(scores, types, threshold=0.5, seed=0):
    return measure_images(
        scores, types, threshold=threshold, stated_false_alarm_rate=0.02, rng=np.random.default_rng(seed)
    )


def test_a_small_test_set_is_counted_by_hand():
    report = measure([0.1, 0.2, 0.6, 0.4, 0.7, 0.9], ["good", "good", "good", "bent", "bent", "glue"])
    image, decision = report.image, report.decision
    assert image.auroc == pytest.approx(8 / 9)  # 0.4 loses to 0.6: one of nine pairs
    assert image.average_precision == pytest.approx((1 + 1 + 3 / 4) / 3)
    assert image.f1_max == pytest.approx(6 / 7)
    assert image.f1_max_threshold == pytest.approx(0.3)
    counts = (
        decision.true_positives,
        decision.false_positives,
        decision.true_negatives,
        decision.false_negatives,
    )
    assert counts == (2, 1, 2, 1)
    assert (decision.precision, decision.recall, decision.false_alarm_rate) == (2 / 3, 2 / 3, 1 / 3)
    bent, glue = report.defect_types["bent"], report.defect_types["glue"]
    assert list(report.defect_types) == ["bent", "glue"]
    assert (bent.images, bent.recall, bent.mean_score, bent.auroc) == pytest.approx((2, 0.5, 0.55, 5 / 6))
    assert (glue.images, glue.recall, glue.mean_score, glue.auroc) == pytest.approx((1, 1.0, 0.9, 1.0))


def test_a_score_on_the_threshold_passes():
    decision = measure([0.5, 0.5, 0.6], ["good", "bent", "bent"]).decision
    assert (decision.false_positives, decision.true_positives, decision.false_negatives) == (0, 1, 1)


@pytest.mark.parametrize("seed", range(5))
def test_f1_max_threshold_reaches_f1_max_and_no_cut_beats_it(seed):
    rng = np.random.default_rng(seed)
    defective = rng.random(40) < 0.4
    scores = np.round(rng.normal(defective, 1.0), 1)  # rounded: many ties
    image = measure(scores, np.where(defective, "bent", "good").tolist()).image
    assert f1_score(defective, scores > image.f1_max_threshold) == pytest.approx(image.f1_max)
    assert all(f1_score(defective, scores > cut) <= image.f1_max + 1e-12 for cut in [-9, *scores[:-1]] if cut < 9)


def test_f1_max_threshold_may_reject_everything():
    image = measure([1.0, 0.5], ["good", "bent"]).image
    assert image.f1_max == pytest.approx(2 / 3)
    assert image.f1_max_threshold < 0.5


def test_bootstrap_interval_is_binomial_when_all_good_scores_tie():
    # The AUROC of a resample is then the share of its 100 defects above the good ones: Binomial(100, 0.7) / 100.
    defective = np.repeat([1.0, 0.0], [70, 30])
    found = bootstrap_auroc_interval(np.full(8, 0.5), defective, rng=np.random.default_rng(0))
    assert found == pytest.approx(binom.ppf([0.025, 0.975], 100, 0.7) / 100, abs=0.0101)


def test_bootstrap_interval_has_the_width_that_delong_derives():
    rng = np.random.default_rng(1)
    good, defective = rng.normal(0, 1, 80), rng.normal(1.2, 1, 60)
    wins = (defective[:, None] > good[None]).astype(float)
    error = math.sqrt(wins.mean(axis=1).var(ddof=1) / 60 + wins.mean(axis=0).var(ddof=1) / 80)
    low, high = bootstrap_auroc_interval(good, defective, rng=rng)
    assert low < wins.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.1)


def test_intervals_repeat_with_the_seed_and_bracket_the_estimate():
    rng = np.random.default_rng(2)
    types = ["good"] * 30 + ["bent"] * 30
    scores = np.concatenate([rng.normal(0, 1, 30), rng.normal(1, 1, 30)])
    first, again, other = (measure(scores, types, seed=seed).image for seed in (3, 3, 4))
    assert first == again
    assert first.auroc_interval != other.auroc_interval
    assert first.auroc_interval[0] < first.auroc < first.auroc_interval[1]


def test_false_alarm_interval_is_exact():
    low, high = measure([0.0] * 21 + [1.0], ["good"] * 21 + ["bent"]).decision.false_alarm_interval
    assert low == 0.0
    assert high == pytest.approx(1 - 0.025 ** (1 / 21))


def test_a_perfect_ranking_claims_no_narrower_interval_than_its_pairs_support():
    report = measure([0.1, 0.2, 0.3, 0.8, 0.9], ["good"] * 3 + ["bent"] * 2)
    assert report.image.auroc == 1.0
    assert report.image.auroc_interval is None
    assert f"show {0.025 ** (1 / 2):.3g} or more" in report.unavailable["image.auroc_interval"]


@pytest.mark.parametrize(
    ("scores", "types", "reasons"),
    [
        pytest.param(
            [0.1, 0.9],
            ["good", "good"],
            {
                **dict.fromkeys(
                    [
                        f"image.{name}"
                        for name in ("auroc", "auroc_interval", "average_precision", "f1_max", "f1_max_threshold")
                    ],
                    "the test set has no defective image",
                ),
                "decision.recall": "the test set has no defective image",
            },
            id="good images only",
        ),
        pytest.param(
            [0.1, 0.2],
            ["bent", "glue"],
            {
                **dict.fromkeys(
                    [
                        *(
                            f"image.{name}"
                            for name in ("auroc", "auroc_interval", "average_precision", "f1_max", "f1_max_threshold")
                        ),
                        "decision.false_alarm_rate",
                        "decision.false_alarm_interval",
                        "defect_types.bent.auroc",
                        "defect_types.glue.auroc",
                    ],
                    "the test set has no good image",
                ),
                "decision.precision": "no image scores above the threshold",
            },
            id="defects only, none found",
        ),
        pytest.param(
            [0.1, 0.9],
            ["good", "bent"],
            {"image.auroc_interval": "a bootstrap needs at least 2 good and 2 defective images"},
            id="one image of each",
        ),
        pytest.param(
            [0.7] * 4,
            ["good", "good", "bent", "bent"],
            {"image.auroc_interval": "every bootstrap resample gives the same AUROC of 0.5"},
            id="a detector that always says the same",
        ),
    ],
)
def test_what_cannot_be_measured_is_none_and_says_why(scores, types, reasons):
    document = measure(scores, types).as_dict()
    assert document["unavailable"] == reasons
    for name in reasons:
        value = document
        for key in name.split("."):
            value = value[key]
        assert value is None, name


def test_every_none_has_a_reason_and_the_document_is_plain_json():
    document = measure([0.1, 0.9], ["good", "good"]).as_dict()
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert list(document) == ["image", "decision", "defect_types", "unavailable"]
    holes = {
        f"{part}.{name}" for part in ("image", "decision") for name, value in document[part].items() if value is None
    }
    assert holes == set(document["unavailable"])


def test_the_document_has_the_fields_of_metrics_json():
    document = measure([0.1, 0.3, 0.2, 0.9], ["good", "good", "bent", "bent"]).as_dict()
    assert list(document["image"]) == ["auroc", "auroc_interval", "average_precision", "f1_max", "f1_max_threshold"]
    assert list(document["decision"]) == [
        "threshold",
        "stated_false_alarm_rate",
        "false_alarm_rate",
        "false_alarm_interval",
        "precision",
        "recall",
        "true_positives",
        "false_positives",
        "true_negatives",
        "false_negatives",
    ]
    assert list(document["defect_types"]["bent"]) == ["images", "auroc", "recall", "mean_score"]
    assert isinstance(document["decision"]["false_alarm_interval"], list)


@pytest.mark.parametrize(
    ("scores", "types", "message"),
    [
        pytest.param([], [], r"shapes \(0,\) and \(0,\)", id="nothing"),
        pytest.param([0.1, 0.2], ["good"], r"shapes \(2,\) and \(1,\)", id="a missing type"),
        pytest.param([0.1, float("nan")], ["good", "bent"], r"scores\[1\]: .* got nan", id="not a number"),
        pytest.param([float("-inf"), 0.1], ["good", "bent"], r"scores\[0\]: .* got -inf", id="infinite"),
    ],
)
def test_unusable_scores_are_refused(scores, types, message):
    with pytest.raises(ValueError, match=message):
        measure(scores, types)
