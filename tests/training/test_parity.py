"""A bundle judges real files as anomalib's Patchcore does with the same weights and memory bank."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cvad_cli.adapters.anomalib_models import new_patchcore
from cvad_cli.adapters.backbones import BackboneSpec, build_network
from cvad_cli.adapters.runtime_torch import TorchPatchcore
from cvad_cli.adapters.storage.bundles import read_bundle
from cvad_cli.assembly.data.images import ImageStream, open_dataset
from cvad_cli.assembly.serving.open_bundle import open_detector
from cvad_cli.config.load import load_config


@pytest.mark.parametrize("num_neighbors", [1, 3])
def test_scores_and_maps_equal_anomalibs(trained: Path, num_neighbors: int) -> None:
    import torch
    from safetensors.torch import load_file

    settings = load_config(trained)
    bundle = read_bundle(trained.parent / "runs" / "small" / "bundle")
    stored = bundle.manifest["model"]
    spec = BackboneSpec(stored["backbone"], tuple(stored["layers"]), stored["backbone_kwargs"])
    network = build_network(spec)
    network.load_state_dict(load_file(bundle.file("backbone")))
    peer = new_patchcore(network, spec.name, spec.layers, num_neighbors).eval()
    peer.model.memory_bank = load_file(bundle.file("memory_bank"))["features"]

    detector = TorchPatchcore(network, peer.model.memory_bank, num_neighbors=num_neighbors, image_size=64, device="cpu")
    images = [image for _, image in ImageStream(open_dataset(settings.data).test, settings.data)]
    tensor = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
    with torch.inference_mode():
        theirs = peer.model(peer.configure_pre_processor(image_size=(64, 64))(tensor))
    ours = detector.predict(images)
    np.testing.assert_allclose([each.score for each in ours], theirs.pred_score.numpy(), rtol=1e-3)
    maps = np.stack([each.anomaly_map for each in ours])
    np.testing.assert_allclose(maps, theirs.anomaly_map[:, 0].numpy(), rtol=1e-3)


def test_a_batch_is_judged_as_its_images_one_by_one(trained: Path) -> None:
    settings = load_config(trained)
    detector = open_detector(settings, "cpu").detector
    images = [image for _, image in ImageStream(open_dataset(settings.data).test[:3], settings.data)]
    together = [each.score for each in detector.predict(images)]
    alone = [detector.predict([image])[0].score for image in images]
    np.testing.assert_allclose(together, alone, rtol=1e-4)
