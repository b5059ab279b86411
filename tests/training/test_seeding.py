"""The same seed gives the same model, and nobody's global random state is another afterwards."""

from __future__ import annotations

import importlib
import os
import random
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from cvad_cli.adapters.pdn import build_pdn, save_teacher
from cvad_cli.adapters.storage.bundles import read_bundle

with warnings.catch_warnings():  # anomalib imports deprecated modules
    warnings.simplefilter("ignore")
    importlib.import_module("anomalib.models.image.efficient_ad.torch_model")

STFPM = [
    "model.name=stfpm",
    "model.backbone=resnet18",
    "model.layers=[layer1, layer2]",
    "model.num_neighbors=9",
    "model.coreset_ratio=0.01",
    "trainer.max_epochs=1",
]
EFFICIENT_AD = [
    "data.image_size=256",
    "model.name=efficient_ad",
    "model.backbone=null",
    "model.layers=null",
    "model.num_neighbors=9",
    "model.coreset_ratio=0.01",
    "trainer.preset=quick",
    "trainer.max_steps=2",
]


def global_state() -> tuple[object, ...]:
    """All of it, to be compared."""
    numpy = np.random.get_state()  # noqa: NPY002
    variables = {name: value for name, value in os.environ.items() if name.startswith("PL_")}
    return random.getstate(), numpy[1].tobytes(), numpy[2:], torch.get_rng_state().numpy().tobytes(), variables


def train(cvad, config: Path, changes: list[str], output: Path) -> dict[str, bytes]:
    """The files of the bundle that the changed config gives, by their roles."""
    arguments = [part for change in [*changes, f"output.root={output}"] for part in ("--set", change)]
    result = cvad("train", "-c", config, "--quiet", *arguments)
    assert result.exit_code == 0, result.output
    bundle = read_bundle(output / "small" / "bundle")
    return {role: bundle.file(role).read_bytes() for role in bundle.manifest["files"]}


def tensors(content: bytes, path: Path) -> dict[str, torch.Tensor]:
    path.write_bytes(content)
    return torch.load(path, weights_only=True)["state_dict"]


def test_a_model_of_anomalib_is_the_same_for_the_same_seed(cvad, small_config: Path, tmp_path: Path) -> None:
    found = []
    for number in range(2):
        before = global_state()
        files = train(cvad, small_config, STFPM, tmp_path / str(number))
        assert global_state() == before
        found.append(tensors(files["checkpoint"], tmp_path / f"{number}.ckpt"))
    for name, values in found[0].items():
        torch.testing.assert_close(found[1][name], values, rtol=0, atol=0, msg=name)


@pytest.mark.ci
def test_training_and_opening_efficient_ad_leave_global_random_state_alone(
    cvad, small_config: Path, tmp_path: Path
) -> None:
    teacher = tmp_path / "tiny.safetensors"
    save_teacher(teacher, build_pdn("small", 6, padding=False, seed=1), {"steps": 0})
    before = global_state()
    changes = [*EFFICIENT_AD, f"model.weights={teacher}"]
    train(cvad, small_config, changes, tmp_path / "runs")
    assert global_state() == before
    arguments = [part for change in changes for part in ("--set", change)]
    result = cvad("evaluate", "-c", small_config, "--quiet", *arguments, "--set", f"output.root={tmp_path / 'runs'}")
    assert result.exit_code == 0, result.output
    assert global_state() == before


def test_training_and_opening_patchcore_leave_global_random_state_alone(cvad, small_config: Path) -> None:
    before = global_state()
    for command in ("train", "evaluate"):
        result = cvad(command, "-c", small_config, "--quiet")
        assert result.exit_code == 0, result.output
        assert global_state() == before, command
