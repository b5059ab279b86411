"""Streamed pixel metrics against the metrics that keep every map."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from cvad_cli.core.pixel_metrics import PixelScores


def textured_set(seed, *, count=4, side=96, shift=0.0):
    """Maps and masks; defects of very different sizes, some touching by a corner only."""
    rng = np.random.default_rng(seed)
    maps, masks = [], []
    for index in range(count):
        mask = np.zeros((side, side), dtype=bool)
        if index:
            row, column = rng.integers(4, side // 2, size=2)
            mask[row : row + 20, column : column + 9] = True
            mask[row + 20 : row + 24, column + 9 : column + 12] = True
            mask[-3:, -2:] = True
        noise = rng.gamma(3.0, 1.0, size=mask.shape)
        maps.append((noise + mask * rng.uniform(0.5, 3.0) - shift).astype(np.float32))
        masks.append(mask)
    return maps, masks


def streamed(maps, masks, **kwargs):
    scores = PixelScores()
    for anomaly_map, mask in zip(maps, masks, strict=True):
        scores.add(anomaly_map, mask)
    return scores.measure(**kwargs).pixel


@pytest.mark.parametrize("shift", [pytest.param(0.0, id="positive maps"), pytest.param(4.0, id="maps around zero")])
@pytest.mark.parametrize("seed", [0, 1])
def test_streaming_agrees_with_the_metrics_that_keep_every_map(seed, shift):
    from anomalib.metrics.aupro import _AUPRO
    from torchmetrics.classification import BinaryAUROC, BinaryAveragePrecision

    maps, masks = textured_set(seed, shift=shift)
    scores, target = torch.from_numpy(np.stack(maps)), torch.from_numpy(np.stack(masks)).int()
    aupro = _AUPRO(fpr_limit=0.3)
    aupro.update(scores, target)
    # torchmetrics squashes scores outside 0..1 with a sigmoid, which float32 rounds: ranks keep the order exactly
    ranks = torch.unique(scores, return_inverse=True)[1].double().flatten()
    ranks /= ranks.max()
    found = streamed(maps, masks)
    assert found.aupro == pytest.approx(float(aupro.compute()), abs=1e-3)
    assert found.auroc == pytest.approx(float(BinaryAUROC()(ranks, target.flatten())), abs=1e-3)
    assert found.average_precision == pytest.approx(float(BinaryAveragePrecision()(ranks, target.flatten())), abs=1e-3)


@pytest.mark.parametrize("limit", [0.05, 0.3, 1.0])
def test_aupro_is_the_mean_over_regions_of_their_partial_roc_areas(limit):
    from sklearn.metrics import auc, roc_curve

    rng = np.random.default_rng(2)
    anomaly_map = rng.integers(1, 40, size=(60, 60)).astype(np.float32)  # exact in the bins
    mask = np.zeros((60, 60), dtype=bool)
    mask[5:30, 5:20] = mask[50, 50] = mask[40:44, 2:5] = True
    grid = np.linspace(0, limit, 20_001)
    areas = []
    for region in (np.s_[5:30, 5:20], np.s_[50:51, 50:51], np.s_[40:44, 2:5]):
        positives = anomaly_map[region].ravel() + 0
        labels = np.repeat([0, 1], [(~mask).sum(), positives.size])
        fpr, tpr, _ = roc_curve(labels, np.concatenate([anomaly_map[~mask], positives]), drop_intermediate=False)
        areas.append(auc(grid, np.interp(grid, fpr, tpr)) / limit)
    assert streamed([anomaly_map], [mask], fpr_limit=limit).aupro == pytest.approx(np.mean(areas), abs=2e-4)


def test_regions_that_touch_by_a_corner_are_one():
    mask = np.zeros((6, 6), dtype=bool)
    mask[0, 0] = mask[1, 1] = mask[1, 2] = mask[1, 3] = mask[5, 5] = True
    anomaly_map = np.where(mask, 3.0, 1.0).astype(np.float32)
    anomaly_map[0, 0] = 0.5  # missed: a quarter of one region, or the whole of a third
    assert streamed([anomaly_map], [mask]).aupro == pytest.approx((3 / 4 + 1) / 2)


@pytest.mark.parametrize(
    ("scores", "auroc"),
    [
        pytest.param([0.0, -0.0, 1e-40, 2.0], 1.0, id="zeros and subnormals below"),
        pytest.param([-3e38, -1.0, -1e-30, 0.0], 1.0, id="negatives in order"),
        pytest.param([1.0, 2.0, 3.0, -5.0], 0.0, id="a negative defect"),
        pytest.param([7.0, 7.0, 7.0, 7.0], 0.5, id="ties"),
        pytest.param([1e-30, 1e30, 1.0, 1.001], 2 / 3, id="sixty orders of magnitude"),
    ],
)
def test_scores_keep_their_order_over_the_whole_range_of_float32(scores, auroc):
    anomaly_map = np.array([scores], dtype=np.float32)
    assert streamed([anomaly_map], [np.array([[False, False, False, True]])]).auroc == pytest.approx(auroc)


def test_memory_does_not_grow_with_the_number_of_maps():
    maps, masks = textured_set(3, count=30)
    scores = PixelScores()
    sizes = []
    for _ in range(2):
        for anomaly_map, mask in zip(maps, masks, strict=True):
            scores.add(anomaly_map, mask)
        sizes.append(scores.nbytes)
    assert scores.images == 60
    assert sizes[0] == sizes[1]
    octaves = np.log2(np.max(maps) / np.min(maps)) + 2
    assert sizes[1] < octaves * 3 * 8 * 2**13


def test_the_order_of_the_maps_does_not_matter():
    maps, masks = textured_set(4)
    forwards, backwards = streamed(maps, masks), streamed(maps[::-1], masks[::-1])
    assert forwards.auroc == pytest.approx(backwards.auroc, abs=1e-12)
    assert forwards.aupro == pytest.approx(backwards.aupro, abs=1e-12)


@pytest.mark.parametrize(
    ("masks", "reason"),
    [
        pytest.param([], "there are no anomaly maps", id="nothing"),
        pytest.param([None], "no image has a mask", id="no mask at all"),
        pytest.param([False, None, None], "no defective image has a mask (2 without)", id="masks of good images only"),
        pytest.param([False, False], "no mask marks a defective pixel", id="nothing marked"),
        pytest.param([True], "the masks mark every pixel as defective", id="everything marked"),
    ],
)
def test_without_both_classes_of_pixels_there_is_a_reason_instead(masks, reason):
    scores = PixelScores()
    for mask in masks:
        scores.add(np.ones((2, 3), dtype=np.float32), None if mask is None else np.full((2, 3), mask))
    document = scores.measure().as_dict()
    assert document["pixel"] == {"auroc": None, "average_precision": None, "aupro": None, "aupro_fpr_limit": 0.3}
    assert document["unavailable"] == {f"pixel.{name}": reason for name in ("auroc", "average_precision", "aupro")}


def test_defects_without_a_mask_are_left_out_and_that_is_reported():
    maps, masks = textured_set(5)
    scores = PixelScores()
    for anomaly_map, mask in zip(maps, masks, strict=True):
        scores.add(anomaly_map, mask)
    alone = scores.measure()
    scores.add(maps[0] + 100, None)
    report = scores.measure()
    assert report.pixel == alone.pixel
    assert alone.unavailable == {}
    assert report.unavailable["pixel.masks"] == "left out of the pixel metrics: defective images without a mask (1)"
    document = report.as_dict()
    assert json.loads(json.dumps(document, allow_nan=False)) == document


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_score_that_is_not_finite_is_located(value):
    scores, anomaly_map = PixelScores(), np.ones((4, 5), dtype=np.float32)
    scores.add(anomaly_map, np.zeros((4, 5), dtype=bool))
    anomaly_map[2, 3] = value
    with pytest.raises(ValueError, match=f"map 1: .* got {value} in row 2, column 3"):
        scores.add(anomaly_map, np.zeros((4, 5), dtype=bool))


@pytest.mark.parametrize("shape", [(5, 4), (4, 5, 1), (20,)])
def test_a_mask_of_another_shape_is_refused(shape):
    with pytest.raises(ValueError, match=r"map 0: .* got \(4, 5\) and \("):
        PixelScores().add(np.ones((4, 5), dtype=np.float32), np.zeros(shape, dtype=bool))


@pytest.mark.parametrize("limit", [0.0, -0.1, 1.1])
def test_a_limit_that_is_no_rate_is_refused(limit):
    with pytest.raises(ValueError, match="fpr_limit"):
        PixelScores().measure(fpr_limit=limit)
