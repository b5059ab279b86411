"""EfficientAD without a network: anomalib's losses to rounding, resumable training, clear refusals."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from cvad_cli.adapters.pdn import build_pdn, fold_linear, load_teacher, save_teacher
from cvad_cli.adapters.storage.bundles import read_bundle
from cvad_cli.adapters.torch_training.muon import Muon
from cvad_cli.assembly.data.images import open_dataset
from cvad_cli.assembly.training.efficient_ad import fit_efficient_ad
from cvad_cli.assembly.training.efficient_ad_options import Preset
from cvad_cli.assembly.training.pdn_teachers import PACKAGED, choose_teacher
from cvad_cli.cli.progress import QuietReporter
from cvad_cli.config.load import load_config
from cvad_cli.errors import BundleError, ModelError

with warnings.catch_warnings():  # anomalib imports deprecated modules
    warnings.simplefilter("ignore")
    from cvad_cli.adapters.anomalib_models.efficient_ad import (
        hard_feature_loss,
        new_model,
        recorded_losses,
        set_quantiles,
        set_statistics,
        teacher_moments,
        training_losses,
    )
    from cvad_cli.adapters.runtime_torch.networks import map_scale

CHANNELS = 6

CONFIG = """
name: small
seed: 3
device: cpu
data: {{root: {root}, category: grid, image_size: 256}}
model: {{name: efficient_ad, weights: {teacher}}}
trainer: {{preset: quick, max_steps: 6, checkpoint_every: 2}}
calibration: {{false_alarm_rate: 0.4}}
evaluation: {{images: 0}}
output: {{root: {output}}}
"""


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher of few channels, so that training takes seconds."""
    path = tmp_path_factory.mktemp("teacher") / "tiny.safetensors"
    save_teacher(path, build_pdn("small", CHANNELS, padding=False, seed=1), {"steps": 0})
    return path


