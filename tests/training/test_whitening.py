"""Whitening: what it leaves of a covariance, and what it must not do."""

from __future__ import annotations

import numpy as np
import pytest

from cvad_cli.core.whitening import SHRINKAGE, whitening


def covariance_of(deviations: list[float], seed: int = 0) -> np.ndarray:
    turn = np.linalg.qr(np.random.default_rng(seed).standard_normal((len(deviations), len(deviations))))[0]
    return (turn * np.square(deviations)) @ turn.T


def test_loud_directions_are_brought_down_to_the_faint_ones() -> None:
    covariance = covariance_of([10.0, 3.0, 3.0, 2.5])
    matrix = whitening(covariance)
    values = np.linalg.eigvalsh(matrix @ covariance @ matrix)
    assert values.max() / values.min() < 2.7
    assert np.linalg.eigvalsh(covariance).max() / np.linalg.eigvalsh(covariance).min() > 15


def test_the_mean_variance_stays() -> None:
    covariance = covariance_of([5.0, 1.0, 0.1])
    matrix = whitening(covariance, 0.7)
    assert np.trace(matrix @ covariance @ matrix) == pytest.approx(np.trace(covariance))


def test_no_strength_changes_nothing() -> None:
    np.testing.assert_allclose(whitening(covariance_of([4.0, 2.0, 1.0]), 0.0), np.eye(3), atol=1e-12)


def test_each_direction_is_divided_by_its_shrunk_deviation() -> None:
    covariance = np.diag([9.0, 1.0, 0.0])
    matrix = whitening(covariance)
    floor = SHRINKAGE * 10 / 3
    expected = 1 / np.sqrt(np.array([9.0, 1.0, 0.0]) + floor)
    np.testing.assert_allclose(np.diag(matrix) / matrix[0, 0], expected / expected[0])


def test_features_that_never_vary_stay_as_they_are() -> None:
    np.testing.assert_array_equal(whitening(np.zeros((3, 3))), np.eye(3))
