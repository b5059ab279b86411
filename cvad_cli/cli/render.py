"""Records as a person reads them (rich tables) and as a program does (JSON-ready dictionaries)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cvad_cli.records import BenchSummary, DemoSummary, EvaluationSummary, FieldSummary, TrainSummary

if TYPE_CHECKING:
    from rich.table import Table

    from cvad_cli.assembly.bench_tables import TextTable
    from cvad_cli.tasks.distill_teacher import DistillSummary
    from cvad_cli.tasks.predict import PredictSummary


def as_json(record: object) -> Any:
    """The record in JSON's own types. An evaluation is its metrics.json, an analysis its file too, to the letter."""
    if isinstance(record, EvaluationSummary):
        return dict(record.metrics)
    if isinstance(record, (BenchSummary, FieldSummary)):
        return dict(record.report)
    if isinstance(record, DemoSummary):
        return {"folder": str(record.folder), "weights": record.weights, "categories": dict(record.metrics)}
    return _plain(record)


def show_training(summary: TrainSummary) -> None:
    """What was trained, on how much, and what its threshold promises."""
    calibration = summary.calibration
    table = _table(f"{summary.name}: {summary.model} trained in {summary.seconds:.1f} s")
    table.add_row("images", f"{summary.images}" + (f" ({len(summary.skipped)} skipped)" if summary.skipped else ""))
    table.add_row("weights", summary.weights)
    for name, value in summary.details.items():
        if value is not None:
            table.add_row(name.replace("_", " "), _figure(value))
    table.add_row("threshold", f"{calibration.threshold:.4g}, from {calibration.images} held-out good images")
    table.add_row("stated false-alarm rate", f"{calibration.stated_rate:.2%} ({calibration.method.replace('_', '-')})")
    table.add_row("bundle", str(summary.bundle))
    _print(table)


def show_evaluation(summary: EvaluationSummary) -> None:
    """The figures that people quote, each with how it was obtained, and a row per defect type."""
    metrics = summary.metrics
    counts, decision = metrics["counts"], metrics["decision"]
    name = metrics["provenance"]["name"]
    table = _table(f"{name}: {counts['test']} test images ({counts['good']} good, {counts['defective']} defective)")
    table.add_row("image AUROC", _with_interval(metrics["image"]["auroc"], metrics["image"]["auroc_interval"]))
    table.add_row("image average precision", _figure(metrics["image"]["average_precision"]))
    table.add_row("image F1-max", _figure(metrics["image"]["f1_max"]))
    table.add_row("pixel AUROC", _figure(metrics["pixel"]["auroc"]))
    table.add_row("pixel average precision", _figure(metrics["pixel"]["average_precision"]))
    table.add_row(f"AUPRO (to {metrics['pixel']['aupro_fpr_limit']:g} FPR)", _figure(metrics["pixel"]["aupro"]))
    table.add_section()
    table.add_row("threshold", _figure(decision["threshold"]))
    table.add_row("precision", _figure(decision["precision"]))
    table.add_row("recall", _figure(decision["recall"]))
    rate = _with_interval(decision["false_alarm_rate"], decision["false_alarm_interval"])
    table.add_row("false-alarm rate", f"{rate}; stated {decision['stated_false_alarm_rate']:.4f}")
    _print(table, _types_table(metrics))
    if "classification" in metrics:
        _print(_naming_table(metrics["classification"]))
    for what, why in {**metrics["unavailable"], **metrics.get("classification", {}).get("unavailable", {})}.items():
        _print(f"{what}: {why}")
    page = "" if summary.report is None else "report.html, "
    _print(f"{page}metrics, curves and {summary.pictures} pictures in {summary.folder}")


def show_demo(summary: DemoSummary) -> None:
    """One row a run, and where to look."""
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
        table.add_row(name, metrics["provenance"]["model"], *(_figure(value) for value in figures))
    _print(table)
    _print(f"Weights: {summary.weights}")
    _print(f"Look at {summary.folder}: the images in data/, the report and the figures in <run>/evaluation/.")


def show_bench(summary: BenchSummary) -> None:
    """Every table of bench.md, and where it is."""
    from cvad_cli.assembly.bench_tables import tables_of

    show_tables(tables_of(summary.report), summary.folder)