@pytest.fixture
def config(tmp_path: Path, sample_data: Path, teacher: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(CONFIG.format(root=sample_data, teacher=teacher, output=tmp_path / "runs"), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def images() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.rand(1, 3, 256, 256, generator=generator) for _ in range(3)]


def small_model() -> torch.nn.Module:
    torch.manual_seed(4)
    model = new_model("small", CHANNELS, padding=False, pad_maps=True)
    model.mean_std["mean"].data += 0.1
    model.mean_std["std"].data += 0.5
    return model


def test_losses_and_gradients_are_those_of_anomalib(images: list[torch.Tensor], monkeypatch) -> None:
    ours, theirs = small_model(), small_model()
    for model in (ours, theirs):
        model.train()
        model.teacher.eval()
        model.ae.eval()  # without dropout both are functions of their input alone
    monkeypatch.setattr(theirs, "choose_random_aug_image", lambda _image: images[2])
    expected = theirs(images[0], images[1])
    found = training_losses(ours, images[0], images[1], images[2])
    for name, one, other in zip(("student", "autoencoder", "both"), found, expected, strict=True):
        assert one.item() == pytest.approx(other.item(), rel=1e-5), name
    sum(found).backward()
    sum(expected).backward()
    for (name, one), other in zip(ours.student.named_parameters(), theirs.student.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-7, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="records CUDA graphs: needs a CUDA device")
@pytest.mark.filterwarnings("ignore:The AccumulateGrad node's stream")  # torch records on a stream of its own
def test_recorded_losses_and_gradients_are_those_of_the_steps_themselves(images: list[torch.Tensor]) -> None:
    plain, recorded = small_model().cuda().train(), small_model().cuda().train()
    inside = [image.cuda().contiguous(memory_format=torch.channels_last) for image in images]
    for model in (plain, recorded):
        model.teacher.eval()
        for dropout in (module for module in model.modules() if isinstance(module, torch.nn.Dropout)):
            dropout.p = 0.0
    replay = recorded_losses(recorded, inside[0], None)
    for order in ((0, 1, 2), (2, 0, 1)):  # the second replay must read the new images
        expected = training_losses(plain, *(inside[place] for place in order))
        found = replay(*(inside[place] for place in order))
        for one, other in zip(found, expected, strict=True):
            assert one.item() == pytest.approx(other.item(), rel=1e-2)
    sum(found).backward()
    sum(expected).backward()
    for one, other in zip(recorded.student.parameters(), plain.student.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=5e-2, atol=1e-4)


@pytest.mark.parametrize("count", [1, 2, 999, 1000, 1001, 4321])
def test_hard_features_are_those_at_or_above_the_quantile(count: int) -> None:
    values = torch.from_numpy(np.random.default_rng(count).permutation(count).astype(np.float32))
    hard = values[values >= torch.quantile(values, 0.999)]
    assert float(hard_feature_loss(values)) == pytest.approx(float(hard.mean()))


def test_the_teachers_statistics_are_those_of_all_its_answers(images: list[torch.Tensor]) -> None:
    network = build_pdn("small", CHANNELS, padding=False, seed=2)
    model = small_model()
    set_statistics(model, *teacher_moments(network, iter(images)).result())
    found = model.mean_std
    with torch.no_grad():
        answers = torch.cat([network(image) for image in images]).double()
    torch.testing.assert_close(found["mean"][0, :, 0, 0], answers.mean((0, 2, 3)).float())
    torch.testing.assert_close(found["std"][0, :, 0, 0], answers.std((0, 2, 3), correction=0).float())


def test_a_linear_map_folded_into_a_teacher_multiplies_its_answers(images: list[torch.Tensor]) -> None:
    network = build_pdn("small", CHANNELS, padding=False, seed=2)
    matrix = np.random.default_rng(0).standard_normal((CHANNELS, CHANNELS))
    with torch.no_grad():
        expected = torch.einsum("ij,bjhw->bihw", torch.from_numpy(matrix).float(), network(images[0]))
        fold_linear(network, matrix)
        torch.testing.assert_close(network(images[0]), expected, rtol=1e-3, atol=1e-4)


def test_maps_are_brought_to_0_and_a_tenth_at_their_quantiles(images: list[torch.Tensor]) -> None:
    model = small_model().eval()
    set_quantiles(model, iter(images))
    for maps in zip(*(model.get_maps(image, normalize=True) for image in images), strict=True):
        values = torch.cat(maps).detach().flatten()
        assert float(torch.quantile(values, 0.9)) == pytest.approx(0, abs=1e-5)
        assert float(torch.quantile(values, 0.995)) == pytest.approx(0.1, abs=1e-5)


@pytest.mark.parametrize("level", [0.0, 0.5])
def test_images_of_one_colour_give_maps_no_scale(level: float) -> None:
    with pytest.raises(ValueError, match=r"student's map .* has no scale"):
        set_quantiles(small_model().eval(), iter([torch.full((1, 3, 256, 256), level)] * 2))


def test_a_model_with_equal_quantiles_is_refused_with_the_remedy() -> None:
    model = small_model().eval()
    for name, value in (("qa_st", 0.2), ("qb_st", 0.3), ("qa_ae", 0.4), ("qb_ae", 0.4)):
        model.quantiles[name].data.fill_(value)
    with pytest.raises(BundleError, match=r"autoencoder's map .*run `cvad train` again"):
        map_scale(model)


def test_training_on_images_of_one_colour_says_so(cvad, config: Path, sample_data: Path, tmp_path: Path) -> None:
    root = shutil.copytree(sample_data, tmp_path / "data")
    for path in (root / "grid" / "train" / "good").iterdir():
        Image.new("RGB", (128, 128), (3, 3, 3)).save(path)
    result = cvad("train", "-c", config, "-q", "--set", f"data.root={root}", "--set", "trainer.max_steps=2")
    assert result.exit_code == 3, result.output
    assert "check that the good images show the part" in result.stderr
    assert not (config.parent / "runs" / "small" / "bundle").exists()


def test_muon_moves_kernels_by_orthogonal_steps_and_biases_like_adam() -> None:
    kernel, bias, reference = (torch.nn.Parameter(torch.ones(shape)) for shape in ((4, 3, 2, 2), (5,), (5,)))
    muon = Muon([kernel, bias], kernel_rate=0.1, bias_rate=0.01)
    adam = torch.optim.Adam([reference], lr=0.01)
    for seed in range(3):
        before = kernel.detach().clone()
        generator = torch.Generator().manual_seed(seed)
        kernel.grad = torch.randn(kernel.shape, generator=generator)
        bias.grad = torch.randn(5, generator=generator)
        reference.grad = bias.grad.clone()
        muon.step()
        adam.step()
        singular = torch.linalg.svdvals((before - kernel.detach()).flatten(1)) / 0.1
        assert bool(((singular > 0.5) & (singular < 1.4)).all()), singular
    torch.testing.assert_close(bias, reference)


def test_the_packaged_teacher_is_small_and_says_how_it_was_made() -> None:
    path = PACKAGED["small"]
    assert path.stat().st_size < 8e6
    teacher = load_teacher(path, size="small", channels=384)
    assert teacher.provenance["command"].startswith("cvad distill-teacher")
    assert teacher.provenance["steps"] >= 1000
    assert set(teacher.provenance["images"]) <= {"generated", "scikit-image samples"}
    assert teacher.provenance["held_out_loss"] < 0.5


def test_it_trains_calibrates_and_evaluates_as_patchcore_does(cvad, config: Path, metrics_of) -> None:
    trained = cvad("train", "-c", config, "--json")
    assert trained.exit_code == 0, trained.output
    summary = json.loads(trained.stdout)
    assert summary["details"]["steps"] == 6
    assert summary["weights"].startswith("file tiny.safetensors")
    run = config.parent / "runs" / "small"
    assert not (run / "training").exists(), "the state of a finished run is removed"
    bundle = read_bundle(run / "bundle")
    assert bundle.manifest["model"]["kind"] == "efficient_ad"
    assert {path.suffix for path in bundle.folder.iterdir()} == {".json", ".safetensors"}
    evaluated = cvad("evaluate", "-c", config, "--json")
    assert evaluated.exit_code == 0, evaluated.output
    metrics = metrics_of(config)
    assert 0 <= metrics["image"]["auroc"] <= 1
    assert metrics["provenance"]["model"] == "efficient_ad"


def run_until(config: Path, condition: Callable[[], bool]) -> None:
    """Train in another process and kill it, as a power cut would, once the condition holds."""
    command = [sys.executable, "-m", "cvad_cli", "train", "-c", str(config), "-q"]
    process = subprocess.Popen(command, cwd=Path(__file__).parents[2], env={**os.environ, "OMP_NUM_THREADS": "2"})
    try:
        deadline = time.monotonic() + 120
        while not condition() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        assert process.poll() is None, "the run was over before it could be killed"
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


@pytest.mark.ci
def test_a_run_killed_again_and_again_ends_with_the_same_steps_and_a_whole_bundle(cvad, config: Path) -> None:
    run = config.parent / "runs" / "small"
    checkpoint = run / "training" / "final.ckpt"

    def saved() -> int:
        return checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0

    seen = []
    for _ in range(2):
        former = saved()
        run_until(config, lambda former=former: saved() > former)
        assert not (run / "bundle" / "manifest.json").exists()
        seen.append(int(torch.load(checkpoint, weights_only=True)["global_step"]))
    assert seen == sorted(set(seen)), "each try went on from the one before"
    assert seen[0] >= 2
    result = cvad("train", "-c", config, "--json")
    assert result.exit_code == 0, result.output
    assert f"continuing from step {seen[-1]} of 6" in result.stderr
    assert json.loads(result.stdout)["details"]["steps"] == 6
    assert bool((load_file(read_bundle(run / "bundle").file("network"))["mean_std.std"] > 0).all())


@pytest.mark.ci
def test_a_checkpoint_of_other_settings_is_refused_and_can_be_set_aside(cvad, config: Path) -> None:
    checkpoint = config.parent / "runs" / "small" / "training" / "final.ckpt"
    run_until(config, checkpoint.exists)
    other = cvad("train", "-c", config, "--set", "seed=4")
    assert other.exit_code == 2
    assert "seed was 3, is now 4" in other.stderr
    assert "--set trainer.resume=false" in other.stderr
    checkpoint.write_bytes(b"half a file")
    damaged = cvad("train", "-c", config)
    assert damaged.exit_code == 4
    assert "final.ckpt: is no checkpoint of this training" in damaged.stderr
    anew = cvad("train", "-c", config, "--json", "--set", "trainer.resume=false", "--set", "trainer.max_steps=1")
    assert anew.exit_code == 0, anew.output
    assert json.loads(anew.stdout)["details"]["steps"] == 1


@pytest.mark.ci
@pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning"
)  # torch, Lightning
def test_training_stops_where_held_out_images_no_longer_improve(config: Path) -> None:
    settings = load_config(config, ["trainer.patience=2"])
    preset = Preset(steps=9, checkpoint_every=9, check_every=1, patience=None, min_improvement=1e9)
    records = open_dataset(settings.data).train
    fitted = fit_efficient_ad(settings, records, "cpu", QuietReporter(), presets={settings.trainer.preset: preset})
    assert fitted.details["steps"] == 3


