"""Features of frozen backbones on one grid: the targets of a distilled teacher, and the input of a describer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import final

import numpy as np
import torch
from torch.nn import functional

from cvad_cli.adapters.runtime_torch import IMAGENET_MEAN, IMAGENET_STD, to_tensor
from cvad_cli.adapters.runtime_torch.pooling import local_means, on_grid
from cvad_cli.core.feature_targets import AffineTargets

FeatureFunction = Callable[[torch.Tensor], list[torch.Tensor]]
"""Normalised images (b, 3, h, w) to one map (b, c, h', w') per layer, on the images' device."""


def normalised(images: torch.Tensor) -> torch.Tensor:
    """RGB (b, 3, h, w) in 0..1, by ImageNet's statistics."""
    mean, std = (torch.tensor(each, device=images.device).view(1, 3, 1, 1) for each in (IMAGENET_MEAN, IMAGENET_STD))
    return (images - mean) / std


def cell_features(views: Sequence[np.ndarray], look: FeatureFunction, device: str, cells: int) -> list[np.ndarray]:
    """uint8 RGB views (h, w, 3) to one array (b, cells * cells, c) per layer: 3x3 means on `cells` x `cells` cells."""
    with torch.inference_mode():
        means = local_means(look(normalised(to_tensor(views, device))))
        return [on_grid(layer, (cells, cells)).flatten(2).transpose(1, 2).contiguous().cpu().numpy() for layer in means]


@final
class GridFeatures:
    """Images to the raw channels of all backbones, side by side on one grid."""

    def __init__(self, functions: Sequence[FeatureFunction], grid: int, device: str) -> None:
        self.device = device
        self._functions, self._grid = list(functions), grid

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """RGB (b, 3, s, s) in 0..1 to (b, n, grid, grid): 3x3 means, averaged down or interpolated."""
        inside = normalised(images)
        return torch.cat(
            [self._placed(layer) for function in self._functions for layer in local_means(function(inside))], dim=1
        )

    def vectors(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """uint8 RGB images (s, s, 3) to their features at every cell: float32 (b * grid * grid, n)."""
        found = self(to_tensor(images, self.device))
        rows: np.ndarray = found.permute(0, 2, 3, 1).reshape(-1, found.shape[1]).cpu().numpy()
        return rows

    def _placed(self, layer: torch.Tensor) -> torch.Tensor:
        if layer.shape[-1] > self._grid:
            return functional.adaptive_avg_pool2d(layer, self._grid)
        return on_grid(layer, (self._grid, self._grid)) if layer.shape[-1] < self._grid else layer


@final
class FeatureTargets:
    """Images to the features that the teacher should give."""

    def __init__(self, features: GridFeatures, affine: AffineTargets) -> None:
        self._features = features
        self._weight = torch.from_numpy(affine.weight.T.copy()).to(features.device)[:, :, None, None]
        self._bias = torch.from_numpy(affine.bias).to(features.device)

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """RGB (b, 3, s, s) in 0..1 to float32 (b, c, grid, grid)."""
        return functional.conv2d(self._features(images), self._weight, self._bias)
