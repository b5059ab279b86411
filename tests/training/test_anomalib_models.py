"""Any other anomalib model goes the same way: trained, calibrated, kept as a checkpoint, evaluated."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from cvad_cli.adapters.anomalib_models import GenericModel, model_names
from cvad_cli.adapters.storage.bundles import read_bundle
from cvad_cli.config.schema import ModelConfig
from cvad_cli.errors import ModelError

MODELS = [
    pytest.param("padim", ["model.options={n_features: 30}"], id="padim: statistics of features"),
    pytest.param("stfpm", ["trainer.max_epochs=2"], id="stfpm: a student trained by gradients"),
]
PLAIN = [
    "model.backbone=resnet18",
    "model.layers=[layer1, layer2]",
    "model.num_neighbors=9",
    "model.coreset_ratio=0.01",
]


def settings(name: str, options: list[str]) -> list[str]:
    return [part for option in [f"model.name={name}", *PLAIN, *options] for part in ("--set", option)]


@pytest.mark.parametrize(("name", "options"), MODELS)
def test_a_model_trains_and_evaluates_with_the_same_outputs(
    cvad, small_config: Path, sample_data: Path, metrics_of, name: str, options: list[str]
) -> None:
    trained = cvad("train", "-c", small_config, "--json", *settings(name, options))
    assert trained.exit_code == 0, trained.output
    summary = json.loads(trained.stdout)
    assert summary["calibration"]["method"] == "split_conformal"
    bundle = read_bundle(small_config.parent / "runs" / "small" / "bundle")
    checkpoint = torch.load(bundle.file("checkpoint"), weights_only=True)
    assert {"state_dict", "pytorch-lightning_version"} <= set(checkpoint)
    evaluated = cvad("evaluate", "-c", small_config, "--json", *settings(name, options))
    assert evaluated.exit_code == 0, evaluated.output
    metrics = metrics_of(small_config)
    assert json.loads(evaluated.stdout) == metrics
    assert 0 <= metrics["image"]["auroc"] <= 1
    assert 0 <= metrics["pixel"]["aupro"] <= 1
    assert metrics["provenance"]["model"] == name
    images = sample_data / "grid" / "test" / "good"
    predicted = cvad("predict", "-c", small_config, "--jsonl", "-q", images, *settings(name, options))
    assert predicted.exit_code == 0, predicted.output
    lines = [json.loads(line) for line in predicted.stdout.splitlines()]
    per_image = (small_config.parent / "runs" / "small" / "evaluation" / "per_image.csv").read_text().splitlines()
    scores = {row.split(",")[0]: float(row.split(",")[2]) for row in per_image[1:]}
    expected = [scores[f"test/good/{Path(line['image']).name}"] for line in lines]
    assert [line["score"] for line in lines] == pytest.approx(expected, rel=1e-4)


def test_cross_conformal_calibration_refits_each_fold(cvad, small_config: Path) -> None:
    options = ["calibration.method=cross_conformal", "model.options={n_features: 30}"]
    result = cvad("train", "-c", small_config, "--json", *settings("padim", options))
    assert result.exit_code == 0, result.output
    calibration = json.loads(result.stdout)["calibration"]
    assert (calibration["method"], calibration["images"]) == ("cross_conformal", 12)


def test_an_unknown_model_names_the_nearest(cvad, small_config: Path) -> None:
    result = cvad("train", "-c", small_config, *settings("revers_distillation", []))
    assert result.exit_code == 4
    assert "anomalib has no model 'revers_distillation'. Did you mean 'reverse_distillation'" in result.stderr
    assert "padim" in result.stderr


def test_an_unknown_option_names_the_nearest(cvad, small_config: Path) -> None:
    result = cvad("train", "-c", small_config, *settings("padim", ["model.options={n_feature: 3}"]))
    assert result.exit_code == 4
    assert "model.options.n_feature: padim has no such option. Did you mean 'n_features'?" in result.stderr


def test_a_backbone_that_does_not_fit_is_reported_and_not_raised(cvad, small_config: Path) -> None:
    result = cvad("train", "-c", small_config, *settings("padim", ["model.backbone=no_such_net"]))
    assert result.exit_code == 4
    assert "anomalib could not build padim" in result.stderr


def test_the_names_are_those_that_a_config_writes() -> None:
    assert {"patchcore", "efficient_ad", "padim", "stfpm", "dfm", "reverse_distillation"} <= set(model_names())


class _Payload:
    """A pickle that would run code on loading."""

    def __reduce__(self):
        return (print, ("this must never be printed",))


def test_a_checkpoint_with_code_in_it_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = tmp_path / "evil.ckpt"
    torch.save({"state_dict": {"x": _Payload()}}, path)
    config = ModelConfig(name="padim", backbone="resnet18", options={"n_features": 30})
    model = GenericModel.build(config, 64, "cpu", lambda _name: None)
    with pytest.raises(ModelError, match="is not a checkpoint of Padim"):
        model.load(path)
    assert "never" not in capsys.readouterr().out


@pytest.mark.ci
def test_the_weights_keyword_arguments_are_the_bundles_too(cvad, small_config: Path, tmp_path: Path) -> None:
    """At an odd size, 'same' padding changes every feature: a bundle opened without it scores another network."""
    import timm
    from safetensors.torch import save_file

    name = "mobilenetv2_050"
    torch.manual_seed(0)
    state = timm.create_model(name, pretrained=False, pad_type="same").state_dict()
    header = {"timm_model": name, "kwargs": json.dumps({"pad_type": "same"})}
    save_file({key: value.clone() for key, value in state.items()}, tmp_path / "w.safetensors", metadata=header)
    options = [f"model.backbone={name}", "model.layers=[blocks.0, blocks.1]", "model.options={n_features: 20}"]
    options += [f"model.weights={tmp_path / 'w.safetensors'}", "data.image_size=100"]
    assert cvad("train", "-c", small_config, "-q", *settings("padim", options)).exit_code == 0
    manifest = read_bundle(small_config.parent / "runs" / "small" / "bundle").manifest
    assert manifest["model"]["backbone_kwargs"] == {name: {"pad_type": "same"}}
    evaluated = cvad("evaluate", "-c", small_config, "--json", *settings("padim", options))
    metrics = json.loads(evaluated.stdout)
    assert metrics["decision"]["false_alarm_rate"] < 1


def test_settings_that_lightning_refuses_are_named(cvad, small_config: Path) -> None:
    result = cvad("train", "-c", small_config, *settings("stfpm", ["trainer.precision=nonsense"]))
    assert result.exit_code == 2
    assert "trainer: Lightning refuses these settings" in result.stderr


def test_ctrl_c_while_lightning_trains_has_its_status(cvad, small_config: Path, monkeypatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("anomalib.models.Stfpm.training_step", interrupted)
    result = cvad("train", "-c", small_config, "-q", *settings("stfpm", []))
    assert result.exit_code == 130
    assert "interrupted" in result.stderr
