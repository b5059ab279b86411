"""Several runs from one command: none stops another, none is done twice, and it does not matter who does them."""

from __future__ import annotations

import csv
import importlib.util
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cvad_cli.adapters.sample_data import write_sample_dataset
from cvad_cli.adapters.storage.bundles import read_bundle
from cvad_cli.assembly.batch.plan import plan_batch
from cvad_cli.config.load import load_config
from cvad_cli.config.schema import DataConfig, ModelConfig, RunConfig
from cvad_cli.errors import ConfigError
from cvad_cli.tasks.evaluate import EvaluateRequest, evaluate

CONFIG = """
name: small_grid
seed: 3
device: cpu
data: {{root: {root}, category: grid, image_size: 64}}
model: {{backbone: resnet10t, layers: [layer1, layer2], weights: random, coreset_ratio: 0.05, num_neighbors: 3}}
calibration: {{false_alarm_rate: 0.1, folds: 3}}
evaluation: {{images: 2}}
runtime: {{batch_size: 2}}
executor: {{threads: 1, shard_images: 2}}
output: {{root: {output}}}
"""
BOTH = "grid,leather"
NEEDS_RAY = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not installed: pip install 'cvad[ray]'"
)


@pytest.fixture(scope="module")
def two_categories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("two")
    for number, category in enumerate(("grid", "leather")):
        write_sample_dataset(root, category, size=96, train=8, test_good=3, per_defect=1, seed=number)
    return root


@pytest.fixture(scope="module")
def batch_config(tmp_path_factory: pytest.TempPathFactory, two_categories: Path, cvad) -> Path:
    """Config of a batch of both categories that is trained and evaluated in this process. Read only."""
    folder = tmp_path_factory.mktemp("batch")
    path = folder / "small.yaml"
    path.write_text(CONFIG.format(root=two_categories, output=folder / "runs"), encoding="utf-8")
    for verb in ("train", "evaluate"):
        result = cvad(verb, "-c", path, "--categories", "all", "-q")
        assert result.exit_code == 0, result.output
    return path


@pytest.fixture
def own_copy(batch_config: Path, tmp_path: Path, two_categories: Path) -> Path:
    """The same batch, to be changed."""
    shutil.copytree(batch_config.parent / "runs", tmp_path / "runs")
    path = tmp_path / "small.yaml"
    path.write_text(CONFIG.format(root=two_categories, output=tmp_path / "runs"), encoding="utf-8")
    return path


def report_of(config: Path, verb: str = "evaluate") -> Path:
    (folder,) = (config.parent / "runs").glob(f"batch-{verb}-*")
    return folder


def figures(config: Path, name: str) -> dict[str, Any]:
    """What metrics.json says, less where and when it was made."""
    metrics = json.loads((config.parent / "runs" / name / "evaluation" / "metrics.json").read_text("utf-8"))
    return {part: metrics[part] for part in ("image", "pixel", "decision", "defect_types", "counts")}


def test_the_report_has_a_row_a_model_and_a_column_a_category(batch_config: Path) -> None:
    folder = report_of(batch_config)
    assert sorted(path.name for path in folder.iterdir()) == [
        "report.html",
        "results.csv",
        "results.json",
        "results.md",
    ]
    with (folder / "results.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["run"], row["category"], row["state"]) for row in rows] == [
        ("small_grid", "grid", "done"),
        ("small_leather", "leather", "done"),
    ]
    measured = [figures(batch_config, row["run"])["image"] for row in rows]
    assert [float(row["image.auroc"]) for row in rows] == [metrics["auroc"] for metrics in measured]
    assert [float(row["image.auroc_high"]) for row in rows] == [metrics["auroc_interval"][1] for metrics in measured]
    document = json.loads((folder / "results.json").read_text("utf-8"))
    assert [run["result"]["image"] for run in document["runs"]] == measured
    head, _, row = (folder / "results.md").read_text("utf-8").split("## Image AUROC\n\n")[1].splitlines()[:3]
    assert head == "|  | grid | leather | mean |"
    mean = sum(metrics["auroc"] for metrics in measured) / 2
    assert row == f"| small | {measured[0]['auroc']:.4f} | {measured[1]['auroc']:.4f} | {mean:.4f} |"
    page = (folder / "report.html").read_text("utf-8")
    assert page.count("<h2") >= 6
    assert f'<data value="{measured[0]["auroc"]}" data-metric="image.auroc">' in page


