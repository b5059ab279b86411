"""A patch description network behind the interface of timm's feature networks."""

from __future__ import annotations

from typing import final

import torch
from torch import nn

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@final
class PdnFeatures(nn.Module):
    """Pictures (b, 3, h, w), normalised as for ImageNet, to a list of one map (b, c, h', w'), every `step`-th place."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, network: nn.Module, layer: str, step: int) -> None:
        super().__init__()
        self.network = network
        self.subsampling = nn.AvgPool2d(1, stride=step)
        self.feature_names = (layer,)
        # The PDN normalises by itself, backbones do not: what arrives normalised is brought back to 0..1.
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """One map a layer, as timm's `features_only` networks give."""
        return [self.subsampling(self.network(images * self.std + self.mean))]
