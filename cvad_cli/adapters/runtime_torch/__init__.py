"""Detectors on torch, as bundles are opened into them: PatchCore and EfficientAD, on a CPU or a GPU.

float32 on a CPU is the exact reference that the other engine and precisions are compared with. On a GPU, whole batches
stay on the device from uint8 images to finished maps, and each recurring batch size is captured as a CUDA graph: a
small network would otherwise wait for Python between its kernels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, final

import numpy as np

from cvad_cli.core.maps import interpolated, smoothed
from cvad_cli.records import Prediction

if TYPE_CHECKING:
    import torch
    from torch import nn

    from cvad_cli.adapters.runtime_torch.graphs import Runner

IMAGENET_MEAN: Final = (0.485, 0.456, 0.406)
IMAGENET_STD: Final = (0.229, 0.224, 0.225)
"""Statistics of ImageNet in RGB, scaled to 0..1: what the backbones were trained with."""


def to_tensor(images: Sequence[np.ndarray], device: str) -> torch.Tensor:
    """RGB uint8 images (h, w, 3) to one float32 tensor (b, 3, h, w) in 0..1 on `device`."""
    import torch

    stacked = torch.from_numpy(np.ascontiguousarray(np.stack(list(images)))).to(device)
    return stacked.permute(0, 3, 1, 2).float().div_(255.0)


def on_device(values: np.ndarray, device: str) -> Any:
    """NumPy on a CPU (its BLAS is as fast there as torch's), a torch tensor elsewhere."""
    if device == "cpu":
        return values
    import torch

    return torch.from_numpy(np.ascontiguousarray(values)).to(device)


class _TorchDetector:
    """A `Detector` that runs one module on one device."""

    _runner: Runner

    @property
    def last_split(self) -> Mapping[str, float]:
        """Seconds of the last `predict`, by stage. Network, search and maps are one stage here."""
        return self._runner.last_split

    def predict(self, images: Sequence[np.ndarray]) -> list[Prediction]:
        """Score RGB uint8 images (h, w, 3) at `image_size`; one Prediction each, in order."""
        return self._runner(images)


@final
class TorchPatchcore(_TorchDetector):
    """A `Detector`: backbone and search on one device. In float32 it equals anomalib's Patchcore up to rounding."""

    def __init__(
        self,
        network: nn.Module,
        bank: np.ndarray | torch.Tensor,
        *,
        num_neighbors: int,
        image_size: int,
        device: str,
        precision: str = "f32",
    ) -> None:
        """`network` maps normalised images to one feature map per layer; `bank` is (m, d) float32.

        `precision` (f32, bf16, f16) is the backbone's; distances are computed in float32.
        """
        import torch

        from cvad_cli.adapters.runtime_torch.graphs import Runner
        from cvad_cli.adapters.runtime_torch.networks import PatchcoreScores, PatchEmbedding, torch_dtype

        self.network = network
        self.image_size = (image_size, image_size)
        with torch.inference_mode():
            first_layer = network.eval().cpu()(torch.zeros(1, 3, image_size, image_size))[0]
        self.grid = (int(first_layer.shape[-2]), int(first_layer.shape[-1]))
        embedding = PatchEmbedding(network, torch_dtype(precision))
        rows, enlarged = torch.as_tensor(bank).cpu(), smoothed(self.grid, self.image_size)
        scores = PatchcoreScores(embedding, rows, num_neighbors, enlarged)
        self._runner = Runner(scores, device, coarse=precision != "f32")


@final
class TorchEfficientAd(_TorchDetector):
    """A `Detector` around anomalib's torch model. In float32 it equals that model up to rounding."""

    def __init__(self, model: Any, device: str, image_size: int, precision: str = "f32") -> None:
        """`precision` (f32, bf16, f16) is that of the three networks; everything after them is float32."""
        from cvad_cli.adapters.runtime_torch.graphs import Runner
        from cvad_cli.adapters.runtime_torch.networks import (
            EfficientAdScores,
            StudentTeacherMaps,
            border_cells,
            map_scale,
            torch_dtype,
        )

        self.network = model
        self.image_size = (image_size, image_size)
        maps = StudentTeacherMaps(model.to(device), torch_dtype(precision)).to(device)
        grid = maps.grid(self.image_size)
        scores = EfficientAdScores(maps, map_scale(model), interpolated(grid, self.image_size, border_cells(model)))
        self._runner = Runner(scores, device, coarse=precision != "f32")
