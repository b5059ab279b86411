"""PatchCore's score and map are anomalib's, on the same weights, images and memory bank, in NumPy and in torch."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from cvad_cli.core.maps import anomaly_map
from cvad_cli.core.scoring import MemoryBank

LIBRARIES = pytest.mark.parametrize("library", ["numpy", "torch"])


def as_library(values: np.ndarray, library: str):
    if library == "numpy":
        return values
    import torch

    return torch.from_numpy(values)


@pytest.fixture(scope="module")
def peer():
    """anomalib's Patchcore on random weights with a bank of its own patches, and its verdict on three images."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from anomalib.models.image.patchcore.torch_model import PatchcoreModel

    torch.manual_seed(0)
    model = PatchcoreModel(layers=["layer2", "layer3"], backbone="resnet18", pre_trained=False).train()
    model(torch.rand(4, 3, 96, 96))
    model.memory_bank = torch.vstack(model.embedding_store)[::5] + 0.05 * torch.rand(116, 384)
    images = torch.rand(3, 3, 96, 96)
    patches = model(images).reshape(3, 144, -1)
    return model.eval(), patches.numpy(), model(images)


@LIBRARIES
@pytest.mark.parametrize("num_neighbors", [1, 2, 9, 500])
def test_image_scores_equal_anomalibs(peer, library: str, num_neighbors: int) -> None:
    import torch

    model, patches, _ = peer
    model.num_neighbors = num_neighbors
    rows = torch.from_numpy(patches.reshape(-1, patches.shape[-1]))
    distances, nearest = model.nearest_neighbors(rows, n_neighbors=1)
    expected = model.compute_anomaly_score(distances.reshape(3, -1), nearest.reshape(3, -1), rows)
    bank = MemoryBank(as_library(model.memory_bank.numpy(), library), num_neighbors=num_neighbors)
    found = [bank.score(as_library(image, library)).image_score for image in patches]
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-3)


@LIBRARIES
def test_anomaly_maps_equal_anomalibs(peer, library: str) -> None:
    model, patches, verdict = peer
    bank = MemoryBank(as_library(model.memory_bank.numpy(), library), num_neighbors=9)
    for image, expected in zip(patches, verdict.anomaly_map[:, 0].numpy(), strict=True):
        found = anomaly_map(bank.score(as_library(image, library)).distances, (12, 12), (96, 96))
        np.testing.assert_allclose(found, expected, rtol=1e-3)


@LIBRARIES
def test_a_patch_of_the_bank_is_at_distance_zero_from_itself(library: str) -> None:
    features = np.random.default_rng(1).normal(size=(50, 8)).astype(np.float32)
    bank = MemoryBank(as_library(features, library), num_neighbors=3)
    distances, rows = bank.nearest(as_library(features[10:20], library))
    np.testing.assert_array_equal(np.asarray(rows), np.arange(10, 20))
    np.testing.assert_allclose(np.asarray(distances), 0, atol=2e-3)


def test_searching_in_chunks_changes_nothing() -> None:
    rng = np.random.default_rng(2)
    features = rng.normal(size=(40, 6)).astype(np.float32)
    patches = rng.normal(size=(100, 6)).astype(np.float32)
    whole = MemoryBank(features, num_neighbors=3).nearest(patches)
    chunked = MemoryBank(features, num_neighbors=3, chunk_values=280).nearest(patches)
    np.testing.assert_allclose(chunked[0], whole[0], rtol=1e-5)
    np.testing.assert_array_equal(chunked[1], whole[1])


def test_an_empty_bank_is_refused() -> None:
    with pytest.raises(ValueError, match=r"memory bank: expected \(m, d\) with m >= 1"):
        MemoryBank(np.zeros((0, 4), np.float32), num_neighbors=1)
