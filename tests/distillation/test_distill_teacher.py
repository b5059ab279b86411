"""Distilling a teacher: targets that are what they claim, runs that survive being killed, clear refusals."""

from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from cvad_cli.adapters.images.random_crops import random_crop
from cvad_cli.adapters.storage.checkpoints import Checkpoint, read_checkpoint, write_checkpoint
from cvad_cli.assembly.distillation.feature_targets import (
    GRID,
    SourceBackbone,
    backbone_features,
    estimate_targets,
    load_sources,
)
from cvad_cli.assembly.distillation.image_batches import training_batches
from cvad_cli.assembly.distillation.pretraining_images import (
    IMAGE_SIDE,
    ImageSource,
    RealImages,
    bundled_samples,
    find_real_images,
)
from cvad_cli.core.feature_targets import AffineTargets, Moments, standardising_targets
from cvad_cli.core.learning_rate import WARM_UP_STEPS, fall_begins, learning_share
from cvad_cli.errors import ConfigError, CvadError, DataError, ModelError
from cvad_cli.tasks.distill_teacher import (
    DistillRequest,
    DistillSettings,
    DistillSummary,
    command_line,
    distill_teacher,
)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import anomalib.models  # noqa: F401  # it warns of its own dependencies while it is imported

    from cvad_cli.adapters.torch_training.muon import orthogonalised
from cvad_cli.adapters.pdn import load_teacher

NO_REAL_IMAGES = RealImages((), (), (), "none")


