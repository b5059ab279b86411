"""scripts/anomalib_comparison at a tiny size: what it writes and how its parts follow from each other.

No seconds are asserted.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from anomalib_comparison.command import of_bundle
from anomalib_comparison.comparison import RATIOS, ComparisonPlan, settings_to_try, together
from anomalib_comparison.exports import require_comparable
from anomalib_comparison.inferencers import TORCH_INFERENCERS, LoaderSetting
from anomalib_comparison.measurement import EXACT, OURS
from anomalib_comparison.ratios import fastest, ratio_of
from anomalib_comparison.report import compare_bundles

from cvad_cli.adapters.storage.bundles import read_bundle
from cvad_cli.assembly.serving.open_bundle import open_bundle
from cvad_cli.cli.progress import QuietReporter
from cvad_cli.config.load import load_config
from cvad_cli.errors import ConfigError

SCRIPTS = Path(__file__).parents[2] / "scripts"
LATENCY = {"count", "mean_ms", "p50_ms", "p95_ms", "p99_ms"}


@pytest.fixture
def run_of_ours(trained: Path, tmp_path: Path) -> Path:
    """A copy of the trained run, to write into."""
    shutil.copytree(trained.parent, tmp_path / "run")
    return tmp_path / "run" / "small.yaml"


def in_this_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Spares the many processes, each of which would import torch and anomalib; they have a test of their own."""
    return function(*arguments)


def without_loader_processes(target: str, workers: int) -> list[LoaderSetting]:
    return [setting for setting in settings_to_try(target, workers) if not setting.workers and setting.batch_size < 32]


@pytest.mark.ci
def test_anomalib_is_measured_on_the_same_bundle_and_ratios_follow(
    run_of_ours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    plan = ComparisonPlan(8, 2, min_seconds=0.2, call=in_this_process, settings_to_try=without_loader_processes)
    settings = load_config(run_of_ours, [f"output.root={run_of_ours.parent / 'runs'}", "device=cpu"])
    folder = tmp_path / "comparison"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        report = dict(compare_bundles([settings], folder, plan, QuietReporter()).report)
    assert json.loads((folder / "bench.json").read_text("utf-8")) == report
    found = report["models"]["patchcore"]
    targets = found["targets"]
    assert set(targets) >= {OURS, EXACT, *TORCH_INFERENCERS}
    for name, entry in targets.items():
        assert len(entry["images_per_s_runs"]) == 2, name
        assert set(entry["latency"]) == LATENCY
        for figure in ("image_auroc", "pixel_auroc"):
            assert 0 <= entry[figure] <= 1, f"{name}: {figure}"
    torch = targets[found["fastest_torch"]]
    assert torch["images_per_s"] == max(targets[name]["images_per_s"] for name in TORCH_INFERENCERS)
    assert report["ratio"]["patchcore_vs_torch"] == targets[OURS]["images_per_s"] / torch["images_per_s"]
    assert report["ratio"]["efficientad_vs_torch"] is None
    assert report["unavailable"]["efficientad_vs_torch"] == "no bundle of efficient_ad was compared"
    for figure, lost in found["accuracy_lost"].items():
        assert lost == targets[EXACT][figure] - targets[OURS][figure]
    # The same weights and bank, and images resized by another filter: what anomalib sees is what cvad sees.
    batches = targets["torch_batches"]
    assert batches["pixel_auroc"] != 0.5  # all maps clipped to one value, as a threshold far from the scores does
    assert batches["pixel_auroc"] == pytest.approx(targets[EXACT]["pixel_auroc"], abs=0.1)
    assert batches["pixel_auroc"] == pytest.approx(targets["engine"]["pixel_auroc"], abs=1e-3)
    text = (folder / "bench.md").read_text("utf-8")
    assert "| anomalib TorchInferencer |" in text
    assert f"| patchcore_vs_torch | {report['ratio']['patchcore_vs_torch']:.2f} |" in text
    assert (folder / "comparison.png").is_file()


def entry(*rates: float) -> dict[str, Any]:
    return {"images_per_s": median(rates), "images_per_s_runs": list(rates)}


def test_each_ratio_takes_the_fastest_rival_and_says_why_one_is_missing() -> None:
    patchcore = {
        "targets": {
            OURS: entry(120.0, 100.0, 80.0),
            "torch_inferencer": entry(4.0, 5.0, 6.0),
            "engine": entry(9.0, 1.0, 1.0),
            "torch_batches": entry(10.0, 8.0, 8.0),
        },
        "unavailable": {"openvino": "onnxscript is not installed"},
    }
    report = together({"patchcore": patchcore}, repeats=3)
    assert set(report["ratio"]) == set(RATIOS)
    assert report["ratio"]["patchcore_vs_torch"] == 100.0 / 8.0
    assert report["ratio_range"]["patchcore_vs_torch"] == [80.0 / 8.0, 100.0 / 8.0]
    assert report["ratio"]["patchcore_vs_openvino"] is None
    assert report["unavailable"]["patchcore_vs_openvino"] == "onnxscript is not installed"


def test_a_ratio_is_that_of_the_medians_and_its_range_that_of_the_repeats() -> None:
    found = ratio_of([100.0, 90.0, 120.0], [10.0, 15.0, 12.0])
    assert found.of_medians == 100.0 / 12.0
    assert (found.lowest, found.highest) == (90.0 / 15.0, 100.0 / 10.0)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        pytest.param([1.0], [1.0, 2.0], id="one side lacks a repeat"),
        pytest.param([], [], id="nothing was measured"),
        pytest.param([1.0], [0.0], id="a rate of nothing"),
    ],
)
def test_rates_that_cannot_be_compared_are_refused(ours: list[float], theirs: list[float]) -> None:
    with pytest.raises(ValueError, match="expected"):
        ratio_of(ours, theirs)


