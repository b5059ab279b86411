"""What a precision does to features on average is measured and taken back; what is left is noise."""

from __future__ import annotations

import numpy as np
import pytest

from cvad_cli.core.quantization import QuantizationCorrection


@pytest.fixture(scope="module")
def exact() -> np.ndarray:
    return np.random.default_rng(0).normal(0, 3, (6, 200, 16)).astype(np.float32)


def test_a_shift_of_each_channel_is_found_and_no_noise_is_made_up(exact: np.ndarray) -> None:
    shift = np.linspace(-1, 1, 16, dtype=np.float32)
    found = QuantizationCorrection.measured(exact, exact + shift)
    np.testing.assert_allclose(found.bias, shift, atol=1e-5)
    assert found.floor == pytest.approx(0, abs=1e-6)


def test_noise_lengthens_distances_by_its_square_and_that_is_taken_back(exact: np.ndarray) -> None:
    rng = np.random.default_rng(1)
    noisy = exact + rng.normal(0, 0.5, exact.shape).astype(np.float32)
    correction = QuantizationCorrection.measured(exact, noisy)
    assert correction.floor == pytest.approx(16 * 0.25, rel=0.05)
    target = rng.normal(0, 3, 16)
    true, found = (np.linalg.norm(values - target, axis=-1) for values in (exact, noisy))
    assert np.mean(found**2 - true**2) == pytest.approx(4, rel=0.2)
    assert np.mean(correction.distances(found) ** 2 - true**2) == pytest.approx(0, abs=0.3)


def test_a_distance_shorter_than_the_noise_is_none() -> None:
    correction = QuantizationCorrection(np.zeros(3, np.float32), 4.0)
    np.testing.assert_allclose(correction.distances(np.array([1.0, 2.0, 2.5])), [0, 0, 1.5])


def test_float32_has_no_effect(exact: np.ndarray) -> None:
    distances = np.abs(exact[0, :, 0])
    np.testing.assert_array_equal(QuantizationCorrection.none(16).distances(distances), distances)
