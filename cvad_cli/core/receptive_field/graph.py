"""A network as a graph of maps, and the part of the image that every cell of every map can see.

Fields are computed cell by cell, not by formula: a step gives the cells of the previous map that a cell reads, and the
cell's interval is the hull of their intervals. This is exact for interpolation, uneven padding, branches and borders.
It is computed twice: on an endless image, which gives the published figures, and on the real image with its borders,
which a measurement must confirm.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Final, Literal

import numpy as np
from jaxtyping import Int64

from cvad_cli.core.receptive_field.steps import SAME, Border, Field, Step, Window
from cvad_cli.errors import ModelError

Axis = Literal[0, 1]
"""0: rows, h. 1: columns, w."""

FAR: Final = 1 << 40
"""Stands for no pixel. It is larger than any index, so the hull of nothing is empty."""


@dataclass(frozen=True, slots=True)
class Edge:
    """One map that another reads. `whole` is the reason, in words, if the whole image goes in."""

    parent: str
    steps: tuple[Step, Step] = (SAME, SAME)
    """Along rows and along columns."""
    whole: str = ""


@dataclass(frozen=True, slots=True)
class Layer:
    """A map: the maps that it reads, and its size in cells (h, w). The image itself has no edges."""

    name: str
    kind: str
    size: tuple[int, int]
    edges: tuple[Edge, ...] = ()


@dataclass(frozen=True, slots=True)
class Graph:
    """A network's maps in the order of computation, starting with the image."""

    layers: tuple[Layer, ...]
    outputs: tuple[str, ...]
    stages: Mapping[str, str] = field(default_factory=dict)
    """For module names such as `layer2` or `blocks.4`, the name of the map that the module returns."""


@dataclass(frozen=True, slots=True)
class Box:
    """Pixels that a cell sees, borders included. Empty where `bottom < top` or `right < left`."""

    top: int
    left: int
    bottom: int
    right: int


EMPTY: Final = Box(0, 0, -1, -1)
"""What a cell sees that lies completely in the padding."""


@dataclass(frozen=True, slots=True)
class LayerField:
    """One map's receptive field. `h` and `w` leave whole-image branches out where a local path exists."""

    layer: Layer
    h: Field
    w: Field
    whole_image_because: str
    """Why every cell depends on the whole image (squeeze-excite, global pooling ...); empty if it does not."""
    widest: Edge | None
    """The local branch that reaches furthest: the closed form holds along these."""
    seen_h: Int64[np.ndarray, "rows 2"]
    """First and last image row that each row of cells depends on: all branches, cut at the borders."""
    seen_w: Int64[np.ndarray, "cols 2"]
    """The same for columns."""

    def box(self, row: int, col: int) -> Box:
        """The exact part of the image that the cell depends on: the hull, with borders and whole-image branches."""
        (top, bottom), (left, right) = self.seen_h[row].tolist(), self.seen_w[col].tolist()
        return Box(top, left, bottom, right) if top <= bottom and left <= right else EMPTY

    @property
    def centre(self) -> tuple[int, int]:
        """Row and column of the cell in the middle."""
        return self.layer.size[0] // 2, self.layer.size[1] // 2

    def nearest(self, row: float, col: float) -> tuple[int, int]:
        """The cell whose field has its centre nearest to a pixel."""
        at = zip((self.h, self.w), self.layer.size, (row, col), strict=True)
        rows, cols = (int(np.abs(f.offset + f.jump * np.arange(n) - middle).argmin()) for f, n, middle in at)
        return rows, cols

    def row(self) -> dict[str, Any]:
        """The row of a table of layers: pairs are (h, w), lengths are pixels of the network's input."""
        steps = self.widest.steps if self.widest else ()
        windows = [step for step in steps if isinstance(step, Window)]
        named: dict[str, list[Any]] = {
            "kernel": [w.kernel for w in windows],
            "stride": [w.stride for w in windows],
            "padding": [[w.padding, w.after] for w in windows],
            "dilation": [w.dilation for w in windows],
        }
        return {
            "name": self.layer.name,
            "kind": self.layer.kind,
            **{key: values if len(values) == 2 else None for key, values in named.items()},
            "jump": [self.h.jump, self.w.jump],
            "field": [self.h.size, self.w.size],
            "offset": [self.h.offset, self.w.offset],
            "map": list(self.layer.size),
            "whole_image_because": self.whole_image_because or None,
        }


