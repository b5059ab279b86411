"""Small data that the tests generate, and one trained run that they share."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:  # before torch is imported: processes that test side by side share the cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import axes  # noqa: F401  (first: it checks all that is imported from cvad_cli.core)
import pytest
from typer.testing import CliRunner, Result

from cvad_cli.adapters.sample_data import write_sample_dataset
from cvad_cli.cli.app import app

SMALL_RUN = """
name: small
seed: 3
device: cpu
data: {{root: {root}, category: grid, image_size: 64}}
model: {{backbone: resnet10t, layers: [layer1, layer2], weights: random, coreset_ratio: 0.05, num_neighbors: 3}}
calibration: {{false_alarm_rate: 0.1, folds: 3}}
evaluation: {{images: 4}}
output: {{root: {output}}}
"""

REPOSITORY = Path(__file__).parents[1]
DATA = Path(os.environ.get("CVAD_DATA_ROOT", REPOSITORY.parent / "shared" / "data"))
WEIGHTS = Path(os.environ.get("CVAD_WEIGHTS_DIR", REPOSITORY.parent / "shared" / "weights"))

Cvad = Callable[..., Result]


@pytest.fixture(scope="session")
def cvad() -> Cvad:
    """Run the command line in this process: `cvad("train", "--config", path)`."""

    def run(*arguments: object) -> Result:
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    return run


@pytest.fixture(scope="session")
def sample_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Root of a small MVTec-layout data set of the generated grid. Read only: copy it to damage it."""
    root = tmp_path_factory.mktemp("data")
    write_sample_dataset(root, "grid", size=128, train=12, test_good=4, per_defect=2, seed=11)
    return root


@pytest.fixture
def small_config(tmp_path: Path, sample_data: Path) -> Path:
    """A config that trains in about a second, with its results below `tmp_path`."""
    path = tmp_path / "small.yaml"
    path.write_text(SMALL_RUN.format(root=sample_data, output=tmp_path / "runs"), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, sample_data: Path, cvad: Cvad) -> Path:
    """Config of a run that is trained and evaluated. Read only: copy its bundle to damage it."""
    folder = tmp_path_factory.mktemp("trained")
    path = folder / "small.yaml"
    path.write_text(SMALL_RUN.format(root=sample_data, output=folder / "runs"), encoding="utf-8")
    for command in ("train", "evaluate"):
        result = cvad(command, "--config", path, "--quiet")
        assert result.exit_code == 0, result.output
    return path


@pytest.fixture
def metrics_of() -> Callable[[Path], dict]:
    """metrics.json of a run, by its config."""

    def read(config: Path) -> dict:
        return json.loads((config.parent / "runs" / "small" / "evaluation" / "metrics.json").read_text("utf-8"))

    return read


@pytest.fixture(scope="session")
def real_grid_evaluation(tmp_path_factory: pytest.TempPathFactory, cvad: Cvad) -> Path:
    """Folder of PatchCore's evaluation on real MVTec AD grid, by the two commands of the README. Read only."""
    if not ((DATA / "mvtec_ad" / "grid").is_dir() and WEIGHTS.is_dir()):
        pytest.skip("MVTec AD grid or the backbone's weights are not here: set CVAD_DATA_ROOT and CVAD_WEIGHTS_DIR")
    root = tmp_path_factory.mktemp("real_grid")
    run = ("--config", REPOSITORY / "configs" / "patchcore_grid.yaml", "--device", "cpu", "--quiet")
    here = ("--set", f"data.root={DATA / 'mvtec_ad'}", "--set", f"output.root={root}")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("CVAD_WEIGHTS_DIR", str(WEIGHTS))
        for command in (("train",), ("evaluate", "--classification")):
            result = cvad(*command, *run, *here)
            assert result.exit_code == 0, result.output
    return root / "patchcore_grid" / "evaluation"
