"""An engine may stand in for the exact one only where a calibrated threshold stays valid."""

from __future__ import annotations

import numpy as np
import pytest

from cvad_cli.core.agreement import CROP_SHARE, MAX_NOISE, MAX_SHIFT, MIN_CORRELATION, agreement, cropped, spoilt

GOOD = np.arange(20) < 10
EXACT = np.concatenate([np.linspace(1, 2, 10), np.linspace(3, 9, 10)])


def test_equal_scores_agree() -> None:
    found = agreement(EXACT, EXACT, GOOD, good_std=0.3)
    assert (found.shift, found.noise, found.correlation) == (0, 0, pytest.approx(1))
    assert found.holds


@pytest.mark.parametrize(
    ("changed", "holds"),
    [
        pytest.param(EXACT + 0.9 * MAX_SHIFT * 0.3, True, id="a small shift"),
        pytest.param(EXACT + 1.1 * MAX_SHIFT * 0.3, False, id="a shift that moves the threshold"),
        pytest.param(EXACT + 0.9 * MAX_NOISE * 0.3 * np.tile([1, -1], 10), True, id="small noise"),
        pytest.param(EXACT + 1.1 * MAX_NOISE * 0.3 * np.tile([1, -1], 10), False, id="noise"),
        pytest.param(np.where(GOOD, EXACT, EXACT.mean()), False, id="defects no longer told apart"),
        pytest.param(np.where(GOOD, EXACT, np.nan), False, id="not a number"),
    ],
)
def test_the_rule(changed: np.ndarray, holds: bool) -> None:
    found = agreement(EXACT, changed, GOOD, good_std=0.3)
    assert found.holds == holds
    assert f"at least {MIN_CORRELATION}" in str(found)


def test_scores_that_do_not_vary_agree_with_themselves_alone() -> None:
    flat = np.ones(20)
    assert agreement(flat, flat, GOOD, good_std=1.0).correlation == 1
    assert agreement(flat, EXACT, GOOD, good_std=100.0).correlation == 0


@pytest.mark.parametrize("shape", [(64, 64, 3), (33, 120, 3), (8, 8, 3)])
def test_a_spoilt_image_differs_in_one_square_and_leaves_the_original_alone(shape: tuple[int, int, int]) -> None:
    image = np.random.default_rng(3).integers(0, 256, shape, dtype=np.uint8)
    before = image.copy()
    changed = spoilt(image, rng=np.random.default_rng(4))
    assert (image == before).all()
    assert changed.shape == shape
    rows, columns = np.nonzero((changed != image).any(axis=2))
    assert len(rows)
    assert max(np.ptp(rows), np.ptp(columns)) <= 0.25 * min(shape[:2]) + 1


@pytest.mark.parametrize("shape", [(64, 64, 3), (33, 120, 3), (2, 2, 3)])
def test_a_crop_is_a_smaller_part_of_the_same_aspect(shape: tuple[int, int, int]) -> None:
    image = np.random.default_rng(3).integers(0, 256, shape, dtype=np.uint8)
    found = cropped(image, rng=np.random.default_rng(4))
    for part, whole in zip(found.shape[:2], shape[:2], strict=True):
        assert round(CROP_SHARE[0] * whole) <= part <= round(CROP_SHARE[1] * whole)
    windows = np.lib.stride_tricks.sliding_window_view(image, found.shape)[:, :, 0]
    assert (windows == found).all(axis=(2, 3, 4)).any()
