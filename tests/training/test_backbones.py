"""Weights come from a file, CVAD_WEIGHTS_DIR, the cache or the hub, in that order, and they must fit."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from safetensors.torch import save_file

from cvad_cli.adapters.backbones import RANDOM_WEIGHTS, BackboneSpec, build_network, load_backbone
from cvad_cli.adapters.backbones.weights import from_hub
from cvad_cli.errors import ModelError

NAME, LAYERS = "resnet10t", ["layer1", "layer2"]


@pytest.fixture(autouse=True)
def _no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing may come from this machine's cache or from a network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.delenv("CVAD_WEIGHTS_DIR", raising=False)


def full_state(name: str = NAME, **kwargs: object) -> dict[str, torch.Tensor]:
    import timm

    torch.manual_seed(5)
    return timm.create_model(name, pretrained=False, **kwargs).state_dict()


def save(path: Path, state: dict[str, torch.Tensor], **header: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: value.clone() for key, value in state.items()}, path, metadata=header)
    return path


def test_a_file_fills_every_layer_that_is_used(tmp_path: Path) -> None:
    state = full_state()
    backbone = load_backbone(NAME, LAYERS, str(save(tmp_path / "w.safetensors", state)), seed=0)
    for key, value in backbone.network.state_dict().items():
        assert torch.equal(value, state[key]), key
    assert not backbone.network.training
    assert backbone.weights == "file w.safetensors"


def test_stages_behind_the_last_layer_are_cut_without_changing_the_features(tmp_path: Path) -> None:
    import timm

    name, layers = "tf_efficientnet_lite0", ["blocks.2", "blocks.4"]
    path = save(tmp_path / "w.safetensors", full_state(name))
    backbone = load_backbone(name, layers, str(path), seed=0)
    whole = timm.create_model(
        name,
        pretrained=True,
        features_only=True,
        out_indices=(2, 3),
        pretrained_cfg_overlay={"file": str(path), "custom_load": False},
    ).eval()
    image = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        for ours, theirs in zip(backbone.network(image), whole(image), strict=True):
            assert torch.equal(ours, theirs)
    assert len(backbone.network.state_dict()) < len(whole.state_dict())


def test_the_weights_folder_is_searched_by_file_name_and_by_header(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("CVAD_WEIGHTS_DIR", str(tmp_path / "weights"))
    path = save(tmp_path / "weights" / "some_name.safetensors", full_state(), timm_model=NAME)
    assert load_backbone(NAME, LAYERS, None, seed=0).weights == "CVAD_WEIGHTS_DIR, file some_name.safetensors"
    path.rename(path.with_name(f"{NAME}.in1k.safetensors"))
    assert load_backbone(NAME, LAYERS, None, seed=0).weights == f"CVAD_WEIGHTS_DIR, file {NAME}.in1k.safetensors"


def test_a_named_file_wins_over_the_weights_folder(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("CVAD_WEIGHTS_DIR", str(tmp_path / "weights"))
    save(tmp_path / "weights" / f"{NAME}.safetensors", full_state())
    named = save(tmp_path / "mine.safetensors", full_state())
    assert load_backbone(NAME, LAYERS, str(named), seed=0).weights == "file mine.safetensors"


def test_the_headers_keyword_arguments_build_the_network(tmp_path: Path) -> None:
    state = full_state("mobilenetv2_050", pad_type="same")
    header = {"timm_model": "mobilenetv2_050", "kwargs": json.dumps({"pad_type": "same"})}
    path = save(tmp_path / "w.safetensors", state, **header)
    backbone = load_backbone("mobilenetv2_050", ["blocks.1"], str(path), seed=0)
    assert backbone.spec.kwargs == {"pad_type": "same"}
    assert type(backbone.network.conv_stem).__name__ == "Conv2dSame"


def test_random_weights_follow_the_seed_and_leave_torchs_generator_alone() -> None:
    before = torch.random.get_rng_state()
    first, again, other = (load_backbone(NAME, LAYERS, RANDOM_WEIGHTS, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    weight = [backbone.network.state_dict()["conv1.0.weight"] for backbone in (first, again, other)]
    assert torch.equal(weight[0], weight[1])
    assert not torch.equal(weight[0], weight[2])
    assert first.weights == "random, seed 1"


def test_a_network_is_built_again_from_its_spec(tmp_path: Path) -> None:
    backbone = load_backbone(NAME, LAYERS, RANDOM_WEIGHTS, seed=3)
    twin = build_network(BackboneSpec(NAME, tuple(LAYERS)))
    twin.load_state_dict(backbone.network.state_dict())
    image = torch.rand(1, 3, 64, 64)
    assert torch.equal(twin(image)[1], backbone.network(image)[1])


def test_where_all_places_fail_each_is_named_with_the_remedies(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("CVAD_WEIGHTS_DIR", str(tmp_path))
    (tmp_path / "resnet50.safetensors").write_bytes(b"")
    (tmp_path / "resnet50.safetensors").unlink()
    with pytest.raises(ModelError) as caught:
        load_backbone(NAME, LAYERS, None, seed=0)
    message = str(caught.value)
    steps = ["1. model.weights: not set", "2. CVAD_WEIGHTS_DIR=", "3. cache: ", "4. hub: HF_HUB_OFFLINE is set"]
    remedies = ["--set model.weights=FILE", f"put {NAME}.safetensors into a folder", "run once with internet"]
    for part in (*steps, *remedies):
        assert part in message


class Mirror(BaseHTTPRequestHandler):
    """A mirror of the hub that holds one file and answers HEAD with a refusal, or 200 without what the client wants."""

    files: ClassVar[dict[str, bytes]] = {}
    refusal = 405

    def do_HEAD(self) -> None:
        self.send_response(self.refusal)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_GET(self) -> None:
        content = self.files.get(self.path)
        self.send_response(404 if content is None else 200)
        self.send_header("Content-Length", str(len(content or b"")))
        self.end_headers()
        self.wfile.write(content or b"")

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, type[Mirror]]]:
    """The address of a mirror, and what it answers."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    handler = type("OneMirror", (Mirror,), {"files": {}})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        serving = threading.Thread(target=server.serve_forever, daemon=True)
        serving.start()
        yield f"http://127.0.0.1:{server.server_address[1]}", handler
        server.shutdown()
        serving.join()


