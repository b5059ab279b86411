"""cvad against anomalib on one bundle, in one run: each target in processes of its own, in turn, several times."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from anomalib_comparison.exports import OPENVINO, available_inferencers, export_for_inferencers, require_comparable
from anomalib_comparison.inferencers import OPENVINO_BATCHES, TORCH_INFERENCERS, LoaderSetting
from anomalib_comparison.measurement import EXACT, OURS, ComparisonJob, TargetFigures, measure_speed, try_setting
from anomalib_comparison.ratios import Ratio, fastest, ratio_of
from cvad_cli.adapters.machine.subprocess_call import in_fresh_process
from cvad_cli.assembly.benchmark.measurement import MIN_SECONDS, as_figures
from cvad_cli.assembly.serving.open_bundle import open_bundle
from cvad_cli.config.processors import reading_threads
from cvad_cli.config.schema import RunConfig
from cvad_cli.errors import ResourceError
from cvad_cli.ports import Reporter
from cvad_cli.records import ImageRecord

TRIAL_IMAGES: Final = 32
"""Images over which settings are tried."""

RATIOS: Final = {
    "patchcore_vs_torch": ("patchcore", TORCH_INFERENCERS),
    "patchcore_vs_openvino": ("patchcore", (OPENVINO,)),
    "efficientad_vs_torch": ("efficient_ad", TORCH_INFERENCERS),
    "efficientad_vs_openvino": ("efficient_ad", (OPENVINO,)),
}
"""Name of a ratio -> the model, and the anomalib inferencers of which the fastest is compared with cvad."""


def settings_to_try(target: str, workers: int) -> tuple[LoaderSetting, ...]:
    """The ways of loading files that a target offers."""
    if target in (OURS, EXACT):
        return tuple(LoaderSetting(batch_size) for batch_size in (1, 8, 32))
    if target == OPENVINO:
        return tuple(LoaderSetting(size, ahead) for size in OPENVINO_BATCHES for ahead in (0, workers))
    loaders = tuple(LoaderSetting(*choice) for choice in ((1, 0), (8, 0), (8, workers), (32, workers)))
    return (LoaderSetting(shrink_first=False), *loaders) if target == "torch_inferencer" else loaders


@dataclass(frozen=True, slots=True)
class ComparisonPlan:
    """How the targets are measured."""

    images: int | None = None
    """None: every test image of the config, or every training image where it has none."""
    repeats: int = 3
    min_seconds: float = MIN_SECONDS
    """Images per second are measured over at least that long."""
    call: Callable[..., Any] = in_fresh_process
    """Calls a module's function with arguments, each time in a process of its own."""
    settings_to_try: Callable[[str, int], Sequence[LoaderSetting]] = settings_to_try
    """The settings of a target that are tried, from its name and the number of processes that may read ahead."""


def compare(
    settings: RunConfig, records: Sequence[ImageRecord], *, device: str, plan: ComparisonPlan, reporter: Reporter
) -> dict[str, Any]:
    """Measure every target on the bundle of `settings`; JSON-ready.

    Each target gets the fastest of its settings, found before. Then all are measured in turn, `plan.repeats` times,
    beginning with another one each time; accuracy is measured in the first repeat. Raises ConfigError for a model that
    cvad serves through anomalib.
    """
    bundle = open_bundle(settings)
    require_comparable(bundle)
    inferencers, unavailable = available_inferencers()
    names, found_from_anywhere = (OURS, EXACT, *inferencers), tuple(map(_absolute, records))
    with tempfile.TemporaryDirectory(prefix="cvad-bench-") as scratch:
        with reporter.stage("Exporting with anomalib", 1) as advance:
            files = plan.call(export_for_inferencers, bundle.folder.absolute(), found_from_anywhere, Path(scratch))
            advance(1)
        common = ComparisonJob(OURS, settings, device, found_from_anywhere, files, plan.min_seconds)
        jobs = {name: dataclasses.replace(common, target=name) for name in names}
        with reporter.stage("Trying batch sizes", len(names)) as advance:
            tried = {name: _try(job, plan, reporter, advance) for name, job in jobs.items()}
        best = {name: max(found, key=lambda pair: pair[1])[0] for name, found in tried.items()}
        runs = _measure_in_turn(jobs, best, plan, reporter)
    return {
        "bundle_fingerprint": bundle.fingerprint,
        "training": dict(bundle.manifest["training"]),
        "image_size": settings.data.image_size,
        "images": len(records),
        "targets": {name: _entry(runs[name], best[name], tried[name]) for name in names},
        "fastest_torch": fastest({name: _rates(runs[name]) for name in TORCH_INFERENCERS}),
        "accuracy_lost": _accuracy_lost(runs),
        "unavailable": unavailable,
    }


