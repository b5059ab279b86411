"""Gates judged on figures whose verdict is known, against baselines on disk; and what reports make of the verdicts."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest

from cvad_cli.assembly.gates.baseline import open_baseline, require_same_images
from cvad_cli.assembly.gates.reports import RunVerdict, junit_xml, markdown
from cvad_cli.assembly.gates.verdicts import Comparison, judge_gates, pair_runs
from cvad_cli.config.gates import BaselineRule, Gate
from cvad_cli.core.metrics import measure_images
from cvad_cli.errors import ConfigError
from cvad_cli.records import GateResult, ImageRecord

TYPES = ["good"] * 21 + ["bent"] * 30 + ["glue"] * 27
KEYS = [f"test/{kind}/{number:03}.png" for number, kind in enumerate(TYPES)]
RECORDS = [ImageRecord(Path(key), key, kind) for key, kind in zip(KEYS, TYPES, strict=True)]


def metrics_of(scores, threshold=3.0, **pixel: object) -> dict:
    report = measure_images(
        scores, TYPES, threshold=threshold, stated_false_alarm_rate=0.05, rng=np.random.default_rng(0)
    ).as_dict()
    return {
        **report,
        "pixel": {"auroc": None, "average_precision": None, "aupro": None, "aupro_fpr_limit": 0.3, **pixel},
        "counts": {"test": len(TYPES), "skipped": 0},
        "provenance": {
            "data": "grid",
            "test_fingerprint": "f" * 64,
            "pixel_metrics_at": "input",
            "image_size": 256,
            "bundle_fingerprint": "b" * 64,
        },
    }


def store(folder: Path, scores, threshold=3.0, **pixel: object) -> Path:
    """An evaluation as `cvad evaluate` leaves it, as far as a baseline goes."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.json").write_text(json.dumps(metrics_of(scores, threshold, **pixel)), encoding="utf-8")
    with (folder / "per_image.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "defect_type", "score", "map_peak", "rejected"])
        for key, kind, score in zip(KEYS, TYPES, scores, strict=True):
            writer.writerow([key, kind, f"{score:.9g}", "0", int(score > threshold)])
    return folder


def detector(seed: int = 0) -> np.ndarray:
    """Scores of a good detector on 78 images: AUROC about 0.98."""
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.normal(0, 1, 21), rng.normal(3.2, 1, 57)])


def blinded(scores: np.ndarray, drop: float) -> np.ndarray:
    """The same detector after it lost `drop` of its AUROC: it no longer sees its clearest defects."""
    now, whole = scores.copy(), metrics_of(scores)["image"]["auroc"]
    for index in np.argsort(-scores):
        if whole - metrics_of(now)["image"]["auroc"] >= drop:
            break
        now[index] = np.median(scores[:21])
    return now


def judge(gates, scores, earlier: Path | None = None, threshold=3.0, rule=None, **pixel: object):
    metrics = metrics_of(scores, threshold, **pixel)
    comparison = None
    if earlier is not None:
        baseline = open_baseline(earlier, "line7")
        runs = pair_runs(baseline, RECORDS, list(scores), [score > threshold for score in scores])
        comparison = Comparison(baseline, runs, rule or BaselineRule(earlier), seed=42)
    return judge_gates(gates, metrics, comparison)


def verdict(gate: Gate, scores, *arguments: object, **options: object) -> GateResult:
    (result,) = judge([gate], scores, *arguments, **options)
    return result


AUROC = Gate("image.auroc", tolerance=0.0)


def test_a_bound_is_kept_or_missed_by_a_stated_amount():
    perfect = np.concatenate([np.zeros(21), np.ones(57) * 9])
    kept, missed = judge([Gate("image.auroc", minimum=0.99), Gate("decision.recall", maximum=0.5)], perfect)
    assert (kept.passed, kept.verdict, kept.value, kept.bound) == (True, "passed", 1.0, ">= 0.99")
    assert (missed.passed, missed.verdict, missed.reason) == (False, "failed", "1 is 0.5 above it")


def test_a_figure_on_its_bound_passes_whatever_binary_fractions_say():
    rejected = np.concatenate([np.zeros(21), np.ones(57) * 9])
    rejected[:3] = 9  # 3 of 21 false alarms
    limit = round(3 / 21, 15)
    assert verdict(Gate("decision.false_alarm_rate", maximum=limit), rejected).passed


