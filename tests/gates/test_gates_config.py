"""Gate files and gate options: what they mean together, and what is refused before any work begins."""

from __future__ import annotations

from pathlib import Path

import pytest

from cvad_cli.config.gate_metrics import METRICS, find_metric
from cvad_cli.config.gates import DEFAULT_TOLERANCES, Gate, GateRequest, read_gates
from cvad_cli.errors import ConfigError

BASELINE = Path("earlier")


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "gates.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def gates_of(tmp_path: Path, text: str, *, run: str = "line7", category: str = "grid", **request: object):
    plan = read_gates(GateRequest(file=written(tmp_path, text), **request))
    assert plan is not None
    return {gate.metric: gate for gate in plan.for_run(run, category)}


def test_nothing_asked_for_is_no_plan():
    assert read_gates(GateRequest()) is None


def test_a_run_overrides_its_category_and_that_the_rest_key_by_key(tmp_path):
    text = """
    gates: {image.auroc: {min: 0.9, max: 0.999}, pixel.aupro: {min: 0.8, optional: true}, counts.test: {min: 10}}
    categories: {grid: {image.auroc: {min: 0.95}}, tile: {image.auroc: {min: 0.5}}}
    runs: {line7: {image.auroc: {min: 0.97}, pixel.aupro: null}}
    """
    assert gates_of(tmp_path, text) == {
        "image.auroc": Gate("image.auroc", 0.97, 0.999),
        "counts.test": Gate("counts.test", 10),
    }
    assert gates_of(tmp_path, text, run="other")["image.auroc"] == Gate("image.auroc", 0.95, 0.999)
    assert gates_of(tmp_path, text, run="other", category="x")["pixel.aupro"] == Gate("pixel.aupro", 0.8, optional=True)


def test_the_command_line_wins_over_the_file_and_adds_to_it(tmp_path):
    text = "gates: {image.auroc: {min: 0.9}}\nruns: {line7: {image.auroc: {min: 0.97}}}"
    found = gates_of(tmp_path, text, minimums=["image.auroc=0.99"], maximums=["decision.false_alarm_rate=0.05"])
    assert found["image.auroc"] == Gate("image.auroc", 0.99)
    assert found["decision.false_alarm_rate"] == Gate("decision.false_alarm_rate", maximum=0.05)


def test_tolerances_count_only_beside_a_baseline(tmp_path):
    text = "gates: {image.auroc: {min: 0.9, tolerance: 0.02}, decision.recall: {tolerance: 0.1}}"
    assert gates_of(tmp_path, text) == {"image.auroc": Gate("image.auroc", 0.9)}
    compared = gates_of(tmp_path, text, baseline=BASELINE)
    assert compared["image.auroc"] == Gate("image.auroc", 0.9, tolerance=0.02)
    assert compared["decision.recall"] == Gate("decision.recall", tolerance=0.1)


@pytest.mark.parametrize(
    ("tolerances", "expected"),
    [
        pytest.param([], DEFAULT_TOLERANCES, id="none: the usual ones"),
        pytest.param(["0.03"], dict.fromkeys(DEFAULT_TOLERANCES, 0.03), id="a number: the usual metrics"),
        pytest.param(["pixel.auroc=0.02"], {"pixel.auroc": 0.02}, id="a metric: that alone"),
        pytest.param(["0.03", "pixel.auroc=0.02"], {"pixel.auroc": 0.02}, id="a named metric keeps its own"),
    ],
)
def test_what_a_baseline_is_compared_on(tolerances, expected):
    plan = read_gates(GateRequest(baseline=BASELINE, tolerances=tolerances))
    assert {gate.metric: gate.tolerance for gate in plan.for_run("line7", "grid")} == expected


def test_a_number_is_the_tolerance_of_all_that_the_file_compares(tmp_path):
    text = "gates: {image.auroc: {tolerance: 0.02}, decision.recall: {tolerance: 0.1}}"
    found = gates_of(tmp_path, text, baseline=BASELINE, tolerances=["0.5", "decision.recall=0.2"])
    assert {metric: gate.tolerance for metric, gate in found.items()} == {"image.auroc": 0.5, "decision.recall": 0.2}


