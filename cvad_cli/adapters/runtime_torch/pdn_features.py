"""A patch description network behind the interface of timm's feature networks."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import nn
from torch.nn import functional


@final
class PdnFeatures(nn.Module):
    """Normalised images (b, 3, h, w) to a list of one map (b, c, h', w'), of every `step`-th row and column."""

    def __init__(self, network: nn.Module, layer: str, step: int) -> None:
        super().__init__()
        self.network = network
        self.subsampling = nn.AvgPool2d(1, stride=step)
        self.feature_names = (layer,)

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """One map per layer, as timm's `features_only` networks return."""
        return [self.subsampling(describe(self.network, images))]


def describe(pdn: Any, inside: torch.Tensor) -> torch.Tensor:
    """anomalib's patch description network on images that are normalised already: (b, 3, h, w) to (b, c, h', w').

    Its own `forward` normalises first, with float32 tensors that it creates while it runs, which neither captured
    graphs nor half precision allow.
    """
    convolutions = [module for name, module in pdn.named_children() if name.startswith("conv")]
    pools = {0: pdn.avgpool1, 1: pdn.avgpool2}
    for index, convolution in enumerate(convolutions[:-1]):
        inside = functional.relu(convolution(inside))
        if index in pools:
            inside = pools[index](inside)
    answer: torch.Tensor = convolutions[-1](inside)
    return answer
