"""Bundles of several configs compared with anomalib's inferencers, and the folder of results."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from anomalib_comparison.chart import comparison_chart
from anomalib_comparison.comparison import ComparisonPlan, compare, together
from anomalib_comparison.tables import MODEL_TITLES, comparison_tables, target_title
from cvad_cli.adapters.machine.devices import choose_device
from cvad_cli.adapters.machine.system_info import describe_machine
from cvad_cli.assembly.benchmark.tables import as_markdown
from cvad_cli.assembly.serving.open_bundle import open_bundle
from cvad_cli.config.schema import RunConfig
from cvad_cli.errors import ConfigError
from cvad_cli.files import replacing_folder
from cvad_cli.ports import Reporter
from cvad_cli.records import BenchSummary
from cvad_cli.tasks.bench import images_to_judge, provenance


def compare_bundles(runs: Sequence[RunConfig], folder: Path, plan: ComparisonPlan, reporter: Reporter) -> BenchSummary:
    """Compare the bundles of some configs, one per model; write bench.json, bench.md and comparison.png.

    An earlier comparison stays as it was until the new one is complete. Raises the CvadError that names what to mend.
    """
    machine = describe_machine()
    models: dict[str, dict[str, Any]] = {}
    for settings in runs:
        bundle = open_bundle(settings)
        kind = bundle.manifest["model"]["kind"]
        if kind in models:
            raise ConfigError(f"{bundle.folder}: is the second bundle of one model; compare one of each at a time")
        records, device = images_to_judge(settings, plan.images), choose_device(settings.device)
        models[kind] = compare(settings, records, device=device, plan=plan, reporter=reporter)
    report = {**together(models, repeats=plan.repeats), **provenance(machine)}
    with replacing_folder(folder) as staged:
        _write(staged, report)
    return BenchSummary(folder, report)


def _write(folder: Path, report: Mapping[str, Any]) -> None:
    (folder / "bench.json").write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "bench.md").write_text(as_markdown(report, comparison_tables(report)), encoding="utf-8")
    models = {
        MODEL_TITLES[model]: {target_title(name, entry): entry for name, entry in found["targets"].items()}
        for model, found in report["models"].items()
    }
    comparison_chart(folder / "comparison.png", models, title="cvad and anomalib: same weights, same files")
