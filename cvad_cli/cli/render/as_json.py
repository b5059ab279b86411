"""Records for programs: JSON-ready dictionaries."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from cvad_cli.records import BenchSummary, DemoSummary, EvaluationSummary, FieldSummary


def as_json(record: object) -> Any:
    """The record in JSON types. An evaluation or an analysis is exactly the content of its JSON file."""
    if isinstance(record, EvaluationSummary):
        return dict(record.metrics)
    if isinstance(record, (BenchSummary, FieldSummary)):
        return dict(record.report)
    if isinstance(record, DemoSummary):
        return {"folder": str(record.folder), "weights": record.weights, "categories": dict(record.metrics)}
    return _plain(record)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return str(value) if isinstance(value, Path) else value