def test_both_bounds_of_a_gate_have_a_verdict_each():
    results = judge([Gate("decision.recall", minimum=0.2, maximum=0.3)], detector())
    assert [result.name for result in results] == ["decision.recall >= 0.2", "decision.recall <= 0.3"]
    assert [result.passed for result in results] == [True, False]


@pytest.mark.parametrize(
    ("metric", "reason"),
    [
        pytest.param("pixel.aupro", "no such figure", id="no reason given"),
        pytest.param("image.auroc_interval.low", "every bootstrap resample gives", id="an interval that is none"),
        pytest.param("classification.leave_one_out.accuracy", "give --classification", id="naming not measured"),
        pytest.param("defect_types.gleu.recall", "no defect type 'gleu'. Did you mean 'glue'?", id="another type"),
    ],
)
def test_a_missing_figure_fails_with_the_reason_unless_it_is_optional(metric, reason):
    perfect = np.concatenate([np.zeros(21), np.ones(57) * 9])
    failed = verdict(Gate(metric, minimum=0.5), perfect)
    assert (failed.passed, failed.verdict, failed.value) == (False, "failed", None)
    assert reason in failed.reason
    skipped = verdict(Gate(metric, minimum=0.5, optional=True), perfect)
    assert (skipped.passed, skipped.verdict) == (True, "skipped")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("optional", [True, False])
def test_what_is_not_a_number_never_passes(value, optional):
    gate = Gate("pixel.aupro", minimum=0.0, maximum=1.0, optional=optional)
    assert [result.passed for result in judge([gate], detector(), aupro=value)] == [False, False]


def test_a_reason_of_metrics_json_is_the_reason_of_the_gate():
    metrics = metrics_of(detector())
    metrics["unavailable"]["pixel.aupro"] = "no image has a mask"
    (result,) = judge_gates([Gate("pixel.aupro", minimum=0.5)], metrics)
    assert result.reason == "not measured: no image has a mask"


def test_ends_of_intervals_and_types_with_dots_can_be_held():
    metrics = metrics_of(detector())
    metrics["defect_types"]["no.7"] = {"images": 3, "auroc": 0.9, "recall": 0.25}
    gates = [Gate("image.auroc_interval.low", minimum=0.9), Gate("defect_types.no.7.recall", minimum=0.5)]
    low, recall = judge_gates(gates, metrics)
    assert low.value == metrics["image"]["auroc_interval"][0]
    assert (recall.value, recall.passed) == (0.25, False)


def test_the_same_detector_passes_its_own_baseline_without_a_doubt(tmp_path):
    scores = detector()
    gates = [Gate(metric, tolerance=0.0) for metric in ("image.auroc", "decision.recall", "decision.false_alarm_rate")]
    results = judge(gates, scores, store(tmp_path, scores))
    assert [result.verdict for result in results] == ["passed"] * 3
    assert "no change" in results[0].reason


@pytest.mark.parametrize("seed", range(5))
def test_a_change_by_noise_passes(tmp_path, seed):
    scores = detector(seed)
    now = scores + np.random.default_rng([seed, 1]).normal(0, 0.2, scores.size)
    assert verdict(AUROC, now, store(tmp_path, scores)).passed


@pytest.mark.parametrize("seed", range(5))
def test_a_true_drop_of_three_hundredths_fails(tmp_path, seed):
    scores = detector(seed)
    now = blinded(scores, 0.03)
    now += np.random.default_rng([seed, 1]).normal(0, 0.02, scores.size)
    result = verdict(AUROC, now, store(tmp_path, scores))
    assert (result.passed, result.verdict) == (False, "failed"), result.reason
    assert "more than chance explains" in result.reason


def test_a_drop_within_the_tolerance_does_not_fail(tmp_path):
    scores = detector()
    result = verdict(Gate("image.auroc", tolerance=0.1), blinded(scores, 0.03), store(tmp_path, scores))
    assert (result.passed, result.verdict) == (True, "passed")


def test_an_undecided_comparison_passes_or_fails_as_the_rule_says(tmp_path):
    scores = detector()
    now = scores + np.random.default_rng(3).normal(0, 0.2, scores.size)
    earlier = store(tmp_path, scores)
    lenient, strict = (
        verdict(AUROC, now, earlier, rule=BaselineRule(earlier, undecided=undecided)) for undecided in ("pass", "fail")
    )
    assert (lenient.verdict, lenient.passed) == ("cannot tell", True)
    assert (strict.verdict, strict.passed) == ("cannot tell", False)
    assert "78 images are too few" in lenient.reason


