"""Runs networks that are not trained: with OpenVINO on a CPU, where it is installed, otherwise with torch.

For the depthwise convolutions of mobile backbones OpenVINO is about ten times as fast as eager torch on a CPU.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING

from cvad_cli.adapters.runtime_openvino.compiled import quiet_openvino
from cvad_cli.config.processors import computing_threads

if TYPE_CHECKING:
    import torch
    from torch import nn

FeatureFunction = Callable[["torch.Tensor"], "list[torch.Tensor]"]
"""Normalised images (b, 3, h, w) to one feature map (b, c, h', w') per layer, float32, on the images' device."""


def feature_function(network: nn.Module, side: int, device: str) -> FeatureFunction:
    """The fastest way to run a frozen feature network on square images of `side` pixels on `device`."""
    if device == "cpu" and find_spec("openvino") is not None:
        return _through_openvino(network, side)
    return _through_torch(network, device)


def processor_has_bf16() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware (AVX512-BF16, AMX or SVE BF16); emulated, it only costs."""
    import torch

    found = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return any(bool(found.get(name)) for name in ("avx512_bf16", "amx_bf16", "sve_bf16"))


def device_has_bf16(device: str) -> bool:
    """Whether networks gain from bfloat16 on this device."""
    return processor_has_bf16() if device == "cpu" else device.startswith(("cuda", "xpu"))


def _through_torch(network: nn.Module, device: str) -> FeatureFunction:
    import torch

    placed = network.to(device).eval()

    def run(images: torch.Tensor) -> list[torch.Tensor]:
        with torch.no_grad():
            return [layer.float() for layer in placed(images)]

    return run


def _through_openvino(network: nn.Module, side: int) -> FeatureFunction:
    import torch

    openvino = quiet_openvino()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        model = openvino.convert_model(network.eval(), example_input=torch.zeros(1, 3, side, side))
    precision = "bf16" if processor_has_bf16() else "f32"
    compiled = openvino.compile_model(
        model, "CPU", {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": computing_threads()}
    )

    def run(images: torch.Tensor) -> list[torch.Tensor]:
        found = compiled([images.numpy()])
        return [torch.from_numpy(found[index].copy()) for index in range(len(compiled.outputs))]

    return run
