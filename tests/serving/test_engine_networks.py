"""The modules that the engines run are anomalib's models to rounding, from uint8 images on."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cvad_cli.adapters.runtime_openvino.compiled import NETWORK_FILE, CompiledNetwork, convert
from cvad_cli.adapters.runtime_torch import TorchEfficientAd, TorchPatchcore
from cvad_cli.adapters.runtime_torch.networks import StudentTeacherMaps, answers
from cvad_cli.core.scoring import MemoryBank

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from cvad_cli.adapters.anomalib_models.efficient_ad import new_model

SIDE = 256  # anomalib's autoencoder takes no less


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    return [np.repeat(np.repeat(image, 16, 0), 16, 1) for image in coarse]


def efficient_ad(*, padding: bool = False, pad_maps: bool = True, measured: bool = True) -> Any:
    """anomalib's small model with few channels, random weights, and statistics as training leaves them."""
    torch.manual_seed(5)
    model = new_model("small", 8, padding=padding, pad_maps=pad_maps).eval()
    if measured:
        with torch.no_grad():
            model.mean_std["mean"].normal_(0, 0.1)
            model.mean_std["std"].uniform_(0.5, 1.5)
            for name, value in {"qa_st": 0.01, "qb_st": 0.2, "qa_ae": 0.02, "qb_ae": 0.1}.items():
                model.quantiles[name].fill_(value)
    return model


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="as it is trained"),
        pytest.param({"padding": True, "pad_maps": False}, id="with padding"),
        pytest.param({"pad_maps": False}, id="maps without a border"),
        pytest.param({"measured": False}, id="without statistics"),
    ],
)
def test_efficient_ad_equals_anomalibs(images: list[np.ndarray], options: dict[str, bool]) -> None:
    model = efficient_ad(**options)
    with torch.inference_mode():
        theirs = model(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255)
    ours = TorchEfficientAd(model, "cpu", SIDE).predict(images)
    np.testing.assert_allclose([each.score for each in ours], theirs.pred_score.flatten().numpy(), rtol=1e-3)
    maps = np.stack([each.anomaly_map for each in ours])
    np.testing.assert_allclose(maps, theirs.anomaly_map[:, 0].numpy(), rtol=1e-3, atol=1e-4)


def test_efficient_ad_through_openvino_equals_torch(images: list[np.ndarray], tmp_path: Path) -> None:
    maps = StudentTeacherMaps(efficient_ad())
    convert(maps, SIDE, tmp_path)
    network = CompiledNetwork(tmp_path / NETWORK_FILE, "f32", max_at_once=2)
    expected = answers(maps, images)
    np.testing.assert_allclose(network(images), expected, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(network(images[:1]), expected[:1], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("num_neighbors", [1, 4, 500])
def test_patchcores_whole_batch_equals_the_reference_image_by_image(
    images: list[np.ndarray], num_neighbors: int
) -> None:
    from cvad_cli.adapters.backbones import load_backbone

    network = load_backbone("resnet10t", ("layer1", "layer2"), "random", seed=0).network
    bank = torch.rand(300, 192, generator=torch.Generator().manual_seed(1))
    detector = TorchPatchcore(network, bank, num_neighbors=num_neighbors, image_size=SIDE, device="cpu")
    patches = answers(detector._runner._module.embedding, images)
    reference = MemoryBank(bank.numpy(), num_neighbors=num_neighbors)
    expected = [reference.score(image).image_score for image in patches]
    np.testing.assert_allclose([each.score for each in detector.predict(images)], expected, rtol=1e-3)


@pytest.mark.parametrize("model", ["patchcore", "efficient_ad"])
def test_half_precision_networks_keep_float32_around_them(images: list[np.ndarray], model: str) -> None:
    """bfloat16 on a CPU stands in for a GPU's half precision: the same code, the same seams between types."""

    def detector(precision: str) -> Any:
        if model == "efficient_ad":
            return TorchEfficientAd(efficient_ad(), "cpu", SIDE, precision)
        from cvad_cli.adapters.backbones import load_backbone

        network = load_backbone("resnet10t", ("layer1", "layer2"), "random", seed=0).network
        bank = torch.rand(300, 192, generator=torch.Generator().manual_seed(1))
        return TorchPatchcore(network, bank, num_neighbors=3, image_size=SIDE, device="cpu", precision=precision)

    exact, found = (detector(precision).predict(images) for precision in ("f32", "bf16"))
    for mine, reference in zip(found, exact, strict=True):
        assert mine.anomaly_map.dtype == np.float32
        np.testing.assert_allclose(mine.score, reference.score, rtol=0.05, atol=0.05)


def test_a_pdn_as_backbone_describes_what_its_own_forward_describes(images: list[np.ndarray]) -> None:
    from cvad_cli.adapters.pdn import build_pdn
    from cvad_cli.adapters.runtime_torch import IMAGENET_MEAN, IMAGENET_STD
    from cvad_cli.adapters.runtime_torch.pdn_features import describe

    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    levels = torch.from_numpy(images[0][None, :96, :96].copy()).permute(0, 3, 1, 2).float() / 255
    for size in ("small", "medium"):
        network = build_pdn(size, 8, padding=True, seed=0).eval()
        with torch.inference_mode():
            torch.testing.assert_close(describe(network, (levels - mean) / std), network(levels))
