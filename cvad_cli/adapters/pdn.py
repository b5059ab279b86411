"""Patch description networks, EfficientAD's teachers: built as anomalib builds them, stored in half precision.

A teacher file is safetensors: the tensors of anomalib's network and, in the header, its size, its channels and its
provenance (source backbones, images, steps, loss). The network normalises its input, RGB in 0..1, itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

from cvad_cli.errors import ModelError
from cvad_cli.files import replacing

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import nn

PdnSize = Literal["small", "medium"]
TEACHER_CHANNELS: Final = 384  # EfficientAD, and anomalib's default


@dataclass(frozen=True, slots=True)
class Teacher:
    """A patch description network with weights, and the facts from its file's header."""

    network: nn.Module
    """float32, in eval mode, frozen: RGB (b, 3, h, w) in 0..1 to features (b, c, h', w')."""
    size: PdnSize
    channels: int
    padding: bool
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """What `save_teacher` was given; empty for a file that was not written by cvad."""


def build_pdn(size: PdnSize, channels: int, *, padding: bool, seed: int) -> nn.Module:
    """anomalib's network with He initialisation drawn from `seed`. Raises ModelError for an unknown size.

    The network has no normalisation, so with torch's default initialisation the signal would fade from layer to layer.
    The last layer starts small, so that the first outputs are near the targets' mean, 0.
    """
    import torch

    network = _new_network(size, channels, padding)
    generator = torch.Generator().manual_seed(seed)
    convolutions: list[Any] = [module for module in network.modules() if isinstance(module, torch.nn.Conv2d)]
    with torch.no_grad():
        for convolution in convolutions:
            deviation = (2 / convolution.weight[0].numel()) ** 0.5 * (0.1 if convolution is convolutions[-1] else 1)
            convolution.weight.copy_(torch.randn(convolution.weight.shape, generator=generator) * deviation)
            convolution.bias.zero_()
    return network


def save_teacher(path: Path, network: nn.Module, provenance: Mapping[str, Any]) -> None:
    """Write the network's weights as float16, in one rename. `provenance` is JSON-ready.

    Raises ModelError where weights are not finite or exceed float16's range, ResourceError for a full disk.
    """
    import torch
    from safetensors.torch import save_file

    tensors = {name: tensor.detach().cpu().half().contiguous() for name, tensor in network.state_dict().items()}
    spoilt = [name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())]
    if spoilt:
        raise ModelError(f"{path}: not written: {', '.join(spoilt)} hold values that float16 cannot; lower the rate")
    size, channels = _described_by(path, tensors)
    header = {"cvad": "teacher", "size": size, "channels": str(channels), "provenance": json.dumps(provenance)}
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata=header)


def load_teacher(
    path: Path, *, padding: bool = False, size: PdnSize | None = None, channels: int | None = None
) -> Teacher:
    """Open a teacher file; `size` and `channels`, where given, are what the caller's model needs.

    Files without cvad's header are accepted: size and channels follow from the tensors.
    Raises ModelError naming the file, what it holds and what would fit.
    """
    tensors, header = _read(path)
    found_size, found_channels = _described_by(path, tensors)
    if size is not None and size != found_size:
        raise ModelError(
            f"{path}: holds a {found_size} PDN, but the model is {size}; set the model's size to {found_size}, or "
            f"make a {size} teacher with `cvad distill-teacher --size {size}`"
        )
    if channels is not None and channels != found_channels:
        raise ModelError(
            f"{path}: the teacher has {found_channels} channels, but the model wants {channels}; set "
            f"teacher_out_channels to {found_channels}, or make another with `--channels {channels}`"
        )
    network = _new_network(found_size, found_channels, padding)
    _fill(network, tensors, path)
    return Teacher(network, found_size, found_channels, padding, _provenance(path, header))


def _new_network(size: str, channels: int, padding: bool) -> nn.Module:
    if size not in get_args(PdnSize):
        raise ModelError(f"PDN size: expected one of {', '.join(get_args(PdnSize))}, got {size!r}")
    if channels < 1:
        raise ModelError(f"PDN channels: expected a whole number from 1, got {channels}")
    import torch
    from anomalib.models.image.efficient_ad.torch_model import (
        MediumPatchDescriptionNetwork,
        SmallPatchDescriptionNetwork,
    )

    kind = SmallPatchDescriptionNetwork if size == "small" else MediumPatchDescriptionNetwork
    with torch.random.fork_rng(devices=[]):  # its constructor draws random weights, which are then replaced
        network: nn.Module = kind(out_channels=channels, padding=padding)
    return network


def _read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise ModelError(f"{path}: no such file; give a teacher written by `cvad distill-teacher`")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path}: is not a readable safetensors file: {error}") from error


def _described_by(path: Path, tensors: Mapping[str, torch.Tensor]) -> tuple[PdnSize, int]:
    """Size and channels, from the tensors, since the header may be missing."""
    size: PdnSize = "medium" if "conv6.weight" in tensors else "small"
    last = tensors.get("conv6.weight" if size == "medium" else "conv4.weight")
    if last is None or last.ndim != 4:
        names = ", ".join(list(tensors)[:4]) or "nothing"
        raise ModelError(f"{path}: is no teacher: it holds {names}, expected conv1 to conv4 (small) or conv6 (medium)")
    return size, int(last.shape[0])


def _fill(network: nn.Module, tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Load the tensors, after checking that they are exactly those of the network."""
    import torch

    wanted = network.state_dict()
    for name in sorted(wanted.keys() | tensors.keys()):
        expected = tuple(wanted[name].shape) if name in wanted else "no such tensor"
        seen = tuple(tensors[name].shape) if name in tensors else "no such tensor"
        if expected != seen:
            raise ModelError(f"{path}: does not fit a PDN: {name}: expected {expected}, found {seen}")
        if not bool(torch.isfinite(tensors[name]).all()):
            raise ModelError(f"{path}: {name} holds values that are not finite; copy the file again or distil anew")
    network.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    network.eval().requires_grad_(requires_grad=False)


def _provenance(path: Path, header: Mapping[str, str]) -> Mapping[str, Any]:
    try:
        held = json.loads(header.get("provenance", "{}"))
    except json.JSONDecodeError as error:
        raise ModelError(f"{path}: `provenance` in its header is not JSON: {error}") from error
    if not isinstance(held, dict):
        raise ModelError(f"{path}: `provenance` in its header is {held!r}, expected a JSON object")
    return held


def fold_linear(network: nn.Module, matrix: np.ndarray) -> None:
    """Multiply the network's output by `matrix` (c, c) at every position: fold it into the last convolution."""
    import torch

    last: Any = [module for module in network.modules() if isinstance(module, torch.nn.Conv2d)][-1]
    with torch.no_grad():
        for parameter in (last.weight, last.bias):
            flat = parameter.detach().double().cpu().flatten(1) if parameter.ndim > 1 else parameter.double().cpu()
            folded = torch.from_numpy(matrix) @ flat
            parameter.copy_(folded.view(parameter.shape))
