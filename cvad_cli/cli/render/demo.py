"""Prints the result of `cvad demo` for people."""

from __future__ import annotations

from cvad_cli.cli.render.tables import figure_text, print_parts
from cvad_cli.records import DemoSummary


def show_demo(summary: DemoSummary) -> None:
    """Print one row per run, and the folder."""
    from rich.table import Table

    table = Table(title="cvad demo: PatchCore and EfficientAD on generated images", title_justify="left")
    for heading in ("run", "model"):
        table.add_column(heading, no_wrap=True)
    for heading in ("image AUROC", "pixel AUROC", "AUPRO", "recall", "false alarms"):
        table.add_column(heading, justify="right")
    for name, metrics in summary.metrics.items():
        pixel, decision = metrics["pixel"], metrics["decision"]
        figures = (
            metrics["image"]["auroc"],
            pixel["auroc"],
            pixel["aupro"],
            decision["recall"],
            decision["false_alarm_rate"],
        )
        table.add_row(name, metrics["provenance"]["model"], *(figure_text(value) for value in figures))
    print_parts(table)
    print_parts(f"Weights: {summary.weights}")
    print_parts(f"See {summary.folder}: the images are in data/, the report and the figures in <run>/evaluation/.")