class Recorder:
    """A reporter that remembers, and that interrupts after a number of distilling steps, as a kill would."""

    def __init__(self, interrupt_after: int | None = None) -> None:
        self.notes: list[str] = []
        self.warnings: list[str] = []
        self.counted: dict[str, int] = {}
        self._interrupt_after = interrupt_after

    @contextmanager
    def stage(self, title: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
        def advance(steps: int) -> None:
            self.counted[title] = self.counted.get(title, 0) + steps
            if title.startswith("Distilling") and self.counted[title] == self._interrupt_after:
                raise KeyboardInterrupt

        yield advance

    def note(self, message: str) -> None:
        self.notes.append(message)

    def warn(self, message: str) -> None:
        self.warnings.append(message)


def settings(output: Path, **changes: object) -> DistillSettings:
    small = DistillSettings(
        output,
        samples=False,
        channels=8,
        backbones=("resnet10t:layer1",),
        weights=("random",),
        steps=12,
        batch_size=1,
        seed=5,
        device="cpu",
        checkpoint_every=3,
        generated_share=1.0,
        calibration_images=4,
        held_out_images=2,
    )
    return dataclasses.replace(small, **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> DistillSummary:
    """Twelve steps in one piece."""
    return distill_teacher(
        settings(tmp_path_factory.mktemp("whole") / "teacher.safetensors"), DistillRequest(), Recorder()
    )


def killed_after(steps: int, wanted: DistillSettings) -> None:
    with pytest.raises(KeyboardInterrupt):
        distill_teacher(wanted, DistillRequest(), Recorder(interrupt_after=steps))


def test_the_teacher_says_where_it_comes_from(whole_run: DistillSummary) -> None:
    teacher = load_teacher(whole_run.output, size="small", channels=8)
    assert teacher.provenance["backbones"] == ["resnet10t:layer1"]
    assert teacher.provenance["images"] == {"generated": 12}
    assert (teacher.provenance["steps"], teacher.provenance["seed"]) == (12, 5)
    assert teacher.provenance["held_out_loss"] == pytest.approx(whole_run.loss, abs=1e-5)
    assert teacher.provenance["command"].startswith("cvad distill-teacher --output teacher.safetensors")
    assert str(whole_run.output.parent) not in json.dumps(dict(teacher.provenance))
    assert [path.name for path in whole_run.output.parent.iterdir()] == ["teacher.safetensors"]


def test_training_lowers_the_held_out_loss(whole_run: DistillSummary) -> None:
    assert [step for step, _ in whole_run.curve] == [3, 6, 9, 12]
    assert whole_run.loss < whole_run.curve[0][1]
    assert whole_run.resumed_from == 0


@pytest.mark.parametrize("kills", [(7,), pytest.param((2, 5), marks=pytest.mark.long)], ids=str)
def test_a_killed_run_goes_on_and_ends_where_it_would_have_ended(
    tmp_path: Path, whole_run: DistillSummary, kills: tuple[int, ...]
) -> None:
    wanted = settings(tmp_path / "teacher.safetensors")
    for steps in kills:
        killed_after(steps, wanted)
        assert not wanted.output.exists()
    reporter = Recorder()
    summary = distill_teacher(wanted, DistillRequest(), reporter)
    assert [step for step, _ in summary.curve] == [3, 6, 9, 12]
    assert summary.resumed_from + reporter.counted["Distilling the teacher"] == 12
    assert summary.resumed_from > 0
    assert "Measuring the features" not in reporter.counted
    straight, resumed = load_file(whole_run.output), load_file(summary.output)
    for name, tensor in straight.items():
        torch.testing.assert_close(resumed[name], tensor, atol=2e-3, rtol=1e-2)
    assert not wanted.checkpoint.exists()


@pytest.mark.ci
def test_a_run_killed_by_the_system_leaves_a_whole_checkpoint_and_the_former_teacher(tmp_path: Path) -> None:
    wanted = settings(tmp_path / "teacher.safetensors", steps=500, checkpoint_every=1)
    wanted.output.write_bytes(b"the former teacher")
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); from pathlib import Path\n"
        "from test_distill_teacher import DistillRequest, Recorder, distill_teacher, settings\n"
        "distill_teacher(settings(Path(sys.argv[2]), steps=500, checkpoint_every=1), DistillRequest(), Recorder())\n"
    )
    command = [sys.executable, "-c", script, str(Path(__file__).parent), str(wanted.output)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while not wanted.checkpoint.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(np.random.default_rng().uniform(0, 1))
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert process.returncode == -signal.SIGKILL
    assert wanted.output.read_bytes() == b"the former teacher"
    header = read_checkpoint(wanted.checkpoint, _settings_of(wanted.checkpoint))
    assert header is not None
    steps = 2 * header.step + 10  # the rate does not fall yet: another number of steps is welcome
    summary = distill_teacher(dataclasses.replace(wanted, steps=steps), DistillRequest(), Recorder())
    assert (summary.steps, summary.resumed_from, summary.curve[-1][0]) == (steps, header.step, steps)
    assert load_teacher(wanted.output).channels == 8


def _settings_of(checkpoint: Path) -> dict[str, object]:
    from safetensors import safe_open

    with safe_open(checkpoint, framework="pt") as file:
        return dict(json.loads(file.metadata()["cvad_checkpoint"])["settings"])


@pytest.fixture(scope="module")
def half_done(tmp_path_factory: pytest.TempPathFactory) -> DistillSettings:
    """A run that was killed after 4 of 12 steps, its checkpoint at 3. Tests refuse to go on: it stays as it is."""
    wanted = settings(tmp_path_factory.mktemp("half") / "teacher.safetensors")
    killed_after(4, wanted)
    return wanted


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({"seed": 6}, "seed was 5, is now 6", id="seed"),
        pytest.param(
            {"batch_size": 2, "channels": 9}, r"batch_size was 1, is now 2; channels was 8, is now 9", id="two"
        ),
        pytest.param({"backbones": ("resnet10t:layer2",)}, r"resnet10t:layer1.*resnet10t:layer2", id="backbone"),
        pytest.param({"steps": 3}, "begun for 12 steps and has done 3: .*--steps 12 to go on", id="steps"),
    ],
)
def test_other_settings_are_refused_with_the_difference(
    half_done: DistillSettings, changes: dict[str, object], message: str
) -> None:
    before = half_done.checkpoint.read_bytes()
    with pytest.raises(ConfigError, match=rf"{message}.*--restart"):
        distill_teacher(dataclasses.replace(half_done, **changes), DistillRequest(), Recorder())  # type: ignore[arg-type]
    assert half_done.checkpoint.read_bytes() == before


def test_restart_begins_anew(tmp_path: Path) -> None:
    wanted = settings(tmp_path / "teacher.safetensors", steps=2, checkpoint_every=1)
    killed_after(1, wanted)
    summary = distill_teacher(dataclasses.replace(wanted, seed=6), DistillRequest(restart=True), Recorder())
    assert (summary.resumed_from, [step for step, _ in summary.curve]) == (0, [1, 2])