@pytest.mark.parametrize("refusal", [405, 501, 403, 200])
def test_a_mirror_that_answers_no_head_gives_the_file(tmp_path: Path, mirror, refusal: int) -> None:
    endpoint, answers = mirror
    answers.refusal = refusal
    state = full_state()
    content = save(tmp_path / "w.safetensors", state).read_bytes()
    answers.files["/timm/resnet10t.c3_in1k/resolve/main/model.safetensors"] = content
    tried: list[str] = []
    found = from_hub(NAME, tried, endpoint=endpoint)
    assert found is not None, tried
    path, words = found
    assert path.read_bytes() == content
    assert words == "hub, timm/resnet10t.c3_in1k"
    answers.files.clear()
    backbone = load_backbone(NAME, LAYERS, None, seed=0)
    assert backbone.weights.startswith("cache"), "it is kept, and no network is needed the next time"
    assert torch.equal(backbone.network.state_dict()["conv1.0.weight"], state["conv1.0.weight"])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"<html>log in first</html>", "not a readable safetensors file"),
        (b"", "not a readable safetensors file"),
        (None, "answered 404"),
    ],
)
def test_what_a_mirror_gives_instead_of_the_file_is_told_and_not_kept(
    tmp_path: Path, mirror, content: bytes | None, reason: str
) -> None:
    endpoint, answers = mirror
    if content is not None:
        answers.files["/timm/resnet10t.c3_in1k/resolve/main/model.safetensors"] = content
    tried: list[str] = []
    assert from_hub(NAME, tried, endpoint=endpoint) is None
    assert len(tried) == 1
    assert reason in tried[0]
    assert endpoint in tried[0]
    assert not list(tmp_path.rglob("*.safetensors"))


