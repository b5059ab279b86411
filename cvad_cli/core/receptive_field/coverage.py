"""From a receptive field to defects: how much of a defect a cell sees, on the image as the camera took it.

A defect is a square of side a, anywhere: its position is not bound to the pixel grid. Cells of field r lie on a lattice
of jump j. A cell sees all of the defect where its centre lies in a certain stretch of length r - a, and the lattice has
at least floor((r - a) / j) centres there; the defect lies on at least floor(a / j) centres. This holds per axis, so the
counts multiply. Near the border the lattice ends: they hold for defects half a field away from it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from cvad_cli.core.receptive_field.graph import LayerField

SIZE_STEP: Final = 32
"""Input sizes are proposed in multiples of this: the stride of the deepest stage of the usual backbones."""

LARGEST_INPUT: Final = 4096
"""No larger input is proposed: `data.image_size` ends there."""

HIGHEST_COST: Final = 256.0
"""Nothing is proposed that costs more, as a multiple of today's work a part."""

Pair = tuple[float, float]
"""Rows, columns."""


@dataclass(frozen=True, slots=True)
class View:
    """A detector's cells laid over the original image. Every length that a method takes or gives is in its pixels."""

    field_px: Pair
    """Field of a cell in pixels of the network's input (h, w)."""
    jump_px: Pair
    image_size: Pair
    """What the network gets (h, w)."""
    original_size: Pair
    """What the camera took (h, w), resized to `image_size`."""
    pixel_size_mm: float | None = None
    """Side of an original pixel on the part."""

    def __post_init__(self) -> None:
        lengths = (*self.field_px, *self.jump_px, *self.image_size, *self.original_size, self.pixel_size_mm or 1.0)
        if min(lengths) <= 0:
            raise ValueError(f"fields, jumps, sizes and pixel_size_mm: expected numbers above 0, got {lengths}")

    @property
    def scale(self) -> Pair:
        """Original pixels per pixel of the network's input."""
        return self.original_size[0] / self.image_size[0], self.original_size[1] / self.image_size[1]

    @property
    def field(self) -> Pair:
        """What a cell sees of the image: its field, at most all of it."""
        return _per_axis(lambda r, n, s: min(r, n) * s, self.field_px, self.image_size, self.scale)

    @property
    def stride(self) -> Pair:
        """Distance between the centres of neighbouring cells."""
        return _per_axis(lambda j, s: j * s, self.jump_px, self.scale)

    def millimetres(self, length: float) -> float | None:
        """A length on the part, where the pixel size is known."""
        return None if self.pixel_size_mm is None else length * self.pixel_size_mm

    def cells_whole(self, side: float) -> int:
        """How many cells at least see all of a defect of this side, wherever it lies."""
        if side > min(self.original_size):
            return 0
        rows, cols = _per_axis(
            lambda r, j, n, s: 1 if r >= n <= j else min(max(_floor((r - side / s) / j), 0), _floor(n / j)),
            *(self.field_px, self.jump_px, self.image_size, self.scale),
        )
        return int(rows * cols)

    def cells_hit(self, side: float) -> int:
        """How many cells' centres at least lie on a defect of this side, wherever it lies."""
        rows, cols = _per_axis(lambda j, s: _floor(side / s / j), self.jump_px, self.scale)
        return int(rows * cols)

    def largest_whole(self, cells: int = 1) -> float:
        """Side of the largest defect that at least `cells` cells are sure to see whole; 0 where there is none."""
        steps = range(1, cells + 1)
        sides = [
            (r - m * j) * s for r, j, s in zip(self.field_px, self.jump_px, self.scale, strict=True) for m in steps
        ]
        fitting = [side for side in (*sides, min(self.original_size)) if side > 0 and self.cells_whole(side) >= cells]
        return max(fitting, default=0.0)

    def smallest_hit(self, cells: int = 1) -> float:
        """Side of the smallest defect that is sure to lie on the centres of at least `cells` cells."""
        sides = [m * j * s for j, s in zip(self.jump_px, self.scale, strict=True) for m in range(1, cells + 1)]
        return min(side for side in sides if self.cells_hit(side) >= cells)

    def share_seen(self, side: float) -> Pair:
        """Share (0..1) of the defect that the best-placed cell sees: where the defect lies worst, and best."""
        worst, best = self._overlap(side)
        return worst / side**2, best / side**2

    def share_filled(self, side: float) -> Pair:
        """Share (0..1) of the best-placed cell's field that the defect fills: where it lies worst, and best."""
        worst, best = self._overlap(side)
        area = self.field[0] * self.field[1]
        return min(worst / area, 1.0), min(best / area, 1.0)

    def _overlap(self, side: float) -> Pair:
        """Area of the defect in the best-placed field: its centre half a jump off in both axes, and right on it."""
        sizes = [r * s for r, s in zip(self.field_px, self.scale, strict=True)]
        worst = [min((r + side - j) / 2, r, side) for r, j in zip(sizes, self.stride, strict=True)]
        return float(np.prod(np.maximum(worst, 0.0))), float(np.prod(np.minimum(sizes, side)))