def analyse(graph: Graph) -> dict[str, LayerField]:
    """The receptive field of every map of `graph`, by name.

    Raises ModelError where branches meet whose cells march at different paces, so that no one field describes the sum,
    and where the image is so small that a map has no cell.
    """
    for layer in graph.layers:
        if min(layer.size) < 1:
            raise ModelError(
                f"{layer.name} ({layer.kind}): no cell is left of an image of {graph.layers[0].size} px (h, w); "
                "take a larger image or an earlier layer"
            )
    local = _local_edges(graph)
    rows, cols = (_along(graph, axis, local) for axis in (0, 1))
    reasons: dict[str, str] = {}
    fields: dict[str, LayerField] = {}
    for layer in graph.layers:
        h, w = rows[layer.name], cols[layer.name]
        reasons[layer.name] = next((why for edge in layer.edges if (why := _why(edge, layer, reasons))), "")
        because = reasons[layer.name] or _outgrown(graph.layers[0].size, h, w)
        fields[layer.name] = LayerField(layer, h.field, w.field, because, h.widest, h.seen, w.seen)
    return fields


def widest_path(fields: Mapping[str, LayerField], name: str, axis: Axis = 0) -> list[tuple[str, Step]]:
    """Layers and steps from the image to map `name` along the furthest-reaching local branches.

    Sums of branches and other steps that read one cell in place are left out. Where all steps are windows,
    `steps.closed_form` of them gives the field's size; an interpolation has no place in that formula.
    """
    path: list[tuple[str, Step]] = []
    while (edge := fields[name].widest) is not None:
        path.append((name, edge.steps[axis]))
        name = edge.parent
    return [(layer, step) for layer, step in reversed(path) if step != SAME]


def _why(edge: Edge, layer: Layer, reasons: Mapping[str, str]) -> str:
    return f"{layer.name}: {edge.whole}" if edge.whole else reasons[edge.parent]


@dataclass(frozen=True, slots=True)
class _Reach:
    """First and last pixel of cells `start`, start + 1, ... of one map along one axis."""

    first: Int64[np.ndarray, " n"]
    last: Int64[np.ndarray, " n"]
    start: int

    def pull(
        self, step: Step, cells: Int64[np.ndarray, " c"], n: int | None
    ) -> tuple[Int64[np.ndarray, " c"], Int64[np.ndarray, " c"]]:
        """First and last pixel of `cells` that read this map by `step`; it has n cells, or is endless if n is None."""
        found, counts = step.taps(cells)
        if n is not None:
            found = _folded(found, step.border, n)
            counts = counts & (found >= 0) & (found < n)
        rows = np.clip(found - self.start, 0, len(self.first) - 1)
        first = np.where(counts, self.first[rows], FAR).min(axis=1)
        return first, np.where(counts, self.last[rows], -FAR).max(axis=1)


@dataclass(frozen=True, slots=True)
class _Along:
    """What is known of one map along one axis."""

    field: Field
    widest: Edge | None
    seen: Int64[np.ndarray, "n 2"]


def _folded(found: Int64[np.ndarray, "c t"], border: Border, n: int) -> Int64[np.ndarray, "c t"]:
    """Replace cells beyond the border by the cells inside that stand for them; zero padding keeps them."""
    inside: np.ndarray = found
    if border == "replicate":
        inside = np.clip(found, 0, n - 1)
    elif border == "reflect":
        mirrored = np.abs(found)
        inside = np.where(mirrored >= n, 2 * (n - 1) - mirrored, mirrored)
    elif border == "circular":
        inside = found % n
    return inside


def _local_edges(graph: Graph) -> dict[str, tuple[Edge, ...]]:
    """Each layer's edges without the whole-image ones; none if all of them lead to the whole image."""
    reached = {graph.layers[0].name}
    local: dict[str, tuple[Edge, ...]] = {}
    for layer in graph.layers:
        local[layer.name] = tuple(edge for edge in layer.edges if not edge.whole and edge.parent in reached)
        if local[layer.name]:
            reached.add(layer.name)
    return local


