"""A patch description network behind the interface of timm's feature networks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from torch import nn


@final
class PdnFeatures(nn.Module):
    """Normalised pictures (b, 3, h, w) to a list of one map (b, c, h', w'), every `step`-th place."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self, network: nn.Module, layer: str, step: int, *, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        super().__init__()
        self.network = network
        self.subsampling = nn.AvgPool2d(1, stride=step)
        self.feature_names = (layer,)
        # The PDN normalises by itself, backbones do not: what arrives normalised is brought back to 0..1.
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """One map a layer, as timm's `features_only` networks give."""
        return [self.subsampling(self.network(images * self.std + self.mean))]
