"""Judges gates: compares the figures of a run with their bounds and with an earlier run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np

from cvad_cli.assembly.gates.baseline import Baseline
from cvad_cli.config.gate_metrics import find_metric
from cvad_cli.config.gates import BaselineRule, Gate
from cvad_cli.core.metrics.paired import PairedRuns, has_paired_bootstrap, why_undecidable, worsening
from cvad_cli.errors import ConfigError, did_you_mean
from cvad_cli.records import GateResult, ImageRecord, Verdict

SLACK: Final = 1e-12
"""Rounding: in binary fractions, 0.99 - 0.98 is more than 0.01."""
_INTERVAL_ENDS: Final = {"low": 0, "high": 1}
_PIXEL_SETTINGS: Final = ("pixel_metrics_at", "image_size")


@dataclass(frozen=True, slots=True)
class Comparison:
    """An earlier run, and how its figures are compared with the present ones."""

    baseline: Baseline
    runs: PairedRuns
    rule: BaselineRule
    seed: int
    """Seed of the resamples, the same for every metric."""

    def shared_by(self, comparisons: int) -> float:
        """The confidence of each of `comparisons` comparisons, so that all together have the confidence of the rule.

        Bonferroni's correction: it holds for any dependence between the figures.
        """
        return 1 - (1 - self.rule.confidence) / max(1, comparisons)


@dataclass(frozen=True, slots=True)
class _Figure:
    """A figure of metrics.json, or why there is none."""

    value: float | None
    """Finite."""
    why_missing: str = ""
    not_finite: bool = False


@dataclass(frozen=True, slots=True)
class _Question:
    """A gate's bound on a figure, and the results that it may have."""

    gate: Gate
    name: str
    bound: str
    figure: _Figure

    def answered(self, verdict: Literal["passed", "failed"], reason: str) -> GateResult:
        return self._result(verdict, reason, passed=verdict == "passed")

    def undecided(self, rule: BaselineRule, reason: str) -> GateResult:
        return self._result("cannot tell", reason, passed=rule.undecided == "pass")

    def unanswered(self, reason: str) -> GateResult:
        """A missing figure fails, unless it is known to be missing and the gate is optional."""
        optional = self.gate.optional and not self.figure.not_finite
        return self._result("skipped" if optional else "failed", f"not measured: {reason}", passed=optional)

    def _result(self, verdict: Verdict, reason: str, *, passed: bool) -> GateResult:
        return GateResult(
            self.name, self.gate.metric, self.bound, self.figure.value, passed=passed, reason=reason, verdict=verdict
        )


def pair_runs(
    baseline: Baseline, records: Sequence[ImageRecord], scores: Sequence[float], rejected: Sequence[bool]
) -> PairedRuns:
    """The test images as both runs judged them. Raises ConfigError where per_image.csv lists other images."""
    theirs = baseline.rows
    if {record.key: record.defect_type for record in records} != {key: row.defect_type for key, row in theirs.items()}:
        raise ConfigError(
            f"--baseline {baseline.path}: the images or types in the table beside it are not those of its fingerprint; "
            "it was edited or is of another evaluation"
        )
    earlier = [theirs[record.key] for record in records]
    return PairedRuns(
        defect_types=np.array([record.defect_type for record in records]),
        scores=np.array([[row.score for row in earlier], scores], dtype=np.float64),
        rejected=np.array([[row.rejected for row in earlier], rejected], dtype=np.bool_),
    )


def judge_gates(
    gates: Sequence[Gate], metrics: Mapping[str, Any], comparison: Comparison | None = None
) -> tuple[GateResult, ...]:
    """Every gate's verdict, a result for each bound. `comparison` is needed where a gate has a tolerance."""
    compared = sum(gate.tolerance is not None and has_paired_bootstrap(gate.metric) for gate in gates)
    return tuple(result for gate in gates for result in _judge(gate, metrics, comparison, compared))


def _judge(
    gate: Gate, metrics: Mapping[str, Any], comparison: Comparison | None, compared: int
) -> Iterator[GateResult]:
    figure = _look_up(metrics, gate.metric)
    for limit, sign in ((gate.minimum, 1), (gate.maximum, -1)):
        if limit is not None:
            yield _bounded(gate, figure, limit, sign)
    if gate.tolerance is not None and comparison is not None:
        question = _Question(gate, f"{gate.metric} against the baseline", f"at most {gate.tolerance:g} worse", figure)
        yield _compared(question, gate.tolerance, metrics, comparison, comparison.shared_by(compared))


def _bounded(gate: Gate, figure: _Figure, limit: float, sign: int) -> GateResult:
    """At least the limit (sign 1) or at most (sign -1)."""
    bound = f"{'>=' if sign > 0 else '<='} {limit:g}"
    question = _Question(gate, f"{gate.metric} {bound}", bound, figure)
    if figure.value is None:
        return question.unanswered(figure.why_missing)
    short = sign * (limit - figure.value)
    if short <= SLACK:
        return question.answered("passed", f"{figure.value:.6g} is within the bound")
    return question.answered("failed", f"{figure.value:.6g} is {short:.4g} {'below' if sign > 0 else 'above'} it")