def together(models: Mapping[str, dict[str, Any]], *, repeats: int) -> dict[str, Any]:
    """The whole report of some models' comparisons.

    `ratio` holds every key of `RATIOS`; what is None has its reason in `unavailable`.
    """
    ratios = {key: _ratio(models.get(model), rivals) for key, (model, rivals) in RATIOS.items()}
    return {
        "repeats": repeats,
        "ratio": {key: found and found.of_medians for key, found in ratios.items()},
        "ratio_range": {key: found and [found.lowest, found.highest] for key, found in ratios.items()},
        "unavailable": {key: _why_missing(models, *RATIOS[key]) for key, found in ratios.items() if found is None},
        "models": dict(models),
    }


def _absolute(record: ImageRecord) -> ImageRecord:
    """anomalib's inferencers run in a folder of their own, because of the files that they leave behind."""
    mask = record.mask_path
    return dataclasses.replace(record, path=record.path.absolute(), mask_path=mask and mask.absolute())


def _try(
    job: ComparisonJob, plan: ComparisonPlan, reporter: Reporter, advance: Callable[[int], None]
) -> list[tuple[LoaderSetting, float]]:
    """Images per second with each setting that runs to its end."""
    trial = dataclasses.replace(job, records=job.records[:TRIAL_IMAGES])
    rates = {
        setting: _rate(trial, setting, plan, reporter)
        for setting in plan.settings_to_try(job.target, reading_threads())
    }
    advance(1)
    found = [(setting, rate) for setting, rate in rates.items() if rate is not None]
    if not found:
        raise ResourceError(f"{job.target}: none of its settings runs to its end on this machine")
    return found


def _rate(job: ComparisonJob, setting: LoaderSetting, plan: ComparisonPlan, reporter: Reporter) -> float | None:
    """None, with a warning, where the process dies: data loaders fork, and a library's threads may not survive that."""
    try:
        rate: float = plan.call(try_setting, job, setting)
    except ResourceError as error:
        reporter.warn(f"{job.target} with {setting}: {error}")
        return None
    return rate


def _measure_in_turn(
    jobs: Mapping[str, ComparisonJob], best: Mapping[str, LoaderSetting], plan: ComparisonPlan, reporter: Reporter
) -> dict[str, list[TargetFigures]]:
    runs: dict[str, list[TargetFigures]] = {name: [] for name in jobs}
    with reporter.stage("Measuring in turn", plan.repeats * len(jobs)) as advance:
        for repeat in range(plan.repeats):
            for name in _rotated(list(jobs), repeat):
                runs[name].append(plan.call(measure_speed, jobs[name].started_now(), best[name], not repeat))
                advance(1)
    return runs


def _rotated(names: Sequence[str], by: int) -> list[str]:
    shift = by % len(names)
    return [*names[shift:], *names[:shift]]


def _rates(runs: Sequence[TargetFigures]) -> list[float]:
    return [run.measured.images_per_s for run in runs]


def _entry(
    runs: Sequence[TargetFigures], best: LoaderSetting, tried: Sequence[tuple[LoaderSetting, float]]
) -> dict[str, Any]:
    return {
        **as_figures([run.measured for run in runs]),
        **_accuracy_of(runs),
        "setting": dataclasses.asdict(best),
        "tried": [{**dataclasses.asdict(setting), "images_per_s": rate} for setting, rate in tried],
    }


def _accuracy_of(runs: Sequence[TargetFigures]) -> Mapping[str, float | None]:
    return next(run.accuracy for run in runs if run.accuracy is not None)


def _ratio(model: Mapping[str, Any] | None, rivals: Sequence[str]) -> Ratio | None:
    """cvad's rate over that of the fastest rival."""
    targets = model["targets"] if model else {}
    rates = {name: targets[name]["images_per_s_runs"] for name in rivals if name in targets}
    return ratio_of(targets[OURS]["images_per_s_runs"], rates[fastest(rates)]) if rates else None


def _why_missing(models: Mapping[str, Mapping[str, Any]], model: str, rivals: Sequence[str]) -> str:
    if model not in models:
        return f"no bundle of {model} was compared"
    return "; ".join(str(models[model]["unavailable"].get(rival, f"{rival} was not measured")) for rival in rivals)


def _accuracy_lost(runs: Mapping[str, Sequence[TargetFigures]]) -> dict[str, float | None]:
    """AUROC of the exact float32 run minus that of the fast one: positive where speed costs accuracy."""
    exact, fast = (_accuracy_of(runs[name]) for name in (EXACT, OURS))
    lost: dict[str, float | None] = {}
    for key, value in exact.items():
        other = fast[key]
        lost[key] = None if value is None or other is None else value - other
    return lost
