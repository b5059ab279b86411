"""Teacher files: what is saved is loaded, and what does not fit says why."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from cvad_cli.adapters.pdn import build_pdn, load_teacher, save_teacher
from cvad_cli.errors import ModelError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import anomalib.models  # noqa: F401  # it warns of its own dependencies while it is imported

SIZES = pytest.mark.parametrize("size", ["small", "medium"])


def written(path: Path, *, size: Any = "small", channels: int = 6) -> Path:
    save_teacher(path, build_pdn(size, channels, padding=True, seed=1), {"steps": 3, "images": {"generated": 8}})
    return path


@SIZES
def test_a_saved_teacher_is_loaded_to_half_precision(tmp_path: Path, size: Any) -> None:
    network = build_pdn(size, 6, padding=False, seed=1)
    save_teacher(tmp_path / "t.safetensors", network, {"steps": 3, "loss": 0.25})
    teacher = load_teacher(tmp_path / "t.safetensors")
    assert (teacher.size, teacher.channels, teacher.padding) == (size, 6, False)
    assert teacher.provenance == {"steps": 3, "loss": 0.25}
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(teacher.network(images), network(images), atol=5e-3, rtol=5e-3)
    assert not teacher.network.training
    assert not any(parameter.requires_grad for parameter in teacher.network.parameters())
    assert {tensor.dtype for tensor in load_file(tmp_path / "t.safetensors").values()} == {torch.float16}


@SIZES
@pytest.mark.parametrize(("padding", "rows"), [(True, 128 // 4), (False, 128 // 4 - 8)])  # in steps of 4 pixels
def test_padding_decides_the_grid_and_not_the_weights(tmp_path: Path, size: Any, padding: bool, rows: int) -> None:
    teacher = load_teacher(written(tmp_path / "t.safetensors", size=size), padding=padding)
    with torch.no_grad():
        assert teacher.network(torch.zeros(1, 3, 128, 128)).shape == (1, 6, rows, rows)


def test_weights_depend_on_the_seed_alone_and_leave_torchs_own_randomness_alone() -> None:
    state = torch.get_rng_state()
    first, again, other = (build_pdn("small", 4, padding=True, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.conv2.weight, again.conv2.weight)  # type: ignore[union-attr]
    assert not torch.equal(first.conv2.weight, other.conv2.weight)  # type: ignore[union-attr]
    assert torch.equal(torch.get_rng_state(), state)


def test_a_fresh_network_keeps_the_signal_and_answers_near_the_mean() -> None:
    network: Any = build_pdn("small", 32, padding=True, seed=3)
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        hidden = torch.relu(network.conv1((images - 0.45) / 0.22))
        assert 0.3 < hidden.pow(2).mean() < 3
        assert network(images).pow(2).mean() < 0.1


def test_a_file_without_our_header_is_recognised_by_its_tensors(tmp_path: Path) -> None:
    state = build_pdn("medium", 5, padding=False, seed=1).state_dict()
    save_file(state, tmp_path / "plain.safetensors")
    teacher = load_teacher(tmp_path / "plain.safetensors", size="medium", channels=5)
    assert (teacher.size, teacher.channels, teacher.provenance) == ("medium", 5, {})
    assert torch.equal(teacher.network.state_dict()["conv6.weight"], state["conv6.weight"])


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        pytest.param({"channels": 384}, r"has 6 channels, but the model wants 384; .*--channels 384", id="channels"),
        pytest.param({"size": "medium"}, r"holds a small PDN, but the model is medium; .*--size medium", id="size"),
    ],
)
def test_a_teacher_that_does_not_fit_the_model_says_what_would(tmp_path: Path, wanted: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load_teacher(written(tmp_path / "t.safetensors"), **wanted)


def _without(name: str) -> Any:
    return lambda state: state.pop(name)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        pytest.param(_without("conv2.bias"), r"conv2.bias: expected \(256,\), found no such tensor", id="missing"),
        pytest.param(_without("conv4.weight"), "is no teacher: it holds", id="no last layer"),
        pytest.param(
            lambda state: state.update(fc=torch.zeros(2)), "fc: expected no such tensor, found", id="left over"
        ),
        pytest.param(
            lambda state: state.update({"conv1.weight": torch.zeros(128, 1, 4, 4)}),
            r"conv1.weight: expected \(128, 3, 4, 4\), found \(128, 1, 4, 4\)",
            id="gray input",
        ),
        pytest.param(
            lambda state: state["conv3.bias"].fill_(torch.nan), "conv3.bias holds values that are not finite", id="nan"
        ),
    ],
)
def test_a_file_with_other_tensors_names_the_first_that_does_not_fit(tmp_path: Path, spoil: Any, message: str) -> None:
    state = dict(build_pdn("small", 6, padding=False, seed=1).state_dict())
    spoil(state)
    save_file(state, tmp_path / "spoilt.safetensors")
    with pytest.raises(ModelError, match=message):
        load_teacher(tmp_path / "spoilt.safetensors")


@pytest.mark.parametrize("content", [None, b"", b"not tensors at all"], ids=["no file", "empty", "text"])
def test_a_file_that_is_no_safetensors_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "teacher.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelError, match=r"teacher.safetensors: (no such file|is not a readable safetensors file)"):
        load_teacher(path)


@pytest.mark.parametrize("provenance", ["{", "[1]"], ids=["cut off", "a list"])
def test_a_header_that_is_not_json_is_named(tmp_path: Path, provenance: str) -> None:
    state = build_pdn("small", 6, padding=False, seed=1).state_dict()
    save_file(state, tmp_path / "t.safetensors", metadata={"provenance": provenance})
    with pytest.raises(ModelError, match="`provenance` in its header is"):
        load_teacher(tmp_path / "t.safetensors")


def test_weights_beyond_half_precision_are_not_written(tmp_path: Path) -> None:
    network: Any = build_pdn("small", 6, padding=True, seed=1)
    with torch.no_grad():
        network.conv3.bias[0] = 1e6
    with pytest.raises(ModelError, match=r"not written: conv3.bias hold values that float16 cannot"):
        save_teacher(tmp_path / "t.safetensors", network, {})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("size", "channels", "message"),
    [("large", 384, "expected one of small, medium, got 'large'"), ("small", 0, "a whole number from 1, got 0")],
)
def test_a_network_that_cannot_be_built_is_refused(size: Any, channels: int, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        build_pdn(size, channels, padding=True, seed=0)
