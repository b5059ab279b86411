"""EfficientAD on torch: the detector that a bundle is opened into."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

import numpy as np

from cvad_cli.records import Prediction


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

        stacked = torch.from_numpy(np.ascontiguousarray(np.stack(list(images)))).to(self._device)
        pictures = stacked.permute(0, 3, 1, 2).float().div_(255.0).contiguous(memory_format=torch.channels_last)
        with torch.inference_mode():
            found = self._model(pictures)
        scores, maps = found.pred_score.flatten().cpu().numpy(), found.anomaly_map[:, 0].float().cpu().numpy()
        return [Prediction(float(score), picture) for score, picture in zip(scores, maps, strict=True)]
