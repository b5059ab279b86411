"""Every bad input gets one clear message on standard error, its exit status, and no traceback."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from cvad_cli import __version__


def failure(result, status: int) -> str:
    """Standard error of a run that must fail with this status, in a message without a traceback."""
    assert result.exit_code == status, result.output
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    return result.stderr


@pytest.fixture
def own_data(sample_data: Path, tmp_path: Path) -> Path:
    """A copy of the sample data that a test may damage."""
    return shutil.copytree(sample_data, tmp_path / "data")


def test_the_version_is_printed(cvad) -> None:
    assert cvad("--version").stdout.strip() == f"cvad {__version__}"


def test_help_documents_the_exit_statuses(cvad) -> None:
    text = " ".join(cvad("--help").stdout.split())
    for status in ("2 usage or configuration", "3 images", "4 model or weights", "5 trained bundle", "130 Ctrl-C"):
        assert status in text


def test_a_command_without_its_config_says_so(cvad) -> None:
    result = cvad("train")
    assert result.exit_code == 2
    assert "--config" in result.stderr


def test_a_missing_config_file(cvad, tmp_path: Path) -> None:
    assert "gone.yaml: no such file" in failure(cvad("train", "-c", tmp_path / "gone.yaml"), 2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: [", "is not valid YAML at line"),
        ("just words", "expected `key: value` lines"),
        ("name: a\nextends: nowhere.yaml", "nowhere.yaml does not exist"),
        ("seed: 3", "name: is missing; every run needs it"),
    ],
)
def test_a_config_that_cannot_be_read(cvad, tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text, encoding="utf-8")
    errors = failure(cvad("train", "-c", path), 2)
    assert message in errors
    assert str(path) in errors


def test_a_backbone_without_weights_lists_what_was_tried(cvad, small_config: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("CVAD_WEIGHTS_DIR", str(tmp_path))
    text = failure(cvad("train", "-c", small_config, "-q", "--set", "model.weights=null"), 4)
    for part in ("1. model.weights: not set", "2. CVAD_WEIGHTS_DIR=", "3. cache", "4. hub", "Remedies:"):
        assert part in text


def test_too_few_good_images(cvad, small_config: Path, own_data: Path) -> None:
    for image in sorted((own_data / "grid" / "train" / "good").iterdir())[1:]:
        image.unlink()
    text = failure(cvad("train", "-c", small_config, "-q", "--set", f"data.root={own_data}"), 3)
    assert "training needs at least 2 good images, found 1" in text


def test_labels_that_do_not_fit_are_named_with_their_line(cvad, small_config: Path, own_data: Path) -> None:
    (own_data / "labels.csv").write_text("path,label\ngrid/train/good/000.png,good\nnowhere.png,bent\n", "utf-8")
    own = ("data.format=folders", "data.normal_dir=grid/train/good", "data.labels=labels.csv", f"data.root={own_data}")
    text = failure(cvad("train", "-c", small_config, "-q", *(part for one in own for part in ("--set", one))), 3)
    assert "labels.csv" in text
    assert "line 3" in text
    assert "nowhere.png" in text


SETTINGS = [
    pytest.param("model.coreset_ration=1", 2, "Did you mean 'coreset_ratio'?", id="an unknown key"),
    pytest.param("seed=many", 2, "seed: expected a whole number, got 'many'", id="a wrong type"),
    pytest.param("data.root=/nowhere/at/all", 3, "/nowhere/at/all", id="a missing data folder"),
    pytest.param("data.category=gird", 3, "grid", id="a category misspelt"),
    pytest.param("model.name=patchcor", 4, "anomalib has no model 'patchcor'. Did you mean 'patchcore", id="a model"),
    pytest.param("model.backbone=resnet10", 4, "timm has no model 'resnet10'", id="a backbone misspelt"),
    pytest.param("model.layers=[layer9]", 4, "has no layer 'layer9'", id="a layer"),
    pytest.param("model.weights=/nowhere/w.safetensors", 4, "no such file", id="a weight file"),
    pytest.param("model.options={depth: 3}", 2, "model.options: patchcore takes none; remove depth", id="an option"),
    pytest.param("device=cuda:63", 7, "cuda:63 is not available here; this machine has", id="a device"),
    pytest.param("data.max_megapixels=0.001", 3, "megapixels", id="an image too large"),
]


@pytest.mark.parametrize(("setting", "status", "message"), SETTINGS)
def test_a_wrong_setting_is_named(cvad, small_config: Path, setting: str, status: int, message: str) -> None:
    assert message in failure(cvad("train", "-c", small_config, "-q", "--set", setting), status)


DAMAGES = [
    pytest.param(b"", "empty", id="empty"),
    pytest.param(b"not an image at all", "not", id="no image"),
    pytest.param(None, "", id="truncated"),
]


@pytest.mark.parametrize(("content", "message"), DAMAGES)
@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_a_damaged_image_is_named(cvad, trained: Path, own_data: Path, command, content, message) -> None:
    root, tmp_path = own_data, own_data.parent
    part = "train/good" if command == "train" else "test/good"
    victim = root / "grid" / part / "001.png"
    victim.write_bytes(victim.read_bytes()[:700] if content is None else content)
    output = trained.parent / "runs" if command == "evaluate" else tmp_path / "runs"
    result = cvad(command, "-c", trained, "-q", "--set", f"data.root={root}", "--set", f"output.root={output}")
    text = failure(result, 3)
    assert "001.png" in text
    assert message in text.lower()


def test_evaluating_before_training_says_what_to_do(cvad, small_config: Path) -> None:
    assert "no trained bundle here; run `cvad train`" in failure(cvad("evaluate", "-c", small_config), 5)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("data.image_size=96", "was trained with data.image_size 64, the config says 96"),
        ("model.name=padim", "was trained with model.name patchcore, the config says padim"),
        ("model.layers=[layer1]", "was trained with model.layers ['layer1', 'layer2'], the config says ['layer1']"),
    ],
)
def test_a_bundle_of_other_settings_is_refused(cvad, trained: Path, setting: str, message: str) -> None:
    assert message in failure(cvad("evaluate", "-c", trained, "--set", setting), 5)


def test_a_damaged_bundle_is_refused(cvad, trained: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    shutil.copytree(trained.parent / "runs", runs)
    manifest = json.loads((runs / "small" / "bundle" / "manifest.json").read_text("utf-8"))
    bank = runs / "small" / "bundle" / manifest["files"]["memory_bank"]["name"]
    bank.write_bytes(bank.read_bytes()[:-1])
    here = ("--set", f"output.root={runs}")
    assert "has changed since it was trained" in failure(cvad("evaluate", "-c", trained, *here), 5)
    manifest_path = runs / "small" / "bundle" / "manifest.json"
    manifest_path.write_text(json.dumps({**manifest, "schema_version": 99}), encoding="utf-8")
    assert "schema version 99" in failure(cvad("evaluate", "-c", trained, *here), 5)
    manifest_path.write_text(json.dumps(manifest), encoding="utf-8")
    bank.unlink()
    assert "is missing" in failure(cvad("evaluate", "-c", trained, *here), 5)


def test_an_output_that_cannot_be_written_is_named(cvad, small_config: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    text = failure(cvad("train", "-c", small_config, "-q", "--set", f"output.root={tmp_path / 'file'}"), 7)
    assert "cannot be written" in text


def test_debug_shows_the_traceback(cvad, small_config: Path, capfd: pytest.CaptureFixture) -> None:
    result = cvad("train", "-c", small_config, "--debug", "--set", "data.category=gird")
    assert result.exit_code == 3
    assert "Traceback" in result.stderr


def test_a_bug_of_ours_is_called_one(cvad, small_config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("by design of this test")

    monkeypatch.setattr("cvad_cli.tasks.train.open_dataset", broken)
    assert "bug: ZeroDivisionError: by design of this test" in failure(cvad("train", "-c", small_config), 70)


def test_ctrl_c_has_its_status(cvad, small_config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("cvad_cli.tasks.train.open_dataset", interrupted)
    assert "interrupted" in failure(cvad("train", "-c", small_config), 130)
