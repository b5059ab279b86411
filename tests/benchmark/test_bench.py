"""`cvad bench` at tiny sizes: what it writes and how its parts follow from each other. No seconds are asserted."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from cvad_cli.adapters.storage.bundles import read_bundle
from cvad_cli.assembly.benchmark import scaling
from cvad_cli.assembly.benchmark.bundle_variants import patches_of, write_variant
from cvad_cli.assembly.benchmark.tables import tables_of
from cvad_cli.assembly.training.agreement_samples import read_agreement_samples
from cvad_cli.config.load import load_config
from cvad_cli.tasks import bench
from cvad_cli.tasks.bench import images_to_judge

LATENCY = {"count", "mean_ms", "p50_ms", "p95_ms", "p99_ms"}


@pytest.fixture
def run_of_ours(trained: Path, tmp_path: Path) -> Path:
    """A copy of the trained run, to write into."""
    shutil.copytree(trained.parent, tmp_path / "run")
    return tmp_path / "run" / "small.yaml"


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Spare the many processes, each of which would import torch and anomalib; they have a test of their own."""
    monkeypatch.chdir(tmp_path)

    def call(function: Callable[..., Any], *arguments: Any) -> Any:
        return function(*arguments)

    for module in (bench, scaling):
        monkeypatch.setattr(module, "in_fresh_process", call)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def bench_of(config: Path) -> Path:
    return config.parent / "runs" / "small" / "bench"


def command(config: Path, *more: object) -> tuple[object, ...]:
    here = f"output.root={config.parent / 'runs'}"
    return ("bench", "--config", config, "--set", here, "--json", *more)


@pytest.mark.ci
def test_a_bundle_is_measured_in_processes_of_its_own(run_of_ours: Path, cvad) -> None:
    result = cvad(*command(run_of_ours, "--images", 4, "--repeats", 1))
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report == json.loads((bench_of(run_of_ours) / "bench.json").read_text("utf-8"))
    speed = report["speed"]
    assert set(speed["latency"]) == LATENCY
    assert speed["latency"]["count"] == report["images"] == 4
    assert speed["images_per_s"] == median(speed["images_per_s_runs"])
    assert 0 < speed["open_s"] < speed["to_first_result_s"]
    assert speed["peak_memory_mb"] > 50
    assert report["machine"]["cores"] >= 1
    assert {"cvad", "python", "torch"} <= set(report["versions"])
    assert report["scaling"] is None
    assert speed["serving"]["engine"] in {"openvino", "torch"}
    assert sorted(path.name for path in bench_of(run_of_ours).iterdir()) == ["bench.json", "bench.md", "stages.png"]
    # The stages of a single image, timed apart from it, explain the whole of it.
    stages = speed["stages"]
    whole = stages.pop("whole")
    assert {"decode", "resize", "post-processing"} <= set(stages)
    assert sum(row["mean_ms"] for row in stages.values()) == pytest.approx(whole["mean_ms"], rel=0.1)


@pytest.mark.ci
def test_growth_has_a_row_a_size(run_of_ours: Path, cvad, in_this_process: None) -> None:
    result = cvad(*command(run_of_ours, "--images", 2, "--repeats", 1, "--scaling"))
    assert result.exit_code == 0, result.output
    growth = json.loads(result.stdout)["scaling"]
    own = read_bundle(run_of_ours.parent / "runs" / "small" / "bundle").manifest["training"]["memory_bank"][0]
    assert [row["value"] for row in growth["image_size"]] == [128, 256, 512]
    assert [row["value"] for row in growth["bank_rows"]] == [round(own / 16), round(own / 4), own, 4 * own]
    assert [row["value"] for row in growth["images"]] == [2, 8, 32]
    for rows in growth.values():
        assert all(row["ms_per_image"] > 0 and row["memory_mb"] > 0 for row in rows)
    assert {row["precision"] for axis in ("image_size", "bank_rows") for row in growth[axis]} <= {"f32", "bf16", "f16"}
    assert (bench_of(run_of_ours) / "scaling.png").is_file()


def test_images_are_of_every_type_even_where_few_are_taken(trained: Path) -> None:
    settings = load_config(trained)
    chosen = images_to_judge(settings, 6)
    assert len({record.defect_type for record in chosen}) == 6
    assert len(images_to_judge(settings, None)) == 14


def test_a_larger_bank_holds_the_own_rows_and_no_twins(trained: Path, tmp_path: Path) -> None:
    import numpy as np
    from safetensors.numpy import load_file

    settings = load_config(trained)
    bundle = read_bundle(trained.parent / "runs" / "small" / "bundle")
    own = load_file(bundle.file("memory_bank"))["features"]
    changed = write_variant(settings, bundle, tmp_path, "bank_rows", 3 * len(own))
    larger = read_bundle(tmp_path / changed.name / "bundle")
    rows = load_file(larger.file("memory_bank"))["features"]
    assert rows.shape == (3 * len(own), own.shape[1])
    assert {row.tobytes() for row in own} <= {row.tobytes() for row in rows}
    assert len(np.unique(rows, axis=0)) == len(rows)
    assert larger.fingerprint != bundle.fingerprint


def test_another_image_size_has_its_own_agreement_samples_and_bank(trained: Path, tmp_path: Path) -> None:
    import numpy as np
    from safetensors.numpy import load_file

    settings = load_config(trained)
    bundle = read_bundle(trained.parent / "runs" / "small" / "bundle")
    side = 2 * settings.data.image_size
    changed = write_variant(settings, bundle, tmp_path, "image_size", side)
    other = read_bundle(tmp_path / changed.name / "bundle")
    samples = read_agreement_samples(other)
    assert samples is not None
    assert samples.images.shape[1:] == (side, side, 3)
    assert samples.scores[samples.good].mean() < samples.scores[~samples.good].mean()
    own, rows = (load_file(each.file("memory_bank"))["features"] for each in (bundle, other))
    assert rows.shape == own.shape
    patches = patches_of(bundle, list(samples.images[samples.good][:1]))[::16]

    def reach(bank: np.ndarray) -> float:
        return float(np.mean([np.linalg.norm(bank - patch, axis=1).min() for patch in patches]))

    assert reach(rows) < 0.9 * reach(own)  # strange images are searched at another pace


def test_an_untrained_config_is_reported_before_anything_is_measured(small_config: Path, cvad) -> None:
    result = cvad("bench", "-c", small_config)
    assert result.exit_code == 5
    assert "run `cvad train`" in result.stderr


def test_the_option_that_moved_out_says_where_it_is(small_config: Path, cvad) -> None:
    result = cvad("bench", "-c", small_config, "--peers")
    assert result.exit_code == 2
    message = " ".join(result.stderr.replace("│", " ").split())
    assert "--peers was moved" in message
    assert "python scripts/anomalib_comparison --bundle <output.root>/<name>/bundle" in message
    assert "--peers" not in cvad("bench", "--help").stdout


def test_every_table_has_a_cell_a_heading(trained: Path) -> None:
    row = {"value": 4.0, "ms_per_image": 2.0, "memory_mb": 10.0}
    report = {"scaling": {"images": [row, {**row, "value": 8.0}]}}
    (table,) = tables_of(report)
    assert table.title == "Growth with images in one run: time ~ size^0.00"
    assert all(len(cells) == len(table.headings) for cells in table.rows)
    assert table.rows[0] == ("4", "2.00", "500", "10")
    (table,) = tables_of({"scaling": {"image_size": [{**row, "precision": "bf16"}, {**row, "precision": "f32"}]}})
    assert table.headings[-1] == "precision"
    assert [cells[-1] for cells in table.rows] == ["bf16", "f32"]
