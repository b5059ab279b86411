"""The torch networks of a bundle, with their trained weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cvad_cli.adapters.backbones import BackboneSpec
from cvad_cli.adapters.storage.bundles import Bundle
from cvad_cli.adapters.storage.tensor_files import read_tensors
from cvad_cli.assembly.training.pdn_teachers import build_backbone

if TYPE_CHECKING:
    from cvad_cli.adapters.runtime_torch.types import Network


def patchcore_network(bundle: Bundle) -> Network:
    """The backbone of a PatchCore bundle: normalised images to one feature map a layer."""
    model = bundle.manifest["model"]
    network = build_backbone(BackboneSpec(model["backbone"], tuple(model["layers"]), model["backbone_kwargs"]))
    network.load_state_dict(read_tensors(bundle.file("backbone")))
    return network


def efficient_ad_model(bundle: Bundle) -> Any:
    """anomalib's torch model of an EfficientAD bundle."""
    from cvad_cli.adapters.anomalib_models.efficient_ad import new_model
    from cvad_cli.adapters.anomalib_models.seeding import isolated

    stored = bundle.manifest["model"]
    with isolated("cpu"):  # anomalib's constructor draws random weights, which are then replaced
        model = new_model(
            stored["model_size"], stored["teacher_out_channels"], padding=stored["padding"], pad_maps=stored["pad_maps"]
        )
    model.load_state_dict(read_tensors(bundle.file("network")))
    return model
