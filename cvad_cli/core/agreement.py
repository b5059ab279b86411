"""Whether a faster way to compute scores agrees with the exact one that the threshold was calibrated with.

Both judge the same agreement samples: good images that the model was not fitted on, and copies of them with a foreign
patch. Differences are given in standard deviations of the held-out good scores, since the threshold lies in the tail of
their distribution. For a nearly normal tail at a false-alarm rate of 2 %, a shift of 0.1 standard deviations changes
the rate by half a percentage point; with 264 calibration images the rate is uncertain by twice that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Bool, Real, UInt8

MAX_SHIFT: Final = 0.1
MAX_NOISE: Final = 0.25
"""In standard deviations of good scores. Independent noise of 0.25 widens their distribution by 3 %."""

MIN_CORRELATION: Final = 0.99
PASTED_SHARE: Final = (0.08, 0.25)
"""Smallest and largest side of a foreign patch, as a share of the image's shorter side."""

CROP_SHARE: Final = (0.85, 0.95)
"""Smallest and largest share of each side that a crop keeps. Its patches are new to the model, but show a good part."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far two ways of scoring differ. Shift and noise are in standard deviations of held-out good scores."""

    shift: float
    """Mean difference over the good samples: how far the threshold would have to move."""
    noise: float
    """Standard deviation of the difference over the good samples."""
    correlation: float
    """Pearson's, over good and spoilt samples together: whether anomalous images still score higher than good ones."""
    samples: int
    """How many images were judged."""

    @property
    def holds(self) -> bool:
        """Whether a calibrated threshold stays valid."""
        return abs(self.shift) <= MAX_SHIFT and self.noise <= MAX_NOISE and self.correlation >= MIN_CORRELATION

    def __str__(self) -> str:
        return (
            f"shift {self.shift:+.3f} and noise {self.noise:.3f} standard deviations of good scores (at most "
            f"{MAX_SHIFT} and {MAX_NOISE}), correlation {self.correlation:.4f} (at least {MIN_CORRELATION}), "
            f"on {self.samples} agreement samples"
        )


def agreement(
    reference: Real[np.ndarray, " n"], found: Real[np.ndarray, " n"], good: Bool[np.ndarray, " n"], *, good_std: float
) -> Agreement:
    """Compare the scores `found` with the exact ones, `reference`.

    `good` marks the good samples; `good_std`, above 0, is the standard deviation of held-out good scores.
    """
    difference = (np.asarray(found, np.float64) - reference) / good_std
    finite = bool(np.isfinite(difference).all())
    return Agreement(
        shift=float(difference[good].mean()) if finite else float("inf"),
        noise=float(difference[good].std()) if finite else float("inf"),
        correlation=_correlation(reference, found) if finite else 0.0,
        samples=len(reference),
    )


def spoilt(image: UInt8[np.ndarray, "h w 3"], *, rng: np.random.Generator) -> UInt8[np.ndarray, "h w 3"]:
    """A copy of an RGB image with a rotated patch from elsewhere in it blended in (CutPaste: Li et al., CVPR 2021)."""
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


def cropped(image: UInt8[np.ndarray, "h w 3"], *, rng: np.random.Generator) -> UInt8[np.ndarray, "h2 w2 3"]:
    """A random crop of an RGB image, with its aspect ratio. Resized, it is an image that no model was fitted on."""
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