def show_tables(tables: Iterable[TextTable], folder: Path) -> None:
    """Tables of measurements, and the folder that holds them."""
    from rich.table import Table

    for text in tables:
        table = Table(title=text.title, title_justify="left", show_header=any(text.headings))
        for index, heading in enumerate(text.headings):
            table.add_column(heading, justify="right" if index else "left", no_wrap=not index)
        for row in text.rows:
            table.add_row(*row)
        _print(table)
    _print(f"tables, figures and charts in {folder}")


def show_distillation(summary: DistillSummary) -> None:
    """What the teacher learnt from, and how well."""
    table = _table(f"{summary.output.name}: PDN {summary.size} distilled in {summary.seconds:.0f} s")
    table.add_row("backbones", ", ".join(summary.sources))
    table.add_row("channels", str(summary.channels))
    table.add_row("pictures", ", ".join(f"{count} {name}" for name, count in summary.images.items()))
    resumed = f", resumed at {summary.resumed_from}" if summary.resumed_from else ""
    table.add_row("steps", f"{summary.steps}{resumed}")
    table.add_row("held-out loss", f"{summary.loss:.4f} (1 = always the mean)")
    table.add_row("teacher", str(summary.output))
    _print(table)


def show_prediction(summary: PredictSummary) -> None:
    """How many, how fast, and where the time of a picture goes."""
    from rich.table import Table

    share = f" ({summary.rejected / summary.images:.1%})" if summary.images else ""
    unreadable = f", {summary.unreadable} unreadable" if summary.unreadable else ""
    _print(
        f"{summary.name}: {summary.images} pictures in {summary.seconds:.1f} s, {summary.images_per_second:.1f} a "
        f"second; {summary.rejected} rejected{share}{unreadable}"
    )
    if summary.images:
        table = Table(title="latency of a picture, ms", title_justify="left")
        for heading in ("", "mean", "p50", "p95", "p99"):
            table.add_column(heading, justify="right" if heading else "left")
        for name, spread in (*summary.stages.items(), ("whole", summary.latency)):
            figures = (spread.mean_ms, spread.p50_ms, spread.p95_ms, spread.p99_ms)
            table.add_row(name, *(f"{value:.1f}" for value in figures))
        _print(table)
        _print(f"the stages' means explain {summary.explained:.1%} of the whole")
    if summary.results is not None:
        _print(f"results: {summary.results}")


def show_lines(lines: Sequence[str]) -> None:
    """Text as it is, at any width."""
    _print(*lines)


def _types_table(metrics: Any) -> Table:
    from rich.table import Table

    table = Table(title="by defect type", title_justify="left")
    for heading in ("type", "images", "AUROC against good", "recall at the threshold"):
        table.add_column(heading, justify="left" if heading == "type" else "right")
    for name, row in metrics["defect_types"].items():
        table.add_row(name, str(row["images"]), _figure(row["auroc"]), _figure(row["recall"]))
    return table


def _naming_table(found: Any) -> Table:
    """How well types are named; what could not be measured is a dash here and a line below."""
    table = _table(f"naming {found['pictures']} pictures of {len(found['types'])} defect types")
    one, unknown = found["leave_one_out"] or {}, found["open_set"] or {}
    table.add_row(
        "each after all others", f"accuracy {_figure(one.get('accuracy'))}, F1 {_figure(one.get('macro_f1'))}"
    )
    for shots, row in found["shots"].items():
        spread = "-" if row is None else f"accuracy {row['accuracy_mean']:.4f} ± {row['accuracy_std']:.4f}"
        table.add_row(f"from {shots} a type", spread)
    table.add_row("unknown against known", f"AUROC {_figure(unknown.get('auroc_mean'))}")
    return table


def _table(title: str) -> Table:
    from rich.table import Table

    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column()
    return table


def _with_interval(value: float | None, interval: list[float] | None) -> str:
    if value is None or interval is None:
        return _figure(value)
    return f"{value:.4f} (95 %: {interval[0]:.4f} to {interval[1]:.4f})"


def _figure(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4f}"
    if isinstance(value, list):
        return " x ".join(str(part) for part in value)
    return str(value)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return str(value) if isinstance(value, Path) else value


def _print(*parts: Any) -> None:
    from rich.console import Console

    console = Console(highlight=False, markup=False, soft_wrap=True)
    for part in parts:
        console.print(part)
