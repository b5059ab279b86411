"""Where a cell's gradient energy lies in its receptive field: shares, and a Gaussian fit.

Luo et al., "Understanding the Effective Receptive Field in Deep Convolutional Neural Networks", NIPS 2016: the
effective field is a small, roughly Gaussian part of the theoretical one; its side grows with the square root of the
depth.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Float, Float64

SHARES: Final = (0.5, 0.9, 0.95)


@dataclass(frozen=True, slots=True)
class Gaussian:
    """A bell curve along one axis, in pixels."""

    centre: float
    sigma: float
    explained: float
    """R squared of the fit to the marginal profile: 1 is a perfect fit."""


@dataclass(frozen=True, slots=True)
class EffectiveField:
    """Where one cell's gradient lies on the image."""

    cell: tuple[int, int]
    energy: Float64[np.ndarray, "h w"]
    """Sums to 1: the squared gradient of a unit signal at the cell, summed over colours, averaged over images."""
    images: int

    def __post_init__(self) -> None:
        if self.energy.ndim != 2 or not np.isclose(self.energy.sum(), 1.0):
            raise ValueError(f"energy: expected (h, w) that sums to 1, got {self.energy.shape}, {self.energy.sum():g}")

    @property
    def centre(self) -> tuple[float, float]:
        """Row and column of the energy's centre of mass."""
        rows, cols = (np.arange(n) for n in self.energy.shape)
        return float(self.energy.sum(axis=1) @ rows), float(self.energy.sum(axis=0) @ cols)

    def area(self, share: float) -> int:
        """The smallest number of pixels that hold `share` (0..1) of the energy."""
        held = np.cumsum(np.sort(self.energy, axis=None)[::-1])
        return int(np.searchsorted(held, share - 1e-12)) + 1

    def side(self, share: float) -> int:
        """Side in pixels, always odd, of the smallest square round the centre of mass with `share` of the energy."""
        (row, col), (h, w) = (round(at) for at in self.centre), self.energy.shape
        reach = np.maximum(np.abs(np.arange(h) - row)[:, None], np.abs(np.arange(w) - col))
        held = np.cumsum(np.bincount(reach.ravel(), weights=self.energy.ravel()))
        return 2 * int(np.searchsorted(held, share - 1e-12)) + 1

    def gaussian(self) -> tuple[Gaussian, Gaussian]:
        """Bells fitted to the root-mean-square gradient along rows and along columns.

        Luo et al. fit the gradient itself; its square would give a sigma smaller by the square root of 2.
        """
        gradient = np.sqrt(self.energy)
        return fit_gaussian(gradient.sum(axis=1)), fit_gaussian(gradient.sum(axis=0))


def fit_gaussian(profile: Float[np.ndarray, " n"]) -> Gaussian:
    """Fit a bell by least squares to a profile of values >= 0, sampled at 0 .. n-1."""
    from scipy.optimize import least_squares

    at, total = np.arange(len(profile)), float(profile.sum())
    centre = float(profile @ at) / total
    deviation = max(float(np.sqrt(profile @ (at - centre) ** 2 / total)), 0.3)
    scaled = profile / profile.max()

    def missed(guess: Float[np.ndarray, " parameters"]) -> Float[np.ndarray, " n"]:
        height, middle, log_sigma = guess
        bell = height * np.exp(-((at - middle) ** 2) / (2 * np.exp(2 * log_sigma)))
        return np.asarray(bell - scaled)

    found = least_squares(missed, [1.0, centre, np.log(deviation)])
    variance = float(((scaled - scaled.mean()) ** 2).sum())
    explained = 1.0 - 2.0 * float(found.cost) / variance if variance > 0 else 1.0
    return Gaussian(float(found.x[1]), float(np.exp(found.x[2])), explained)