def test_training_has_a_report_of_its_own(batch_config: Path) -> None:
    document = json.loads((report_of(batch_config, "train") / "results.json").read_text("utf-8"))
    assert [run["result"]["images"] for run in document["runs"]] == [8, 8]
    assert {run["result"]["calibration"]["method"] for run in document["runs"]} == {"cross_conformal"}


@pytest.mark.parametrize("verb", ["train", "evaluate"])
def test_what_is_there_is_kept_and_force_does_it_again(own_copy: Path, verb: str, cvad) -> None:
    part = "bundle/manifest.json" if verb == "train" else "evaluation/metrics.json"
    file = own_copy.parent / "runs" / "small_grid" / part
    before = file.stat().st_mtime_ns
    again = cvad(verb, "-c", own_copy, "--categories", BOTH)
    assert again.exit_code == 0, again.output
    assert "small_grid: kept, as its settings and images have not changed" in again.stderr
    assert file.stat().st_mtime_ns == before
    forced = cvad(verb, "-c", own_copy, "--categories", "grid", "--force", "--json")
    assert [run["state"] for run in json.loads(forced.stdout)["runs"]] == ["done"]
    assert file.stat().st_mtime_ns > before


def test_other_settings_images_or_a_lost_file_are_reason_to_do_a_run_again(
    own_copy: Path, two_categories: Path, tmp_path: Path, cvad
) -> None:
    def states(*options: object, verb: str = "evaluate") -> list[str]:
        result = cvad(verb, "-c", own_copy, "--categories", BOTH, "--json", *options)
        assert result.exit_code == 0, result.output
        return [run["state"] for run in json.loads(result.stdout)["runs"]]

    elsewhere = tmp_path / "moved"
    shutil.copytree(two_categories, elsewhere)
    moved = ("--set", f"data.root={elsewhere}")
    assert states(*moved) == ["kept", "kept"], "the same images in another place"
    assert states(*moved, "--set", "evaluation.aupro_limit=0.2") == ["done", "done"]
    image = next((elsewhere / "leather" / "test" / "good").iterdir())
    shutil.copy(next((elsewhere / "leather" / "train" / "good").iterdir()), image)
    assert states(*moved, "--set", "evaluation.aupro_limit=0.2") == ["kept", "done"]
    assert states(*moved, verb="train") == ["kept", "kept"], "training never saw that image"
    (own_copy.parent / "runs" / "small_grid" / "bundle" / "manifest.json").unlink()
    assert states(*moved, verb="train") == ["done", "kept"]


def test_an_evaluation_whose_settings_have_names_of_an_earlier_release_is_done_again(own_copy: Path, cvad) -> None:
    file = own_copy.parent / "runs" / "small_grid" / "evaluation" / "metrics.json"
    metrics = json.loads(file.read_text("utf-8"))
    section = metrics["provenance"]["settings"]["evaluation"]
    section["pictures"] = section.pop("images")
    file.write_text(json.dumps(metrics), encoding="utf-8")
    result = cvad("evaluate", "-c", own_copy, "--categories", "grid", "--json")
    assert [run["state"] for run in json.loads(result.stdout)["runs"]] == ["done"]
    assert "images" in json.loads(file.read_text("utf-8"))["provenance"]["settings"]["evaluation"]
    again = cvad("evaluate", "-c", own_copy, "--categories", "grid", "--json", "--set", "evaluation.pictures=2")
    assert [run["state"] for run in json.loads(again.stdout)["runs"]] == ["kept"], "the present name of the same value"
    assert "evaluation.pictures is now evaluation.images" in again.stderr


def test_one_failure_stops_no_other_and_the_gravest_status_is_the_batchs(own_copy: Path, cvad) -> None:
    bundle = own_copy.parent / "runs" / "small_leather" / "bundle"
    (bundle / "manifest.json").write_text("{", encoding="utf-8")
    result = cvad("evaluate", "-c", own_copy, "--categories", "nowhere,leather,grid", "--force", "--json")
    assert result.exit_code == 5, "the bundle's 5 is graver than the data's 3"
    runs = {run["run"]: run for run in json.loads(result.stdout)["runs"]}
    assert [runs[name]["state"] for name in runs] == ["failed", "failed", "done"]
    assert runs["small_leather"]["exit_status"] == 5
    assert "small_leather" in runs["small_leather"]["error"]
    page = (Path(json.loads(result.stdout)["folder"]) / "report.html").read_text("utf-8")
    assert "Failed runs" in page
    text = cvad("evaluate", "-c", own_copy, "--categories", "leather,grid", "-q")
    assert text.exit_code == 5
    assert "[1/2] small_grid" not in text.stderr
    assert "small_leather: failed: " in text.stderr


