"""Squared distances between rows of features, by matrix products for as long as rounding allows.

    ||x - c||^2 = ||x||^2 - 2 x.c + ||c||^2

is one matrix product for thousands of rows and hundreds of centres, but it cancels: between rows no longer than R, its
error is about E = 4 sqrt(d) R^2 u, with u the unit roundoff (the worst case has d for sqrt(d), and is not met in
practice: Higham and Mary, A new approach to probabilistic rounding error analysis, SIAM J. Sci. Comput. 41, 2019).

So products find who is nearest, and differences x - c, which do not cancel, say how far that is. The nearest centre
can then only be mistaken for one that is farther by 2 E in square at most. Above the floor E / TOLERANCE this is
1e-4 of the distance, and nothing at all unless two centres are that equally near. Below the floor, finer arithmetic
takes over: float32 products, then float64 products, then differences throughout. (A device without float64 goes
straight from products to differences. Reduced-precision products, TF32, must be off, as they are in torch by default.)
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
from array_api_compat import array_namespace, device, to_device

TOLERANCE: Final = 1e-4
"""Largest relative error of a distance that decides anything."""

LADDER: Final = (("float32", True), ("float64", True), ("float64", False), ("float32", False))
"""Arithmetics from coarse to fine: type, and whether by products. The last is for devices without float64."""

EXPONENT_LIMIT: Final = 126
"""Scales stay within normal float32 numbers."""


class Space:
    """The rows of `features` (n, d), finite, and squared distances among them in one arithmetic at a time.

    In products, a row x stands as its point (x, 1, ||x||^2) and a centre c as its dual (-2c, ||c||^2, 1): the matrix
    product of points and duals is all squared distances. Rows are first centred on their mean, to be short, and
    scaled by a power of two, which rounds nothing, to keep squares from overflow and underflow.
    """

    def __init__(self, features: Any, chunk: int) -> None:
        self.xp: Any = array_namespace(features)
        self._features = features
        types = self.xp.__array_namespace_info__().dtypes(device=device(features), kind="real floating")
        self._ladder = [(types[name], products) for name, products in LADDER if name in types]
        self._widest = self._ladder[-1][0] if len(self._ladder) == 2 else types["float64"]
        parts = [features[start : start + chunk] for start in range(0, features.shape[0], chunk)]
        with np.errstate(over="ignore", invalid="ignore"):  # what overflows here is refused by name
            self._mean = self._mean_of(parts)
            self._scale = self._scale_of(parts)
        self._longest = max(float(self.xp.max(self.points(part)[:, -1])) for part in parts)
