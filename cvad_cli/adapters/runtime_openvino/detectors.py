"""Detectors on a CPU: OpenVINO runs the network, NumPy and faiss do the rest. torch is not imported."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Protocol, final

import numpy as np
from threadpoolctl import ThreadpoolController

from cvad_cli.core.maps import Enlargement, MapScale
from cvad_cli.core.quantization import QuantizationCorrection
from cvad_cli.records import Prediction

ALONE: Final = {"limits": 1, "user_api": "blas"}
"""After the network come small matrix products. BLAS threads do not speed them up, and wait for the cores that decode
the next images: up to 6 ms per image (2 cores)."""

Network = Callable[[Sequence[np.ndarray]], np.ndarray]
"""uint8 RGB images (h, w, 3) to float32 (b, ...)."""


class PatchSearch(Protocol):
    """The memory bank, ready to be searched."""

    def judge(self, patches: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Patches (b, p, d) of b images to image scores (b,) and patch distances (b, p)."""


@final
class OpenvinoPatchcore:
    """A `Detector`: patch features from a compiled network, distances from a search structure over the memory bank."""

    def __init__(
        self,
        network: Network,
        search: PatchSearch,
        *,
        grid: tuple[int, int],
        enlargement: Enlargement,
        correction: QuantizationCorrection,
    ) -> None:
        self._network = network
        self._search = search
        self._correction = correction
        self._grid = grid
        self._enlargement = enlargement
        self._blas = ThreadpoolController()
        self.image_size = (len(enlargement.rows), len(enlargement.columns))
        self.last_split: Mapping[str, float] = {}

    def predict(self, images: Sequence[np.ndarray]) -> list[Prediction]:
        """Score RGB uint8 images (h, w, 3) at `image_size`; one Prediction each, in order."""
        started = time.perf_counter()
        patches = self._network(images)
        patches -= self._correction.bias
        described = time.perf_counter()
        with self._blas.limit(**ALONE):
            scores, rounded = self._search.judge(patches)
            distances = self._correction.distances(rounded)
            scores = scores * distances.max(axis=1) / np.maximum(rounded.max(axis=1), np.finfo(np.float32).tiny)
            searched = time.perf_counter()
            maps = self._enlargement(distances.reshape(len(images), *self._grid))
        found = [Prediction(float(score), image) for score, image in zip(scores, maps, strict=True)]
        self.last_split = {
            "network": described - started,
            "search": searched - described,
            "post-processing": time.perf_counter() - searched,
        }
        return found


@final
class OpenvinoEfficientAd:
    """A `Detector`: teacher, student and autoencoder as one compiled network that ends in two coarse maps."""

    def __init__(self, network: Network, *, scale: MapScale, enlargement: Enlargement) -> None:
        self._network = network
        self._scale = scale
        self._enlargement = enlargement
        self._blas = ThreadpoolController()
        self.image_size = (len(enlargement.rows), len(enlargement.columns))
        self.last_split: Mapping[str, float] = {}

    def predict(self, images: Sequence[np.ndarray]) -> list[Prediction]:
        """Score RGB uint8 images (h, w, 3) at `image_size`; one Prediction each, in order."""
        started = time.perf_counter()
        coarse = self._network(images)
        judged = time.perf_counter()
        scale = self._scale
        combined = scale.student * coarse[:, 0] + scale.autoencoder * coarse[:, 1]
        with self._blas.limit(**ALONE):
            maps = self._enlargement(combined) + np.float32(scale.offset)
        found = [Prediction(float(image.max()), image) for image in maps]
        self.last_split = {"network": judged - started, "post-processing": time.perf_counter() - judged}
        return found