def test_a_bug_in_one_run_is_reported_and_stops_no_other_run(
    own_copy: Path, cvad, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(settings: RunConfig, request: Any, reporter: Any) -> Any:
        if settings.data.category == "grid":
            raise ZeroDivisionError("by zero")
        return evaluate(settings, request, reporter)

    monkeypatch.setattr("cvad_cli.tasks.evaluate.evaluate", broken)
    result = cvad("evaluate", "-c", own_copy, "--categories", BOTH, "--force", "--json")
    assert result.exit_code == 70
    assert [run["state"] for run in json.loads(result.stdout)["runs"]] == ["failed", "done"]
    assert "ZeroDivisionError: by zero" in result.stdout


def test_runs_in_several_processes_give_the_figures_of_this_process_to_the_last_bit(
    batch_config: Path, own_copy: Path, cvad
) -> None:
    distributed = ("--set", "executor.workers=2", "--force", "--json")
    result = cvad("evaluate", "-c", own_copy, "--categories", BOTH, *distributed)
    assert result.exit_code == 0, result.output
    assert [run["state"] for run in json.loads(result.stdout)["runs"]] == ["done", "done"]
    for name in ("small_grid", "small_leather"):
        assert figures(own_copy, name) == figures(batch_config, name)


@pytest.mark.ci
@NEEDS_RAY
def test_runs_and_images_on_ray_give_the_figures_of_this_process_to_the_last_bit(
    batch_config: Path, own_copy: Path, cvad
) -> None:
    distributed = ("--set", "executor.kind=ray", "--set", "executor.workers=2", "--force", "--json")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Ray's own start-up
        trained = cvad("train", "-c", own_copy, "--categories", BOTH, *distributed)
        one = cvad("evaluate", "-c", own_copy, "--categories", "grid", *distributed)
    assert trained.exit_code == 0, trained.output
    assert [run["state"] for run in json.loads(trained.stdout)["runs"]] == ["done", "done"]
    for name in ("small_grid", "small_leather"):
        ours, theirs = (read_bundle(config.parent / "runs" / name / "bundle") for config in (own_copy, batch_config))
        assert ours.fingerprint == theirs.fingerprint
        assert ours.manifest["created"] != theirs.manifest["created"]
    assert one.exit_code == 0, one.output
    assert figures(own_copy, "small_grid") == figures(batch_config, "small_grid"), "its images spread"


@pytest.mark.ci
def test_index_classify_and_predict_say_the_same_with_workers(
    own_copy: Path, two_categories: Path, tmp_path: Path, cvad
) -> None:
    outputs = {}
    images = two_categories / "grid" / "test"
    for workers in (1, 2):
        here = ("--set", f"executor.workers={workers}", "--set", f"qdrant.path={tmp_path / str(workers)}")
        indexed = cvad("index", "-c", own_copy, *here, "--json")
        assert indexed.exit_code == 0, indexed.output
        classified = cvad("classify", images, "-c", own_copy, *here, "--json", "--overlays", tmp_path / f"o{workers}")
        assert classified.exit_code == 0, classified.output
        predicted = cvad("predict", images, "-c", own_copy, *here, "--jsonl")
        assert predicted.exit_code == 0, predicted.output
        outputs[workers] = [{**json.loads(text.stdout), "index": None} for text in (indexed, classified)] + [
            {**json.loads(line), "latency_ms": None} for line in predicted.stdout.splitlines()
        ]
        assert len(list((tmp_path / f"o{workers}").rglob("*.png"))) == len(outputs[workers][1]["images"])
    assert outputs[1][0]["added"] > 0
    assert len(outputs[1]) == 2 + len(outputs[1][1]["images"])
    assert outputs[1] == outputs[2]


@pytest.mark.ci
def test_a_batch_that_was_killed_goes_on_where_it_was(tmp_path: Path, two_categories: Path, cvad) -> None:
    config = tmp_path / "small.yaml"
    config.write_text(CONFIG.format(root=two_categories, output=tmp_path / "runs"), encoding="utf-8")
    command = [sys.executable, "-m", "cvad_cli", "train", "-c", str(config), "--categories", BOTH]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        for line in process.stderr:
            if line.startswith("[1/2] small_grid: done"):
                process.kill()
                break
    assert not (tmp_path / "runs" / "small_leather" / "bundle" / "manifest.json").exists()
    result = cvad("train", "-c", config, "--categories", BOTH, "--json")
    assert [run["state"] for run in json.loads(result.stdout)["runs"]] == ["kept", "done"]


class KillsAWorker:
    """A reporter that kills a worker when the first image has been judged."""

    def __init__(self) -> None:
        self.killed: list[int] = []

    @contextmanager
    def stage(self, title: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
        def advance(steps: int) -> None:
            if title == "Judging the test images" and not self.killed:
                victim = multiprocessing.active_children()[0]
                self.killed.append(victim.pid or 0)
                os.kill(self.killed[0], signal.SIGKILL)

        yield advance

    def note(self, message: str) -> None: ...

    def warn(self, message: str) -> None: ...


def test_a_worker_killed_in_the_middle_of_an_evaluation_changes_no_figure(batch_config: Path, own_copy: Path) -> None:
    overrides = ["executor.workers=2", "executor.shard_images=2", "data.category=grid"]
    reporter = KillsAWorker()
    evaluate(load_config(own_copy, overrides), EvaluateRequest(), reporter)
    assert reporter.killed
    assert figures(own_copy, "small_grid") == figures(batch_config, "small_grid")


GRID = RunConfig("patchcore_grid", data=DataConfig(category="grid"), model=ModelConfig(coreset_ratio=0.1))


@pytest.mark.parametrize(
    ("name", "categories", "models", "planned"),
    [
        ("patchcore_grid", ["tile"], [], [("patchcore_tile", "patchcore", "tile")]),
        ("patchcore_wrn50_grid", ["tile"], [], [("patchcore_wrn50_tile", "patchcore_wrn50", "tile")]),
        ("gridlock", ["tile"], [], [("gridlock_tile", "gridlock", "tile")]),
        ("grid", ["grid"], [], [("grid", "patchcore", "grid")]),
        (
            "patchcore_grid",
            ["grid", "tile"],
            ["patchcore", "efficientad"],
            [
                ("patchcore_grid", "patchcore", "grid"),
                ("patchcore_tile", "patchcore", "tile"),
                ("efficientad_grid", "efficientad", "grid"),
                ("efficientad_tile", "efficientad", "tile"),
            ],
        ),
        ("line7", ["grid"], ["padim"], [("line7_padim", "line7_padim", "grid")]),
    ],
)
def test_runs_are_named_after_their_config_model_and_category(
    name: str, categories: list[str], models: list[str], planned: list[tuple[str, str, str]]
) -> None:
    config = RunConfig(name, data=DataConfig(category="grid"))
    runs = plan_batch([config], categories=categories, models=models)
    assert [(run.settings.name, run.variant, run.category) for run in runs] == planned
    assert [run.settings.data.category for run in runs] == [category for _, _, category in planned]


def test_another_model_begins_from_its_defaults_and_the_configs_own_keeps_its_settings() -> None:
    own, other = plan_batch([GRID], models=["patchcore", "efficientad"])
    assert own.settings.model.coreset_ratio == 0.1
    assert other.settings.model == ModelConfig("efficient_ad")


def test_runs_of_one_name_are_refused_before_any_begins(own_copy: Path, cvad) -> None:
    with pytest.raises(ConfigError, match="2 runs of the batch are called patchcore_grid"):
        plan_batch([GRID, GRID])
    result = cvad("train", "-c", own_copy, "-c", own_copy)
    assert result.exit_code == 2
    assert "name of its own" in result.stderr


def test_what_cannot_be_planned_is_reported(own_copy: Path, tmp_path: Path, cvad) -> None:
    folders = cvad("train", "-c", own_copy, "--categories", "grid", "--set", "data.format=folders")
    assert folders.exit_code == 2
    assert "has no categories" in folders.stderr
    nothing = cvad("train", "-c", own_copy, "--categories", "all", "--set", f"data.root={tmp_path}")
    assert nothing.exit_code == 3
    assert "no folder with train/good" in nothing.stderr
    assert cvad("train", "-c", own_copy, "--categories", "grid,,tile").exit_code == 2
    other = tmp_path / "other.yaml"
    other.write_text("extends: small.yaml\nname: other\nexecutor: {workers: 2}\n", encoding="utf-8")
    mixed = cvad("train", "-c", own_copy, "-c", other)
    assert mixed.exit_code == 2
    assert "a batch has one executor" in mixed.stderr
