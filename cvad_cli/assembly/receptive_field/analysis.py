"""One network's receptive field in three ways: derived, measured, and by gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from cvad_cli.adapters.receptive_field.layer_graph import read_layers
from cvad_cli.adapters.receptive_field.measured_field import AnalysedNetwork, bounded, effective_fields, exact_support
from cvad_cli.adapters.runtime_torch import IMAGENET_MEAN, IMAGENET_STD
from cvad_cli.assembly.receptive_field.networks import Network
from cvad_cli.core.receptive_field.effective import SHARES, EffectiveField
from cvad_cli.core.receptive_field.graph import Box, Graph, LayerField, analyse, widest_path
from cvad_cli.core.receptive_field.steps import Field, Window, closed_form, growth, through
from cvad_cli.errors import ModelError

CENTRE: Final = "centre"
NEIGHBOUR: Final = "neighbour of the centre"
EDGE: Final = "left edge"

SIGN_DRAWS: Final = 4
"""Signals per image and cell. With one, the squares that hold half of the energy differ by a third between seeds."""

Cell = tuple[int, int]


@dataclass(frozen=True, slots=True)
class MeasuredCell:
    """The pixels that one cell depends on: derived and measured."""

    position: str
    cell: Cell
    theory: Box
    measured: Box


@dataclass(frozen=True, slots=True)
class Formula:
    """The recursion along the furthest-reaching branch to one map, for rows."""

    layer: str
    windows: tuple[tuple[str, Window], ...]
    recursion: Field
    closed: Field
    adds: tuple[int, ...]
    """Pixels that each window adds to the field."""


@dataclass(frozen=True, slots=True)
class Findings:
    """The results for one network's last map."""

    network: Network
    fields: Mapping[str, LayerField]
    """The field of every map, at the detector's image size."""
    output: str
    stages: Mapping[str, str]
    """For each module name, the name of the map that it returns."""
    formulas: tuple[Formula, ...]
    measured_size: tuple[int, int]
    cells: tuple[MeasuredCell, ...]
    effective: Mapping[str, EffectiveField]
    """By the cell's position; empty if no gradient reaches the image."""
    no_gradient_because: str = ""

    @property
    def found(self) -> LayerField:
        """The last map's field."""
        return self.fields[self.output]

    @property
    def agrees(self) -> bool:
        """Whether recursion and closed form agree, and theory and measurement agree at every measured cell."""
        return all(f.recursion == f.closed for f in self.formulas) and all(c.theory == c.measured for c in self.cells)

    @property
    def measured_stride(self) -> tuple[int, int] | None:
        """How far the measured box moves from the middle cell to its neighbour; None if a border cuts one of them."""
        boxes = {each.position: each.measured for each in self.cells}
        first, second = boxes.get(CENTRE), boxes.get(NEIGHBOUR)
        if first is None or second is None or _cut(first, self.measured_size) or _cut(second, self.measured_size):
            return None
        return second.top - first.top, second.left - first.left

    def box(self, position: str) -> Box:
        """The derived box of a measured cell."""
        return next(each.theory for each in self.cells if each.position == position)


def analyse_network(
    network: Network, image_size: tuple[int, int], images: Sequence[np.ndarray], *, rng: np.random.Generator
) -> Findings:
    """Derive, measure and differentiate the field of `network`; the detector and `images` have size `image_size`.

    The measurement uses an image of bounded size, and the gradients the middle of each image at that size: the work
    does not grow with the image. Raises ModelError, naming the layer, if a layer's receptive field cannot be derived.
    """
    graph = _read(network, image_size)
    fields = analyse(graph)
    found = fields[graph.outputs[0]]
    measured_size = bounded(image_size, (found.h.size, found.w.size))
    at_size = found if measured_size == image_size else _field_at(network, measured_size)
    analysed = AnalysedNetwork(network.module, arguments=network.arguments(measured_size))
    cells = _measure(analysed, at_size, measured_size)
    effective, why = _effective(network, analysed, at_size, images, measured_size, rng=rng)
    return Findings(
        network=network,
        fields=fields,
        output=graph.outputs[0],
        stages=graph.stages,
        formulas=tuple(_formulas(network, graph, fields)),
        measured_size=measured_size,
        cells=tuple(cells),
        effective=effective,
        no_gradient_because=why,
    )


def _read(network: Network, size: tuple[int, int]) -> Graph:
    try:
        return read_layers(network.module, size, arguments=network.arguments(size))
    except ModelError as error:
        raise ModelError(f"{network.name}: {error}") from error


def _field_at(network: Network, size: tuple[int, int]) -> LayerField:
    graph = _read(network, size)
    return analyse(graph)[graph.outputs[0]]


def _formulas(network: Network, graph: Graph, fields: Mapping[str, LayerField]) -> list[Formula]:
    """One for the last map and one for each selected layer, if the path to it consists of windows only."""
    targets = dict.fromkeys([*(graph.stages[s] for s in network.stages if s in graph.stages), graph.outputs[0]])
    formulas = []
    for target in targets:
        path = widest_path(fields, target)
        windows = tuple((name, step) for name, step in path if isinstance(step, Window))
        if len(windows) == len(path) and not fields[target].layer.edges[0].whole:
            steps = [window for _, window in windows]
            formulas.append(Formula(target, windows, through(steps), closed_form(steps), growth(steps)))
    return formulas