def test_comparisons_of_a_run_share_the_confidence(tmp_path):
    scores = detector()
    earlier = store(tmp_path, scores)
    gates = [AUROC, *(Gate(f"defect_types.{kind}.auroc", tolerance=0.0) for kind in ("bent", "glue"))]
    results = judge([*gates, Gate("pixel.aupro", tolerance=0.1)], scores * 1.5, earlier, threshold=4.5)
    assert "each limit at 98.33 %" in results[0].reason
    assert "each limit at 95 %" in verdict(AUROC, scores * 1.5, earlier, threshold=4.5).reason


def test_more_false_alarms_are_worse_and_fewer_are_not(tmp_path):
    scores = detector()
    gate = Gate("decision.false_alarm_rate", tolerance=0.0)
    tight, loose = (store(tmp_path / str(threshold), scores, threshold) for threshold in (3.0, -0.3))
    assert verdict(gate, scores, tight, threshold=-0.3).verdict == "failed"
    assert verdict(gate, scores, loose, threshold=3.0).verdict == "passed"


def test_a_pixel_metric_is_compared_plainly_and_only_with_its_like(tmp_path):
    scores, gate = detector(), Gate("pixel.aupro", tolerance=0.01)
    earlier = store(tmp_path, scores, aupro=0.90)
    assert verdict(gate, scores, earlier, aupro=0.8901).passed
    fallen = verdict(gate, scores, earlier, aupro=0.8899)
    assert (fallen.passed, fallen.reason) == (False, "0.8899 against 0.9000, 0.0101 worse; a plain difference")
    other = verdict(gate, scores, earlier, aupro=0.95, aupro_fpr_limit=0.05)
    assert (other.passed, other.reason) == (False, "not comparable: pixel.aupro_fpr_limit was 0.3, is now 0.05")


def test_a_figure_that_the_baseline_lacks_fails_unless_it_is_optional(tmp_path):
    scores = detector()
    earlier = store(tmp_path, scores)
    failed = verdict(Gate("pixel.aupro", tolerance=0.1), scores, earlier, aupro=0.9)
    assert (failed.passed, failed.reason[:47]) == (False, "not measured: the baseline has no such figure: ")
    assert verdict(Gate("pixel.aupro", tolerance=0.1, optional=True), scores, earlier, aupro=0.9).verdict == "skipped"


def test_a_baseline_that_is_not_a_number_fails_optional_or_not(tmp_path):
    scores = detector()
    earlier = store(tmp_path, scores, aupro=math.nan)
    result = verdict(Gate("pixel.aupro", tolerance=0.1, optional=True), scores, earlier, aupro=0.9)
    assert (result.passed, result.verdict) == (False, "failed")


def test_a_baseline_is_found_by_file_folder_run_and_folder_of_runs(tmp_path):
    folder = store(tmp_path / "runs" / "line7" / "evaluation", detector())
    for path in (folder / "metrics.json", folder, folder.parent, folder.parents[1]):
        assert open_baseline(path, "line7").path == folder / "metrics.json"
    with pytest.raises(ConfigError, match=r"holds none of metrics\.json, evaluation/metrics\.json, line8/"):
        open_baseline(tmp_path / "runs", "line8")
    with pytest.raises(ConfigError, match="no such file or folder"):
        open_baseline(tmp_path / "nowhere", "line7")


def test_a_baseline_of_other_images_is_refused_with_the_reason(tmp_path):
    baseline = open_baseline(store(tmp_path, detector()), "line7")
    require_same_images(baseline, "f" * 64, "grid")
    with pytest.raises(ConfigError, match=r"other test images \(78 of grid, fingerprint f{12}\) than this run \(tile"):
        require_same_images(baseline, "e" * 64, "tile")