def test_the_rule_of_a_comparison_comes_from_the_file_and_the_option_wins(tmp_path):
    path = written(tmp_path, "gates: {image.auroc: {min: 0.9}}\nbaseline: {confidence: 0.99, undecided: fail}")
    rule = read_gates(GateRequest(path, baseline=BASELINE)).baseline
    assert (rule.path, rule.confidence, rule.undecided) == (BASELINE, 0.99, "fail")
    assert read_gates(GateRequest(path, baseline=BASELINE, undecided="pass")).baseline.undecided == "pass"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("gates: {image.arooc: {min: 0.9}}", r"gates: image.arooc: .* mean 'image.auroc'", id="misspelt"),
        pytest.param(
            "gates: {recall: {min: 0.9}}", "mean 'decision.recall' or 'defect_types", id="without its section"
        ),
        pytest.param("gates: {xyzzy: {min: 0.9}}", "Known: image.auroc, ", id="nothing like it"),
        pytest.param("gates: {image.auroc: {mim: 0.9}}", r"image.auroc.mim: .* mean 'min'", id="a misspelt key"),
        pytest.param("gats: {}\ngates: {counts.test: {min: 1}}", "gats: .* mean 'gates'", id="a misspelt section"),
        pytest.param("gates: {image.auroc: 0.9}", r"image.auroc: expected keys such as \{min", id="a bare number"),
        pytest.param("gates: {image.auroc: {min: high}}", "min: expected a number, got 'high'", id="text"),
        pytest.param("gates: {image.auroc: {min: true}}", "min: expected a number, got True", id="a truth"),
        pytest.param("gates: {image.auroc: {min: .nan}}", "min: expected a number, got nan", id="not a number"),
        pytest.param("gates: {image.auroc: {min: 98}}", "min: expected a share from 0 to 1, got 98", id="percent"),
        pytest.param("gates: {counts.test: {tolerance: 0.1}}", "neither more nor less", id="nothing to compare"),
        pytest.param("gates: {image.auroc: {optional: 1}}", "optional: expected true or false", id="optional"),
        pytest.param("gates: [image.auroc]", "gates: expected lines such as", id="a list"),
        pytest.param("runs: {line7: {image.arooc: {}}}", "runs.line7: image.arooc", id="misspelt in a run"),
        pytest.param("runs: 3", "runs: expected a section", id="a section that is none"),
        pytest.param("", "holds no gate, so everything would pass", id="empty"),
        pytest.param("baseline: {undecided: pass}", "holds no gate", id="only a rule"),
        pytest.param(
            "gates: {counts.test: {min: 1}}\nbaseline: {confidence: 95}", "between 0.5 and 1", id="percent sure"
        ),
        pytest.param(
            "gates: {counts.test: {min: 1}}\nbaseline: {undecided: maybe}", "expected pass or fail", id="maybe"
        ),
        pytest.param(
            "gates: {counts.test: {min: 1}}\nbaseline: {path: x}", "baseline.path: .* no such key", id="a path"
        ),
        pytest.param("gates: {image.auroc: {min: 0.9", "is not valid YAML at line", id="torn"),
        pytest.param("gates:\n  counts.test: {min: 1}\n  counts.test: {min: 2}", "counts.test", id="twice"),
    ],
)
def test_a_malformed_file_is_refused_by_name(tmp_path, text, message):
    path = written(tmp_path, text)
    with pytest.raises(ConfigError, match=message) as caught:
        read_gates(GateRequest(path))
    assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        pytest.param(
            GateRequest(minimums=["image.auroc"]), "--min image.auroc: expected metric=number", id="no number"
        ),
        pytest.param(GateRequest(minimums=["0.98"]), "--min 0.98: expected metric=number", id="no metric"),
        pytest.param(GateRequest(maximums=["image.auroc=x"]), "--max .*: expected a number, got 'x'", id="text"),
        pytest.param(GateRequest(minimums=["image.auroc=nan"]), "expected a number, got 'nan'", id="not a number"),
        pytest.param(GateRequest(minimums=["image.aurok=0.9"]), "mean 'image.auroc'", id="misspelt"),
        pytest.param(GateRequest(minimums=["image.auroc=0.9"] * 2), "is given twice", id="twice"),
        pytest.param(GateRequest(tolerances=["0.01"]), "give --baseline as well", id="tolerance alone"),
        pytest.param(GateRequest(undecided="fail"), "give --baseline as well", id="undecided alone"),
        pytest.param(GateRequest(baseline=BASELINE, tolerances=["-0.1"]), "from 0 to 1, got -0.1", id="negative"),
        pytest.param(GateRequest(baseline=BASELINE, undecided="warn"), "--undecided: expected pass or fail", id="warn"),
        pytest.param(GateRequest(file=Path("no/such.yaml")), "no such file", id="no file"),
    ],
)
def test_a_wrong_option_is_refused_by_name(request_, message):
    with pytest.raises(ConfigError, match=message):
        read_gates(request_)


def test_gates_that_contradict_each_other_are_refused(tmp_path):
    text = "gates: {image.auroc: {min: 0.98}}\nruns: {line7: {image.auroc: {max: 0.9}}}"
    with pytest.raises(ConfigError, match=r"line7: image.auroc: min 0.98 is above max 0.9, so nothing passes"):
        gates_of(tmp_path, text)


def test_types_with_dots_in_their_names_have_metrics():
    assert find_metric("defect_types.no.7.recall") == METRICS["defect_types.*.recall"]
    assert find_metric("defect_types.recall") is None


def test_the_example_in_configs_is_a_valid_plan():
    plan = read_gates(GateRequest(Path(__file__).parents[2] / "configs" / "gates.yaml", baseline=BASELINE))
    gates = {gate.metric: gate for gate in plan.for_run("patchcore_grid", "grid")}
    assert gates["image.auroc"] == Gate("image.auroc", 0.97, tolerance=0.01)
    assert "pixel.aupro" in gates
    assert "pixel.aupro" not in {gate.metric for gate in plan.for_run("efficientad_grid", "grid")}
