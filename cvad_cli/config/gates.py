"""What a run must reach: gates from a YAML file and from the command line, checked before any work begins.

    gates:                                       # every run
      image.auroc: {min: 0.97, tolerance: 0.01}  # tolerance: against a baseline, where one is given
      pixel.aupro: {min: 0.85, optional: true}   # optional: no failure where it cannot be measured
    categories:                                  # by the name of the data
      grid:
        image.auroc: {min: 0.98}
    runs:                                        # by the name of the run
      quick_grid:
        pixel.aupro: null                        # no such gate for this run
    baseline: {confidence: 0.95, undecided: pass}

What is more particular wins key by key: runs over categories over gates, and the command line over all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from cvad_cli.config.gate_metrics import find_metric, unknown_metric
from cvad_cli.config.load import read_yaml
from cvad_cli.errors import ConfigError, did_you_mean

DEFAULT_TOLERANCES: Final = {
    "image.auroc": 0.0,
    "decision.recall": 0.0,
    "decision.false_alarm_rate": 0.0,
    "pixel.aupro": 0.02,  # a plain difference: no score of an image tells of its noise
}
"""What is compared with a baseline where nothing names a metric."""
DEFAULT_CONFIDENCE: Final = 0.95

_SECTIONS: Final = ("gates", "categories", "runs", "baseline")
_RULE_KEYS: Final = ("min", "max", "tolerance", "optional")
_BASELINE_KEYS: Final = ("confidence", "undecided")
_VERDICTS: Final = ("pass", "fail")

Rules = Mapping[str, Mapping[str, Any]]
"""Metric -> its keys; a metric without keys is a gate that is taken away."""


@dataclass(frozen=True, slots=True)
class Gate:
    """What one metric of a run must be."""

    metric: str
    minimum: float | None = None
    maximum: float | None = None
    tolerance: float | None = None
    """How much worse than the baseline it may be; None: it is not compared."""
    optional: bool = False
    """True: a figure that cannot be measured does not fail."""


@dataclass(frozen=True, slots=True)
class BaselineRule:
    """How sure a comparison with the baseline has to be."""

    path: Path
    confidence: float = DEFAULT_CONFIDENCE
    """That a run which fails is worse, and not by chance: shared by all comparisons of the run."""
    undecided: Literal["pass", "fail"] = "pass"
    """What a comparison does that the test set is too small to decide."""


@dataclass(frozen=True, slots=True)
class GateRequest:
    """Gates as the command line names them."""

    file: Path | None = None
    minimums: Sequence[str] = ()
    """'image.auroc=0.98', ..."""
    maximums: Sequence[str] = ()
    baseline: Path | None = None
    tolerances: Sequence[str] = ()
    """'image.auroc=0.01' for one metric, '0.01' for every metric that is compared."""
    undecided: str | None = None


@dataclass(frozen=True, slots=True)
class GatePlan:
    """Every gate of a call, by the run that it is for."""

    everywhere: Rules = field(default_factory=dict)
    categories: Mapping[str, Rules] = field(default_factory=dict)
    runs: Mapping[str, Rules] = field(default_factory=dict)
    asked: Rules = field(default_factory=dict)
    """From the command line."""
    any_tolerance: float | None = None
    """From the command line: for every metric that is compared."""
    baseline: BaselineRule | None = None

    def for_run(self, name: str, category: str) -> tuple[Gate, ...]:
        """The gates of a run, in the order in which they were written. Raises ConfigError where two contradict."""
        rules: dict[str, dict[str, Any]] = {}
        for layer in (self.everywhere, self.categories.get(category, {}), self.runs.get(name, {}), self.asked):
            for metric, keys in layer.items():
                if keys:
                    rules[metric] = {**rules.get(metric, {}), **keys}
                else:
                    rules.pop(metric, None)
        tolerances = self._tolerances(rules)
        optional = {metric for metric in tolerances if metric not in rules}
        gates = []
        for metric in dict.fromkeys([*rules, *tolerances]):
            keys = rules.get(metric, {})
            gate = Gate(
                metric,
                keys.get("min"),
                keys.get("max"),
                tolerances.get(metric),
                keys.get("optional", metric in optional),
            )
            if gate.minimum is not None and gate.maximum is not None and gate.minimum > gate.maximum:
                raise ConfigError(
                    f"gates of {name}: {metric}: min {gate.minimum:g} is above max {gate.maximum:g}, so nothing passes"
                )
            if (gate.minimum, gate.maximum, gate.tolerance) != (None, None, None):
                gates.append(gate)
        return tuple(gates)

    def _tolerances(self, rules: Rules) -> dict[str, float]:
        """Metric -> tolerance, for those that are compared: the ones that are named, else the usual ones."""
        if self.baseline is None:
            return {}
        named = {metric: keys["tolerance"] for metric, keys in rules.items() if keys.get("tolerance") is not None}
        if not named:
            named = dict(DEFAULT_TOLERANCES)
        if self.any_tolerance is not None:
            asked = {metric for metric, keys in self.asked.items() if "tolerance" in keys}
            named = {metric: value if metric in asked else self.any_tolerance for metric, value in named.items()}
        return named


def read_gates(request: GateRequest) -> GatePlan | None:
    """The plan that a gate file and the command line make together; None where neither asks for anything.

    Raises ConfigError naming the file or the option, the key, what was expected and the nearest valid name.
    """
    values = read_yaml(request.file) if request.file else {}
    label = str(request.file)
    if request.file and not any(values.get(section) for section in _SECTIONS[:3]):
        raise ConfigError(f"{label}: holds no gate, so everything would pass; expected a section `gates`")
    _require_known(label, "", values, _SECTIONS)
    everywhere = _rules(label, "gates", values.get("gates"))
    categories, runs = (
        {
            str(name): _rules(label, f"{section}.{name}", rules)
            for name, rules in _section(label, section, values).items()
        }
        for section in ("categories", "runs")
    )
    asked, any_tolerance = _asked(request)
    baseline = _baseline(label, request, values)
    if baseline is None and (request.tolerances or request.undecided):
        raise ConfigError("--tolerance and --undecided are about a comparison: give --baseline as well")
    if not (request.file or asked or baseline):
        return None
    return GatePlan(everywhere, categories, runs, asked, any_tolerance, baseline)


def _asked(request: GateRequest) -> tuple[Rules, float | None]:
    """The rules of --min, --max and --tolerance, and the tolerance that is for every metric."""
    asked: dict[str, dict[str, Any]] = {}
    any_tolerance = None
    for option, key, texts in (
        ("--min", "min", request.minimums),
        ("--max", "max", request.maximums),
        ("--tolerance", "tolerance", request.tolerances),
    ):
        for text in texts:
            metric, equals, number = text.rpartition("=")
            label = f"{option} {text}"
            if not equals and key == "tolerance":
                any_tolerance = _tolerance(label, _as_number(label, number))
                continue
            if not metric.strip():
                raise ConfigError(f"{label}: expected metric=number, for example {option} image.auroc=0.98")
            if key in asked.get(metric.strip(), {}):
                raise ConfigError(f"{label}: {option} {metric.strip()} is given twice")
            rule = _rule(label, metric.strip(), {key: _as_number(label, number)})
            asked.setdefault(metric.strip(), {}).update(rule)
    return asked, any_tolerance


def _baseline(label: str, request: GateRequest, values: Mapping[str, Any]) -> BaselineRule | None:
    section = _section(label, "baseline", values)
    _require_known(label, "baseline.", section, _BASELINE_KEYS)
    confidence = section.get("confidence", DEFAULT_CONFIDENCE)
    if not _is_number(confidence) or not 0.5 < confidence < 1:
        raise ConfigError(f"{label}: baseline.confidence: expected a share between 0.5 and 1, got {confidence!r}")
    source, undecided = f"{label}: baseline.undecided", section.get("undecided", "pass")
    if request.undecided is not None:
        source, undecided = "--undecided", request.undecided
    if undecided not in _VERDICTS:
        raise ConfigError(f"{source}: expected {' or '.join(_VERDICTS)}, got {undecided!r}")
    return BaselineRule(request.baseline, float(confidence), undecided) if request.baseline else None


def _section(label: str, name: str, values: Mapping[str, Any]) -> Mapping[str, Any]:
    section = values.get(name) or {}
    if not isinstance(section, dict):
        raise ConfigError(f"{label}: {name}: expected a section of `key: value` lines, got {section!r}")
    return section


def _rules(label: str, section: str, rules: object) -> Rules:
    if rules is None:
        return {}
    if not isinstance(rules, dict):
        raise ConfigError(f"{label}: {section}: expected lines such as `image.auroc: {{min: 0.98}}`, got {rules!r}")
    return {str(metric): _rule(f"{label}: {section}", str(metric), keys) for metric, keys in rules.items()}


def _rule(label: str, metric: str, keys: object) -> dict[str, Any]:
    """One gate's keys, checked; an empty mapping for null."""
    known = find_metric(metric)
    if known is None:
        raise ConfigError(f"{label}: {unknown_metric(metric)}")
    if keys is None:
        return {}
    if not isinstance(keys, dict) or not keys:
        raise ConfigError(f"{label}: {metric}: expected keys such as {{min: 0.98}}, or null for no gate, got {keys!r}")
    _require_known(label, f"{metric}.", keys, _RULE_KEYS)
    rule = dict(keys)
    for key in ("min", "max", "tolerance"):
        value = rule.get(key)
        if value is None:
            continue
        if not _is_number(value):
            raise ConfigError(f"{label}: {metric}.{key}: expected a number, got {value!r}")
        if known.share and not 0 <= value <= 1:
            raise ConfigError(f"{label}: {metric}.{key}: expected a share from 0 to 1, got {value!r}")
    if rule.get("tolerance") is not None:
        _tolerance(f"{label}: {metric}.tolerance", rule["tolerance"])
        if known.better is None:
            raise ConfigError(f"{label}: {metric}.tolerance: neither more nor less of it is better; give min or max")
    if not isinstance(rule.get("optional", False), bool):
        raise ConfigError(f"{label}: {metric}.optional: expected true or false, got {rule['optional']!r}")
    return rule


def _require_known(label: str, prefix: str, values: Mapping[str, Any], known: Sequence[str]) -> None:
    for key in values:
        if key not in known:
            hint = did_you_mean(str(key), known) or f" Valid names here: {', '.join(known)}."
            raise ConfigError(f"{label}: {prefix}{key}: there is no such key.{hint}")


def _tolerance(label: str, value: float) -> float:
    if not 0 <= value <= 1:
        raise ConfigError(f"{label}: expected a tolerance from 0 to 1, got {value!r}")
    return value


def _as_number(label: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ConfigError(f"{label}: expected a number, got {text!r}")
    return value


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
