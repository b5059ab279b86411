"""The report on a batch: results.csv and results.json for programs, results.md and report.html for people."""

from __future__ import annotations

import csv
import datetime as dt
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Final

import numpy as np

from cvad_cli import __version__
from cvad_cli.adapters.pages import write_page
from cvad_cli.assembly.batch.outcomes import BatchSummary, RunOutcome
from cvad_cli.assembly.batch.plan import PlannedRun
from cvad_cli.files import replacing_folder
from cvad_cli.records import EvaluationSummary


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure of each run of a batch: a table of the report and a column of the CSV."""

    path: str
    """Dotted path in metrics.json, or in the output of `cvad train --json`."""
    title: str
    note: str
    interval: str | None = None
    """Dotted path of its 95 % interval."""


EVALUATED: Final = (
    Figure("image.auroc", "Image AUROC", "Higher is better. 95 % bootstrap interval.", "image.auroc_interval"),
    Figure("pixel.auroc", "Pixel AUROC", "Higher is better."),
    Figure("pixel.aupro", "AUPRO", "Mean overlap with the defect regions at low false-positive rates."),
    Figure("decision.recall", "Recall at the threshold", "Defective parts that are rejected. Higher is better."),
    Figure(
        "decision.false_alarm_rate",
        "False alarms at the threshold",
        "Good parts that are rejected. Lower is better. 95 % Clopper-Pearson interval.",
        "decision.false_alarm_interval",
    ),
    Figure("decision.precision", "Precision at the threshold", "Rejected parts that are defective."),
    Figure("image.average_precision", "Image average precision", "Higher is better."),
    Figure("image.f1_max", "Image F1-max", "The best F1 of any threshold; test labels choose it."),
    Figure("pixel.average_precision", "Pixel average precision", "Higher is better."),
)

TRAINED: Final = (
    Figure(
        "calibration.stated_rate",
        "False-alarm rate of the threshold",
        "Of good parts: promised by split-conformal calibration, expected with cross-conformal.",
    ),
    Figure("images", "Training images", "Good parts that the model learnt from."),
    Figure("seconds", "Seconds", "Of training; none if an earlier bundle was kept."),
)

FIGURES: Final[Mapping[str, tuple[Figure, ...]]] = {"evaluate": EVALUATED, "train": TRAINED}
ABOUT: Final = ("run", "model", "category", "state", "exit_status", "seconds", "folder", "error")


def batch_folder(runs: Sequence[PlannedRun], verb: str) -> Path:
    """The folder of the report, below the output root of the first run; the same for the same runs."""
    names = "\0".join(sorted(run.settings.name for run in runs))
    digest = hashlib.sha256(names.encode()).hexdigest()[:8]
    return Path(runs[0].settings.output.root).expanduser() / f"batch-{verb}-{digest}"


def write_batch_report(summary: BatchSummary, *, executor: str) -> None:
    """Write all four files, or keep the former ones. Raises ResourceError if the folder cannot be written."""
    document = as_document(summary, executor=executor)
    with replacing_folder(summary.folder) as staged:
        with (staged / "results.csv").open("w", newline="", encoding="utf-8") as file:
            _write_rows(file, summary)
        text = json.dumps(document, indent=2, ensure_ascii=False)
        (staged / "results.json").write_text(text + "\n", encoding="utf-8")
        (staged / "results.md").write_text(as_markdown(summary), encoding="utf-8")
        write_page(
            staged / "report.html",
            "batch.html.j2",
            {"batch": document, "tables": tables(summary)},
            styles=["batch.css"],
        )


def as_document(summary: BatchSummary, *, executor: str) -> dict[str, Any]:
    """The content of results.json and of `--json`."""
    return {
        "verb": summary.verb,
        "folder": str(summary.folder),
        "seconds": summary.seconds,
        "exit_status": summary.exit_code,
        "executor": executor,
        "cvad_version": __version__,
        "created": dt.datetime.now(dt.timezone.utc).isoformat(timespec="seconds"),
        "runs": [{**_about(run), "warnings": list(run.warnings), "result": _plain_result(run)} for run in summary.runs],
    }


def figure_of(run: RunOutcome, path: str) -> Any:
    """A figure of a run by its dotted path; None if the run failed or the figure could not be measured."""
    found: Any = _plain_result(run)
    for part in path.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return None if run.state == "kept" and path == "seconds" else found


def tables(summary: BatchSummary) -> list[dict[str, Any]]:
    """One table per figure, with variants as rows and categories as columns; figures that no run has are left out."""
    categories = list(dict.fromkeys(run.category for run in summary.runs))
    variants = list(dict.fromkeys(run.variant for run in summary.runs))
    found = []
    for figure in FIGURES[summary.verb]:
        if all(figure_of(run, figure.path) is None for run in summary.runs):
            continue
        rows = []
        for variant in variants:
            mine = [run for run in summary.runs if run.variant == variant]
            cells = [
                [_cell(run, figure, summary.folder) for run in mine if run.category == name] for name in categories
            ]
            rows.append({"variant": variant, "cells": cells, "mean": _mean(cells)})
        found.append({**asdict(figure), "categories": categories, "rows": rows})
    return found


def as_markdown(summary: BatchSummary) -> str:
    """One GitHub-flavoured Markdown table per figure, and the failures."""
    lines = [f"# cvad {summary.verb}: {len(summary.runs)} runs", ""]
    for table in tables(summary):
        lines += [f"## {table['title']}", ""]
        lines.append("| " + " | ".join(["", *map(_escaped, table["categories"]), "mean"]) + " |")
        lines.append("|" + " --- |" + " ---: |" * (len(table["categories"]) + 1))
        for row in table["rows"]:
            cells = [" / ".join(_words(cell["value"]) for cell in cells) or " " for cells in row["cells"]]
            lines.append("| " + " | ".join([_escaped(row["variant"]), *cells, _words(row["mean"])]) + " |")
        lines.append("")
    failed = [run for run in summary.runs if run.state == "failed"]
    lines += [f"- **{_escaped(run.name)}** failed: {_escaped(run.error or '')}" for run in failed]
    return "\n".join(lines).rstrip() + "\n"


def _about(run: RunOutcome) -> dict[str, Any]:
    values = (run.name, run.model, run.category, run.state, run.exit_code, round(run.seconds, 3), str(run.folder))
    return dict(zip(ABOUT, (*values, run.error), strict=True))


def _plain_result(run: RunOutcome) -> Mapping[str, Any] | None:
    if run.result is None:
        return None
    if isinstance(run.result, EvaluationSummary):
        return run.result.metrics
    plain = asdict(run.result)
    plain["bundle"] = str(run.result.bundle)
    return plain


def _cell(run: RunOutcome, figure: Figure, folder: Path) -> dict[str, Any]:
    page = run.folder / "report.html"
    return {
        "run": run.name,
        "state": run.state,
        "value": figure_of(run, figure.path),
        "interval": figure_of(run, figure.interval) if figure.interval else None,
        "why": run.error or "not measured",
        "href": Path(os.path.relpath(page, folder)).as_posix() if page.is_file() else None,
    }


def _mean(cells: Iterable[Sequence[Mapping[str, Any]]]) -> float | None:
    """The mean over several categories if each has one figure; otherwise rows could not be compared."""
    values = [cell[0]["value"] if len(cell) == 1 else None for cell in cells]
    return float(np.mean(values)) if len(values) > 1 and None not in values else None  # type: ignore[arg-type]


def _write_rows(file: IO[str], summary: BatchSummary) -> None:
    figures = [figure for figure in FIGURES[summary.verb] if figure.path != "seconds"]
    writer = csv.writer(file)
    headings = [
        heading
        for figure in figures
        for heading in (figure.path, *((f"{figure.path}_low", f"{figure.path}_high") if figure.interval else ()))
    ]
    writer.writerow([*ABOUT, *headings])
    for run in summary.runs:
        row = [_blank(value) for value in _about(run).values()]
        for figure in figures:
            row.append(_blank(figure_of(run, figure.path)))
            if figure.interval:
                row += map(_blank, figure_of(run, figure.interval) or (None, None))
        writer.writerow(row)


def _blank(value: Any) -> Any:
    return "" if value is None else value


def _words(value: float | None) -> str:
    if value is None:
        return "–"
    return str(value) if isinstance(value, int) else f"{value:.4f}"


def _escaped(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
