"""The gates of one evaluation: errors are found before the work, and the verdicts follow after it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cvad_cli.adapters.datasets import fingerprint
from cvad_cli.assembly.gates.baseline import Baseline, open_baseline, require_same_images
from cvad_cli.assembly.gates.verdicts import Comparison, judge_gates, pair_runs
from cvad_cli.config.gates import Gate, GatePlan
from cvad_cli.config.schema import RunConfig
from cvad_cli.ports import Reporter
from cvad_cli.records import Dataset, GateResult, ImageRecord

GATES_FILE: Final = "gates.json"


@dataclass(frozen=True, slots=True)
class GateEvaluator:
    """The gates of one run and the earlier run that it is compared with."""

    plan: GatePlan
    gates: tuple[Gate, ...]
    baseline: Baseline | None
    settings: RunConfig

    def judge(
        self, metrics: Mapping[str, Any], records: Sequence[ImageRecord], scores: Sequence[float], folder: Path
    ) -> tuple[GateResult, ...]:
        """Judge the gates; write gates.json to `folder`. `records` and `scores` are those of the judged images."""
        comparison = self._comparison(metrics, records, scores)
        results = judge_gates(self.gates, metrics, comparison)
        document = {
            "passed": all(result.passed for result in results),
            "gates": [dataclasses.asdict(result) for result in results],
            "baseline": self._baseline_used(),
        }
        text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
        (folder / GATES_FILE).write_text(text + "\n", encoding="utf-8")
        return results

    def _comparison(
        self, metrics: Mapping[str, Any], records: Sequence[ImageRecord], scores: Sequence[float]
    ) -> Comparison | None:
        if self.baseline is None or self.plan.baseline is None:
            return None
        provenance = metrics["provenance"]
        require_same_images(self.baseline, provenance["test_fingerprint"], provenance["data"])
        rejected = [score > metrics["decision"]["threshold"] for score in scores]
        runs = pair_runs(self.baseline, records, scores, rejected)
        return Comparison(self.baseline, runs, self.plan.baseline, self.settings.seed)

    def _baseline_used(self) -> dict[str, Any] | None:
        if self.baseline is None or self.plan.baseline is None:
            return None
        source = {key: self.baseline.provenance.get(key) for key in ("name", "bundle_fingerprint", "created")}
        rule = self.plan.baseline
        return {"path": str(self.baseline.path), **source, "confidence": rule.confidence, "undecided": rule.undecided}


def open_gates(plan: GatePlan, settings: RunConfig, dataset: Dataset, reporter: Reporter) -> GateEvaluator:
    """Determine the gates of a run and read its baseline now, because this evaluation may replace it.

    Raises ConfigError if gates contradict each other, or if the baseline is damaged or of other test images.
    """
    gates = plan.for_run(settings.name, dataset.name)
    if not gates:
        reporter.warn(f"no gate applies to {settings.name} (data {dataset.name}): it passes with any figures")
    baseline = open_baseline(plan.baseline.path, settings.name) if plan.baseline else None
    if baseline and settings.data.on_error == "stop":  # otherwise the judged images are known only afterwards
        require_same_images(baseline, fingerprint(dataset.test), dataset.name)
    return GateEvaluator(plan, gates, baseline, settings)
