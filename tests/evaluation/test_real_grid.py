"""On real MVTec AD grid, the two README commands reach the figures that the README quotes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest


@pytest.mark.ci
def test_patchcore_on_grid_reaches_its_figures(real_grid_evaluation: Path) -> None:
    manifest = json.loads((real_grid_evaluation.parent / "bundle" / "manifest.json").read_text("utf-8"))
    assert manifest["training"]["memory_bank"] == [2703, 152]
    metrics = json.loads((real_grid_evaluation / "metrics.json").read_text("utf-8"))
    assert metrics["counts"]["test"] == 78
    assert metrics["counts"]["masks"] == 57
    assert metrics["image"]["auroc"] >= 0.980
    assert metrics["pixel"]["auroc"] >= 0.970
    low, high = metrics["decision"]["false_alarm_interval"]
    assert low <= metrics["decision"]["stated_false_alarm_rate"] <= high
    classification = metrics["classification"]
    assert classification["leave_one_out"]["accuracy"] >= 0.90
    assert classification["shots"]["5"]["accuracy_mean"] >= 0.82
    assert classification["open_set"]["auroc_mean"] >= 0.80