def test_steps_may_change_until_the_rate_begins_to_fall() -> None:
    for steps in (12, 60, 1000):
        begins = fall_begins(steps)
        level = [learning_share(step, steps) for step in range(begins)]
        assert level == [learning_share(step, 10 * steps) for step in range(begins)]
        falling = [learning_share(step, steps) for step in range(begins - 1, steps)]
        assert falling == sorted(falling, reverse=True)
        assert 0 < falling[-1] < 0.1
    assert learning_share(WARM_UP_STEPS, 1000) == 1.0


@pytest.mark.parametrize("shape", [(20, 90), (90, 20), (32, 32)], ids=str)
def test_a_step_moves_all_directions_of_a_kernel_alike(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    strong = left @ torch.diag(values**2) @ right  # the same directions, their strengths further apart
    for given in (matrix, 1e-4 * strong):
        found = left.T @ orthogonalised(given) @ right.T
        along = found.diagonal()
        # bfloat16 and five steps: the weakest directions are still on their way, the others lie near 1
        assert along[: len(along) * 3 // 4].min() > 0.6
        assert along.max() < 1.3
        assert (found - torch.diag(along)).abs().max() < 0.1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "--steps: expected a whole number from 1, got '0'"),
        ({"generated_share": 1.5}, "--generated-share: expected a share from 0 to 1, got '1.5'"),
        ({"size": "large"}, "--size: expected small or medium, got 'large'"),
        ({"channels": 0}, "--channels: expected a whole number from 1"),
    ],
)
def test_a_setting_out_of_range_is_named(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        settings(tmp_path / "teacher.safetensors", **changes)


def test_an_output_that_is_no_safetensors_file_is_named() -> None:
    with pytest.raises(
        ConfigError, match=r"--output: expected a file name that ends in .safetensors, got 'teacher.pt'"
    ):
        settings(Path("teacher.pt"))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"backbones": ("resnet10x",)}, ModelError, "timm has no model 'resnet10x'"),
        ({"backbones": ("resnet10t:layer9",)}, ModelError, "resnet10t has no layer 'layer9'"),
        ({"backbones": ("resnet10t:",)}, ConfigError, "expected NAME or NAME:LAYER,LAYER, got 'resnet10t:'"),
        ({"backbones": ()}, ConfigError, "name at least one backbone"),
        ({"weights": ("a", "b")}, ConfigError, "2 given for 1 backbones"),
        ({"images": (Path("nowhere"),)}, DataError, "nowhere: no such folder"),
    ],
)
def test_what_cannot_be_had_is_named_before_any_work(
    tmp_path: Path, changes: dict[str, object], error: type[CvadError], message: str
) -> None:
    reporter = Recorder()
    with pytest.raises(error, match=message):
        distill_teacher(settings(tmp_path / "teacher.safetensors", **changes), DistillRequest(), reporter)
    assert not reporter.counted
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_that_is_none_is_named(tmp_path: Path) -> None:
    path = tmp_path / "t.checkpoint.safetensors"
    assert read_checkpoint(path, {}) is None
    path.write_bytes(b"half a file")
    with pytest.raises(ModelError, match=r"t.checkpoint.safetensors: is no checkpoint of cvad .*--restart"):
        read_checkpoint(path, {})
    write_checkpoint(path, Checkpoint(4, {"a": torch.arange(3.0)}, {"curve": [[1, 0.5]]}), {"seed": 1})
    found = read_checkpoint(path, {"seed": 1})
    former = tmp_path / "former.safetensors"
    write_checkpoint(former, Checkpoint(4, {"a": torch.arange(3.0)}, {}), {"real_pictures": "f00d"})
    assert read_checkpoint(former, {"real_images": "f00d"}) is not None, "a setting's name of an earlier release"
    assert found is not None
    assert (found.step, found.tensors["a"].tolist(), found.notes["curve"]) == (4, [0.0, 1.0, 2.0], [[1, 0.5]])


def test_a_backbone_without_layers_gives_its_stages_of_middling_stride() -> None:
    (backbone,) = load_sources([SourceBackbone.parse("resnet10t")], ["random"], seed=0)
    assert backbone.spec.layers == ("layer1", "layer2", "layer3")


