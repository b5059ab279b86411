"""Curves have the areas that are quoted of them, and lose nothing that can be seen by being thinned."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from cvad_cli.core.curves import Curve, precision_recall, roc, thinned
from cvad_cli.core.pixel_metrics import PixelScores


@pytest.fixture
def labelled():
    rng = np.random.default_rng(5)
    defective = rng.random(120) < 0.4
    return np.round(rng.normal(defective, 1.0), 1), defective  # rounded: some scores are tied


def test_the_area_below_each_curve_is_the_figure_that_is_quoted(labelled):
    scores, defective = labelled
    ranking, precision = roc(scores, defective), precision_recall(scores, defective)
    assert np.trapezoid(ranking.y, ranking.x) == pytest.approx(roc_auc_score(defective, scores))
    assert np.trapezoid(precision.y, precision.x) == pytest.approx(average_precision_score(defective, scores))


@pytest.mark.parametrize("limit", [0.05, 0.3, 1.0])
def test_the_area_below_the_region_curve_is_aupro(limit):
    rng = np.random.default_rng(2)
    pixels = PixelScores()
    for _ in range(3):
        mask = np.zeros((40, 40), dtype=bool)
        mask[5:12, 20:30] = True
        pixels.add((rng.random((40, 40)) + 0.4 * mask).astype(np.float32), mask)
    curve = Curve(*pixels.region_curve(fpr_limit=limit))
    assert (curve.x[0], curve.x[-1]) == (0, limit)
    assert np.trapezoid(curve.y, curve.x) / limit == pytest.approx(pixels.measure(fpr_limit=limit).pixel.aupro)
    few = thinned(curve, 100)
    assert few.x.size <= 100
    assert np.trapezoid(few.y, few.x) / limit == pytest.approx(pixels.measure(fpr_limit=limit).pixel.aupro, abs=2e-3)


def test_there_is_no_region_curve_without_a_defective_pixel():
    pixels = PixelScores()
    pixels.add(np.ones((4, 4), dtype=np.float32), np.zeros((4, 4), dtype=bool))
    assert pixels.region_curve() is None


def test_a_thinned_curve_has_points_of_its_own_and_both_ends():
    x = np.linspace(0, 1, 5000) ** 3
    curve = Curve(x, np.sqrt(x))
    few = thinned(curve, 50)
    assert few.x.size <= 50
    assert (few.x[0], few.x[-1]) == (0, 1)
    assert set(few.x) <= set(x)
    assert (np.diff(few.x) > 0).all()
    assert thinned(few, 50) is few


def test_a_curve_needs_as_many_x_as_y_values():
    with pytest.raises(ValueError, match="one length"):
        Curve(np.zeros(3), np.zeros(2))