@pytest.mark.ci
def test_penalty_images_may_come_from_a_folder(cvad, config: Path, tmp_path: Path) -> None:
    (tmp_path / "penalty").mkdir()
    for index in range(2):
        levels = np.random.default_rng(index).integers(0, 255, (80, 90, 3), dtype=np.uint8)
        Image.fromarray(levels).save(tmp_path / "penalty" / f"{index}.png")
    options = ("--set", f"model.penalty_images={tmp_path / 'penalty'}", "--set", "trainer.max_steps=1")
    assert cvad("train", "-c", config, "-q", *options).exit_code == 0


@pytest.mark.ci
def test_images_beyond_the_bound_on_memory_are_read_again_and_give_the_same_bundle(cvad, config: Path) -> None:
    fingerprints = []
    for bound in ("1GB", "1MB"):
        options = (
            "--set",
            f"train.max_memory={bound}",
            "--set",
            "trainer.max_steps=1",
            "--set",
            "trainer.precision=32-true",
        )
        assert cvad("train", "-c", config, "-q", *options).exit_code == 0
        fingerprints.append(read_bundle(config.parent / "runs" / "small" / "bundle").file("network").name)
    assert fingerprints[0] == fingerprints[1]


REFUSALS = [
    pytest.param("data.image_size=128", 2, "needs at least 256 pixels, got 128", id="too small an image"),
    pytest.param("trainer.batch_size=8", 2, "trained on one image per step", id="another batch size"),
    pytest.param("model.backbone=resnet18", 2, "model.backbone: efficient_ad has none", id="a backbone"),
    pytest.param("model.options={model_sise: small}", 2, "Did you mean 'model_size'?", id="a misspelt option"),
    pytest.param("model.options={whitening: 2}", 2, "expected a number from 0 to 1, got 2", id="too much whitening"),
    pytest.param("model.options={model_size: s}", 2, "expected small or medium, got 's'", id="an unknown size"),
    pytest.param(
        "model.options={teacher_out_channels: 384}", 4, "has 6 channels, but the model wants 384", id="channels"
    ),
    pytest.param(
        "model.options={model_size: medium}", 4, "holds a small PDN, but the model is medium", id="wrong size"
    ),
    pytest.param("model.weights=nowhere.safetensors", 4, "nowhere.safetensors: no such file", id="no teacher"),
    pytest.param("model.penalty_images=nowhere", 3, "model.penalty_images: nowhere: no such folder", id="no folder"),
]