@pytest.mark.parametrize("channels", [None, 3, 80], ids=["all 64", "fewer", "more"])
def test_targets_have_mean_0_and_variance_1(channels: int | None) -> None:
    features = backbone_features(load_sources([SourceBackbone("resnet10t", ("layer1",))], ["random"], seed=1), "cpu")
    source = ImageSource(NO_REAL_IMAGES, generated_share=1.0, seed=2)
    affine = estimate_targets(features, source, images=6, channels=channels, seed=3, advance=lambda _count: None)
    images = np.stack([source.image("calibration", step, 0) for step in range(6)])
    found = features(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255)
    assert found.shape == (6, 64, GRID, GRID)
    targets = found.permute(0, 2, 3, 1).reshape(-1, 64).numpy() @ affine.weight + affine.bias
    assert targets.shape == (6 * GRID * GRID, channels or 64)
    np.testing.assert_allclose(targets.mean(axis=0), 0, atol=2e-2)
    np.testing.assert_allclose(targets.std(axis=0), 1, atol=2e-2)


def correlated(channels: int) -> tuple[np.ndarray, AffineTargets]:
    rng = np.random.default_rng(0)
    features = rng.standard_normal((4000, 12)) @ rng.standard_normal((12, 12)) * 10 + 5
    moments = Moments(12)
    moments.add(features[:1500])
    moments.add(features[1500:])
    return features, standardising_targets(*moments.result(), channels, rng=np.random.default_rng(1))


def test_as_many_targets_as_features_are_those_features_standardised() -> None:
    features, affine = correlated(12)
    expected = (features - features.mean(axis=0)) / features.std(axis=0)
    np.testing.assert_allclose(features @ affine.weight + affine.bias, expected, atol=1e-4)


def test_more_targets_keep_the_distances_of_standardised_features() -> None:
    features, affine = correlated(600)
    standardised = (features - features.mean(axis=0)) / features.std(axis=0)
    targets = features @ affine.weight + affine.bias
    before = np.linalg.norm(standardised[:50, None] - standardised[None, :50], axis=2)[np.triu_indices(50, 1)]
    after = np.linalg.norm(targets[:50, None] - targets[None, :50], axis=2)[np.triu_indices(50, 1)]
    assert np.corrcoef(before, after)[0, 1] > 0.99
    assert np.linalg.matrix_rank(affine.weight, tol=1e-4) == 12


def test_fewer_targets_keep_the_principal_components() -> None:
    features, affine = correlated(4)
    standardised = (features - features.mean(axis=0)) / features.std(axis=0)
    first = np.linalg.svd(standardised, full_matrices=False)[2][:4].T
    targets = features @ affine.weight + affine.bias
    fitted = np.linalg.lstsq(standardised @ first, targets, rcond=None)
    assert fitted[1].max() / np.square(targets).sum() < 1e-6


def test_a_constant_feature_is_not_blown_up() -> None:
    mean, covariance = np.array([2.0, 3.0]), np.diag([4.0, 0.0])
    affine = standardising_targets(mean, covariance, 2, rng=np.random.default_rng(0))
    np.testing.assert_allclose(np.array([4.0, 3.0]) @ affine.weight + affine.bias, [1.0, 0.0], atol=1e-6)


def write_images(folder: Path, count: int) -> None:
    folder.mkdir(parents=True)
    for index in range(count):
        levels = np.random.default_rng(index).integers(0, 255, (90, 70, 3), dtype=np.uint8)
        Image.fromarray(levels).save(folder / f"{index:02}.png")


def test_images_depend_on_seed_stream_step_and_place_alone(tmp_path: Path) -> None:
    write_images(tmp_path / "real", 3)
    real = find_real_images([tmp_path / "real"], samples=False)
    first, again = (ImageSource(real, generated_share=0.5, seed=9) for _ in range(2))
    batch = first.batch("training", 4, 3)
    assert batch.shape == (3, IMAGE_SIDE, IMAGE_SIDE, 3)
    first.batch("training", 5, 2)
    assert np.array_equal(first.batch("training", 4, 3), batch)
    assert np.array_equal(again.batch("training", 4, 3), batch)
    for other in (
        again.batch("training", 5, 3),
        again.batch("held_out", 4, 3),
        ImageSource(real, generated_share=0.5, seed=8).batch("training", 4, 3),
    ):
        assert not np.array_equal(other, batch)


