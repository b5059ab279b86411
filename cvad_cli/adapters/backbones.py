"""Backbones from timm, their weights from a file, `CVAD_WEIGHTS_DIR`, the hub's cache or the hub, in that order.

A plant without internet puts one safetensors file beside its config, or names a folder of them once.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from cvad_cli.errors import ModelError, did_you_mean

if TYPE_CHECKING:
    from torch import nn

RANDOM_WEIGHTS: Final = "random"
"""`model.weights: random` builds the backbone with seeded random weights: no file, no network, weaker features."""

WEIGHTS_DIR_VARIABLE: Final = "CVAD_WEIGHTS_DIR"
HUB_TIMEOUT_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class BackboneSpec:
    """What it takes to build a timm feature network again: its name, its layers, its keyword arguments."""

    name: str
    layers: tuple[str, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Backbone:
    """A frozen network that maps images (b, 3, h, w) to one feature map a layer, and where its weights came from."""

    spec: BackboneSpec
    network: nn.Module
    weights: str
    """Where the weights came from, in words for a manifest."""


def load_backbone(name: str, layers: Sequence[str], weights: str | None, *, seed: int) -> Backbone:
    """Build backbone `name` with pretrained weights, cut behind the last of `layers`, in eval mode.

    `weights` is a file, 'random' (drawn from `seed`) or None for the usual places.
    Raises ModelError where the name, a layer or the weights cannot be had, with what was tried and the remedies.
    """
    spec = BackboneSpec(name, tuple(layers))
    if weights == RANDOM_WEIGHTS:
        return Backbone(spec, _random_network(spec, seed), f"random, seed {seed}")
    feature_indices(spec)  # a wrong layer name is found before anything is downloaded
    path, origin = _find_weights(name, weights)
    spec = BackboneSpec(name, tuple(layers), _header_kwargs(path, name))
    network = _load_checked(spec, path)
    return Backbone(spec, network, origin)


def find_weights(name: str, weights: str | None) -> tuple[Path, Mapping[str, Any]]:
    """The weight file of backbone `name` and the timm keyword arguments it needs, from the usual places."""
    path, _ = _find_weights(name, weights)
    return path, _header_kwargs(path, name)


def build_network(spec: BackboneSpec) -> nn.Module:
    """The feature network of `spec` with timm's own initialisation, cut behind its last layer."""
    import timm
    import torch

    indices = feature_indices(spec)
    with torch.random.fork_rng(devices=[]):  # the weights that timm draws are filled in, or seeded by who calls
        network: nn.Module = timm.create_model(
            spec.name, pretrained=False, features_only=True, out_indices=indices, **spec.kwargs
        )
    return _cut(network, spec)


def whole_network(spec: BackboneSpec) -> tuple[nn.Module, tuple[str, ...]]:
    """Every feature layer of a backbone, without memory for its weights, and the layers' names: to be read, not run."""
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

    timm tells them of a network that is built alone: of one without weights, which costs neither memory nor draws.
    """
    import timm
    import torch

    build = partial(timm.create_model, name, pretrained=False, features_only=True, **json.loads(kwargs))
    try:
        try:
            with torch.device("meta"):
                network: Any = build()
        except (RuntimeError, NotImplementedError):  # a constructor that computes with its tensors, or no such model
            with torch.random.fork_rng(devices=[]):
                network = build()
    except (RuntimeError, TypeError, AttributeError, NotImplementedError) as error:
        raise ModelError(_unknown_backbone(name, error)) from error
    return tuple(zip(network.feature_info.module_name(), network.feature_info.reduction(), strict=True))


def _unknown_backbone(name: str, error: Exception) -> str:
    import timm

    if name in timm.list_models():
        return f"model.backbone: timm cannot give {name!r} as a feature network: {error}"
    hint = did_you_mean(name, timm.list_models(), count=3) or " `timm.list_models()` lists them."
    return f"model.backbone: timm has no model {name!r}.{hint}"


def _cut(network: Any, spec: BackboneSpec) -> nn.Module:
    """Drop the stages behind the last layer: timm's EfficientNet family would compute and discard them."""
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


def _find_weights(name: str, weights: str | None) -> tuple[Path, str]:
    """The first place that has the weights, and that place in words."""
    if weights is not None:
        path = Path(weights).expanduser()
        if not path.is_file():
            raise ModelError(
                f"model.weights: {path}: no such file. Give a safetensors file, or null for the usual places."
            )
        return path, f"file {path.name}"
    tried = ["model.weights: not set"]
    found = _in_weights_dir(name, tried) or _in_cache(name, tried) or _from_hub(name, tried)
    if found is None:
        steps = "\n".join(f"  {number}. {step}" for number, step in enumerate(tried, 1))
        raise ModelError(
            f"no weights for backbone {name!r}. Tried, in this order:\n{steps}\n"
            f"Remedies: give the file with --set model.weights=FILE.safetensors; or put {name}.safetensors into a "
            f"folder and set {WEIGHTS_DIR_VARIABLE} to it; or run once with internet, which fills the cache."
        )
    return found