def _compared(
    question: _Question, tolerance: float, metrics: Mapping[str, Any], comparison: Comparison, confidence: float
) -> GateResult:
    """At most `tolerance` worse than the baseline; a plain difference if image scores do not determine the metric."""
    metric, figure = question.gate.metric, question.figure
    before = _look_up(comparison.baseline.metrics, metric)
    if figure.value is None:
        return question.unanswered(figure.why_missing)
    if before.value is None:
        why = f"the baseline has no such figure: {before.why_missing}"
        return question.answered("failed", why) if before.not_finite else question.unanswered(why)
    other = _measured_otherwise(metric, metrics, comparison.baseline.metrics)
    if other:
        return question.answered("failed", other)
    known = find_metric(metric)
    worse = (figure.value - before.value) * (1 if known is not None and known.better == "lower" else -1)
    change = f"{figure.value:.4f} against {before.value:.4f}, {_in_words(worse)}"
    if not has_paired_bootstrap(metric):
        return question.answered("passed" if worse <= tolerance + SLACK else "failed", f"{change}; a plain difference")
    return _with_limits(question, tolerance, change, comparison, confidence)


def _with_limits(
    question: _Question, tolerance: float, change: str, comparison: Comparison, confidence: float
) -> GateResult:
    """Fail if the lower limit of the worsening is above the tolerance; pass if the upper limit is not."""
    metric, rule, runs = question.gate.metric, comparison.rule, comparison.runs
    reason = why_undecidable(metric, runs, confidence=confidence)
    if reason:
        return question.undecided(rule, f"{change}; {reason}")
    found = worsening(metric, runs, confidence=confidence, rng=np.random.default_rng([comparison.seed, 3]))
    change += f" ({found.low:+.4f} to {found.high:+.4f} worse, each limit at {100 * confidence:.4g} %)"
    if found.low > tolerance + SLACK:
        return question.answered("failed", f"{change}, more than chance explains")
    if found.high <= tolerance + SLACK:
        return question.answered("passed", change)
    return question.undecided(
        rule, f"{change}: {runs.defect_types.size} images are too few to distinguish that from chance"
    )


def _in_words(worse: float) -> str:
    if abs(worse) <= SLACK:
        return "no change"
    return f"{abs(worse):.4f} {'worse' if worse > 0 else 'better'}"


def _measured_otherwise(metric: str, metrics: Mapping[str, Any], baseline: Mapping[str, Any]) -> str | None:
    """Why a pixel metric of the baseline means something else; None where it does not."""
    if not metric.startswith("pixel."):
        return None
    pairs = [
        (f"provenance.{key}", metrics["provenance"].get(key), baseline["provenance"].get(key))
        for key in _PIXEL_SETTINGS
        if key == "pixel_metrics_at" or metrics["provenance"].get("pixel_metrics_at") == "input"
    ]
    if metric == "pixel.aupro":
        limits = (document.get("pixel", {}).get("aupro_fpr_limit") for document in (metrics, baseline))
        pairs.append(("pixel.aupro_fpr_limit", *limits))
    different = [f"{key} was {before}, is now {now}" for key, now, before in pairs if now != before]
    return f"not comparable: {'; '.join(different)}" if different else None


def _look_up(document: Mapping[str, Any], metric: str) -> _Figure:
    """The figure at a dotted path; a defect type may have dots in its name."""
    value = _descend(document, metric)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if math.isfinite(value):
            return _Figure(float(value))
        return _Figure(None, f"{value} is no figure", not_finite=True)
    return _Figure(None, _why_missing(document, metric))


def _descend(value: Any, path: str) -> Any:
    if not path:
        return value
    if isinstance(value, list) and len(value) == len(_INTERVAL_ENDS) and path in _INTERVAL_ENDS:
        return value[_INTERVAL_ENDS[path]]
    if isinstance(value, Mapping):
        for key in sorted(map(str, value), key=len, reverse=True):
            if path == key or path.startswith(f"{key}."):
                return _descend(value[key], path[len(key) + 1 :])
    return None


def _why_missing(document: Mapping[str, Any], metric: str) -> str:
    """The reason in metrics.json for a missing figure, or a hint about its name."""
    section, _, rest = metric.partition(".")
    for reasons, path in (
        (document.get("unavailable"), metric),
        ((document.get(section) or {}).get("unavailable"), rest),
    ):
        for name, reason in (reasons or {}).items():
            if path == name or path.startswith(f"{name}."):
                return str(reason)
    if section == "classification" and section not in document:
        return "the classification was not measured; give --classification"
    if section == "defect_types":
        types = list(document.get(section) or {})
        name = rest.rpartition(".")[0]
        hint = did_you_mean(name, types) or f" Types here: {', '.join(types) or 'none'}."
        return f"the test set has no defect type {name!r}.{hint}"
    return "metrics.json holds no such figure"
