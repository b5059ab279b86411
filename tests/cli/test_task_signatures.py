"""Every task is `(settings, request, reporter) -> record`."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from pathlib import Path
from typing import get_type_hints

import pytest

from cvad_cli import tasks

TASKS = {
    "analyze_rf": ["analyze_rf"],
    "batch": ["run_batch"],
    "bench": ["bench"],
    "classify": ["classify"],
    "demo": ["demo"],
    "distill_teacher": ["distill_teacher"],
    "evaluate": ["evaluate"],
    "index": ["index_defects", "index_listing", "delete_type", "export_index_to", "import_index_from"],
    "predict": ["predict"],
    "train": ["train"],
}


def test_every_task_module_is_listed_here() -> None:
    modules = {path.stem for path in Path(tasks.__file__).parent.glob("*.py")} - {"__init__"}
    assert modules == TASKS.keys()


@pytest.mark.parametrize(("module", "name"), [(module, name) for module, names in TASKS.items() for name in names])
def test_a_task_takes_settings_request_and_reporter_and_returns_a_frozen_record(module: str, name: str) -> None:
    task = getattr(importlib.import_module(f"cvad_cli.tasks.{module}"), name)
    parameters = inspect.signature(task).parameters
    assert list(parameters) == ["settings", "request", "reporter"]
    assert all(parameter.kind is parameter.POSITIONAL_OR_KEYWORD for parameter in parameters.values())
    types = get_type_hints(inspect.unwrap(task))
    for kind in (types["request"], types["return"]):
        assert dataclasses.is_dataclass(kind), kind
        assert kind.__dataclass_params__.frozen, kind
    assert all(field.kw_only for field in dataclasses.fields(types["request"]))
