"""Ratios and growth, exactly."""

from __future__ import annotations

import numpy as np
import pytest

from cvad_cli.core.comparing import fastest, growth_exponent, ratio_of


def test_a_ratio_is_that_of_the_medians_and_its_range_that_of_the_repeats() -> None:
    found = ratio_of([100.0, 90.0, 120.0], [10.0, 15.0, 12.0])
    assert found.of_medians == 100.0 / 12.0
    assert (found.lowest, found.highest) == (90.0 / 15.0, 100.0 / 10.0)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        pytest.param([1.0], [1.0, 2.0], id="one side lacks a repeat"),
        pytest.param([], [], id="nothing was measured"),
        pytest.param([1.0], [0.0], id="a rate of nothing"),
    ],
)
def test_rates_that_cannot_be_compared_are_refused(ours: list[float], theirs: list[float]) -> None:
    with pytest.raises(ValueError, match="expected"):
        ratio_of(ours, theirs)


def test_the_fastest_is_so_by_its_median_not_by_its_luck() -> None:
    assert fastest({"steady": [5.0, 5.0, 5.0], "lucky": [50.0, 4.0, 4.0]}) == "steady"


def test_growth_is_the_power_of_the_size() -> None:
    sizes = np.array([64.0, 128.0, 512.0])
    assert growth_exponent(sizes, 3e-4 * sizes**1.5) == pytest.approx(1.5)
    assert growth_exponent([7.0], [1.0]) is None
