"""The tables of docs/reliability.md."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from reliability.outcomes import Record

CHECK_HEADS = ("command", "result", "figures", "time", "date and revision")
MODEL_HEADS = ("model", "outcome", "message", "time", "date and revision")


def tables(records: Mapping[str, Record]) -> str:
    """One table of checks and one of models, each where there is something in it."""
    checks = {name: record for name, record in records.items() if not name.startswith("model:")}
    models = {name: record for name, record in records.items() if name.startswith("model:")}
    parts = []
    if checks:
        parts.append(table(CHECK_HEADS, (check_row(name, record) for name, record in checks.items())))
    if models:
        parts.append(table(MODEL_HEADS, (model_row(name, record) for name, record in models.items())))
    return "\n\n".join(parts)


def check_row(name: str, record: Record) -> Sequence[str]:
    """Cells of one check."""
    figures = "; ".join(f"{figure}: {value}" for figure, value in record.outcome.figures.items())
    result = "passed" if not record.outcome.problems else f"failed: {record.outcome.problems[0].splitlines()[-1]}"
    command = f"`scripts/long_checks {name}={record.count}`"
    return command, result.replace("|", "/"), figures, duration(record.seconds), record.finished


def model_row(name: str, record: Record) -> Sequence[str]:
    """Cells of one model."""
    figures = record.outcome.figures
    outcome = str(figures.get("outcome", "failed"))
    return name.partition(":")[2], outcome, str(figures.get("message", "")), duration(record.seconds), record.finished


def duration(seconds: float) -> str:
    """Seconds, or minutes from two on."""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A markdown table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
