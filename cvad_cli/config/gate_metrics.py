"""The figures of metrics.json that a gate may hold: their dotted names, which way is better, how far they reach."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from cvad_cli.errors import did_you_mean


@dataclass(frozen=True, slots=True)
class GateMetric:
    """What is known of a figure before it is measured."""

    better: Literal["higher", "lower"] | None
    """None where neither is: such a figure may have a minimum or a maximum, but no tolerance against a baseline."""
    share: bool
    """Whether it lies between 0 and 1."""


_HIGHER, _LOWER = GateMetric("higher", share=True), GateMetric("lower", share=True)
_SHARE, _NUMBER = GateMetric(None, share=True), GateMetric(None, share=False)

METRICS: Final[Mapping[str, GateMetric]] = {
    "image.auroc": _HIGHER,
    "image.auroc_interval.low": _SHARE,
    "image.auroc_interval.high": _SHARE,
    "image.average_precision": _HIGHER,
    "image.f1_max": _HIGHER,
    "pixel.auroc": _HIGHER,
    "pixel.average_precision": _HIGHER,
    "pixel.aupro": _HIGHER,
    "decision.precision": _HIGHER,
    "decision.recall": _HIGHER,
    "decision.false_alarm_rate": _LOWER,
    "decision.false_alarm_interval.low": _SHARE,
    "decision.false_alarm_interval.high": _SHARE,
    "decision.stated_false_alarm_rate": _SHARE,
    "decision.true_positives": _NUMBER,
    "decision.false_positives": _NUMBER,
    "decision.true_negatives": _NUMBER,
    "decision.false_negatives": _NUMBER,
    "defect_types.*.auroc": _HIGHER,
    "defect_types.*.recall": _HIGHER,
    "defect_types.*.images": _NUMBER,
    "classification.leave_one_out.accuracy": _HIGHER,
    "classification.leave_one_out.macro_f1": _HIGHER,
    "classification.leave_one_out.recall.*": _HIGHER,
    "classification.shots.*.accuracy_mean": _HIGHER,
    "classification.shots.*.macro_f1_mean": _HIGHER,
    "classification.open_set.auroc_mean": _HIGHER,
    "counts.train": _NUMBER,
    "counts.test": _NUMBER,
    "counts.good": _NUMBER,
    "counts.defective": _NUMBER,
    "counts.masks": _NUMBER,
    "counts.skipped": _NUMBER,
}
"""Dotted path into metrics.json, `*` standing for a defect type or a number of shots, `low` and `high` for the ends of
an interval."""

_PATTERNS: Final = {re.compile(re.escape(name).replace(r"\*", ".+")): metric for name, metric in METRICS.items()}


def find_metric(name: str) -> GateMetric | None:
    """What is known of the figure of that name; None where metrics.json holds no such figure."""
    return next((metric for pattern, metric in _PATTERNS.items() if pattern.fullmatch(name)), None)


def unknown_metric(name: str) -> str:
    """One sentence about a name that no figure has, with the nearest that one has."""
    same_field = [known for known in METRICS if known.rpartition(".")[2] == name.rpartition(".")[2]]
    if same_field:
        hint = f" Did you mean {' or '.join(map(repr, same_field))}?"
    else:
        hint = did_you_mean(name, METRICS) or f" Known: {', '.join(METRICS)}."
    return f"{name}: metrics.json holds no such figure.{hint}"
