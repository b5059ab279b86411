"""The targets of a distilled teacher: backbone channels, standardised and projected to the wanted number of channels.

EfficientAD (Batzner, Heckler and König, arXiv 2303.14535, appendix) standardises each channel over the pretraining
images. Here the standardised channels may also be projected, since EfficientAD implementations expect 384 of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, final

import numpy as np
from jaxtyping import Float, Float32, Float64

SMALLEST_DEVIATION: Final = 1e-6
"""Below this a channel counts as constant: it is centred, but not scaled."""


@dataclass(frozen=True, slots=True)
class AffineTargets:
    """Features (.., n) to targets (.., c): `features @ weight + bias`."""

    weight: Float32[np.ndarray, "n c"]
    bias: Float32[np.ndarray, " c"]


@final
class Moments:
    """Mean and covariance of feature vectors that arrive in batches; sums in float64."""

    def __init__(self, channels: int) -> None:
        self.count = 0
        self._sum = np.zeros(channels)
        self._products = np.zeros((channels, channels))

    def add(self, features: Float[np.ndarray, "m n"]) -> None:
        """Add m vectors."""
        self.count += len(features)
        self._sum += features.sum(axis=0, dtype=np.float64)
        self._products += features.T @ features

    def result(self) -> tuple[Float64[np.ndarray, " n"], Float64[np.ndarray, "n n"]]:
        """Mean and covariance of all vectors so far."""
        mean = self._sum / self.count
        return mean, self._products / self.count - np.outer(mean, mean)


def standardising_targets(
    mean: Float[np.ndarray, " n"], covariance: Float[np.ndarray, "n n"], channels: int, *, rng: np.random.Generator
) -> AffineTargets:
    """The map to `channels` targets of mean 0 and variance 1 over the vectors with these moments.

    With as many targets as features, each feature is only standardised. Otherwise the standardised features are
    projected to their first principal components (all of them where more targets are wanted) and rotated by a random
    isometry. It preserves distances and distributes the variance evenly over the targets. Scaling the principal
    components to variance 1 instead would make the weakest ones, mostly noise, count as much as the first.
    """
    features = len(mean)
    deviation = np.sqrt(np.maximum(np.diag(covariance), 0))
    scale = np.where(deviation > SMALLEST_DEVIATION, 1 / np.maximum(deviation, SMALLEST_DEVIATION), 1.0)
    if channels == features:
        return AffineTargets(np.diag(scale).astype(np.float32), (-mean * scale).astype(np.float32))
    correlation = covariance * np.outer(scale, scale)
    kept = min(features, channels)
    components = np.linalg.eigh(correlation)[1][:, ::-1][:, :kept]
    turned = components @ np.linalg.qr(rng.standard_normal((channels, kept)))[0].T
    deviations = np.sqrt(np.maximum(np.einsum("nc,nm,mc->c", turned, correlation, turned, optimize=True), 0))
    turned /= np.maximum(deviations, SMALLEST_DEVIATION)
    weight = scale[:, None] * turned
    return AffineTargets(weight.astype(np.float32), (-mean @ weight).astype(np.float32))
