"""Anomaly maps made by two matrix products are those of SciPy's filter and of torch's interpolation."""

from __future__ import annotations

import numpy as np
import pytest

from cvad_cli.core.maps import MAP_SIGMA_PX, MapScale, anomaly_map, interpolated, smoothed

SIDES = pytest.mark.parametrize(
    ("grid", "size"),
    [
        pytest.param((32, 32), (256, 256), id="eight pixels a cell"),
        pytest.param((12, 9), (96, 70), id="not square, not a multiple"),
        pytest.param((3, 4), (8, 9), id="smaller than the Gaussian"),
        pytest.param((5, 5), (1, 5), id="one row of pixels"),
    ],
)


@SIDES
def test_smoothing_equals_scipys_gaussian_over_repeated_cells(grid: tuple[int, int], size: tuple[int, int]) -> None:
    from scipy.ndimage import gaussian_filter

    cells = np.random.default_rng(0).uniform(1, 9, grid).astype(np.float32)
    rows, columns = (np.arange(many) * few // many for few, many in zip(grid, size, strict=True))
    expected = gaussian_filter(cells[rows[:, None], columns], MAP_SIGMA_PX, mode="mirror", truncate=4.0)
    np.testing.assert_allclose(anomaly_map(cells.ravel(), grid, size), expected, rtol=1e-5)


@pytest.mark.parametrize("border", [0, 4])
@pytest.mark.parametrize(("grid", "size"), [((56, 56), (256, 256)), ((7, 10), (40, 64)), ((9, 9), (5, 5))])
def test_interpolation_equals_torchs(grid: tuple[int, int], size: tuple[int, int], border: int) -> None:
    import torch
    from torch.nn import functional

    cells = np.random.default_rng(1).normal(size=(2, *grid)).astype(np.float32)
    padded = functional.pad(torch.from_numpy(cells)[:, None], (border,) * 4)
    expected = functional.interpolate(padded, size=size, mode="bilinear")[:, 0].numpy()
    np.testing.assert_allclose(interpolated(grid, size, border)(cells), expected, rtol=1e-4, atol=1e-5)


def test_a_flat_map_stays_flat() -> None:
    found = smoothed((16, 16), (128, 128))(np.full((16, 16), 7.0))
    np.testing.assert_allclose(found, 7.0, rtol=1e-6)


def test_a_map_that_does_not_fit_its_grid_is_refused() -> None:
    with pytest.raises(ValueError, match="expected 4 x 4 values, got 15"):
        anomaly_map(np.zeros(15, np.float32), (4, 4), (32, 32))


def test_efficient_ads_maps_are_scaled_to_their_quantiles() -> None:
    scale = MapScale.of(1.0, 3.0, 2.0, 2.5)
    assert (scale.student, scale.autoencoder) == pytest.approx((0.025, 0.1))
    assert scale.student * 1.0 + scale.autoencoder * 2.0 + scale.offset == pytest.approx(0.0)
    assert scale.student * 3.0 + scale.autoencoder * 2.5 + scale.offset == pytest.approx(0.1)
    assert MapScale.of(0.0, 0.0, 0.0, 0.0) == MapScale(0.5, 0.5, 0.0)


@pytest.mark.parametrize(
    ("quantiles", "named"),
    [
        pytest.param((0.5, 0.5, 0.1, 0.2), "student", id="equal"),
        pytest.param((0.0, 0.0, 0.1, 0.2), "student", id="equal to 0, while the other was taken"),
        pytest.param((0.1, 0.2, 7.0, 7.0), "autoencoder", id="the other map"),
        pytest.param((0.1, 0.2, 7.0, np.nextafter(np.float32(7.0), np.float32(8.0))), "autoencoder", id="by rounding"),
        pytest.param((0.1, 0.2, 0.4, 0.3), "autoencoder", id="the wrong way round"),
        pytest.param((0.1, float("nan"), 0.3, 0.4), "student", id="not a number"),
        pytest.param((0.1, 0.2, 0.3, float("inf")), "autoencoder", id="not finite"),
    ],
)
def test_maps_that_are_the_same_everywhere_have_no_scale(quantiles: tuple[float, ...], named: str) -> None:
    with pytest.raises(ValueError, match=rf"the {named}'s map .* 90 % and 99\.5 %"):
        MapScale.of(*map(float, quantiles))