def rewrite(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        pytest.param(lambda f: (f / "per_image.csv").unlink(), "per_image.csv is missing", id="no scores"),
        pytest.param(lambda f: (f / "metrics.json").write_text("{"), "metrics.json: is not JSON", id="torn"),
        pytest.param(lambda f: (f / "metrics.json").write_text("[]"), "is not the metrics.json of", id="another file"),
        pytest.param(lambda f: (f / "per_image.csv").write_text("a,b\n1,2\n"), "expected the columns", id="columns"),
        pytest.param(
            lambda f: rewrite(f / "per_image.csv", ",0,0\n", ",0,no\n"), "line 2: cannot be read", id="a verdict"
        ),
        pytest.param(
            lambda f: rewrite(f / "per_image.csv", "001.png", "000.png"), "line 3: .*000.png is listed", id="twice"
        ),
        pytest.param(
            lambda f: rewrite(f / "metrics.json", '"auroc": 0', '"auroc": "0'), "is not JSON|expected", id="text"
        ),
        pytest.param(
            lambda f: rewrite(f / "metrics.json", '"auroc": 0.9', '"auroc": 0.5'), "not of one eval", id="mixed"
        ),
        pytest.param(lambda f: (f / "metrics.json").write_bytes(b"\xff\xfe"), "is not UTF-8", id="bytes"),
    ],
)
def test_a_damaged_baseline_is_refused_by_name(tmp_path, damage, message):
    folder = store(tmp_path, detector())
    damage(folder)
    with pytest.raises(ConfigError, match=message) as caught:
        open_baseline(folder, "line7")
    assert str(tmp_path) in str(caught.value)


def test_scores_of_other_images_under_the_same_fingerprint_are_refused(tmp_path):
    folder = store(tmp_path, detector())
    rewrite(folder / "per_image.csv", "test/good/000.png", "test/good/900.png")
    with pytest.raises(ConfigError, match="are not those of its fingerprint"):
        judge([AUROC], detector(), folder)


NASTY = 'a<b> & "c" \x00\x1b]]> | `x` *y* _z_ [l](http://h) é ☃ \ud800'

RUNS = [
    RunVerdict(
        "line7",
        "grid",
        (
            GateResult("image.auroc >= 0.98", "image.auroc", ">= 0.98", 0.99, True, "0.99 keeps it", "passed"),
            GateResult("pixel.aupro >= 0.8", "pixel.aupro", ">= 0.8", None, True, "no masks", "skipped"),
            GateResult("a against the baseline", "a", "at most 0 worse", 0.9, True, "too few", "cannot tell"),
            GateResult("b <= 0.1", "b", "<= 0.1", 0.2, False, NASTY, "failed"),
        ),
        2.5,
    ),
    RunVerdict("line8", None, (), 0.5, error=NASTY),
    RunVerdict("line9", "tile", (), 1.0),
]


def test_junit_holds_a_suite_a_run_and_a_case_a_gate_whatever_the_text():
    root = ET.fromstring(junit_xml(RUNS))
    assert root.tag == "testsuites"
    assert {name: root.get(name) for name in ("tests", "failures", "errors", "skipped", "time")} == {
        "tests": "7",
        "failures": "1",
        "errors": "1",
        "skipped": "1",
        "time": "4.000",
    }
    suites = {suite.get("name"): suite for suite in root}
    assert list(suites) == ["line7", "line8", "line9"]
    for suite in suites.values():
        assert int(suite.get("tests")) == len(suite.findall("testcase"))
        assert all(case.get("classname") and case.get("name") and float(case.get("time")) >= 0 for case in suite)
    cases = {case.get("name"): case for case in suites["line7"]}
    assert list(cases) == ["evaluated", *(gate.name for gate in RUNS[0].gates)]
    failure = cases["b <= 0.1"].find("failure")
    assert failure.get("type") == "b <= 0.1"
    assert failure.text.startswith('a<b> & "c" ��]]> | `x`')
    assert failure.get("message").endswith("é ☃ �")
    assert cases["pixel.aupro >= 0.8"].find("skipped").get("message") == "no masks"
    assert cases["a against the baseline"].findtext("system-out") == "cannot tell: too few"
    assert suites["line8"].find("testcase/error") is not None


def test_the_summary_is_markdown_that_no_text_can_break_out_of():
    text = markdown(RUNS)
    lines = text.splitlines()
    assert lines[0] == "## cvad evaluate: ❌ 2 of 3 runs failed"
    assert lines[2] == "Gates: 1 passed, 1 failed, 1 cannot tell, 1 skipped."
    rows = [line for line in lines if line.startswith("| ")]
    assert len(rows) == 2 + len(RUNS[0].gates)
    (nasty,) = [row for row in rows if "☃" in row]
    assert nasty.replace(r"\|", "").count("|") == 5
    assert "<b>" not in text
    assert r"\[l\](http://h)" in nasty
    assert "Not evaluated: a\\<b\\>" in text
    assert text.endswith("\n")
    assert markdown([RUNS[2]]).startswith("## cvad evaluate: ✅ 1 of 1 runs passed")
