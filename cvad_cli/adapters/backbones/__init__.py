"""Backbones from timm. Weights come from a file, `CVAD_WEIGHTS_DIR`, the hub's cache or the hub, in that order.

A plant without internet names one safetensors file in its config, or sets `CVAD_WEIGHTS_DIR` to a folder of them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from cvad_cli.adapters.backbones.weights import header_kwargs, locate_weights
from cvad_cli.errors import ModelError, did_you_mean

if TYPE_CHECKING:
    from torch import nn

RANDOM_WEIGHTS: Final = "random"
"""`model.weights: random` builds the backbone with seeded random weights: no file, no network, weaker features."""


@dataclass(frozen=True, slots=True)
class BackboneSpec:
    """What is needed to build a timm feature network again: its name, its layers, its keyword arguments."""

    name: str
    layers: tuple[str, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Backbone:
    """A frozen network that maps images (b, 3, h, w) to one feature map per layer, and the origin of its weights."""

    spec: BackboneSpec
    network: nn.Module
    weights: str
    """Where the weights came from, as text for the manifest."""


def load_backbone(name: str, layers: Sequence[str], weights: str | None, *, seed: int) -> Backbone:
    """Build backbone `name` with pretrained weights, cut behind the last of `layers`, in eval mode.

    `weights` is a file, 'random' (drawn from `seed`) or None for the usual locations.
    Raises ModelError where the name, a layer or the weights are not found, with what was tried and the remedies.
    """
    spec = BackboneSpec(name, tuple(layers))
    if weights == RANDOM_WEIGHTS:
        return Backbone(spec, _random_network(spec, seed), f"random, seed {seed}")
    feature_indices(spec)  # a wrong layer name is found before anything is downloaded
    path, origin = locate_weights(name, weights)
    spec = BackboneSpec(name, tuple(layers), header_kwargs(path, name))
    network = _load_checked(spec, path)
    return Backbone(spec, network, origin)


def build_network(spec: BackboneSpec) -> nn.Module:
    """The feature network of `spec` with timm's own initialisation, cut behind its last layer."""
    import timm
    import torch

    indices = feature_indices(spec)
    with torch.random.fork_rng(devices=[]):  # timm's random weights are replaced, or the caller has set the seed
        network: nn.Module = timm.create_model(
            spec.name, pretrained=False, features_only=True, out_indices=indices, **spec.kwargs
        )
    return _cut(network, spec)


def whole_network(spec: BackboneSpec) -> tuple[nn.Module, tuple[str, ...]]:
    """A backbone with all feature layers, without memory for its weights, and the layers' names. It cannot be run."""
    import timm
    import torch

    feature_indices(spec)
    with torch.device("meta"):
        network: Any = timm.create_model(spec.name, pretrained=False, features_only=True, **spec.kwargs)
    return network.eval(), tuple(network.feature_info.module_name())


def feature_indices(spec: BackboneSpec) -> tuple[int, ...]:
    """The `out_indices` of timm for the layers' module names. Raises ModelError naming the valid ones."""
    if ":" in spec.name or "/" in spec.name:
        raise ModelError(f"model.backbone: expected the plain name of a timm model, got {spec.name!r}")
    available = [layer for layer, _ in _feature_layers(spec.name, json.dumps(dict(spec.kwargs)))]
    for layer in spec.layers:
        if layer not in available:
            hint = did_you_mean(layer, available)
            raise ModelError(
                f"model.layers: {spec.name} has no layer {layer!r}.{hint} Its layers: {', '.join(available)}."
            )
    indices = tuple(available.index(layer) for layer in spec.layers)
    if list(indices) != sorted(indices):
        ordered = ", ".join(sorted(spec.layers, key=available.index))
        raise ModelError(f"model.layers: list them from the input to the output: [{ordered}]")
    return indices


def layers_with_strides(name: str, strides: Sequence[int]) -> tuple[str, ...]:
    """The feature layers of timm model `name` whose stride is one of `strides`, from the input to the output."""
    return tuple(layer for layer, stride in _feature_layers(name, "{}") if stride in strides)


@lru_cache(maxsize=256)
def _feature_layers(name: str, kwargs: str) -> tuple[tuple[str, int], ...]:
    """Name and stride of each feature layer of a timm model with these keyword arguments, a JSON object.

    timm gives them only for a network that is built. It is built without weights, which takes no memory.
    """
    import timm
    import torch

    build = partial(timm.create_model, name, pretrained=False, features_only=True, **json.loads(kwargs))
    try:
        try:
            with torch.device("meta"):
                network: Any = build()
        except RuntimeError:  # the constructor computes with its tensors, or there is no such model
            with torch.random.fork_rng(devices=[]):
                network = build()
    except (RuntimeError, TypeError, AttributeError) as error:
        raise ModelError(_unknown_backbone(name, error)) from error
    return tuple(zip(network.feature_info.module_name(), network.feature_info.reduction(), strict=True))


def _unknown_backbone(name: str, error: Exception) -> str:
    import timm

    if name in timm.list_models():
        return f"model.backbone: timm cannot give {name!r} as a feature network: {error}"
    hint = did_you_mean(name, timm.list_models(), count=3) or " `timm.list_models()` lists them."
    return f"model.backbone: timm has no model {name!r}.{hint}"


def _cut(network: Any, spec: BackboneSpec) -> nn.Module:
    """Remove the stages after the last layer, which timm's EfficientNet family would compute and discard."""
    last = spec.layers[-1]
    if last.startswith("blocks.") and hasattr(network, "blocks"):
        network.blocks = network.blocks[: int(last.split(".")[1]) + 1]
    module: nn.Module = network.eval().requires_grad_(requires_grad=False)
    return module


def _random_network(spec: BackboneSpec, seed: int) -> nn.Module:
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_network(spec)


def _load_checked(spec: BackboneSpec, path: Path) -> nn.Module:
    """The network with the file's weights. Raises ModelError unless the file holds exactly the tensors in use."""
    import timm
    import torch
    from safetensors import safe_open

    indices = feature_indices(spec)
    try:
        with torch.random.fork_rng(devices=[]):
            network = timm.create_model(
                spec.name,
                pretrained=True,
                features_only=True,
                out_indices=indices,
                pretrained_cfg_overlay={"file": str(path), "custom_load": False},
                **spec.kwargs,
            )
    except (RuntimeError, TypeError) as error:
        raise ModelError(f"{path}: does not fit {spec.name}: {str(error).splitlines()[-1].strip()}") from error
    network = _cut(network, spec)
    with safe_open(path, framework="np") as file:
        held = {_plain(key) for key in file.keys()}  # noqa: SIM118
    used = {_plain(key) for key in network.state_dict() if not key.endswith("num_batches_tracked")}
    stages = {_stage(key) for key in used}
    missing = sorted(used - held)
    unexpected = sorted(key for key in held - used if _stage(key) in stages and not key.endswith("num.batches.tracked"))
    for what, keys in (("lacks", missing), ("has unexpected", unexpected)):
        if keys:
            listed = ", ".join(keys[:5]) + (f" and {len(keys) - 5} more" if len(keys) > 5 else "")
            raise ModelError(f"{path}: {what} {len(keys)} tensors in the layers that are used of {spec.name}: {listed}")
    return network


def _plain(key: str) -> str:
    """A common form of names: feature networks write 'stages_1.0' where the whole network writes 'stages.1.0'."""
    return key.replace("_", ".")


def _stage(plain_key: str) -> str:
    return ".".join(plain_key.split(".")[:2])
