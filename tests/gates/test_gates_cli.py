"""`cvad evaluate` with gates, as CI calls it: exit statuses, lines, and the files that are left."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from cvad_cli.assembly.gates.verdicts import judge_gates
from cvad_cli.config.gate_metrics import METRICS
from cvad_cli.config.gates import Gate


@dataclass(frozen=True)
class Run:
    """A copy of the trained run, and the command line that evaluates it."""

    config: Path
    root: Path

    @property
    def evaluation(self) -> Path:
        return self.root / "runs" / "small" / "evaluation"

    @property
    def arguments(self) -> tuple[object, ...]:
        return ("evaluate", "-c", self.config, "--set", f"output.root={self.root / 'runs'}", *FEW_IMAGES)

    def verdicts(self) -> dict[str, dict]:
        document = json.loads((self.evaluation / "gates.json").read_text("utf-8"))
        assert document["passed"] == all(gate["passed"] for gate in document["gates"])
        return {gate["name"]: gate for gate in document["gates"]}


FEW_IMAGES = ("--set", "evaluation.images=0")


@pytest.fixture(autouse=True)
def outside_of_github(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Run:
    shutil.copytree(trained.parent / "runs", tmp_path / "runs")
    return Run(trained, tmp_path)


def test_gates_that_hold_end_with_status_0_and_write_the_files_that_ci_reads(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cvad
) -> None:
    gates = tmp_path / "gates.yaml"
    gates.write_text(
        "gates: {counts.test: {min: 14, max: 14}, decision.recall: {tolerance: 0}, image.auroc: {tolerance: 0}}\n"
        "runs: {small: {counts.test: {max: 20}}}\n",
        encoding="utf-8",
    )
    step = tmp_path / "step.md"
    step.write_text("before\n", encoding="utf-8")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(step))
    reports = ("--junit", tmp_path / "ci" / "junit.xml", "--summary", tmp_path / "ci" / "summary.md")
    # The baseline lies where this very evaluation will.
    against = ("--gate", gates, "--baseline", run.evaluation, "--min", "image.average_precision=0.01")
    result = cvad(*run.arguments, *against, *reports, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == json.loads((run.evaluation / "metrics.json").read_text("utf-8"))
    assert {name: gate["verdict"] for name, gate in run.verdicts().items()} == {
        "counts.test >= 14": "passed",
        "counts.test <= 20": "passed",
        "decision.recall against the baseline": "passed",
        "image.auroc against the baseline": "passed",
        "image.average_precision >= 0.01": "passed",
    }
    (suite,) = ET.parse(tmp_path / "ci" / "junit.xml").getroot()
    assert (suite.get("name"), suite.get("tests"), suite.get("failures")) == ("small", "6", "0")
    summary = (tmp_path / "ci" / "summary.md").read_text("utf-8")
    assert summary.startswith("## cvad evaluate: ✅ 1 of 1 runs passed")
    assert step.read_text("utf-8") == f"before\n{summary}"
    # Every name that a gate may hold is one that metrics.json knows, or gives a reason for.
    metrics = json.loads(result.stdout)
    named = [name.replace("*", "bent") for name in METRICS if not name.startswith("classification.")]
    for found in judge_gates([Gate(name, minimum=0) for name in named], metrics):
        assert found.value is not None or "no such" not in found.reason, found


def test_failed_gates_end_with_status_1_and_one_line_each_and_keep_the_evaluation(
    run: Run, sample_data: Path, tmp_path: Path, cvad
) -> None:
    root = tmp_path / "no_masks"
    shutil.copytree(sample_data, root)
    shutil.rmtree(root / "grid" / "ground_truth")
    (run.evaluation / "metrics.json").unlink()
    asked = ("--min", "counts.test=15", "--min", "pixel.aupro=0.1", "--max", "decision.stated_false_alarm_rate=0.5")
    result = cvad(*run.arguments, "--set", f"data.root={root}", *asked, "--junit", tmp_path / "j.xml", "--quiet")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.splitlines() == [
        "gate failed: small: counts.test >= 15: 14 is 1 below it",
        "gate failed: small: pixel.aupro >= 0.1: not measured: no defective image has a mask (10 without)",
    ]
    assert [gate["passed"] for gate in run.verdicts().values()] == [False, False, True]
    assert (run.evaluation / "metrics.json").is_file()
    failures = ET.parse(tmp_path / "j.xml").getroot().findall("testsuite/testcase/failure")
    assert [failure.get("type") for failure in failures] == ["counts.test >= 15", "pixel.aupro >= 0.1"]


def test_a_detector_that_got_worse_fails_against_its_baseline(run: Run, tmp_path: Path, cvad) -> None:
    earlier = tmp_path / "earlier"
    shutil.copytree(run.evaluation, earlier)
    with (earlier / "per_image.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    with (earlier / "per_image.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        for number, row in enumerate(rows):  # an earlier detector that missed nothing
            defective = row["defect_type"] != "good"
            writer.writerow({**row, "score": number + 100 * defective, "rejected": int(defective)})
    metrics = json.loads((earlier / "metrics.json").read_text("utf-8"))
    metrics["image"]["auroc"] = 1.0
    metrics["decision"]["recall"] = 1.0
    (earlier / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    result = cvad(*run.arguments, "--baseline", earlier, "--tolerance", "decision.recall=0.1")
    assert result.exit_code == 1, result.output
    assert "FAIL  decision.recall against the baseline (at most 0.1 worse)" in result.stdout
    assert "more than chance explains" in result.stdout
    assert "1 of 1 gates failed." in result.stdout


def test_a_baseline_of_another_data_set_is_refused_before_the_work(
    run: Run, sample_data: Path, tmp_path: Path, cvad
) -> None:
    root = tmp_path / "other"
    shutil.copytree(sample_data, root)
    good = root / "grid" / "test" / "good"
    shutil.copy(good / "000.png", good / "001.png")
    before = (run.evaluation / "metrics.json").read_bytes()
    result = cvad(*run.arguments, "--set", f"data.root={root}", "--baseline", run.evaluation, "--quiet")
    assert result.exit_code == 2
    assert "was measured on other test images (14 of grid, fingerprint" in result.stderr
    assert (run.evaluation / "metrics.json").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["--min", "image.arooc=0.9"], "Did you mean 'image.auroc'?", id="a misspelt metric"),
        pytest.param(["--tolerance", "0.1"], "give --baseline as well", id="a tolerance alone"),
        pytest.param(["--gate", "torn.yaml"], "torn.yaml: is not valid YAML at line", id="a torn file"),
    ],
)
def test_malformed_gates_are_usage_errors_that_start_no_work(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments, message, cvad
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("torn.yaml").write_text("gates: {image.auroc: {min: 0.9", encoding="utf-8")
    result = cvad(*run.arguments, *arguments, "--junit", tmp_path / "j.xml")
    assert result.exit_code == 2
    assert message in result.stderr
    assert not (tmp_path / "j.xml").exists()


def test_several_configs_share_the_reports_and_one_that_cannot_run_is_an_error_in_them(
    run: Run, tmp_path: Path, cvad
) -> None:
    untrained = tmp_path / "untrained.yaml"
    untrained.write_text(f"extends: {run.config}\nname: untrained\n", encoding="utf-8")
    result = cvad(*run.arguments, "-c", untrained, "--min", "counts.test=99", "--junit", tmp_path / "j.xml", "-q")
    assert result.exit_code == 5  # what went wrong weighs more than a gate
    assert "gate failed: small: counts.test >= 99" in result.stderr
    assert "untrained: failed: " in result.stderr
    suites = {suite.get("name"): suite for suite in ET.parse(tmp_path / "j.xml").getroot()}
    assert list(suites) == ["small", "untrained"]
    assert suites["small"].find("testcase/failure") is not None
    assert "bundle" in suites["untrained"].find("testcase/error").get("message")
