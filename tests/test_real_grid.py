"""On real MVTec AD grid, the two README commands reach the figures that the README quotes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
DATA = Path(os.environ.get("CVAD_DATA_ROOT", REPOSITORY.parent / "shared" / "data"))
WEIGHTS = Path(os.environ.get("CVAD_WEIGHTS_DIR", REPOSITORY.parent / "shared" / "weights"))

pytestmark = pytest.mark.skipif(
    not ((DATA / "mvtec_ad" / "grid").is_dir() and WEIGHTS.is_dir()),
    reason="MVTec AD grid or the backbone's weights are not here: set CVAD_DATA_ROOT and CVAD_WEIGHTS_DIR",
)


def test_patchcore_on_grid_reaches_its_figures(cvad, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CVAD_WEIGHTS_DIR", str(WEIGHTS))
    run = ("--config", REPOSITORY / "configs" / "patchcore_grid.yaml", "--device", "cpu", "--json")
    here = ("--set", f"data.root={DATA / 'mvtec_ad'}", "--set", f"output.root={tmp_path}")
    trained = cvad("train", *run, *here)
    assert trained.exit_code == 0, trained.output
    assert json.loads(trained.stdout)["details"]["memory_bank"] == [2703, 152]
    evaluated = cvad("evaluate", *run, *here, "--classification")
    assert evaluated.exit_code == 0, evaluated.output
    metrics = json.loads(evaluated.stdout)
    assert metrics["counts"]["test"] == 78
    assert metrics["counts"]["masks"] == 57
    assert metrics["image"]["auroc"] >= 0.980
    assert metrics["pixel"]["auroc"] >= 0.970
    low, high = metrics["decision"]["false_alarm_interval"]
    assert low <= metrics["decision"]["stated_false_alarm_rate"] <= high
    naming = metrics["classification"]
    assert naming["leave_one_out"]["accuracy"] >= 0.90
    assert naming["shots"]["5"]["accuracy_mean"] >= 0.82
    assert naming["open_set"]["auroc_mean"] >= 0.80
