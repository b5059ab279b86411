"""Prints the result of `cvad distill-teacher` for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cvad_cli.cli.render.tables import print_parts, titled_table

if TYPE_CHECKING:
    from cvad_cli.tasks.distill_teacher import DistillSummary


def show_distillation(summary: DistillSummary) -> None:
    """Print the sources of the teacher and its held-out loss."""
    table = titled_table(f"{summary.output.name}: PDN {summary.size} distilled in {summary.seconds:.0f} s")
    table.add_row("backbones", ", ".join(summary.sources))
    table.add_row("channels", str(summary.channels))
    table.add_row("images", ", ".join(f"{count} {name}" for name, count in summary.images.items()))
    resumed = f", resumed at {summary.resumed_from}" if summary.resumed_from else ""
    table.add_row("steps", f"{summary.steps}{resumed}")
    table.add_row("held-out loss", f"{summary.loss:.4f} (1 = no better than the mean)")
    table.add_row("teacher", str(summary.output))
    print_parts(table)
