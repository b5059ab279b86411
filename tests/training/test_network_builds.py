"""timm builds each network of a bundle once: counted where timm itself is called, with nothing put in its place."""

from __future__ import annotations

import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import pytest
import timm
import torch

from cvad_cli.adapters.backbones import BackboneSpec, build_network, load_backbone
from cvad_cli.adapters.storage.bundles import read_bundle
from cvad_cli.assembly.defect_types.describer import open_describer
from cvad_cli.assembly.run_folders import bundle_folder
from cvad_cli.assembly.serving.open_bundle import open_detector
from cvad_cli.config.load import load_config

LAYERS = ("layer1", "layer2")


@contextmanager
def counted() -> Iterator[list[str]]:
    """The names of the networks that timm builds with weights in memory, by Python's own profiler."""
    code, built = timm.create_model.__code__, []

    def look(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code is code and torch.get_default_device().type != "meta":
            built.append(frame.f_locals["model_name"])

    before = sys.getprofile()
    threading.setprofile(look)
    sys.setprofile(look)
    try:
        yield built
    finally:
        sys.setprofile(before)
        threading.setprofile(None)


def test_a_backbone_is_built_once() -> None:
    with counted() as built:
        load_backbone("resnet10t", LAYERS, "random", seed=0)
        build_network(BackboneSpec("resnet10t", LAYERS))
    assert built == ["resnet10t"] * 2


def test_a_backbone_with_weights_is_built_once(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file(timm.create_model("resnet10t").state_dict(), tmp_path / "weights.safetensors")
    with counted() as built:
        load_backbone("resnet10t", LAYERS, str(tmp_path / "weights.safetensors"), seed=0)
    assert built == ["resnet10t"]


@pytest.mark.parametrize("engine", ["torch", "openvino"])
def test_opening_a_bundle_builds_the_detectors_network_once_and_the_describers_once(
    trained: Path, tmp_path: Path, engine: str
) -> None:
    settings = load_config(trained, [f"output.root={tmp_path}", f"runtime.engine={engine}"])
    source = bundle_folder(load_config(trained))
    shutil.copytree(source, bundle_folder(settings), ignore=shutil.ignore_patterns("cache"))
    with counted() as built:
        open_detector(settings, "cpu")
    assert built == ["resnet10t"]
    with counted() as built:
        open_describer(read_bundle(bundle_folder(settings)), "cpu")
    assert built == ["resnet10t"]


def test_training_builds_the_detectors_network_once_and_the_describers_once(cvad, small_config: Path) -> None:
    with counted() as built:
        result = cvad("train", "--config", small_config, "--quiet")
    assert result.exit_code == 0, result.output
    assert built == ["resnet10t"] * 2
