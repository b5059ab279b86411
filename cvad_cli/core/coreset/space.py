"""Squared distances between rows of features: matrix products find who is near, differences say how near.

    ||x - c||^2 = ||x||^2 - 2 x.c + ||c||^2

is one matrix product for thousands of rows and hundreds of centres, but it cancels: between rows no longer than R, its
error is about E = 4 sqrt(d) R^2 u, with u the unit roundoff (the worst case has d for sqrt(d), and is not met in
practice: Higham and Mary, A new approach to probabilistic rounding error analysis, SIAM J. Sci. Comput. 41, 2019).
Differences x - c do not cancel, and cost far more.

So products bound a distance from above, with E added, and tell which centre is nearest; where it matters, the distance
to that centre is then taken by differences in float64. This can err only where two centres are equally near to within
2 E, and by no more than that. Where squared distances fall below the floor E / TOLERANCE, so that it might be more than
1e-4 of the distance, float32 products give way to float64 products, and these to differences throughout. (A device
without float64 goes from products to differences in float32. Reduced-precision products, TF32, must be off, as they are
in torch by default.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from array_api_compat import array_namespace, device, to_device
from jaxtyping import Float, Int, Shaped

from cvad_cli.ports import Array

TOLERANCE: Final = 1e-4
"""Largest relative error of a distance that decides anything."""

FLOATS: Final = ("float32", "float64")
"""Types to compute in, from coarse to fine, as far as the device has them."""

EXPONENT_LIMIT: Final = 126
"""Scales stay within normal float32 numbers."""


class Space:
    """The rows of `features` (n, d), finite, and squared distances among them, in units of `length(1.0) ** 2`."""

    def __init__(self, features: Float[Array, "n d"], chunk: int, *, float_types: Sequence[str] = FLOATS) -> None:
        self.xp: Any = array_namespace(features)
        self._features = features
        parts = [features[start : start + chunk] for start in range(0, features.shape[0], chunk)]
        with np.errstate(over="ignore", invalid="ignore"):  # what overflows here is refused by name
            mean = self._mean_of(parts)
            self._scale = _power_of_two([float(self.xp.max(self.xp.abs(part - mean))) for part in parts], mean.dtype)
        types = self.xp.__array_namespace_info__().dtypes(device=device(features), kind="real floating")
        floats = [types[name] for name in float_types if name in types]
        products = [_Arithmetic(self.xp, dtype, mean, self._scale) for dtype in floats]
        self._exact = _Arithmetic(self.xp, floats[-1], None, self._scale)
        self._ladder = [*products, self._exact]
        self._longest = max(float(self.xp.max(self.points(part)[:, -1])) for part in parts)

    @property
    def error(self) -> float:
        """How far a squared distance by the present arithmetic may be off, E; 0 for differences."""
        now = self._ladder[0]
        roundoff = float(self.xp.finfo(now.dtype).eps) / 2
        return 4 * math.sqrt(self._features.shape[1]) * self._longest * roundoff if now.by_products else 0.0

    @property
    def floor(self) -> float:
        """The smallest squared distance that the present arithmetic measures to within `TOLERANCE`."""
        return self.error / TOLERANCE

    def step_down(self) -> None:
        """Go on in the next finer arithmetic. Points and duals made so far are void."""
        self._ladder = self._ladder[1:]

    def rows(self, rows: Int[np.ndarray, " m"]) -> Float[Array, "m d"]:
        """Features of these rows."""
        return gather(self._features, rows)

    def points(self, features: Float[Array, "m d"]) -> Float[Array, "m e"]:
        """Rows made ready to be measured."""
        return self._ladder[0].points(features)

    def duals(self, centres: Float[Array, "k d"]) -> Float[Array, "k e"]:
        """Rows made ready to be measured against."""
        now = self._ladder[0]
        return now.duals(now.points(centres))

    def nearest(
        self, points: Float[Array, "m e"], duals: Float[Array, "k e"]
    ) -> tuple[Float[np.ndarray, " m"], Int[np.ndarray, " m"]]:
        """For each point, a bound on its squared distance to the nearest dual, and which one that is."""
        squared = self._ladder[0].squared(points, duals)
        which = self.xp.argmin(squared, axis=1)
        smallest = self.xp.take_along_axis(squared, which[:, None], axis=1)[:, 0]
        return _on_host(smallest) + self.error, _on_host(which)

    def apart(self, features: Float[Array, "m d"], centres: Float[Array, "m d"]) -> Float[np.ndarray, " m"]:
        """Squared distance of each row to its own centre, by differences."""
        differences = self._exact.points(features) - self._exact.points(centres)
        return _on_host(self.xp.vecdot(differences, differences))

    def between(self, features: Float[Array, "m d"]) -> Float[np.ndarray, "m m"]:
        """Squared distances of a few rows among themselves, in the finest type."""
        finest = self._ladder[-2:][0]  # products, while any are left
        points = finest.points(features)
        return _on_host(finest.squared(points, finest.duals(points)))

    def length(self, squared: float) -> float:
        """A squared distance as a distance in the unit of the features."""
        return math.sqrt(squared) / self._scale

    def _mean_of(self, parts: list[Any]) -> Any:
        """The mean row, (d,). Any row would be right as the origin; the mean keeps the centred rows short."""
        working = self.xp.result_type(self._features.dtype, self.xp.float32)
        means = [self.xp.mean(self.xp.astype(part, working), axis=0) for part in parts]
        return self.xp.mean(self.xp.stack(means), axis=0)


@dataclass(frozen=True, slots=True)
class _Arithmetic:
    """Squared distances in one type, by products or by differences.

    In products, a row x stands as its point (x, 1, ||x||^2) and a centre c as its dual (-2c, ||c||^2, 1): the matrix
    product of points and duals is all squared distances. Rows are first centred on `mean`, to be short, and scaled by
    a power of two, which rounds nothing, to keep squares from overflow and underflow.
    """

    xp: Any
    dtype: Any
    mean: Any
    """(d,); None for differences."""
    scale: float

    @property
    def by_products(self) -> bool:
        return self.mean is not None

    def points(self, features: Float[Array, "m d"]) -> Float[Array, "m e"]:
        """e = d + 2; for differences d."""
        rows = self.xp.astype(features, self.xp.result_type(features.dtype, self.dtype), copy=False)
        if not self.by_products:
            return self.xp.astype(rows * self.scale, self.dtype, copy=False)
        rows = self.xp.astype(rows - self.mean, self.dtype, copy=False)
        rows *= self.scale
        squares = self.xp.vecdot(rows, rows)[:, None]
        return self.xp.concat([rows, self.xp.ones_like(squares), squares], axis=1)

    def duals(self, points: Float[Array, "k e"]) -> Float[Array, "k e"]:
        if not self.by_products:
            return points
        return self.xp.concat([-2.0 * points[:, :-2], points[:, -1:], points[:, -2:-1]], axis=1)

    def squared(self, points: Float[Array, "m e"], duals: Float[Array, "k e"]) -> Float[Array, "m k"]:
        """Squared distances of m points to k duals."""
        if self.by_products:
            return points @ self.xp.matrix_transpose(duals)
        differences = (points - duals[row : row + 1] for row in range(duals.shape[0]))
        return self.xp.stack([self.xp.vecdot(each, each) for each in differences], axis=1)


def gather(array: Shaped[Array, " n *rest"], rows: Int[np.ndarray, " m"]) -> Shaped[Array, " m *rest"]:
    """Rows of an array of any library by their numbers on the host."""
    xp = array_namespace(array)
    return xp.take(array, xp.asarray(rows, device=device(array)), axis=0)


def require_features(name: str, features: Float[Array, "n d"], chunk: int) -> None:
    """Raise ValueError unless `features` is (n, d) of finite reals, n, d >= 1; reads `chunk` rows at a time."""
    xp = array_namespace(features)
    if features.ndim != 2 or 0 in features.shape:
        raise ValueError(f"{name}: expected (n, d) with n, d >= 1, got shape {tuple(features.shape)}")
    if not xp.isdtype(features.dtype, "real floating"):
        raise ValueError(f"{name}: expected floating-point numbers, got {features.dtype}")
    for start in range(0, features.shape[0], chunk):
        finite = xp.isfinite(features[start : start + chunk])
        if not xp.all(finite):
            row, column = (int(indices[0]) for indices in np.nonzero(~_on_host(finite)))
            value = float(features[start + row, column])
            raise ValueError(f"{name}: expected finite numbers, got {value} in row {start + row}, column {column}")


def _power_of_two(peaks: list[float], dtype: Any) -> float:
    """The power of two that brings the largest of `peaks` into 0.5..1."""
    if not all(map(math.isfinite, peaks)):
        raise ValueError(f"features: their range overflows {dtype}; scale them down")
    exponent = math.frexp(max(peaks))[1]
    return float(2.0 ** -min(max(exponent, -EXPONENT_LIMIT), EXPONENT_LIMIT))


def _on_host(array: Any) -> np.ndarray:
    return np.asarray(to_device(array, "cpu"))