def _in_weights_dir(name: str, tried: list[str]) -> tuple[Path, str] | None:
    folder = os.environ.get(WEIGHTS_DIR_VARIABLE)
    if not folder:
        tried.append(f"{WEIGHTS_DIR_VARIABLE}: not set")
        return None
    root = Path(folder).expanduser()
    if not root.is_dir():
        tried.append(f"{WEIGHTS_DIR_VARIABLE}={folder}: no such folder")
        return None
    files = sorted(root.glob("*.safetensors"))
    by_name = [path for path in files if path.name.split(".")[0] == name]
    for path in by_name or [path for path in files if _made_for(path) == name]:
        return path, f"{WEIGHTS_DIR_VARIABLE}, file {path.name}"
    held = ", ".join(path.name for path in files) or "no safetensors file"
    tried.append(f"{WEIGHTS_DIR_VARIABLE}={folder}: none for {name} (it holds {held})")
    return None


def _hub_file(name: str) -> str | None:
    import timm

    config = timm.get_pretrained_cfg(name)
    return config.hf_hub_id if config is not None else None


def _in_cache(name: str, tried: list[str]) -> tuple[Path, str] | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.constants import HF_HUB_CACHE

    repository = _hub_file(name)
    if repository is None:
        tried.append(f"cache: timm knows no hub file for {name}")
        return None
    cached = try_to_load_from_cache(repository, "model.safetensors")
    if isinstance(cached, str):
        return Path(cached), f"hub cache, {repository}"
    tried.append(f"cache: {repository} is not in {HF_HUB_CACHE}")
    return None


def _from_hub(name: str, tried: list[str]) -> tuple[Path, str] | None:
    import urllib.error
    import urllib.request

    from huggingface_hub import hf_hub_download
    from huggingface_hub.constants import ENDPOINT, HF_HUB_OFFLINE
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    repository = _hub_file(name)
    if repository is None or HF_HUB_OFFLINE:
        tried.append("hub: HF_HUB_OFFLINE is set" if HF_HUB_OFFLINE else f"hub: timm knows no hub file for {name}")
        return None
    try:
        # The hub client retries for most of a minute where there is no network: one short knock first.
        request = urllib.request.Request(ENDPOINT, method="HEAD")  # noqa: S310
        urllib.request.urlopen(request, timeout=HUB_TIMEOUT_S).close()  # noqa: S310
        return Path(hf_hub_download(repository, "model.safetensors")), f"hub, {repository}"
    except urllib.error.HTTPError as error:
        tried.append(f"hub: {ENDPOINT} answered {error.code}")
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = getattr(error, "reason", None) or str(error).splitlines()[0]
        tried.append(f"hub: {repository} could not be fetched: {reason}")
    return None


def _made_for(path: Path) -> str | None:
    """The backbone that a file's header names; None also where another program's file cannot be read."""
    try:
        return _header(path).get("timm_model")
    except ModelError:
        return None


def _header(path: Path) -> dict[str, str]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path}: is not a readable safetensors file: {error}") from error


def _header_kwargs(path: Path, name: str) -> dict[str, Any]:
    """The timm keyword arguments that the file's header asks for, after checking that it is for this backbone."""
    header = _header(path)
    made_for = header.get("timm_model", name)
    if made_for != name:
        raise ModelError(f"{path}: holds weights of {made_for!r}, but model.backbone is {name!r}")
    try:
        kwargs = json.loads(header.get("kwargs", "{}"))
    except json.JSONDecodeError as error:
        raise ModelError(f"{path}: `kwargs` in its header is not JSON: {error}") from error
    if not isinstance(kwargs, dict):
        raise ModelError(f"{path}: `kwargs` in its header is {kwargs!r}, expected a JSON object")
    return kwargs


def _load_checked(spec: BackboneSpec, path: Path) -> nn.Module:
    """The network with the file's weights; every tensor that it uses comes from the file, and none is left over."""
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
    """The feature networks write 'stages_1.0' where the whole network writes 'stages.1.0': compare them alike."""
    return key.replace("_", ".")


def _stage(plain_key: str) -> str:
    return ".".join(plain_key.split(".")[:2])
