"""Percentiles in bounded memory: within one per cent of the exact ones, whatever the times."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from cvad_cli.core.latency import ACCURACY, Durations, StageTimes, latency_summary


@pytest.mark.parametrize(
    "times",
    [
        pytest.param(np.random.default_rng(1).lognormal(-4, 1.5, 20_000), id="a long tail"),
        pytest.param(np.random.default_rng(2).uniform(0.001, 0.002, 999), id="a narrow range"),
        pytest.param(np.array([0.5]), id="one"),
        pytest.param(np.repeat([1e-5, 3.0, 4000.0], [1, 5, 2]), id="far apart"),
    ],
)
def test_quantiles_are_within_one_per_cent_of_the_exact_ones(times: np.ndarray) -> None:
    durations = Durations()
    for seconds in times:
        durations.add(float(seconds))
    exact = np.sort(times)
    for share in (0.0, 0.25, 0.5, 0.95, 0.99, 1.0):
        expected = exact[int(share * (len(exact) - 1))]
        assert durations.quantile(share) == pytest.approx(expected, rel=ACCURACY * 1.0001)
    assert durations.count == len(times)
    assert durations.summary().mean_ms == pytest.approx(1e3 * times.mean())


def test_memory_is_the_same_for_one_and_for_many() -> None:
    few, many = Durations(), Durations()
    few.add(0.1)
    for number in range(1, 5000):
        many.add(number * 1e-4)
    assert few._counts.nbytes == many._counts.nbytes < 16_000
    assert sys.getsizeof(few) == sys.getsizeof(many)


def test_times_out_of_range_count_at_its_ends() -> None:
    durations = Durations()
    durations.add(0.0)
    durations.add(1e9)
    assert durations.quantile(0.0) == pytest.approx(1e-7, rel=0.02)
    assert durations.quantile(1.0) == pytest.approx(1e5, rel=0.02)


@pytest.mark.parametrize("wrong", [-1e-9, float("nan")])
def test_no_time_is_refused(wrong: float) -> None:
    with pytest.raises(ValueError, match="expected a time from 0"):
        Durations().add(wrong)


def test_nothing_counted_is_zero_and_wholly_explained() -> None:
    assert Durations().summary().p99_ms == 0
    assert StageTimes().explained == 1


def test_stages_explain_their_share_of_the_whole() -> None:
    times = StageTimes()
    times.add(0.010, {"decode": 0.004, "network": 0.004})
    times.add(0.030, {"decode": 0.012, "network": 0.012})
    assert times.explained == pytest.approx(0.8)
    assert list(times.stages) == ["decode", "network"]
    assert times.stages["decode"].mean_ms == pytest.approx(8)


def test_the_summary_of_times_at_hand_is_exact() -> None:
    found = latency_summary([value / 1000 for value in range(1, 101)])
    assert found.count == 100
    assert found.mean_ms == pytest.approx(50.5)
    assert [found.p50_ms, found.p95_ms, found.p99_ms] == pytest.approx([50.5, 95.05, 99.01])
    with pytest.raises(ValueError, match="at least one"):
        latency_summary([])
