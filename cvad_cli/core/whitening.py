"""A linear map after which features have the same variance in every direction, so that weak directions count as much.

Distances are then Mahalanobis distances with a shrunk covariance, as in PaDiM (Defard et al., ICPR 2020) and in
Rippel et al., "Modeling the distribution of normal data in pre-trained deep features" (ICPR 2020).
"""

from __future__ import annotations

from typing import Final

import numpy as np
from jaxtyping import Float

SHRINKAGE: Final = 0.1
"""Share of the mean eigenvalue that is added to each: directions weaker than this are mostly noise."""


def whitening(covariance: Float[np.ndarray, "d d"], strength: float = 1.0) -> Float[np.ndarray, "d d"]:
    """The symmetric float64 matrix to multiply features by, from their covariance.

    `strength` 1 whitens, 0 leaves directions as they are; in between, deviations are raised to the power 1 - strength.
    Scaled so that features keep their mean variance; features that never vary stay as they are.
    """
    values, vectors = np.linalg.eigh(covariance)
    values = np.maximum(values, 0)
    if not values.sum() > 0:
        return np.eye(len(values))
    stretched = (values + SHRINKAGE * values.mean()) ** (-strength / 2)
    stretched *= np.sqrt(values.sum() / (values * stretched**2).sum())
    matrix: np.ndarray = (vectors * stretched) @ vectors.T
    return matrix
