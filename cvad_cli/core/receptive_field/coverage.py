"""From a receptive field to defects: how much of a defect a cell sees, on the image as the camera took it.

A defect is a square of side a at any position, also between pixels. Cells of field r lie on a lattice of jump j. A cell
sees all of the defect if its centre lies in an interval of length r - a, which holds at least floor((r - a) / j)
centres; the defect covers at least floor(a / j) centres. This holds per axis, so the counts multiply. The lattice ends
at the border: the counts hold for defects at least half a field away from it.
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
"""No larger input is proposed: it is the largest `data.image_size`."""

HIGHEST_COST: Final = 256.0
"""No more expensive change is proposed, as a multiple of the present work per part."""

Pair = tuple[float, float]
"""Rows, columns."""


@dataclass(frozen=True, slots=True)
class View:
    """A detector's cells on the original image. Methods take and return lengths in pixels of that image."""

    field_px: Pair
    """Field of a cell in pixels of the network's input (h, w)."""
    jump_px: Pair
    image_size: Pair
    """The network's input (h, w)."""
    original_size: Pair
    """The camera's image (h, w), which is resized to `image_size`."""
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
        """What a cell sees: its field, at most the whole image."""
        return _per_axis(lambda r, n, s: min(r, n) * s, self.field_px, self.image_size, self.scale)

    @property
    def stride(self) -> Pair:
        """Distance between the centres of neighbouring cells."""
        return _per_axis(lambda j, s: j * s, self.jump_px, self.scale)

    def millimetres(self, length: float) -> float | None:
        """A length on the part; None if the pixel size is not known."""
        return None if self.pixel_size_mm is None else length * self.pixel_size_mm

    def cells_whole(self, side: float) -> int:
        """The number of cells that see all of a defect of this side, at least, wherever it lies."""
        if side > min(self.original_size):
            return 0
        rows, cols = _per_axis(
            lambda r, j, n, s: 1 if r >= n <= j else min(max(_floor((r - side / s) / j), 0), _floor(n / j)),
            *(self.field_px, self.jump_px, self.image_size, self.scale),
        )
        return int(rows * cols)

    def cells_hit(self, side: float) -> int:
        """The number of cell centres on a defect of this side, at least, wherever it lies."""
        rows, cols = _per_axis(lambda j, s: _floor(side / s / j), self.jump_px, self.scale)
        return int(rows * cols)

    def largest_whole(self, cells: int = 1) -> float:
        """Side of the largest defect that at least `cells` cells are sure to see whole; 0 if there is none."""
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
        """Share (0..1) of the defect that the nearest cell sees, at the defect's worst and best position."""
        worst, best = self._overlap(side)
        return worst / side**2, best / side**2

    def share_filled(self, side: float) -> Pair:
        """Share (0..1) of the nearest cell's field that the defect fills, at its worst and best position."""
        worst, best = self._overlap(side)
        area = self.field[0] * self.field[1]
        return min(worst / area, 1.0), min(best / area, 1.0)

    def _overlap(self, side: float) -> Pair:
        """Area of the defect in the nearest field: their centres half a jump apart on both axes, or equal."""
        sizes = [r * s for r, s in zip(self.field_px, self.scale, strict=True)]
        worst = [min((r + side - j) / 2, r, side) for r, j in zip(sizes, self.stride, strict=True)]
        return float(np.prod(np.maximum(worst, 0.0))), float(np.prod(np.minimum(sizes, side)))


@dataclass(frozen=True, slots=True)
class Option:
    """A change of the set-up and its effect."""

    change: str
    view: View
    cost: float
    """Work per part, as a multiple of the present work; 1 for another layer, whose cost differs only a little."""
    note: str = ""


def view_of(
    found: LayerField, image_size: Pair, original_size: Pair | None = None, pixel_size_mm: float | None = None
) -> View:
    """The cells of a map on an image. The stride of a map of one cell is the whole image."""
    jumps = found.h.jump or image_size[0], found.w.jump or image_size[1]
    return View((found.h.size, found.w.size), jumps, image_size, original_size or image_size, pixel_size_mm)


def options(view: View, layers: Mapping[str, View], *, defect: float | None = None, cells: int = 1) -> list[Option]:
    """Changes that would help: another input size, tiles, another layer.

    `layers` are views of the other maps of the same network. `defect` is the side, in original pixels, of the defect to
    detect: nothing is proposed if at least `cells` cells have their centre on it and one sees it whole. Without
    `defect`, the options show the effect of a stride of half the size. Options beyond `LARGEST_INPUT` and
    `HIGHEST_COST` are left out: then only other optics help.
    """
    target = defect or view.smallest_hit(cells) / 2
    found: list[Option] = []
    if view.cells_hit(target) < cells:
        finer = view.smallest_hit(cells) / target
        found += [_resized(view, finer), _tiled(view, finer)]
        able = {name: v for name, v in layers.items() if v.cells_hit(target) >= cells}
        if able:
            name = max(able, key=lambda n: able[n].field[0])
            found.append(Option(f"take layer {name}", able[name], 1.0, "shallower layers see less context"))
    if defect and view.cells_whole(defect) < 1:
        found += _widened(view, layers, defect)
    return [option for option in found if max(option.view.image_size) <= LARGEST_INPUT and option.cost <= HIGHEST_COST]


def _resized(view: View, factor: float) -> Option:
    size = _per_axis(lambda n: SIZE_STEP * math.ceil(n * factor / SIZE_STEP - 1e-9), view.image_size)
    blown = max(size) > max(view.original_size)
    note = (
        "larger than the camera's image: adds cells, not detail; a closer lens or larger sensor adds detail"
        if blown
        else ""
    )
    return Option(f"image_size {size[0]:g} x {size[1]:g}", replace(view, image_size=size), _area(size, view), note)


def _tiled(view: View, factor: float) -> Option:
    tiles = math.ceil(factor - 1e-9)
    part = view.original_size[0] / tiles, view.original_size[1] / tiles
    blown = min(part) < min(view.image_size)
    note = "let them overlap by the defect's size" + (
        "; the tiles are enlarged: more cells, not more detail" if blown else ""
    )
    return Option(f"{tiles} x {tiles} tiles", replace(view, original_size=part), float(tiles**2), note)


def _widened(view: View, layers: Mapping[str, View], defect: float) -> list[Option]:
    """A smaller input or a deeper layer, with which one cell sees the whole defect."""
    found = []
    shrink = view.largest_whole() / defect
    size = _per_axis(lambda n: SIZE_STEP * math.floor(n * shrink / SIZE_STEP), view.image_size)
    if min(size) >= SIZE_STEP:
        smaller = replace(view, image_size=size)
        found.append(Option(f"image_size {size[0]:g} x {size[1]:g}", smaller, _area(size, view), "loses fine detail"))
    able = {name: v for name, v in layers.items() if v.cells_whole(defect) >= 1}
    if able:
        name = min(able, key=lambda n: able[n].field[0])
        found.append(Option(f"take layer {name}", able[name], 1.0, "deeper layers locate less sharply"))
    return found


def _area(size: Pair, view: View) -> float:
    return size[0] * size[1] / (view.image_size[0] * view.image_size[1])


def _floor(value: float) -> int:
    """Round down; a value that is a rounding error below a whole number counts as that number."""
    return math.floor(value + 1e-9)


def _per_axis(rule: Callable[..., float], *pairs: Pair) -> Pair:
    rows, cols = (rule(*values) for values in zip(*pairs, strict=True))
    return rows, cols
