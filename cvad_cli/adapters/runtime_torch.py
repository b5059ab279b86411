"""Detectors on torch, as bundles are opened into them: PatchCore with its patch features, and EfficientAD."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, final

import numpy as np

from cvad_cli.core.scoring import MemoryBank, anomaly_map
from cvad_cli.records import Prediction

if TYPE_CHECKING:
    import torch
    from torch import nn

IMAGENET_MEAN: Final = (0.485, 0.456, 0.406)
IMAGENET_STD: Final = (0.229, 0.224, 0.225)
"""Statistics of ImageNet in RGB, scaled to 0..1: what the backbones were trained with."""


def to_tensor(images: Sequence[np.ndarray], device: str) -> torch.Tensor:
    """RGB uint8 pictures (h, w, 3) to one float32 tensor (b, 3, h, w) in 0..1 on `device`."""
    import torch

    stacked = torch.from_numpy(np.ascontiguousarray(np.stack(list(images)))).to(device)
    return stacked.permute(0, 3, 1, 2).float().div_(255.0)


@final
class PatchExtractor:
    """Locally aware patch features (PatchCore section 3.1): 3x3 averages of each layer, brought to the first's grid."""

    def __init__(self, network: nn.Module, device: str) -> None:
        import torch

        self.device = device
        self._network = network.to(device).eval()
        self._mean = torch.tensor(IMAGENET_MEAN, device=device).view(1, 3, 1, 1)
        self._std = torch.tensor(IMAGENET_STD, device=device).view(1, 3, 1, 1)

    @property
    def network(self) -> nn.Module:
        """The backbone: normalised images to one feature map a layer."""
        return self._network

    def __call__(self, images: Sequence[np.ndarray]) -> tuple[torch.Tensor, tuple[int, int]]:
        """Patches (b, p, d), row by row over the grid, and that grid's (rows, columns)."""
        import torch
        from torch.nn import functional

        with torch.inference_mode():
            layers = self._network((to_tensor(images, self.device) - self._mean) / self._std)
            first, *rest = [functional.avg_pool2d(layer, 3, 1, 1) for layer in layers]
            grid = (int(first.shape[-2]), int(first.shape[-1]))
            rest = [functional.interpolate(layer, size=grid, mode="bilinear") for layer in rest]
            patches = torch.cat([first, *rest], dim=1).flatten(2).transpose(1, 2)
            return patches.contiguous(), grid


@final
class TorchPatchcore:
    """A `Detector`: the backbone and the search on one device, equal to anomalib's Patchcore to rounding."""

    def __init__(self, extractor: PatchExtractor, bank: Any, *, num_neighbors: int, image_size: int) -> None:
        """`bank` is a torch tensor (m, d) on any device."""
        self._extractor = extractor
        self._bank = MemoryBank(bank.to(extractor.device), num_neighbors=num_neighbors)
        self.image_size = (image_size, image_size)

    @property
    def network(self) -> nn.Module:
        """The backbone that its patches come from."""
        return self._extractor.network

    def predict(self, images: Sequence[np.ndarray]) -> list[Prediction]:
        """Score RGB uint8 pictures (h, w, 3) at `image_size`; one Prediction each, in order."""
        patches, grid = self._extractor(images)
        found = [self._bank.score(image_patches) for image_patches in patches]
        return [Prediction(score.image_score, anomaly_map(score.distances, grid, self.image_size)) for score in found]


@final
class TorchEfficientAd:
    """A `Detector` around anomalib's torch model, float32, on one device."""

    def __init__(self, model: Any, device: str, image_size: int) -> None:
        self._model = model.to(device).eval()
        self._device = device
        self.image_size = (image_size, image_size)

    @property
    def network(self) -> Any:
        """anomalib's torch model: teacher, student and autoencoder."""
        return self._model

    def predict(self, images: Sequence[np.ndarray]) -> list[Prediction]:
        """Score RGB uint8 pictures (h, w, 3) at `image_size`; one Prediction each, in order."""
        import torch

        pictures = to_tensor(images, self._device).contiguous(memory_format=torch.channels_last)
        with torch.inference_mode():
            found = self._model(pictures)
        scores, maps = found.pred_score.flatten().cpu().numpy(), found.anomaly_map[:, 0].float().cpu().numpy()
        return [Prediction(float(score), picture) for score, picture in zip(scores, maps, strict=True)]
