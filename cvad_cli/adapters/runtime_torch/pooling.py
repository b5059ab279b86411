"""Locally aware features (PatchCore section 3.1, equation 2): 3x3 means of feature maps, on one grid, side by side.

These functions also run in networks that are converted and captured, so they do not branch on values.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch.nn import functional


def local_means(layers: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """Each map (b, c, h, w), averaged over 3x3 cells, in float32."""
    return [functional.avg_pool2d(layer.float(), 3, 1, 1) for layer in layers]


def on_grid(layer: torch.Tensor, grid: Sequence[int]) -> torch.Tensor:
    """A map (b, c, h, w), brought to `grid` rows and columns by bilinear interpolation."""
    return functional.interpolate(layer, size=grid, mode="bilinear")


def joined(layers: Sequence[torch.Tensor]) -> torch.Tensor:
    """Maps (b, c_i, h_i, w_i) on the first one's grid, channels side by side: (b, c, h, w)."""
    first, *rest = layers
    return torch.cat([first, *(on_grid(layer, first.shape[-2:]) for layer in rest)], dim=1)
