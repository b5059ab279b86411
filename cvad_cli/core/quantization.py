"""Corrects the mean effect of a lower precision on patch features, measured on good agreement samples.

Rounding shifts each channel by a constant and adds noise e to every patch. The shift is subtracted (bias correction:
Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV 2019). The noise is almost
independent of the direction to the nearest neighbour, so it increases squared distances by about E|e|^2, the floor,
which is subtracted too. A good part then scores as it did when the threshold was calibrated.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32


@dataclass(frozen=True, slots=True)
class QuantizationCorrection:
    """The mean effect of a precision on patch features."""

    bias: Float32[np.ndarray, " d"]
    """How far each channel is shifted."""
    floor: float
    """Mean squared length of the noise that is left."""

    @classmethod
    def measured(cls, exact: Float[np.ndarray, "n p d"], found: Float[np.ndarray, "n p d"]) -> QuantizationCorrection:
        """From patches in float32, and the same patches in the other precision."""
        error = (found - exact).reshape(-1, exact.shape[-1]).astype(np.float64)
        bias = error.mean(axis=0)
        return cls(bias.astype(np.float32), float(((error - bias) ** 2).sum(axis=1).mean()))

    @classmethod
    def none(cls, channels: int) -> QuantizationCorrection:
        """Of float32: no effect."""
        return cls(np.zeros(channels, np.float32), 0.0)

    def distances(self, found: Float[np.ndarray, "*p"]) -> Float[np.ndarray, "*p"]:
        """Distances of patches whose bias is subtracted, without the contribution of the noise."""
        corrected: np.ndarray = np.sqrt(np.maximum(found**2 - np.float32(self.floor), 0))
        return corrected
