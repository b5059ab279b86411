"""One axis of one layer: the cells of the previous map that a cell reads, and the recursion along a path of windows.

Coordinates are pixel indices of the network's input: pixel 0 has its centre at 0. Cell i of a map sees the pixels from
its first to its last, both included, and its centre is offset + i * jump. The recursion is that of Araujo, Norris and
Sim, "Computing Receptive Fields of Convolutional Neural Networks", Distill 2019, doi 10.23915/distill.00021.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Final, Literal, Protocol

import numpy as np
from jaxtyping import Bool, Int64

Border = Literal["zero", "reflect", "replicate", "circular"]


@dataclass(frozen=True, slots=True)
class Field:
    """The receptive field of a map's cells along one axis, in pixels of the network's input."""

    size: int
    jump: float
    """Distance between the centres of neighbouring cells: the effective stride. 0 if all cells share one centre."""
    offset: float
    """Centre of the first cell's field. Negative values lie in the padding."""


class Step(Protocol):
    """How the cells of one map read the previous map, along one axis."""

    @property
    def pace(self) -> Fraction:
        """Cells of the previous map per cell of this one; 0 if all cells read the same cells."""

    @property
    def border(self) -> Border:
        """The padding beyond the border."""

    def cells(self, n: int) -> int:
        """The number of cells that result from n."""

    def taps(self, cells: Int64[np.ndarray, " c"]) -> tuple[Int64[np.ndarray, "c t"], Bool[np.ndarray, "c t"]]:
        """The cells of an endless previous map that `cells` read, and which of these entries count."""


@dataclass(frozen=True, slots=True)
class Window:
    """A sliding window along one axis: convolution, pooling, padding (kernel 1) or cropping (negative padding)."""

    kernel: int
    stride: int = 1
    padding: int = 0
    dilation: int = 1
    padding_after: int | None = None
    """Padding at the far border, if it differs: TensorFlow's `same` pads one cell more there."""
    ceil_mode: bool = False
    border: Border = "zero"

    @property
    def pace(self) -> Fraction:
        """The stride."""
        return Fraction(self.stride)

    @property
    def after(self) -> int:
        """Padding at the far border."""
        return self.padding if self.padding_after is None else self.padding_after

    def cells(self, n: int) -> int:
        """floor((n + p + p' - d(k-1) - 1) / s) + 1; `ceil_mode` rounds up where that window starts before the padding.

        >>> Window(4, padding=3).cells(256), Window(3, 2, 1, ceil_mode=True).cells(56)
        (259, 29)
        """
        room = n + self.padding + self.after - self.dilation * (self.kernel - 1) - 1
        count = room // self.stride + 1
        if self.ceil_mode and room % self.stride and count * self.stride < n + self.padding:
            return count + 1
        return max(count, 0)

    def taps(self, cells: Int64[np.ndarray, " c"]) -> tuple[Int64[np.ndarray, "c t"], Bool[np.ndarray, "c t"]]:
        """Cell i reads i * stride - padding + dilation * (0 .. kernel-1)."""
        found = cells[:, None] * self.stride - self.padding + self.dilation * np.arange(self.kernel)
        return found, np.ones_like(found, dtype=bool)


Line = tuple[int, int, int]
"""(a, b, d): the cell floor((a i + b) / d)."""


@dataclass(frozen=True, slots=True)
class Span:
    """A step whose cells read from one rounded line to another: interpolation, adaptive pooling, the whole axis."""

    size: int
    first: Line
    last: Line
    pace: Fraction
    border: Border = "replicate"

    def cells(self, n: int) -> int:
        """The requested size, whatever the input's."""
        return self.size if n else 0

    def taps(self, cells: Int64[np.ndarray, " c"]) -> tuple[Int64[np.ndarray, "c t"], Bool[np.ndarray, "c t"]]:
        """Every cell between the two lines, both included."""
        first, last = ((a * cells + b) // d for a, b, d in (self.first, self.last))
        found = first[:, None] + np.arange(max(1, int((last - first).max()) + 1))
        return found, found <= last[:, None]


SAME: Final = Window(1)
"""Every cell reads the cell at its own position: activations, norms in eval mode, sums of branches."""


def interpolated(
    n: int, m: int, *, linear: bool = True, align_corners: bool = False, ratio: Fraction | None = None
) -> Span:
    """n cells resampled to m. `ratio` is n / m unless torch was given a scale factor: then 1 / factor.

    Bilinear: cell i sits at src = (i + 1/2) n/m - 1/2 and reads floor(src) and ceil(src): only one cell if src
    is whole, because the other's weight is zero. `align_corners`: src = i (n-1)/(m-1). Nearest: floor(i n/m).
    """
    pace = ratio or Fraction(n, m)
    a, d = (n - 1, max(m - 1, 1)) if align_corners else (2 * pace.numerator, 2 * pace.denominator)
    b = 0 if align_corners or not linear else pace.numerator - pace.denominator
    return Span(m, (a, b, d), (a, b + d - 1, d) if linear else (a, b, d), Fraction(a, d))


def pooled_to(n: int, m: int) -> Span:
    """Adaptive pooling of n cells to m: cell i reads floor(i n/m) .. ceil((i+1) n/m) - 1."""
    return Span(m, (n, 0, m), (n, n - 1, m), Fraction(n, m))


def everything(n: int, m: int) -> Span:
    """Each of m cells reads all n: global pooling, statistics over the image; n = 1: one cell is broadcast to all."""
    return Span(m, (0, 0, 1), (0, n - 1, 1), Fraction(0))


def transposed(n: int, window: Window, *, extra: int = 0) -> Span:
    """Transposed convolution of n cells: i reads every cell c with c * stride - padding within kernel of i."""
    reach, s, p = window.kernel - 1, window.stride, window.padding
    size = (n - 1) * s - 2 * p + reach + 1 + extra
    return Span(size, (1, p - reach + s - 1, s), (1, p, s), Fraction(1, s), "zero")


def through(windows: Iterable[Window]) -> Field:
    """The recursion along one path: r += d(k-1) j, offset += (d(k-1)/2 - p) j, j *= s.

    >>> through([Window(2, 2)] * 3)
    Field(size=8, jump=8, offset=3.5)
    """
    size, jump, offset = 1, 1, 0.0
    for w in windows:
        offset += (w.dilation * (w.kernel - 1) / 2 - w.padding) * jump
        size += w.dilation * (w.kernel - 1) * jump
        jump *= w.stride
    return Field(size, jump, offset)


def growth(windows: Sequence[Window]) -> tuple[int, ...]:
    """Pixels that each window of a path adds to the field: d_l (k_l - 1) times the product of the strides before it."""
    return tuple(w.dilation * (w.kernel - 1) * _strides(windows[:i]) for i, w in enumerate(windows))


def closed_form(windows: Sequence[Window]) -> Field:
    """Without recursion: r = 1 + sum of `growth`, j = product of strides, offset = sum of growth / 2 - p_l j_l."""
    grown = growth(windows)
    shift = sum(w.padding * _strides(windows[:i]) for i, w in enumerate(windows))
    return Field(1 + sum(grown), _strides(windows), sum(grown) / 2 - shift)


def _strides(windows: Sequence[Window]) -> int:
    return int(np.prod([w.stride for w in windows], dtype=np.int64))
