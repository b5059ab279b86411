"""Shared parts of the tables of several commands."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table


def titled_table(title: str) -> Table:
    """A table of names and values, without column headings."""
    from rich.table import Table

    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column()
    return table


def figure_text(value: Any) -> str:
    """A figure as text: four decimals, a dash for None, a cross between the parts of a size."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4f}"
    if isinstance(value, list):
        return " x ".join(str(part) for part in value)
    return str(value)


def print_parts(*parts: Any) -> None:
    """Print text and tables on standard output, at any width."""
    from rich.console import Console

    console = Console(highlight=False, markup=False, soft_wrap=True)
    for part in parts:
        console.print(part)
