"""The maps that operators pass to each other while the table of layers is built."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

from cvad_cli.core.receptive_field.graph import Edge, Layer
from cvad_cli.core.receptive_field.steps import Window, everything
from cvad_cli.errors import ModelError

Axes = tuple[int, int] | None
"""The axes of a tensor that are rows and columns; None if it has neither: one cell stands for the image."""


@dataclass(frozen=True, slots=True)
class Map:
    """A tensor that depends on the image: the layer that made it, and its axes of rows and columns."""

    layer: str
    shape: tuple[int, ...]
    axes: Axes
    only_here: bool
    """Only one operator reads the layer: it may be merged into that one."""

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of cells."""
        return (1, 1) if self.axes is None else (self.shape[self.axes[0]], self.shape[self.axes[1]])


@dataclass(slots=True)
class Layers:
    """The layers found so far, by name, in the order of computation."""

    table: dict[str, Layer] = field(default_factory=dict)

    def add(self, label: str, kind: str, size: tuple[int, int], edges: Sequence[Edge]) -> str:
        """Append a layer, with a number if its label is taken, and return its name."""
        name, count = label, 1
        while name in self.table:
            count += 1
            name = f"{label}#{count}"
        self._check(name, size, edges)
        self.table[name] = Layer(name, kind, size, tuple(edges))
        return name

    def _check(self, name: str, size: tuple[int, int], edges: Sequence[Edge]) -> None:
        for edge in edges:
            before = self.table[edge.parent].size
            cells = edge.steps[0].cells(before[0]), edge.steps[1].cells(before[1])
            if cells != size:
                raise ModelError(
                    f"{name}: {before} cells should become {cells} by its window, but torch gives {size}; cvad reads "
                    "this operator wrongly: please report it with the model's name"
                )


@dataclass(frozen=True, slots=True)
class Call:
    """One call of an operator."""

    op: str
    args: Mapping[str, Any]
    """Arguments by the names of torch's schema, with a `Map` for every tensor that depends on the image."""
    maps: tuple[Map, ...]
    shape: tuple[int, ...]
    """Of the first tensor that the operator returns."""
    submodule: str
    """Dotted name of the submodule; empty for the module itself."""
    leaf: bool
    lone: bool
    """Only one operator reads the result."""
    layers: Layers

    @property
    def first(self) -> Map:
        """The first tensor that depends on the image."""
        return self.maps[0]

    def passed(self, axes: Axes, source: Map | None = None) -> Map:
        """Every cell passes through by itself: no new layer, but the axes may change."""
        source = source or self.first
        return Map(source.layer, self.shape, axes, source.only_here and self.lone)

    def made(self, kind: str, edges: Sequence[Edge], axes: Axes) -> Map:
        """A new layer."""
        label = (
            self.submodule
            if self.leaf and self.submodule
            else ".".join(part for part in (self.submodule, kind) if part)
        )
        size = (1, 1) if axes is None else (self.shape[axes[0]], self.shape[axes[1]])
        name = self.layers.add(label.replace(" ", "_"), kind, size, edges)
        return Map(name, self.shape, axes, self.lone)

    def image_like(self, source: Map) -> Map:
        """`source` with rows and columns as its last two axes, or ModelError."""
        rank = len(source.shape)
        if source.axes is None:
            size = source.shape[-2], source.shape[-1]
            if size == (1, 1):
                return replace(source, axes=(rank - 2, rank - 1))
            edge = Edge(source.layer, (everything(1, size[0]), everything(1, size[1])))
            name = self.layers.add(f"{source.layer}.broadcast", "broadcast", size, [edge])
            return Map(name, source.shape, (rank - 2, rank - 1), only_here=False)
        if source.axes != (rank - 2, rank - 1):
            self.refuse(f"its rows and columns are axes {source.axes} of {rank}, not the last two")
        return source

    def take_padding(self, source: Map, windows: tuple[Window, Window]) -> Edge:
        """The edge to `source`; a padding that only this window reads is merged into the window."""
        layer = self.layers.table[source.layer]
        if layer.kind != "pad" or not source.only_here:
            return Edge(source.layer, windows)
        merged = []
        for window, pad in zip(windows, layer.edges[0].steps, strict=True):
            if not isinstance(pad, Window) or (window.padding and pad.border != "zero"):
                return Edge(source.layer, windows)
            before, after = window.padding + pad.padding, window.after + pad.after
            uneven = None if after == before else after
            merged.append(replace(window, padding=before, padding_after=uneven, border=pad.border))
        del self.layers.table[source.layer]
        return Edge(layer.edges[0].parent, (merged[0], merged[1]))

    def refuse(self, why: str) -> NoReturn:
        """Raise ModelError naming the submodule and the operator."""
        raise ModelError(
            f"{self.submodule or 'the module itself'}: operator {self.op} has no receptive field that could be "
            f"worked out: {why}. Analyse the part of the network before it, or name earlier layers"
        )


def without(axes: Axes, gone: set[int]) -> Axes:
    """The axes of rows and columns after the axes `gone` are dropped; None if one of the two is dropped."""
    if axes is None or gone & set(axes):
        return None
    rows, cols = (axis - sum(d < axis for d in gone) for axis in axes)
    return rows, cols