@dataclass(frozen=True, slots=True)
class Option:
    """A change of the set-up and what it would bring."""

    change: str
    view: View
    cost: float
    """Work per part, as a multiple of today's; 1 for another layer, though its own cost differs a little."""
    note: str = ""


def view_of(
    found: LayerField, image_size: Pair, original_size: Pair | None = None, pixel_size_mm: float | None = None
) -> View:
    """The cells of a map over an image. A map of one cell counts as one step over all of the image."""
    jumps = found.h.jump or image_size[0], found.w.jump or image_size[1]
    return View((found.h.size, found.w.size), jumps, image_size, original_size or image_size, pixel_size_mm)


def options(view: View, layers: Mapping[str, View], *, defect: float | None = None, cells: int = 1) -> list[Option]:
    """Changes that would help, the most telling first: tiles, another input size, another layer.

    `layers` are views of the other maps of the same network. `defect` is the side in original pixels that matters: with
    it, only what is wrong is mended, and nothing is proposed where at least `cells` cells hit it and one sees it whole.
    Without it, the options show what halving the stride would bring. What nobody would pay for is left out: there,
    optics must help.
    """
    target = defect or view.smallest_hit(cells) / 2
    found: list[Option] = []
    if view.cells_hit(target) < cells:
        finer = view.smallest_hit(cells) / target
        found += [_resized(view, finer), _tiled(view, finer)]
        able = {name: v for name, v in layers.items() if v.cells_hit(target) >= cells}
        if able:
            name = max(able, key=lambda n: able[n].field[0])
            found.append(Option(f"take layer {name}", able[name], 1.0, "shallower layers know less of context"))
    if defect and view.cells_whole(defect) < 1:
        found += _widened(view, layers, defect)
    return [option for option in found if max(option.view.image_size) <= LARGEST_INPUT and option.cost <= HIGHEST_COST]


def _resized(view: View, factor: float) -> Option:
    size = _per_axis(lambda n: SIZE_STEP * math.ceil(n * factor / SIZE_STEP - 1e-9), view.image_size)
    blown = max(size) > max(view.original_size)
    note = (
        "more than the camera took: enlarging adds cells, not detail; a closer lens or larger sensor does"
        if blown
        else ""
    )
    return Option(f"image_size {size[0]:g} x {size[1]:g}", replace(view, image_size=size), _area(size, view), note)


def _tiled(view: View, factor: float) -> Option:
    tiles = math.ceil(factor - 1e-9)
    part = view.original_size[0] / tiles, view.original_size[1] / tiles
    blown = min(part) < min(view.image_size)
    note = "let them overlap by the defect's size" + ("; enlarged tiles: more cells, not more detail" if blown else "")
    return Option(f"{tiles} x {tiles} tiles", replace(view, original_size=part), float(tiles**2), note)


def _widened(view: View, layers: Mapping[str, View], defect: float) -> list[Option]:
    """A smaller input or a deeper layer, so that one cell sees the defect whole."""
    found = []
    shrink = view.largest_whole() / defect
    size = _per_axis(lambda n: SIZE_STEP * math.floor(n * shrink / SIZE_STEP), view.image_size)
    if min(size) >= SIZE_STEP:
        smaller = replace(view, image_size=size)
        found.append(Option(f"image_size {size[0]:g} x {size[1]:g}", smaller, _area(size, view), "loses fine detail"))
    able = {name: v for name, v in layers.items() if v.cells_whole(defect) >= 1}
    if able:
        name = min(able, key=lambda n: able[n].field[0])
        found.append(Option(f"take layer {name}", able[name], 1.0, "deeper layers answer less sharply in place"))
    return found


def _area(size: Pair, view: View) -> float:
    return size[0] * size[1] / (view.image_size[0] * view.image_size[1])


def _floor(value: float) -> int:
    """Rounded down, but a whole number that lies a rounding error below itself stays."""
    return math.floor(value + 1e-9)


def _per_axis(rule: Callable[..., float], *pairs: Pair) -> Pair:
    rows, cols = (rule(*values) for values in zip(*pairs, strict=True))
    return rows, cols