def test_the_fastest_is_so_by_its_median_not_by_its_luck() -> None:
    assert fastest({"steady": [5.0, 5.0, 5.0], "lucky": [50.0, 4.0, 4.0]}) == "steady"


def test_a_model_that_cvad_serves_through_anomalib_is_not_compared(trained: Path) -> None:
    bundle = read_bundle(trained.parent / "runs" / "small" / "bundle")
    model = {**bundle.manifest["model"], "kind": "anomalib"}
    generic = dataclasses.replace(bundle, manifest={**bundle.manifest, "model": model})
    with pytest.raises(ConfigError, match="cvad serves patchcore through anomalib's own code"):
        require_comparable(generic)


def test_a_bundle_is_opened_by_its_folder_alone(run_of_ours: Path, tmp_path: Path) -> None:
    run_of_ours.rename(run_of_ours.with_suffix(".gone"))
    folder = run_of_ours.parent / "runs" / "small" / "bundle"
    settings = of_bundle(folder, ["runtime.batch_size=3"], tmp_path)
    assert open_bundle(settings).fingerprint == read_bundle(folder).fingerprint
    assert settings.runtime.batch_size == 3


@pytest.mark.parametrize("script", ["anomalib_comparison", "bench_peers.py"])
def test_a_measuring_process_finds_its_function_from_any_folder(script: str, tmp_path: Path) -> None:
    """The script's start, then a fresh process that changes its folder, as the measuring processes do."""
    (tmp_path / "measure.py").write_text(
        "import runpy, sys\n"
        "from pathlib import Path\n"
        f"script = Path({str(SCRIPTS / script)!r})\n"
        "if script.is_file(): sys.path.insert(0, str(script.parent))  # as Python does for a script\n"
        "runpy.run_path(str(script), run_name='started')\n"
        "if __name__ == '__main__':\n"
        "    from anomalib_comparison.exports import available_inferencers\n"
        "    from cvad_cli.adapters.machine.subprocess_call import in_fresh_process\n"
        "    print(in_fresh_process(available_inferencers)[0][0])\n",
        encoding="utf-8",
    )
    done = subprocess.run([sys.executable, "measure.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "torch_inferencer"), done.stderr


def test_the_command_reports_a_mistake_with_its_exit_status(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPTS / "anomalib_comparison"), "--bundle", "nowhere"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "error: nowhere: expected a folder that `cvad train` wrote" in done.stderr
