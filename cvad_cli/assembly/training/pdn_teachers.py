"""Chooses EfficientAD's teacher, and builds patch description networks as backbones of PatchCore."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cvad_cli.adapters.backbones import RANDOM_WEIGHTS, Backbone, BackboneSpec, build_network, load_backbone
from cvad_cli.adapters.pdn import TEACHER_CHANNELS, PdnSize, build_pdn, load_teacher
from cvad_cli.config.schema import PATCHCORE_BACKBONE, PATCHCORE_LAYERS, ModelConfig
from cvad_cli.errors import ModelError
from cvad_cli.files.digests import file_sha256

if TYPE_CHECKING:
    from cvad_cli.adapters.runtime_torch.types import Network

OFFICIAL_WEIGHTS: Final = "official"
"""`model.weights: official`: the teacher that anomalib downloads."""

PACKAGED: Final[Mapping[PdnSize, Path]] = {
    "small": Path(__file__).parents[2] / "weights" / "pdn_small.safetensors",
}
"""Teachers distilled by `cvad distill-teacher` that come with cvad; their headers hold the command."""

PDN_BACKBONES: Final[Mapping[str, PdnSize]] = {"pdn_small": "small", "pdn_medium": "medium"}
PDN_LAYER: Final = "features"
PDN_SUBSAMPLING: Final = 2
"""As a backbone, every second row and column is kept: neighbours 4 pixels apart see nearly the same."""


@dataclass(frozen=True, slots=True)
class ChosenTeacher:
    """A teacher's network, float32, frozen, in eval mode, and where it comes from."""

    network: Network
    channels: int
    origin: str


def choose_teacher(
    size: PdnSize, weights: str | None, channels: int | None, *, padding: bool, seed: int
) -> ChosenTeacher:
    """The teacher that `model.weights` names: null for the packaged one, a file, 'official' or 'random'.

    Raises ModelError where there is none of this size, or its channels are not `channels` (None: as it has).
    """
    if weights == RANDOM_WEIGHTS:
        channels = channels or TEACHER_CHANNELS
        network = build_pdn(size, channels, padding=padding, seed=seed).eval().requires_grad_(requires_grad=False)
        return ChosenTeacher(network, channels, f"random, seed {seed}")
    if weights == OFFICIAL_WEIGHTS:
        path = _official(size)
    elif weights is not None:
        path = Path(weights).expanduser()
    elif size in PACKAGED:
        path = PACKAGED[size]
    else:
        raise ModelError(
            f"model.weights: cvad comes with no {size} teacher. Make one with `cvad distill-teacher --size {size}` and "
            "give its file, set model.weights to official for anomalib's download, or model.options.model_size to small"
        )
    teacher = load_teacher(path, padding=padding, size=size, channels=channels)
    origin = {None: f"packaged, {path.name}", OFFICIAL_WEIGHTS: "anomalib's download"}.get(weights, f"file {path.name}")
    return ChosenTeacher(teacher.network, teacher.channels, f"{origin}, sha256 {file_sha256(path)[:16]}")


def patchcore_layers(model: ModelConfig) -> tuple[str, tuple[str, ...]]:
    """The backbone and the layers of a PatchCore config, its defaults filled in."""
    name = model.backbone or PATCHCORE_BACKBONE
    return name, model.layers or ((PDN_LAYER,) if name in PDN_BACKBONES else PATCHCORE_LAYERS)


def patchcore_backbone(model: ModelConfig, *, seed: int) -> Backbone:
    """The backbone of a PatchCore config with its weights: a timm network, or a PDN whose only layer is its output.

    Raises ModelError where the name, a layer or the weights are not found, with the remedies.
    """
    name, layers = patchcore_layers(model)
    if name not in PDN_BACKBONES:
        return load_backbone(name, layers, model.weights, seed=seed)
    if layers != (PDN_LAYER,):
        raise ModelError(f"model.layers: {name} has one layer, [{PDN_LAYER}], got [{', '.join(layers)}]")
    teacher = choose_teacher(PDN_BACKBONES[name], model.weights, None, padding=True, seed=seed)
    spec = BackboneSpec(name, layers, {"channels": teacher.channels})
    return Backbone(spec, _as_features(teacher.network), teacher.origin)


def build_backbone(spec: BackboneSpec) -> Network:
    """The network of `patchcore_backbone` before its weights are loaded."""
    if spec.name not in PDN_BACKBONES:
        return build_network(spec)
    network = build_pdn(PDN_BACKBONES[spec.name], int(spec.kwargs["channels"]), padding=True, seed=0)
    return _as_features(network.eval())


def _as_features(network: Network) -> Network:
    from cvad_cli.adapters.runtime_torch.pdn_features import PdnFeatures

    return PdnFeatures(network, PDN_LAYER, PDN_SUBSAMPLING)


def _official(size: PdnSize) -> Path:
    """Download anomalib's teachers as anomalib does, and store this size as safetensors beside them."""
    from cvad_cli.adapters.anomalib_models.official_teacher import fetch_teacher

    return fetch_teacher(size)
