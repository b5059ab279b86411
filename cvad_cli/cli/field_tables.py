"""What `cvad analyze-rf` found, as a person reads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cvad_cli.assembly.field_advice import sentences
from cvad_cli.records import FieldSummary

if TYPE_CHECKING:
    from rich.table import Table


def show_fields(summary: FieldSummary) -> None:
    """A row a network, what that means for defects, and where the rest is."""
    from rich.console import Console

    report = summary.report
    console = Console(highlight=False, markup=False, soft_wrap=True)
    console.print(_table(report))
    for network in report["networks"]:
        if network["whole_image_because"]:
            console.print(
                f"{network['name']}: every cell depends on the whole picture: {network['whole_image_because']}"
            )
    for network in report["networks"]:
        console.print(f"{network['name']}: weights for the effective field: {network['weights']}")
    console.print(f"Effective fields are measured on {report['pictures']}.\n")
    for sentence in sentences(report["advice"]):
        console.print(f"- {sentence}")
    if not summary.agrees:
        console.print("\nTheory and measurement DISAGREE: see the cells marked 'no' in receptive_field.md.")
    console.print(f"\nderivation, tables and {len(report['figures'])} figures in {summary.folder}")


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


def _pair(sides: Sequence[float]) -> str:
    """Rows and columns, or one number for both."""
    first, second = (f"{side:.4g}" for side in sides)
    return first if first == second else f"{first} x {second}"
