"""`cvad analyze-rf`, from a config to figures, derivation and advice."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cvad_cli.assembly.receptive_field import analysis as field_analysis
from cvad_cli.core.receptive_field.graph import Box

EFFICIENTAD = """
name: ead
seed: 3
device: cpu
data: {{root: {root}, category: grid, image_size: 256}}
model:
  name: efficient_ad
  weights: random
  options: {{model_size: {size}, padding: {padding}, teacher_out_channels: 16}}
output: {{root: {output}}}
"""


@pytest.fixture
def efficientad(tmp_path: Path, sample_data: Path):
    def write(size: str = "small", padding: str = "false") -> Path:
        path = tmp_path / "ead.yaml"
        text = EFFICIENTAD.format(root=sample_data, output=tmp_path / "runs", size=size, padding=padding)
        path.write_text(text, encoding="utf-8")
        return path

    return write


def report_of(config: Path, name: str) -> dict:
    return json.loads((config.parent / "runs" / name / "receptive_field" / "receptive_field.json").read_text("utf-8"))


@pytest.mark.parametrize(("size", "padding"), [("small", "false"), ("medium", "true")])
def test_pdn_sees_33_px_in_steps_of_4_by_all_three_ways(cvad, efficientad, size, padding):
    config = efficientad(size, padding)
    result = cvad("analyze-rf", "--config", config, "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report == report_of(config, "ead")
    assert [network["name"] for network in report["networks"]] == ["teacher", "student", "autoencoder"]
    for network in report["networks"][:2]:
        (formula,) = network["formulas"]
        assert formula["recursion"] == formula["closed_form"]
        assert (formula["closed_form"]["field"], formula["closed_form"]["stride"]) == (33, 4)
        assert (network["support"]["field"], network["support"]["stride"]) == ([33, 33], [4, 4])
    assert "reaches beyond all borders" in report["networks"][2]["whole_image_because"]


def test_the_folder_holds_what_the_page_shows(cvad, small_config):
    result = cvad("analyze-rf", "-c", small_config)
    assert result.exit_code == 0, result.output
    folder = small_config.parent / "runs" / "small" / "receptive_field"
    report, page = report_of(small_config, "small"), (folder / "receptive_field.md").read_text("utf-8")
    assert {path.name for path in folder.iterdir()} == {
        *report["figures"],
        "receptive_field.md",
        "receptive_field.json",
    }
    for figure in report["figures"]:
        assert f"({figure})" in page
        with Image.open(folder / figure) as image:
            assert np.asarray(image.convert("RGBA"))[..., 3].min() == 255, "opaque: it must read on a dark page"
    (network,) = report["networks"]
    assert "random, seed 3" in network["weights"]
    assert list(network["selected"]) == ["layer1", "layer2"]
    tables = [line for line in page.splitlines() if line.startswith("|")]
    assert all(line.endswith("|") for line in tables)
    formulas = re.findall(r"\$\$(.+?)\$\$|\$([^$\n]+)\$", page, re.DOTALL)
    assert len(formulas) > 10
    for formula in map("".join, formulas):
        # Markdown takes a backslash before punctuation, and * and <, for itself before MathJax sees them.
        assert not re.search(r"\\[,;:!{}|]|[*<>|#]", formula), formula
    assert "random, seed 3" in result.stdout
    assert "sure to lie on the centre of a cell" in result.stdout


def test_pooling_and_interpolation_are_part_of_what_patchcore_compares(cvad, small_config):
    assert cvad("analyze-rf", "-c", small_config, "-q").exit_code == 0
    (network,) = report_of(small_config, "small")["networks"]
    rows = {row["name"]: row for row in network["layers"]}
    deepest = rows[network["selected"]["layer2"]]
    pooling, interpolation = 2 * deepest["jump"][0], deepest["jump"][0]
    assert network["field"][0] == deepest["field"][0] + pooling + interpolation
    assert network["stride"] == rows[network["selected"]["layer1"]]["jump"]


def test_the_weights_of_a_trained_bundle_are_used(cvad, trained, tmp_path):
    config = tmp_path / "small.yaml"
    text = trained.read_text("utf-8").replace(str(trained.parent / "runs"), str(tmp_path / "runs"))
    config.write_text(text, encoding="utf-8")
    shutil.copytree(trained.parent / "runs", tmp_path / "runs")
    assert cvad("analyze-rf", "-c", config, "-q").exit_code == 0
    (network,) = report_of(config, "small")["networks"]
    assert network["weights"] == "the trained bundle of this config"


def test_a_bundle_of_other_settings_is_left_aside_with_a_warning(cvad, trained, tmp_path):
    config = tmp_path / "small.yaml"
    text = trained.read_text("utf-8").replace(str(trained.parent / "runs"), str(tmp_path / "runs"))
    config.write_text(text.replace("num_neighbors: 3", "num_neighbors: 5"), encoding="utf-8")
    shutil.copytree(trained.parent / "runs", tmp_path / "runs")
    result = cvad("analyze-rf", "-c", config, "-q")
    assert result.exit_code == 0, result.output
    assert "The trained weights are not used here" in result.stderr
    assert "random" in report_of(config, "small")["networks"][0]["weights"]


def test_advice_is_told_on_the_part(cvad, efficientad, tmp_path):
    image = tmp_path / "camera.png"
    Image.fromarray(np.full((1024, 1024, 3), 90, np.uint8)).save(image)
    config = efficientad()
    options = ("--image", image, "--defect-size", "2mm", "--set", "data.pixel_size_mm=0.05")
    assert cvad("analyze-rf", "-c", config, "-q", *options).exit_code == 0
    report = report_of(config, "ead")
    advice = report["advice"]
    assert report["images"] == "the image camera.png"
    assert advice["field"] == {"px": [132, 132], "mm": [6.6, 6.6]}
    assert advice["stride"] == {"px": [16, 16], "mm": [0.8, 0.8]}
    assert advice["smallest_on_one_centre"] == {"px": 16, "mm": 0.8}
    assert advice["smallest_on_wanted_centres"] == {"px": 32, "mm": 1.6}
    assert advice["largest_whole"] == {"px": 116, "mm": 5.8}
    assert (advice["defect"]["px"], advice["defect"]["cells_with_centre_on_it"]) == (40, 4)
    assert advice["options"] == []


def test_a_defect_between_the_cells_gets_options(cvad, small_config):
    assert cvad("analyze-rf", "-c", small_config, "-q", "--defect-size", "3px").exit_code == 0
    advice = report_of(small_config, "small")["advice"]
    assert advice["defect"]["cells_with_centre_on_it"] == 0
    assert advice["options"]
    for option in advice["options"]:
        assert option["cells_with_centre_on_it"] >= 1
    page = (small_config.parent / "runs" / "small" / "receptive_field" / "receptive_field.md").read_text("utf-8")
    assert "What would help" in page


@pytest.mark.parametrize(
    ("size", "said"),
    [
        pytest.param("2.5", "with its unit, such as 2.5mm or 40px", id="no unit"),
        pytest.param("0px", "a size above 0", id="zero"),
        pytest.param("-3px", "a size above 0", id="negative"),
        pytest.param("nanmm", "with its unit", id="no number"),
        pytest.param("2.5mm", "data.pixel_size_mm", id="millimetres without a pixel size"),
        pytest.param("4000px", "do not fit into the image of 128 x 128 px", id="larger than the image"),
    ],
)
def test_defect_sizes_that_mean_nothing_are_refused(cvad, small_config, size, said):
    result = cvad("analyze-rf", "-c", small_config, "--defect-size", size)
    assert result.exit_code == 2
    assert said in " ".join(result.stderr.split())
    assert not (small_config.parent / "runs" / "small" / "receptive_field").exists()


@pytest.mark.parametrize("size", ["0", "-1", ".inf", ".nan"])
def test_pixel_sizes_that_mean_nothing_are_refused(cvad, small_config, size):
    result = cvad("analyze-rf", "-c", small_config, "--set", f"data.pixel_size_mm={size}")
    assert result.exit_code == 2
    assert "millimetres on the part above 0, or null" in result.stderr


def test_without_a_data_set_images_are_generated_and_it_says_so(cvad, small_config, tmp_path):
    result = cvad("analyze-rf", "-c", small_config, "--set", f"data.root={tmp_path / 'nowhere'}")
    assert result.exit_code == 0, result.output
    assert "--image FILE" in result.stderr
    assert "generated images" in result.stdout
    assert report_of(small_config, "small")["advice"]["original_size"] == [64, 64]


def test_a_image_that_cannot_be_read_is_named(cvad, small_config, tmp_path):
    (tmp_path / "note.png").write_text("not an image", encoding="utf-8")
    result = cvad("analyze-rf", "-c", small_config, "--image", tmp_path / "note.png")
    assert result.exit_code == 3
    assert "note.png" in result.stderr


def test_models_whose_field_is_not_one_map_are_refused(cvad, small_config):
    result = cvad("analyze-rf", "-c", small_config, "--set", "model.name=padim", "--set", "model.weights=null")
    assert result.exit_code == 4
    assert "patchcore and efficient_ad" in result.stderr


def test_a_wrong_layer_is_named(cvad, small_config):
    result = cvad("analyze-rf", "-c", small_config, "--set", "model.layers=[layer9]")
    assert result.exit_code == 4
    assert "layer9" in result.stderr


def test_an_unsupported_operator_is_named_with_its_layer(cvad, small_config):
    options = ("--set", "model.backbone=swin_tiny_patch4_window7_224", "--set", "model.layers=[layers.0]")
    result = cvad("analyze-rf", "-c", small_config, *options, "--set", "data.image_size=224")
    assert result.exit_code == 4
    assert "layers" in result.stderr


@pytest.mark.parametrize("backbone", ["pdn_small", "pdn_medium"])
def test_pdn_backbones_are_read_with_every_second_cell_and_the_3x3_mean(cvad, small_config, backbone):
    plain = ("--set", "model.weights=null", "--set", "model.layers=null", "--set", "data.image_size=128")
    result = cvad("analyze-rf", "-c", small_config, "-q", "--set", f"model.backbone={backbone}", *plain)
    assert result.exit_code == 0, result.output
    (network,) = report_of(small_config, "small")["networks"]
    assert (network["field"], network["stride"], network["map"]) == ([49, 49], [8, 8], [16, 16])


def test_a_measured_field_that_differs_from_theory_ends_with_status_1(cvad, small_config, monkeypatch):
    """The measurement is given wrong borders: the command must notice, write its findings, say so and fail."""
    honest = field_analysis.exact_support

    def shifted(*arguments, **keywords):
        boxes = honest(*arguments, **keywords)
        return [Box(box.top, box.left, box.bottom - 1, box.right) for box in boxes]

    monkeypatch.setattr(field_analysis, "exact_support", shifted)
    result = cvad("analyze-rf", "-c", small_config)
    assert result.exit_code == 1
    assert "is not the theoretical one" in result.stderr
    assert "DISAGREE" in result.stdout
    report = report_of(small_config, "small")
    assert report["agrees"] is False
    assert any(not cell["agrees"] for cell in report["networks"][0]["support"]["cells"])


def test_the_same_seed_gives_the_same_report(cvad, small_config):
    reports = []
    for _ in range(2):
        assert cvad("analyze-rf", "-c", small_config, "-q").exit_code == 0
        reports.append(report_of(small_config, "small"))
    assert reports[0] == reports[1]


def test_a_large_input_is_measured_on_a_small_image(cvad, small_config):
    options = ("--set", "model.backbone=pdn_small", "--set", "model.layers=null", "--set", "data.image_size=1024")
    assert cvad("analyze-rf", "-c", small_config, "-q", *options).exit_code == 0
    (network,) = report_of(small_config, "small")["networks"]
    assert network["map"] == [128, 128]
    assert network["support"]["image"] == [147, 147]  # three fields
    assert network["support"]["field"] == network["field"] == [49, 49]


def test_a_field_wider_than_the_image_is_not_said_to_show_defects_whole(cvad, small_config):
    result = cvad("analyze-rf", "-c", small_config, "--defect-size", "30px", "--set", "model.layers=[layer3, layer4]")
    assert result.exit_code == 0, result.output
    advice = report_of(small_config, "small")["advice"]
    assert advice["field_beyond_image"] is True
    assert advice["bulk"]["px"][0] < 2 * advice["field"]["px"][0]
    assert 0 < advice["defect"]["share_of_bulk_filled"][0] <= 1
    assert "a cell can see more than all of it" in result.stdout
    assert "all of it, wherever" not in result.stdout
    assert "see all of a defect" not in result.stdout


def test_layers_are_shown_once_an_architecture(cvad, efficientad):
    result = cvad("analyze-rf", "-c", efficientad())
    assert result.exit_code == 0, result.output
    assert "teacher and student, layer by layer" in result.stdout
    assert result.stdout.count("avgpool1") == 1
    assert "4 / 1 / 0 / 1" in result.stdout


def test_the_page_keeps_to_mathematics_that_github_renders(cvad, small_config):
    assert cvad("analyze-rf", "-c", small_config, "-q").exit_code == 0
    page = (small_config.parent / "runs" / "small" / "receptive_field" / "receptive_field.md").read_text("utf-8")
    formulas = re.findall(r"\$\$(.+?)\$\$|\$([^$\n]+)\$", page, re.DOTALL)
    assert len(formulas) > 10
    assert not [pair for pair in formulas if re.search(r"\\[,;:!{}|\\]|[<>|]", "".join(pair))]
