"""Prints the result of `cvad bench` for people."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from cvad_cli.cli.render.tables import print_parts
from cvad_cli.records import BenchSummary

if TYPE_CHECKING:
    from cvad_cli.assembly.benchmark.tables import TextTable


def show_bench(summary: BenchSummary) -> None:
    """Print the tables of bench.md, and the folder."""
    from cvad_cli.assembly.benchmark.tables import tables_of

    show_tables(tables_of(summary.report), summary.folder)


def show_tables(tables: Iterable[TextTable], folder: Path) -> None:
    """Print tables of measurements, and their folder."""
    from rich.table import Table

    for text in tables:
        table = Table(title=text.title, title_justify="left", show_header=any(text.headings))
        for index, heading in enumerate(text.headings):
            table.add_column(heading, justify="right" if index else "left", no_wrap=not index)
        for row in text.rows:
            table.add_row(*row)
        print_parts(table)
    print_parts(f"tables, figures and charts in {folder}")