def _along(graph: Graph, axis: Axis, local: Mapping[str, tuple[Edge, ...]]) -> dict[str, _Along]:
    """Fields on the endless image from `local` edges, and intervals on the real image from all edges."""
    sizes = {layer.name: layer.size[axis] for layer in graph.layers}
    needed = _needed(graph, axis, local)
    image = graph.layers[0].name
    pixels = np.arange(sizes[image])
    wide = np.arange(needed[image][0], needed[image][1] + 1)
    endless = {image: _Reach(wide, wide, needed[image][0])}
    bordered = {image: _Reach(pixels, pixels, 0)}
    jumps = {image: Fraction(1)}
    along = {image: _Along(Field(1, 1.0, 0.0), None, np.stack([pixels, pixels], axis=1))}
    for layer in graph.layers[1:]:
        edges, own = local[layer.name], np.arange(sizes[layer.name])
        cells = np.arange(needed[layer.name][0], needed[layer.name][1] + 1)
        jumps[layer.name] = _jump(layer, [(e.steps[axis].pace * jumps[e.parent], e.parent) for e in edges], len(own))
        pulled = [endless[e.parent].pull(e.steps[axis], cells, None) for e in edges]
        if pulled:
            endless[layer.name] = _hull(pulled, int(cells[0]))
        seen = [bordered[e.parent].pull(e.steps[axis], own, sizes[e.parent]) for e in layer.edges]
        bordered[layer.name] = _hull(seen, 0)
        extents = [int((last - first)[len(cells) // 2]) for first, last in pulled]
        widest = edges[int(np.argmax(extents))] if edges else None
        field = _summary(endless.get(layer.name), jumps[layer.name], len(own), len(pixels))
        cut = np.stack([bordered[layer.name].first, bordered[layer.name].last], axis=1)
        along[layer.name] = _Along(field, widest, cut)
    return along


def _needed(graph: Graph, axis: Axis, local: Mapping[str, tuple[Edge, ...]]) -> dict[str, tuple[int, int]]:
    """First and last cell of every endless map that a cell of a real map reads."""
    needed = {layer.name: (0, layer.size[axis] - 1) for layer in graph.layers}
    for layer in reversed(graph.layers):
        for edge in local[layer.name]:
            found, counts = edge.steps[axis].taps(np.array(needed[layer.name]))
            low, high = needed[edge.parent]
            taps = found[counts]
            needed[edge.parent] = int(taps.min(initial=low)), int(taps.max(initial=high))
    return needed


def _hull(pulled: list[tuple[Int64[np.ndarray, " c"], Int64[np.ndarray, " c"]]], start: int) -> _Reach:
    firsts, lasts = zip(*pulled, strict=True)
    return _Reach(np.min(firsts, axis=0), np.max(lasts, axis=0), start)


def _jump(layer: Layer, jumps: list[tuple[Fraction, str]], cells: int) -> Fraction:
    """The jump that the branches share. Branches may drift apart by at most two cells over the map."""
    moving = [(jump, parent) for jump, parent in jumps if jump]
    if not moving:
        return Fraction(0)
    first, origin = moving[0]
    for jump, parent in moving[1:]:
        if abs(jump - first) * (cells - 1) > 2 * max(jump, first):
            raise ModelError(
                f"{layer.name} ({layer.kind}): its branches {origin} and {parent} step {float(first):g} and "
                f"{float(jump):g} px a cell, so their cells do not lie on the same part of the image; bring them to "
                "one stride or interpolate one of them first"
            )
    return first


def _summary(reach: _Reach | None, jump: Fraction, cells: int, pixels: int) -> Field:
    """The largest field of the real cells and the first cell's centre; the whole image if there is no local path."""
    if reach is None:
        return Field(pixels, 0.0, (pixels - 1) / 2)
    own = slice(-reach.start, cells - reach.start)
    first, last = reach.first[own], reach.last[own]
    size = max(int((last - first).max()) + 1, 0)
    return Field(size, float(jump), float(first[0] + last[0]) / 2)


def _outgrown(image: tuple[int, int], h: _Along, w: _Along) -> str:
    """The reason if every cell's field is larger than the image."""
    whole = all((a.seen == [0, n - 1]).all() for a, n in zip((h, w), image, strict=True))
    return f"its field of {h.field.size} x {w.field.size} px reaches beyond all borders" if whole else ""
