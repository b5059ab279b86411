"""scripts/regression.sh, the recipe for CI: gates, an accepted baseline, and a worse detector that fails against it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from cvad_cli.adapters.sample_data import write_sample_dataset

SCRIPT = Path(__file__).parents[2] / "scripts" / "regression.sh"

CONFIG = """
name: {name}
seed: 3
device: cpu
data: {{root: {root}, category: leather, image_size: 128}}
model: {{backbone: pdn_small, coreset_ratio: 0.05, num_neighbors: 3}}
calibration: {{false_alarm_rate: 0.1, folds: 2}}
evaluation: {{images: 0}}
"""
GATES = "gates: {counts.test: {min: 30}, image.auroc: {tolerance: 0}}"


def regression(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "CVAD": f"{sys.executable} -m cvad_cli", "PYTHONPATH": str(SCRIPT.parents[1])}
    environment.pop("GITHUB_STEP_SUMMARY", None)
    command = ["bash", SCRIPT, *map(str, arguments)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    write_sample_dataset(tmp_path / "data", "leather", size=128, train=12, test_good=10, per_defect=4, seed=5)
    (tmp_path / "line.yaml").write_text(CONFIG.format(name="line", root=tmp_path / "data"), encoding="utf-8")
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "gates.yaml").write_text(GATES, encoding="utf-8")
    return tmp_path


@pytest.mark.ci
def test_the_recipe_trains_judges_accepts_and_then_catches_a_worse_detector(project: Path) -> None:
    first = regression(project, "line.yaml", "--accept")
    assert first.returncode == 0, first.stderr
    assert "no baseline at baseline yet: gates only" in first.stdout
    assert "## cvad evaluate: ✅ 1 of 1 runs passed" in first.stdout
    kept = project / "baseline" / "line" / "evaluation"
    assert sorted(path.name for path in kept.iterdir()) == ["metrics.json", "per_image.csv"]
    assert json.loads((kept / "metrics.json").read_text("utf-8"))["image"]["auroc"] > 0.9

    # A network that has learnt nothing, and three patch features in the memory bank: the next commit broke something.
    broken = ("--set", "model.weights=random", "--set", "model.coreset_ratio=0.0003")
    worse = regression(project, "line.yaml", "--accept", *broken)
    assert worse.returncode == 1, worse.stdout + worse.stderr
    assert "gate failed: line: image.auroc against the baseline" in worse.stderr
    root = ET.parse(project / "runs" / "regression" / "junit.xml").getroot()
    assert root.get("failures") == "1"
    assert json.loads((kept / "metrics.json").read_text("utf-8"))["image"]["auroc"] > 0.9  # not accepted


def test_usage_errors_are_reported_and_start_nothing(tmp_path: Path) -> None:
    for arguments, message in (
        ((), "usage:"),
        (("--nope",), "no option --nope"),
        (("--gates",), "--gates wants a value"),
    ):
        result = regression(tmp_path, *arguments)
        assert result.returncode == 2
        assert message in result.stderr
    assert list(tmp_path.iterdir()) == []
