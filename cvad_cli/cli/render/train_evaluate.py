"""Prints the results of `cvad train` and `cvad evaluate` for people."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cvad_cli.cli.render.tables import figure_text, print_parts, titled_table
from cvad_cli.records import EvaluationSummary, TrainSummary

if TYPE_CHECKING:
    from rich.table import Table


def show_training(summary: TrainSummary) -> None:
    """Print the model, its training data, and the false-alarm rate of its threshold."""
    calibration = summary.calibration
    table = titled_table(f"{summary.name}: {summary.model} trained in {summary.seconds:.1f} s")
    table.add_row("images", f"{summary.images}" + (f" ({len(summary.skipped)} skipped)" if summary.skipped else ""))
    table.add_row("weights", summary.weights)
    for name, value in summary.details.items():
        if value is not None:
            table.add_row(name.replace("_", " "), figure_text(value))
    table.add_row("threshold", f"{calibration.threshold:.4g}, from {calibration.images} held-out good images")
    bound = calibration.rate_bound
    limit = "" if bound in (None, calibration.stated_rate) else f", proven for the folds together: {bound:.2%} at most"
    rate = f"{calibration.stated_rate:.2%} ({calibration.method.replace('_', '-')}{limit})"
    table.add_row(f"{calibration.rate_kind} false-alarm rate", rate)
    table.add_row("bundle", str(summary.bundle))
    print_parts(table)


def show_evaluation(summary: EvaluationSummary) -> None:
    """Print the main figures, and one row per defect type."""
    metrics = summary.metrics
    counts, decision = metrics["counts"], metrics["decision"]
    name = metrics["provenance"]["name"]
    table = titled_table(
        f"{name}: {counts['test']} test images ({counts['good']} good, {counts['defective']} defective)"
    )
    table.add_row("image AUROC", _with_interval(metrics["image"]["auroc"], metrics["image"]["auroc_interval"]))
    table.add_row("image average precision", figure_text(metrics["image"]["average_precision"]))
    table.add_row("image F1-max", figure_text(metrics["image"]["f1_max"]))
    table.add_row("pixel AUROC", figure_text(metrics["pixel"]["auroc"]))
    table.add_row("pixel average precision", figure_text(metrics["pixel"]["average_precision"]))
    table.add_row(f"AUPRO (to {metrics['pixel']['aupro_fpr_limit']:g} FPR)", figure_text(metrics["pixel"]["aupro"]))
    table.add_section()
    table.add_row("threshold", figure_text(decision["threshold"]))
    table.add_row("precision", figure_text(decision["precision"]))
    table.add_row("recall", figure_text(decision["recall"]))
    rate = _with_interval(decision["false_alarm_rate"], decision["false_alarm_interval"])
    table.add_row(
        "false-alarm rate", f"{rate}; {decision['stated_rate_kind']} {decision['stated_false_alarm_rate']:.4f}"
    )
    print_parts(table, _types_table(metrics))
    if "classification" in metrics:
        print_parts(_classification_table(metrics["classification"]))
    for what, why in {**metrics["unavailable"], **metrics.get("classification", {}).get("unavailable", {})}.items():
        print_parts(f"{what}: {why}")
    page = "" if summary.report is None else "report.html, "
    print_parts(f"{page}metrics, curves and {summary.images} images in {summary.folder}")


def _types_table(metrics: Any) -> Table:
    from rich.table import Table

    table = Table(title="by defect type", title_justify="left")
    for heading in ("type", "images", "AUROC against good", "recall at the threshold"):
        table.add_column(heading, justify="left" if heading == "type" else "right")
    for name, row in metrics["defect_types"].items():
        table.add_row(name, str(row["images"]), figure_text(row["auroc"]), figure_text(row["recall"]))
    return table


def _classification_table(found: Any) -> Table:
    """Figures of the classification; a dash stands for a figure that could not be measured."""
    table = titled_table(f"classification of {found['images']} images of {len(found['types'])} defect types")
    one, unknown = found["leave_one_out"] or {}, found["open_set"] or {}
    table.add_row(
        "each from all others", f"accuracy {figure_text(one.get('accuracy'))}, F1 {figure_text(one.get('macro_f1'))}"
    )
    for shots, row in found["shots"].items():
        accuracy = "-" if row is None else f"accuracy {row['accuracy_mean']:.4f} ± {row['accuracy_std']:.4f}"
        table.add_row(f"from {shots} per type", accuracy)
    table.add_row("unknown against known", f"AUROC {figure_text(unknown.get('auroc_mean'))}")
    return table


def _with_interval(value: float | None, interval: list[float] | None) -> str:
    if value is None or interval is None:
        return figure_text(value)
    return f"{value:.4f} (95 %: {interval[0]:.4f} to {interval[1]:.4f})"
