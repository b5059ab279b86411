"""`cvad bench`: the speed of a trained bundle on this machine, and how time and memory grow."""

from __future__ import annotations

import datetime as dt
import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cvad_cli import __version__
from cvad_cli.adapters.charts.benchmark import growth_chart, stages_chart
from cvad_cli.adapters.machine.devices import choose_device
from cvad_cli.adapters.machine.subprocess_call import in_fresh_process
from cvad_cli.adapters.machine.system_info import describe_machine
from cvad_cli.adapters.storage.bundles import version_of
from cvad_cli.assembly.benchmark.measurement import BenchmarkJob, as_figures, measure, time_stages
from cvad_cli.assembly.benchmark.scaling import grow
from cvad_cli.assembly.benchmark.tables import as_markdown, tables_of
from cvad_cli.assembly.data.images import open_dataset
from cvad_cli.assembly.execution.executors import keeping_threads
from cvad_cli.assembly.run_folders import bench_folder
from cvad_cli.assembly.serving.open_bundle import open_bundle
from cvad_cli.config.schema import RunConfig
from cvad_cli.errors import DataError
from cvad_cli.files import replacing_folder
from cvad_cli.ports import Reporter
from cvad_cli.records import BenchSummary, ImageRecord

PACKAGES: Final = (
    "anomalib",
    "faiss-cpu",
    "lightning",
    "numpy",
    "opencv-python-headless",
    "openvino",
    "pillow",
    "torch",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchRequest:
    """What to measure, and how often."""

    images: int | None = None
    """Number of images; None: all test images of the config, or all training images if it has none."""
    repeats: int = 3
    """Number of measurements, each in a new process."""
    scaling: bool = False
    """Also measure other image sizes, memory banks and numbers of images."""


@keeping_threads
def bench(settings: RunConfig, request: BenchRequest, reporter: Reporter) -> BenchSummary:
    """Measure the bundle of the config in new processes; write bench.json, bench.md and charts.

    An earlier measurement stays unchanged until the new one is complete. Raises a CvadError that names the remedy.
    """
    machine = describe_machine()
    bundle = open_bundle(settings)
    device = choose_device(settings.device)
    records = images_to_judge(settings, request.images)
    job = BenchmarkJob(settings, device, records)
    report: dict[str, Any] = {
        "name": settings.name,
        "model": settings.model.name,
        "bundle_fingerprint": bundle.fingerprint,
        "device": device,
        "image_size": settings.data.image_size,
        "batch_size": settings.runtime.batch_size,
        "images": len(records),
        "repeats": request.repeats,
        "speed": _speed(job, request.repeats, reporter),
        "scaling": grow(job, reporter=reporter) if request.scaling else None,
        **provenance(machine),
    }
    folder = bench_folder(settings)
    with replacing_folder(folder) as staged:
        _write_report(staged, report)
    return BenchSummary(folder, report)


def images_to_judge(settings: RunConfig, count: int | None) -> tuple[ImageRecord, ...]:
    """At most `count` test images, one of each defect type in turn; training images if there are no test images."""
    dataset = open_dataset(settings.data)
    by_type: dict[str, list[ImageRecord]] = {}
    for record in dataset.test or dataset.train:
        by_type.setdefault(record.defect_type, []).append(record)
    in_turn = [(turn, kind, record) for kind, found in by_type.items() for turn, record in enumerate(found)]
    chosen = tuple(record for *_, record in sorted(in_turn, key=lambda each: each[:2]))[:count]
    if not chosen:
        raise DataError(f"{settings.data.root}: {dataset.name} has no images to measure on")
    return chosen


def provenance(machine: Mapping[str, Any]) -> dict[str, Any]:
    """Machine, versions and date of a report. `machine` was described before the work began."""
    installed = {name: version for name in PACKAGES if (version := version_of(name)) is not None}
    return {
        "machine": dict(machine),
        "versions": {"cvad": __version__, "python": platform.python_version(), **installed},
        "created": dt.datetime.now(dt.timezone.utc).isoformat(timespec="seconds"),
    }


def _write_report(folder: Path, report: Mapping[str, Any]) -> None:
    """Write bench.json, bench.md and the charts."""
    (folder / "bench.json").write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "bench.md").write_text(as_markdown(report, tables_of(report)), encoding="utf-8")
    if report.get("speed"):
        stages_chart(folder / "stages.png", report["speed"]["stages"], title=f"{report['name']}: a single image")
    if report.get("scaling"):
        growth_chart(folder / "scaling.png", report["scaling"], title=f"{report['name']}: how time and memory grow")


def _speed(job: BenchmarkJob, repeats: int, reporter: Reporter) -> dict[str, Any]:
    with reporter.stage("Measuring the bundle", repeats + 1) as advance:
        stages = in_fresh_process(time_stages, job)  # first, because it fills the serving cache
        advance(1)
        runs = []
        for _ in range(repeats):
            runs.append(in_fresh_process(measure, job.started_now()))
            advance(1)
    return {**as_figures(runs), "stages": stages}
