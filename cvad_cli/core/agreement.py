"""Whether a quicker way to compute scores may stand in for the exact one that the threshold was calibrated with.

Both judge the same probes: good images that the model was not fitted on, and the same with a foreign patch in them.
Differences are measured in spreads, the standard deviation of held-out good scores, because that is what the threshold
cuts through: for a nearly normal tail at a false-alarm rate of 2 %, a shift of 0.1 spreads moves the rate by half a per
cent, and 264 calibration images leave it uncertain by twice that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

MAX_SHIFT: Final = 0.1
MAX_NOISE: Final = 0.25
"""Spreads. Independent noise of 0.25 widens the distribution of good scores by 3 %."""

MIN_CORRELATION: Final = 0.99
PASTED_SHARE: Final = (0.08, 0.25)
"""Least and largest side of a foreign patch, as a share of the image's shorter side."""

CROP_SHARE: Final = (0.85, 0.95)
"""Least and largest share of each side that a crop keeps: its patches are new to a bank, yet those of a good part."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far two ways of scoring are apart."""

    shift: float
    """Mean difference over good probes, in spreads: what a threshold would have to move by."""
    noise: float
    """Standard deviation of the difference over good probes, in spreads."""
    correlation: float
    """Pearson's, over good and spoilt probes together: whether strange stays stranger than good."""
    samples: int

    @property
    def holds(self) -> bool:
        """Whether a calibrated threshold stays valid."""
        return abs(self.shift) <= MAX_SHIFT and self.noise <= MAX_NOISE and self.correlation >= MIN_CORRELATION

    def __str__(self) -> str:
        return (
            f"shift {self.shift:+.3f} and noise {self.noise:.3f} of the spread of good scores (at most {MAX_SHIFT} "
            f"and {MAX_NOISE}), correlation {self.correlation:.4f} (at least {MIN_CORRELATION}), "
            f"{self.samples} probes"
        )


def agreement(reference: np.ndarray, found: np.ndarray, good: np.ndarray, *, good_std: float) -> Agreement:
    """Compare scores (n,) with the exact ones. `good` (n,) marks the good probes, `good_std` is above 0."""
    difference = (np.asarray(found, np.float64) - reference) / good_std
    finite = bool(np.isfinite(difference).all())
    return Agreement(
        shift=float(difference[good].mean()) if finite else float("inf"),
        noise=float(difference[good].std()) if finite else float("inf"),
        correlation=_correlation(reference, found) if finite else 0.0,
        samples=len(reference),
    )


def spoilt(image: np.ndarray, *, rng: np.random.Generator) -> np.ndarray:
    """A uint8 RGB (h, w, 3) with a patch from elsewhere blended in, turned: after CutPaste (Li et al., CVPR 2021)."""
    height, width = image.shape[:2]
    side = max(2, round(min(height, width) * rng.uniform(*PASTED_SHARE)))
    (top, left), (row, column) = ((int(rng.integers(0, size - side + 1)) for size in (height, width)) for _ in range(2))
    patch = np.rot90(image[top : top + side, left : left + side], k=int(rng.integers(1, 4)))
    if rng.random() < 0.5:
        patch = 255 - patch
    opacity = rng.uniform(0.4, 1.0)
    result = image.copy()
    under = result[row : row + side, column : column + side]
    under[:] = np.rint(opacity * patch + (1 - opacity) * under).astype(np.uint8)
    return result


def cropped(image: np.ndarray, *, rng: np.random.Generator) -> np.ndarray:
    """A random part of uint8 RGB (h, w, 3), of the same aspect: resized, an image that no model was fitted on."""
    share = rng.uniform(*CROP_SHARE)
    height, width = (max(1, round(length * share)) for length in image.shape[:2])
    top, left = (
        int(rng.integers(0, whole - part + 1)) for whole, part in zip(image.shape[:2], (height, width), strict=True)
    )
    return image[top : top + height, left : left + width]


def _correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Pearson's; 1 where neither varies, 0 where one does."""
    deviations = [np.asarray(values, np.float64) - np.mean(values, dtype=np.float64) for values in (first, second)]
    norms = [float(np.linalg.norm(values)) for values in deviations]
    if min(norms) == 0:
        return float(max(norms) == 0)
    return float(deviations[0] @ deviations[1] / (norms[0] * norms[1]))
