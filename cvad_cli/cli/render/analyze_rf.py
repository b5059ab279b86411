"""The findings of `cvad analyze-rf` on the terminal: layer by layer, methods side by side, and in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from cvad_cli.assembly.receptive_field.advice import sentences
from cvad_cli.records import FieldSummary

if TYPE_CHECKING:
    from rich.table import Table

MANY_LAYERS: Final = 24
"""For longer networks the table shows only the selected layers and those after them; the report has every layer."""


def show_fields(summary: FieldSummary) -> None:
    """Print a table of layers per network, the methods side by side, the advice, and the folder with the rest."""
    from rich.console import Console

    report = summary.report
    console = Console(highlight=False, markup=False, soft_wrap=True)
    for network, names in _architectures(report):
        console.print(_layers(network, names))
    console.print("k / s / p / d: kernel, stride, padding, dilation. *: sees the whole image.\n")
    console.print(_table(report))
    for network in report["networks"]:
        if network["whole_image_because"]:
            console.print(f"{network['name']}: every cell depends on the whole image: {network['whole_image_because']}")
    for network in report["networks"]:
        console.print(f"{network['name']}: weights for the effective field: {network['weights']}")
    console.print(f"Effective fields are measured on {report['images']}.\n")
    for sentence in sentences(report["advice"]):
        console.print(f"- {sentence}")
    if not summary.agrees:
        console.print("\nTheory and measurement DISAGREE: see the cells marked 'no' in receptive_field.md.")
    console.print(f"\nderivation, tables and {len(report['figures'])} figures in {summary.folder}")


def _architectures(report: Mapping[str, Any]) -> list[tuple[Mapping[str, Any], str]]:
    """Each distinct network with the names of all networks that are built like it."""
    found: list[tuple[Mapping[str, Any], str]] = []
    for network in report["networks"]:
        like = next((at for at, (other, _) in enumerate(found) if other["layers"] == network["layers"]), None)
        if like is None:
            found.append((network, network["name"]))
        else:
            found[like] = found[like][0], f"{found[like][1]} and {network['name']}"
    return found


def _layers(network: Mapping[str, Any], names: str) -> Table:
    from rich.table import Table

    table = Table(title=f"{names}, layer by layer", title_justify="left")
    table.add_column("layer", overflow="fold")
    for heading in ("k / s / p / d", "jump", "field", "centre 0", "map"):
        table.add_column(heading, justify="right", no_wrap=True)
    for layer in _worth_showing(network):
        padding = [f"{a:g}" if a == b else f"{a}+{b}" for a, b in layer["padding"] or []]
        windows = [layer["kernel"], layer["stride"], padding, layer["dilation"]]
        window = " / ".join(_pair(each) for each in windows) if layer["kernel"] else "-"
        star = "*" if layer["whole_image_because"] else ""
        columns = _pair(layer["jump"]), _pair(layer["field"]) + star, _pair(layer["offset"]), _pair(layer["map"])
        table.add_row(layer["name"], window, *columns)
    return table


def _worth_showing(network: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """All layers of a short network; of a long one, the first, the selected ones and all after the last of these."""
    layers = network["layers"][1:]
    if len(layers) <= MANY_LAYERS:
        return list(layers)
    names = [layer["name"] for layer in layers]
    wanted = set(network["selected"].values()) | {names[0], network["output"]}
    last = max((names.index(name) for name in network["selected"].values()), default=len(names) - 1)
    return [layer for at, layer in enumerate(layers) if layer["name"] in wanted or at > last]


def _table(report: Mapping[str, Any]) -> Table:
    from rich.table import Table

    title = f"{report['name']}: receptive fields in pixels of the network's input, {_pair(report['image_size'])} px"
    table = Table(title=title, title_justify="left")
    headings = ("network", "field", "stride", "cells", "measured", "agree", "50 / 90 / 95 % of energy")
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "network" else "right")
    for network in report["networks"]:
        support, effective = network["support"], network["effective"]["cells"]
        cut = ", to the borders" if support["cut_by_the_border"] else ""
        squares = " / ".join(str(side) for side in effective[0]["sides"].values()) if effective else "-"
        table.add_row(
            network["name"],
            _pair(network["field"]),
            _pair(network["stride"]),
            _pair(network["map"]),
            f"{_pair(support['field'])}{cut}",
            "yes" if network["agrees"] else "NO",
            squares,
        )
        rows = {row["name"]: row for row in network["layers"]}
        for name, layer in network["selected"].items():
            found = rows[layer]
            table.add_row(
                f"  {name} alone", _pair(found["field"]), _pair(found["jump"]), _pair(found["map"]), "", "", ""
            )
    return table


def _pair(sides: Sequence[Any] | None) -> str:
    """Rows and columns, or one number if they are equal; '-' if there is none."""
    if not sides:
        return "-"
    first, second = (side if isinstance(side, str) else f"{side:.4g}" for side in sides)
    return first if first == second else f"{first} x {second}"
