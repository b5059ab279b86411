"""The gates of one evaluation: what can be refused is refused before the work, the verdicts come after it."""

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
        """Hold the figures to the gates; write gates.json to `folder`. `records` and `scores` are those judged."""
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
    """Settle a run's gates and read its baseline, which this very evaluation may be about to replace.

    Raises ConfigError where gates contradict or the baseline is damaged or of other test images.
    """
    gates = plan.for_run(settings.name, dataset.name)
    if not gates:
        reporter.warn(f"no gate is for {settings.name} (data {dataset.name}): it passes whatever it gives")
    baseline = open_baseline(plan.baseline.path, settings.name) if plan.baseline else None
    if baseline and settings.data.on_error == "stop":  # else the images judged are known only afterwards
        require_same_images(baseline, fingerprint(dataset.test), dataset.name)
    return GateEvaluator(plan, gates, baseline, settings)