def _measure(analysed: AnalysedNetwork, at_size: LayerField, size: tuple[int, int]) -> list[MeasuredCell]:
    rows, cols = at_size.layer.size
    row, col = at_size.centre
    cells: dict[str, Cell] = {CENTRE: (row, col)}
    if row + 1 < rows and col + 1 < cols:
        cells[NEIGHBOUR] = (row + 1, col + 1)
    cells |= {EDGE: (row, 0), "first": (0, 0), "last": (rows - 1, cols - 1)}
    theory = [at_size.box(*cell) for cell in cells.values()]
    measured = exact_support(analysed, size, list(cells.values()), expected=theory)
    return [MeasuredCell(*found) for found in zip(cells, cells.values(), theory, measured, strict=True)]


def _effective(
    network: Network,
    analysed: AnalysedNetwork,
    at_size: LayerField,
    images: Sequence[np.ndarray],
    size: tuple[int, int],
    *,
    rng: np.random.Generator,
) -> tuple[dict[str, EffectiveField], str]:
    row, col = at_size.centre
    cells = {CENTRE: (row, col), EDGE: (row, 0)}
    prepared = _prepared(images, size, normalised=network.normalised)
    try:
        found = effective_fields(analysed, prepared, list(cells.values()), rng=rng, draws=SIGN_DRAWS)
    except ModelError as error:
        return {}, str(error)
    return dict(zip(cells, found, strict=True)), ""


def _prepared(images: Sequence[np.ndarray], size: tuple[int, int], *, normalised: bool) -> np.ndarray:
    """The middle of each image as the network takes it: float32 (b, 3, h, w)."""
    top, left = (images[0].shape[0] - size[0]) // 2, (images[0].shape[1] - size[1]) // 2
    cut = np.stack([image[top : top + size[0], left : left + size[1]] for image in images])
    scaled = cut.astype(np.float32) / 255.0
    mean, std = (np.array(values, np.float32) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return np.ascontiguousarray(((scaled - mean) / std if normalised else scaled).transpose(0, 3, 1, 2))


def _cut(box: Box, size: tuple[int, int]) -> bool:
    return box.top == 0 or box.left == 0 or box.bottom == size[0] - 1 or box.right == size[1] - 1


def as_report(findings: Findings) -> dict[str, Any]:
    """The findings in JSON's types: pairs are (h, w), lengths pixels of the network's input; boxes include borders."""
    found, network = findings.found, findings.network
    return {
        "name": network.name,
        "module": type(network.module).__name__,
        "weights": network.weights,
        "output": findings.output,
        "layers": [field.row() for field in findings.fields.values()],
        "selected": {name: findings.stages[name] for name in network.stages if name in findings.stages},
        "field": [found.h.size, found.w.size],
        "stride": [found.h.jump, found.w.jump],
        "offset": [found.h.offset, found.w.offset],
        "map": list(found.layer.size),
        "whole_image_because": found.whole_image_because or None,
        "formulas": [_formula(each) for each in findings.formulas],
        "support": _support(findings),
        "effective": _gradients(findings),
        "agrees": findings.agrees,
    }


def _formula(formula: Formula) -> dict[str, Any]:
    steps = [window for _, window in formula.windows]
    sizes = [through(steps[: at + 1]) for at in range(len(steps))]
    return {
        "layer": formula.layer,
        "steps": [
            {
                "layer": name,
                "kernel": window.kernel,
                "stride": window.stride,
                "padding": [window.padding, window.after],
                "dilation": window.dilation,
                "adds": added,
                "field": after.size,
                "jump": after.jump,
                "offset": after.offset,
            }
            for (name, window), added, after in zip(formula.windows, formula.adds, sizes, strict=True)
        ],
        "recursion": _three(formula.recursion),
        "closed_form": _three(formula.closed),
    }


def _three(field: Field) -> dict[str, float]:
    return {"field": field.size, "stride": field.jump, "offset": field.offset}


def _support(findings: Findings) -> dict[str, Any]:
    centre = next(each.measured for each in findings.cells if each.position == CENTRE)
    whole = not _cut(centre, findings.measured_size)
    return {
        "image": list(findings.measured_size),
        "field": [centre.bottom - centre.top + 1, centre.right - centre.left + 1],
        "cut_by_the_border": not whole,
        "stride": findings.measured_stride,
        "cells": [
            {
                "position": each.position,
                "cell": list(each.cell),
                "theory": _sides(each.theory),
                "measured": _sides(each.measured),
                "agrees": each.theory == each.measured,
            }
            for each in findings.cells
        ],
    }


def _sides(box: Box) -> list[int]:
    return [box.top, box.left, box.bottom, box.right]


def _gradients(findings: Findings) -> dict[str, Any]:
    cells = [
        {
            "position": position,
            "cell": list(field.cell),
            "sides": {f"{share:g}": field.side(share) for share in SHARES},
            "areas": {f"{share:g}": field.area(share) for share in SHARES},
            "centre_of_mass": [round(at, 2) for at in field.centre],
            "gaussian": [
                {"sigma": round(bell.sigma, 3), "r_squared": round(bell.explained, 4)} for bell in field.gaussian()
            ],
        }
        for position, field in findings.effective.items()
    ]
    images = next((field.images for field in findings.effective.values()), 0)
    return {"images": images, "cells": cells, "unavailable": findings.no_gradient_because or None}
