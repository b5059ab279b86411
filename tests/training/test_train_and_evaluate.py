"""From a folder of images to honest figures, through the command line and the files that it leaves."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from cvad_cli.adapters.storage.bundles import read_bundle
from cvad_cli.assembly.training.patchcore import _spooled
from cvad_cli.records import Calibration


def bundle_of(config: Path) -> Path:
    return config.parent / "runs" / "small" / "bundle"


def test_a_bundle_holds_data_and_no_code(trained: Path) -> None:
    bundle = read_bundle(bundle_of(trained))
    names = sorted(path.suffix for path in bundle.folder.iterdir() if path.is_file())
    assert names == [".json", *[".safetensors"] * 4]
    assert sorted(bundle.manifest["files"]) == ["agreement_samples", "backbone", "describer", "memory_bank"]
    bank = load_file(bundle.file("memory_bank"))["features"]
    assert list(bank.shape) == bundle.manifest["training"]["memory_bank"]
    assert len(bank) == int(12 * 16 * 16 * 0.05)
    assert bundle.manifest["settings"]["model"]["backbone"] == "resnet10t"
    assert bundle.manifest["data"]["train_images"] == 12


def test_the_threshold_comes_from_the_good_training_images(trained: Path) -> None:
    calibration = read_bundle(bundle_of(trained)).manifest["calibration"]
    assert calibration["method"] == "cross_conformal"
    assert calibration["images"] == 12
    assert calibration["stated_rate"] == pytest.approx(1 / 13)


@pytest.mark.parametrize(
    ("method", "word", "other"), [("cross_conformal", "expected", "promise"), ("split_conformal", "promised", "expect")]
)
def test_the_rate_has_the_word_of_its_method_everywhere(
    small_config: Path, metrics_of, cvad, method: str, word: str, other: str
) -> None:
    here = ("-c", small_config, "--set", f"calibration.method={method}")
    trained = cvad("train", *here)
    assert f"{word} false-alarm rate" in trained.stdout
    assert f"cannot be {word} with" in trained.stderr or method == "cross_conformal"
    calibration = read_bundle(bundle_of(small_config)).manifest["calibration"]
    assert calibration["rate_kind"] == word
    evaluated = cvad("evaluate", *here)
    decision = metrics_of(small_config)["decision"]
    assert f"; {word} {decision['stated_false_alarm_rate']:.4f}" in evaluated.stdout
    assert decision["stated_rate_kind"] == word
    report = (small_config.parent / "runs" / "small" / "evaluation" / "report.html").read_text("utf-8")
    text = " ".join(re.sub("<(style|script).*?</\\1>|<[^>]+>", " ", report, flags=re.DOTALL).split())
    assert f"false-alarm rate 10 %, {word}" in text
    for said in (text, trained.output, evaluated.output):
        assert other not in said


def test_a_bundle_of_before_gets_the_word_of_its_method(trained: Path, tmp_path: Path) -> None:
    saved = read_bundle(bundle_of(trained)).manifest["calibration"]
    before = {key: value for key, value in saved.items() if key not in {"rate_kind", "rate_bound"}}
    assert Calibration.saved(before).rate_kind == "expected"
    assert Calibration.saved({**before, "method": "split_conformal"}).rate_kind == "promised"
    assert Calibration.saved(saved) == Calibration(**saved)


def test_the_same_seed_gives_the_same_detector(trained: Path, small_config: Path, cvad) -> None:
    assert cvad("train", "-c", small_config, "-q").exit_code == 0
    again, first = (read_bundle(bundle_of(config)) for config in (small_config, trained))
    assert again.fingerprint == first.fingerprint
    assert again.manifest["calibration"] == first.manifest["calibration"]


def test_another_seed_gives_another_bank(trained: Path, small_config: Path, cvad) -> None:
    assert cvad("train", "-c", small_config, "-q", "--set", "seed=4", "--set", "model.weights=random").exit_code == 0
    assert read_bundle(bundle_of(small_config)).fingerprint != read_bundle(bundle_of(trained)).fingerprint


def test_metrics_hold_every_documented_part(trained: Path, metrics_of) -> None:
    metrics = metrics_of(trained)
    assert set(metrics["image"]) >= {"auroc", "average_precision", "f1_max"}
    assert set(metrics["pixel"]) >= {"auroc", "average_precision", "aupro"}
    decision = {
        "threshold",
        "stated_false_alarm_rate",
        "false_alarm_rate",
        "false_alarm_interval",
        "precision",
        "recall",
    }
    assert set(metrics["decision"]) >= decision
    assert set(metrics["defect_types"]) == {"bent", "broken", "glue", "metal_contamination", "thread"}
    assert metrics["counts"] == {
        "train": 12,
        "test": 14,
        "good": 4,
        "defective": 10,
        "masks": 10,
        "by_type": {"bent": 2, "broken": 2, "glue": 2, "good": 4, "metal_contamination": 2, "thread": 2},
        "skipped": 0,
    }
    assert metrics["provenance"]["bundle_fingerprint"] == read_bundle(bundle_of(trained)).fingerprint


def test_metrics_follow_from_the_table_of_images(trained: Path, metrics_of) -> None:
    from sklearn.metrics import roc_auc_score

    metrics = metrics_of(trained)
    folder = trained.parent / "runs" / "small" / "evaluation"
    with (folder / "per_image.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    defective = np.array([row["defect_type"] != "good" for row in rows])
    scores = np.array([float(row["score"]) for row in rows])
    rejected = np.array([row["rejected"] == "1" for row in rows])
    assert metrics["image"]["auroc"] == pytest.approx(roc_auc_score(defective, scores))
    assert metrics["decision"]["false_alarm_rate"] == pytest.approx(rejected[~defective].mean())
    assert metrics["decision"]["recall"] == pytest.approx(rejected[defective].mean())
    assert rejected.tolist() == (scores > metrics["decision"]["threshold"]).tolist()


def test_curves_and_a_bounded_number_of_images_are_drawn(trained: Path) -> None:
    import cv2

    folder = trained.parent / "runs" / "small" / "evaluation"
    assert len(list((folder / "images").rglob("*.png"))) == 4
    for name in ("roc.png", "precision_recall.png", "score_histogram.png"):
        image = cv2.imread(str(folder / name))
        assert image is not None
        assert image.shape[1] > 400


def test_json_on_standard_output_is_the_file(small_config: Path, metrics_of, cvad) -> None:
    trained = cvad("train", "-c", small_config, "--json")
    summary = json.loads(trained.stdout)
    assert summary["images"] == 12
    assert summary["calibration"]["method"] == "cross_conformal"
    evaluated = cvad("evaluate", "-c", small_config, "--json")
    assert json.loads(evaluated.stdout) == metrics_of(small_config)


def test_several_configs_are_a_batch_and_one_failure_does_not_stop_the_rest(small_config: Path, cvad) -> None:
    broken = small_config.with_name("broken.yaml")
    broken.write_text(f"extends: {small_config.name}\nname: broken\ndata: {{category: nowhere}}\n", encoding="utf-8")
    result = cvad("train", "-c", broken, "-c", small_config, "--json")
    assert result.exit_code == 3
    assert "broken: failed:" in result.stderr
    runs = json.loads(result.stdout)["runs"]
    assert [(run["run"], run["state"]) for run in runs] == [("broken", "failed"), ("small", "done")]


def test_split_conformal_holds_images_out_of_the_bank(small_config: Path, cvad) -> None:
    result = cvad("train", "-c", small_config, "--set", "calibration.method=split_conformal", "--json")
    summary = json.loads(result.stdout)
    assert summary["calibration"]["images"] == 2
    assert summary["details"]["memory_bank"][0] == int(10 * 16 * 16 * 0.05)


def test_a_rate_that_the_images_cannot_give_is_said(small_config: Path, cvad) -> None:
    result = cvad("train", "-c", small_config, "--set", "calibration.false_alarm_rate=0.01", "--quiet")
    assert result.exit_code == 0
    assert "a false-alarm rate of 0.01 cannot be expected with 12 good calibration images" in result.stderr


def test_features_beyond_the_memory_bound_are_merged_from_chunks(
    trained: Path, small_config: Path, metrics_of, cvad
) -> None:
    tight = ("--set", "train.max_memory=1MB")
    result = cvad("train", "-c", small_config, *tight, "--json")
    details = json.loads(result.stdout)["details"]
    assert details["coreset"].startswith("greedy in chunks")
    assert details["memory_bank"][0] == int(12 * 16 * 16 * 0.05)
    assert cvad("evaluate", "-c", small_config, "-q").exit_code == 0
    difference = metrics_of(small_config)["image"]["auroc"] - metrics_of(trained)["image"]["auroc"]
    assert abs(difference) < 0.15


def test_features_of_another_run_that_is_still_going_are_left_alone(tmp_path: Path) -> None:
    with ExitStack() as one, ExitStack() as other:
        first = _spooled(tmp_path, (4, 8), one)
        _spooled(tmp_path, (4, 8), other)
        assert Path(str(first.filename)).exists()
    assert list(tmp_path.iterdir()) == []


def test_full_resolution_metrics_are_close_to_those_at_the_input_size(
    trained: Path, tmp_path: Path, cvad, metrics_of
) -> None:
    shutil.copytree(trained.parent, tmp_path / "copy")
    config = tmp_path / "copy" / "small.yaml"
    output = f"output.root={config.parent / 'runs'}"
    result = cvad("evaluate", "-c", config, "-q", "--set", "evaluation.resolution=original", "--set", output)
    assert result.exit_code == 0
    original, at_input = (metrics_of(path)["pixel"]["auroc"] for path in (config, trained))
    assert original == pytest.approx(at_input, abs=0.02)
    assert original != at_input


def copy_of_data(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    return target


def test_an_unreadable_training_image_stops_or_is_skipped_and_listed(
    small_config: Path, sample_data: Path, tmp_path: Path, cvad
) -> None:
    root = copy_of_data(sample_data, tmp_path / "damaged")
    victim = root / "grid" / "train" / "good" / "003.png"
    victim.write_bytes(victim.read_bytes()[:500])
    here = ("--set", f"data.root={root}")
    stopped = cvad("train", "-c", small_config, *here)
    assert stopped.exit_code == 3
    assert "003.png" in stopped.stderr
    assert not bundle_of(small_config).exists()
    skipped = cvad("train", "-c", small_config, *here, "--set", "data.on_error=skip")
    assert skipped.exit_code == 0
    assert "skipped" in skipped.stderr
    assert "11 (1 skipped)" in skipped.stdout
    manifest = read_bundle(bundle_of(small_config)).manifest
    assert [entry["key"].endswith("003.png") for entry in manifest["data"]["skipped"]] == [True]


def test_missing_masks_leave_the_image_metrics_and_say_why_the_rest_is_missing(
    small_config: Path, sample_data: Path, tmp_path: Path, metrics_of, cvad
) -> None:
    root = copy_of_data(sample_data, tmp_path / "no_masks")
    shutil.rmtree(root / "grid" / "ground_truth")
    here = ("--set", f"data.root={root}")
    assert cvad("train", "-c", small_config, *here, "-q").exit_code == 0
    result = cvad("evaluate", "-c", small_config, *here)
    assert result.exit_code == 0
    metrics = metrics_of(small_config)
    assert metrics["image"]["auroc"] is not None
    assert metrics["pixel"]["auroc"] is None
    assert "no defective image has a mask" in metrics["unavailable"]["pixel.auroc"]
    assert "no defective image has a mask" in result.stdout


def test_a_test_set_of_one_class_gives_what_can_be_measured(
    small_config: Path, sample_data: Path, tmp_path: Path, metrics_of, cvad
) -> None:
    root = copy_of_data(sample_data, tmp_path / "good_only")
    for folder in (root / "grid" / "test").iterdir():
        if folder.name != "good":
            shutil.rmtree(folder)
    here = ("--set", f"data.root={root}")
    assert cvad("train", "-c", small_config, *here, "-q").exit_code == 0
    assert cvad("evaluate", "-c", small_config, *here, "-q").exit_code == 0
    metrics = metrics_of(small_config)
    assert metrics["image"]["auroc"] is None
    assert metrics["unavailable"]["image.auroc"] == "the test set has no defective image"
    assert metrics["decision"]["false_alarm_rate"] is not None


def test_ones_own_folders_train_and_evaluate(
    tmp_path: Path, sample_data: Path, small_config: Path, metrics_of, cvad
) -> None:
    root = tmp_path / "plant"
    shutil.copytree(sample_data / "grid" / "train" / "good", root / "ok")
    shutil.copytree(sample_data / "grid" / "test" / "good", root / "ok_later")
    for kind in ("bent", "thread"):
        shutil.copytree(sample_data / "grid" / "test" / kind, root / kind)
    config = small_config.with_name("plant.yaml")
    config.write_text(
        f"extends: {small_config.name}\n"
        f"data: {{format: folders, root: {root}, category: plant, normal_dir: ok, test_normal_dir: ok_later, "
        "abnormal_dirs: [bent, thread]}\n",
        encoding="utf-8",
    )
    for command in ("train", "evaluate"):
        result = cvad(command, "-c", config, "-q")
        assert result.exit_code == 0, result.output
    assert metrics_of(small_config)["counts"]["by_type"] == {"bent": 2, "good": 4, "thread": 2}


def run_in_background(*arguments: object) -> subprocess.Popen:
    command = [sys.executable, "-m", "cvad_cli", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_training_leaves_the_former_bundle_and_no_temporary_file(
    trained: Path, tmp_path: Path, number: int, status: int
) -> None:
    shutil.copytree(trained.parent, tmp_path / "run")
    config = tmp_path / "run" / "small.yaml"
    runs = tmp_path / "run" / "runs"
    before = read_bundle(runs / "small" / "bundle").fingerprint
    process = run_in_background("train", "-c", config, "--set", f"output.root={runs}", "--set", "seed=9")
    time.sleep(4.0)
    os.kill(process.pid, number)
    _, errors = process.communicate(timeout=60)
    if process.returncode != 0:
        assert process.returncode == status, errors
        assert "Traceback" not in errors
        assert read_bundle(runs / "small" / "bundle").fingerprint == before
    assert not list(runs.rglob(".cvad-tmp*"))


def test_skipped_test_images_are_listed_and_images_of_one_name_keep_apart(
    trained: Path, sample_data: Path, tmp_path: Path, cvad
) -> None:
    root = copy_of_data(sample_data, tmp_path / "data")
    bent = root / "grid" / "test" / "bent"
    good = root / "grid" / "test" / "good"
    shutil.copy(good / "000.png", good / "000.jpg")  # read by content, not by suffix
    (bent / "junk.png").write_text("junk")
    shutil.copytree(trained.parent / "runs", tmp_path / "runs")
    here = [f"data.root={root}", f"output.root={tmp_path / 'runs'}", "data.on_error=skip", "evaluation.images=100"]
    result = cvad("evaluate", "-c", trained, "--json", *(part for one in here for part in ("--set", one)))
    assert result.exit_code == 0, result.output
    metrics = json.loads(result.stdout)
    assert [entry["key"].endswith("bent/junk.png") for entry in metrics["skipped"]] == [True]
    drawn = list((tmp_path / "runs" / "small" / "evaluation" / "images").rglob("*.png"))
    assert len(drawn) == metrics["counts"]["test"] == 15


def test_figures_say_what_the_detector_was_trained_on(trained: Path, tmp_path: Path, sample_data: Path, cvad) -> None:
    root = copy_of_data(sample_data, tmp_path / "data")
    (root / "grid").rename(root / "other")
    shutil.copytree(trained.parent / "runs", tmp_path / "runs")
    here = [f"data.root={root}", f"output.root={tmp_path / 'runs'}", "data.category=other", "seed=77"]
    result = cvad("evaluate", "-c", trained, "--json", *(part for one in here for part in ("--set", one)))
    assert "the detector was trained on grid, the test images are those of other" in result.stderr
    provenance = json.loads(result.stdout)["provenance"]
    assert (provenance["data"], provenance["seed"]) == ("other", 77)
    assert (provenance["trained"]["data"], provenance["trained"]["seed"]) == ("grid", 3)