def test_where_there_is_no_network_it_is_told_at_once(mirror) -> None:
    closed = "http://127.0.0.1:9"  # the port of the discard service, where nothing listens
    tried: list[str] = []
    began = time.monotonic()
    assert from_hub(NAME, tried, endpoint=closed) is None
    assert time.monotonic() - began < 30
    assert closed in tried[0]


def drop(state: dict[str, torch.Tensor]) -> None:
    del state["layer1.0.conv1.weight"]


def add(state: dict[str, torch.Tensor]) -> None:
    state["layer1.0.se.fc.weight"] = torch.zeros(3)


def reshape(state: dict[str, torch.Tensor]) -> None:
    state["layer1.0.conv1.weight"] = torch.zeros(3, 3)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (drop, "lacks 1 tensors in the layers that are used of resnet10t: layer1.0.conv1.weight"),
        (add, "has unexpected 1 tensors in the layers that are used of resnet10t: layer1.0.se.fc.weight"),
        (reshape, "does not fit resnet10t: size mismatch for layer1.0.conv1.weight"),
    ],
)
def test_weights_that_do_not_fit_are_refused(tmp_path: Path, damage, message: str) -> None:
    state = full_state()
    damage(state)
    with pytest.raises(ModelError, match=message):
        load_backbone(NAME, LAYERS, str(save(tmp_path / "w.safetensors", state)), seed=0)


def test_what_lies_behind_the_last_layer_may_be_missing_or_strange(tmp_path: Path) -> None:
    state = {key: value for key, value in full_state().items() if not key.startswith("layer4")}
    state["layer4.extra"] = torch.zeros(1)
    load_backbone(NAME, LAYERS, str(save(tmp_path / "w.safetensors", state)), seed=0)


@pytest.mark.parametrize(
    ("name", "layers", "header", "message"),
    [
        ("resnet10", LAYERS, {}, "timm has no model 'resnet10'. Did you mean"),
        (NAME, ["layer9"], {}, "has no layer 'layer9'. .*Its layers: "),
        (NAME, ["layer2", "layer1"], {}, r"list them from the input to the output: \[layer1, layer2\]"),
        (NAME, LAYERS, {"timm_model": "resnet18"}, "holds weights of 'resnet18', but model.backbone is 'resnet10t'"),
        (NAME, LAYERS, {"kwargs": "{"}, "`kwargs` in its header is not JSON"),
        (NAME, LAYERS, {"kwargs": "[1]"}, "expected a JSON object"),
    ],
)
def test_names_and_headers_are_checked(tmp_path: Path, name, layers, header, message: str) -> None:
    path = save(tmp_path / "w.safetensors", {"x": torch.zeros(1)}, **header)
    with pytest.raises(ModelError, match=message):
        load_backbone(name, layers, str(path), seed=0)


def test_a_file_that_is_no_safetensors_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    path.write_text("hello")
    with pytest.raises(ModelError, match="is not a readable safetensors file"):
        load_backbone(NAME, LAYERS, str(path), seed=0)
    with pytest.raises(ModelError, match="no such file"):
        load_backbone(NAME, LAYERS, str(tmp_path / "none.safetensors"), seed=0)


def test_a_strange_file_in_the_weights_folder_stops_nothing(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("CVAD_WEIGHTS_DIR", str(tmp_path / "weights"))
    save(tmp_path / "weights" / "some_name.safetensors", full_state(), timm_model=NAME)
    (tmp_path / "weights" / "aaa.safetensors").write_text("junk")
    assert load_backbone(NAME, LAYERS, None, seed=0).weights == "CVAD_WEIGHTS_DIR, file some_name.safetensors"
