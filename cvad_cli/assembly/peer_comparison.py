"""cvad against anomalib on one bundle, in one run: each contender in processes of its own, in turn, several times."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, Final

from cvad_cli.adapters.fresh_process import in_fresh_process
from cvad_cli.assembly.contenders import EXACT, OURS, Job, Measured, measure, started_now, try_setting
from cvad_cli.assembly.detectors import open_bundle
from cvad_cli.assembly.peer_models import (
    OPENVINO,
    OPENVINO_BATCHES,
    TORCH_PEERS,
    RunSetting,
    peer_names,
    prepare_peers,
    require_comparable,
)
from cvad_cli.config.processors import reading_threads
from cvad_cli.config.schema import RunConfig
from cvad_cli.core.comparing import Ratio, fastest, ratio_of
from cvad_cli.core.latency import spread_of
from cvad_cli.errors import ResourceError
from cvad_cli.ports import Reporter
from cvad_cli.records import ImageRecord

TRIAL_IMAGES: Final = 32
"""Images over which batch sizes are tried."""

RATIOS: Final = {
    "patchcore_vs_torch": ("patchcore", TORCH_PEERS),
    "patchcore_vs_openvino": ("patchcore", (OPENVINO,)),
    "efficientad_vs_torch": ("efficient_ad", TORCH_PEERS),
    "efficientad_vs_openvino": ("efficient_ad", (OPENVINO,)),
}
"""Name of a ratio -> the model, and those of whom the fastest is what cvad is compared with."""


def compare(
    settings: RunConfig, records: Sequence[ImageRecord], *, device: str, repeats: int, reporter: Reporter
) -> dict[str, Any]:
    """Measure every contender on the bundle of `settings`; JSON-ready.

    Each gets the quickest of its settings, found before. Then all are measured in turn, `repeats` times, a different
    one first each time; accuracy is measured in the first. Raises ConfigError for a model that has no peers.
    """
    bundle = open_bundle(settings)
    require_comparable(bundle)
    peers, unavailable = peer_names()
    names, found_from_anywhere = (OURS, EXACT, *peers), tuple(map(_absolute, records))
    with tempfile.TemporaryDirectory(prefix="cvad-bench-") as scratch:
        with reporter.stage("Exporting with anomalib", 1) as advance:
            files = in_fresh_process(prepare_peers, bundle.folder.absolute(), found_from_anywhere, Path(scratch))
            advance(1)
        jobs = {
            name: Job(name, settings, device, found_from_anywhere, files if name in peers else None) for name in names
        }
        with reporter.stage("Trying batch sizes", len(names)) as advance:
            tried = {name: _try(job, reporter, advance) for name, job in jobs.items()}
        best = {name: max(found, key=lambda pair: pair[1])[0] for name, found in tried.items()}
        runs: dict[str, list[Measured]] = {name: [] for name in names}
        with reporter.stage("Measuring in turn", repeats * len(names)) as advance:
            for repeat in range(repeats):
                for name in _rotated(names, repeat):
                    job = started_now(jobs[name])
                    runs[name].append(in_fresh_process(measure, job, best[name], not repeat))
                    advance(1)
    return {
        "bundle_fingerprint": bundle.fingerprint,
        "training": dict(bundle.manifest["training"]),
        "image_size": settings.data.image_size,
        "images": len(records),
        "contenders": {name: _entry(runs[name], best[name], tried[name]) for name in names},
        "fastest_torch": fastest({name: _rates(runs[name]) for name in TORCH_PEERS}),
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


def settings_to_try(name: str, workers: int) -> tuple[RunSetting, ...]:
    """The ways to hand files over that a contender has."""
    if name in (OURS, EXACT):
        return tuple(RunSetting(batch_size) for batch_size in (1, 8, 32))
    if name == OPENVINO:
        return tuple(RunSetting(size, ahead) for size in OPENVINO_BATCHES for ahead in (0, workers))
    loaders = tuple(RunSetting(*choice) for choice in ((1, 0), (8, 0), (8, workers), (32, workers)))
    return (RunSetting(shrink_first=False), *loaders) if name == "torch_inferencer" else loaders


def _absolute(record: ImageRecord) -> ImageRecord:
    """anomalib's ways run in a folder of their own, for what they leave behind."""
    mask = record.mask_path
    return dataclasses.replace(record, path=record.path.absolute(), mask_path=mask and mask.absolute())


def _try(job: Job, reporter: Reporter, advance: Any) -> list[tuple[RunSetting, float]]:
    """Images a second with each setting that runs."""
    trial = dataclasses.replace(job, records=job.records[:TRIAL_IMAGES])
    choices = settings_to_try(job.contender, workers=reading_threads())
    rates = {setting: _rate(trial, setting, reporter) for setting in choices}
    advance(1)
    found = [(setting, rate) for setting, rate in rates.items() if rate is not None]
    if not found:
        raise ResourceError(f"{job.contender}: none of its settings runs to its end on this machine")
    return found


def _rate(job: Job, setting: RunSetting, reporter: Reporter) -> float | None:
    """None, said aloud, where the process dies: data loaders fork, which a library's threads do not always survive."""
    try:
        return in_fresh_process(try_setting, job, setting)
    except ResourceError as error:
        reporter.warn(f"{job.contender} with {setting}: {error}")
        return None


def _rotated(names: Sequence[str], by: int) -> list[str]:
    shift = by % len(names)
    return [*names[shift:], *names[:shift]]


def _rates(runs: Sequence[Measured]) -> list[float]:
    return [run.images_per_s for run in runs]


def _entry(runs: Sequence[Measured], best: RunSetting, tried: Sequence[tuple[RunSetting, float]]) -> dict[str, Any]:
    accuracy = next(run.accuracy for run in runs if run.accuracy is not None)
    return {
        "images_per_s": median(_rates(runs)),
        "images_per_s_runs": _rates(runs),
        "latency": dataclasses.asdict(spread_of([each for run in runs for each in run.latencies])),
        "to_first_result_s": median(run.to_first_result_s for run in runs),
        "open_s": median(run.open_s for run in runs),
        "peak_memory_mb": median(run.peak_memory for run in runs) / 1e6,
        **accuracy,
        "serving": runs[0].serving,
        "setting": dataclasses.asdict(best),
        "tried": [{**dataclasses.asdict(setting), "images_per_s": rate} for setting, rate in tried],
    }


def _ratio(model: Mapping[str, Any] | None, rivals: Sequence[str]) -> Ratio | None:
    """cvad's rate over that of the fastest rival."""
    contenders = model["contenders"] if model else {}
    rates = {name: contenders[name]["images_per_s_runs"] for name in rivals if name in contenders}
    return ratio_of(contenders[OURS]["images_per_s_runs"], rates[fastest(rates)]) if rates else None


def _why_missing(models: Mapping[str, Mapping[str, Any]], model: str, rivals: Sequence[str]) -> str:
    if model not in models:
        return f"no bundle of {model} was compared"
    return "; ".join(str(models[model]["unavailable"].get(rival, f"{rival} was not measured")) for rival in rivals)


def _accuracy_lost(runs: Mapping[str, Sequence[Measured]]) -> dict[str, float | None]:
    """AUROC of the exact float32 run minus that of the quick one: positive where speed costs something."""
    exact, quick = (next(run.accuracy for run in runs[name] if run.accuracy) for name in (EXACT, OURS))
    lost: dict[str, float | None] = {}
    for key, value in exact.items():
        other = quick[key]
        lost[key] = None if value is None or other is None else value - other
    return lost