@pytest.mark.parametrize(("setting", "status", "message"), REFUSALS)
def test_what_cannot_be_trained_is_refused_before_any_work(
    cvad, config: Path, setting: str, status: int, message: str
) -> None:
    result = cvad("train", "-c", config, "--set", setting)
    assert result.exit_code == status, result.output
    assert message in result.stderr
    assert not (config.parent / "runs" / "small" / "bundle").exists()


def test_an_empty_penalty_folder_is_refused(cvad, config: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    result = cvad("train", "-c", config, "--set", f"model.penalty_images={tmp_path / 'empty'}")
    assert result.exit_code == 3
    assert "model.penalty_images" in result.stderr
    assert "holds no image" in result.stderr


def test_there_is_no_packaged_medium_teacher_and_the_remedy_is_named() -> None:
    with pytest.raises(ModelError, match=r"comes with no medium teacher.*distill-teacher --size medium"):
        choose_teacher("medium", None, None, padding=False, seed=0)


def test_a_pdn_serves_patchcore_as_backbone(cvad, small_config: Path) -> None:
    options = ["model.backbone=pdn_small", "model.layers=null", "model.weights=null"]
    arguments = [part for option in options for part in ("--set", option)]
    trained = cvad("train", "-c", small_config, "--json", *arguments)
    assert trained.exit_code == 0, trained.output
    assert json.loads(trained.stdout)["weights"].startswith("packaged, pdn_small.safetensors")
    evaluated = cvad("evaluate", "-c", small_config, "--json", *arguments)
    assert evaluated.exit_code == 0, evaluated.output
    wrong = cvad("train", "-c", small_config, "--set", "model.backbone=pdn_small")
    assert wrong.exit_code == 4
    assert "pdn_small has one layer, [features]" in wrong.stderr