def test_held_out_images_are_not_trained_on(tmp_path: Path) -> None:
    write_images(tmp_path / "deep" / "er", 20)
    real = find_real_images([tmp_path / "deep"], samples=False)
    assert (len(real.training), len(real.held_out)) == (18, 2)
    assert not set(real.training) & set(real.held_out)
    assert real.sources == (("deep", 20),)
    (tmp_path / "deep" / "er" / "00.png").unlink()
    assert find_real_images([tmp_path / "deep"], samples=False).fingerprint != real.fingerprint


def test_a_folder_without_images_is_named(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(DataError, match=r"holds no image \(\.bmp"):
        find_real_images([tmp_path], samples=False)


def test_an_unreadable_image_is_passed_over_and_a_folder_of_them_ends_the_run(tmp_path: Path) -> None:
    write_images(tmp_path / "mixed", 1)
    (tmp_path / "mixed" / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n cut short")
    mixed = ImageSource(find_real_images([tmp_path / "mixed"], samples=False), generated_share=0.0, seed=0)
    mixed.batch("training", 0, 6)
    assert len(mixed.skipped) == 1
    assert "bad.png" in mixed.skipped[0]
    (tmp_path / "mixed" / "00.png").unlink()
    only_bad = ImageSource(find_real_images([tmp_path / "mixed"], samples=False), generated_share=0.0, seed=0)
    with pytest.raises(DataError, match=r"10 images in a row cannot be read, the last one because: .*bad.png"):
        only_bad.batch("training", 0, 1)


@pytest.mark.skipif(not bundled_samples(), reason="scikit-image is not installed")
def test_the_bundled_samples_need_no_download() -> None:
    real = find_real_images([], samples=True)
    assert real.sources[0][1] == len(bundled_samples()) >= 15
    crops = ImageSource(real, generated_share=0.0, seed=0).batch("held_out", 0, 4)
    assert crops.std(axis=(1, 2, 3)).min() > 1


@pytest.mark.parametrize("shape", [(40, 30), (256, 256), (300, 900)], ids=str)
def test_a_crop_has_the_side_that_was_asked_for_and_stays_inside_the_image(shape: tuple[int, int]) -> None:
    image = np.full((*shape, 3), 120, np.uint8)
    for seed in range(8):
        crop = random_crop(image, 64, rng=np.random.default_rng(seed))
        assert (crop.shape, crop.dtype) == ((64, 64, 3), np.uint8)
        assert np.ptp(crop, axis=(0, 1)).max() == 0  # a border made up, or an edge met, would show


def test_the_command_that_makes_a_teacher_again_names_no_place_of_this_machine(tmp_path: Path) -> None:
    told = command_line(settings(tmp_path / "t.safetensors", images=(tmp_path / "my parts",)))
    assert "--images 'my parts'" in told
    assert str(tmp_path) not in told


def test_the_command_distils_a_teacher_and_checks_its_arguments(cvad, tmp_path) -> None:
    small = ["--size", "small", "--channels", "8", "--backbone", "resnet10t:layer1", "--weights", "random"]
    small += ["--batch-size", "2", "--calibration-images", "4", "--held-out-images", "2", "--no-samples"]
    small += ["--generated-share", "1", "--device", "cpu", "--checkpoint-every", "1"]
    first = cvad("distill-teacher", "-o", tmp_path / "own.safetensors", *small, "--steps", "2", "--json")
    assert first.exit_code == 0, first.output
    summary = json.loads(first.stdout)
    assert (summary["steps"], summary["channels"]) == (2, 8)
    assert (tmp_path / "own.safetensors").is_file()
    wrong = cvad("distill-teacher", "-o", tmp_path / "own.pt", *small)
    assert wrong.exit_code == 2
    assert "a file name that ends in .safetensors" in wrong.stderr


def test_processes_beside_a_gpu_make_the_images_that_threads_make(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "broken.png").write_bytes(b"no image")
    for number in range(9):
        Image.fromarray(rng.integers(0, 255, (300, 300, 3), dtype=np.uint8)).save(tmp_path / f"{number}.png")
    real = find_real_images([tmp_path], samples=False)
    sources = [ImageSource(real, generated_share=0.3, seed=5) for _ in range(2)]
    threads, processes = (
        list(training_batches(source, range(2, 6), 3, processes=count))
        for source, count in zip(sources, (0, 2), strict=True)
    )
    assert len(threads) == 4
    assert all(np.array_equal(one, other) for one, other in zip(threads, processes, strict=True))
    assert sources[0].skipped == sources[1].skipped
    assert "broken.png" in sources[0].skipped[0]
