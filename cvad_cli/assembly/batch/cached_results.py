"""Whether what a run would give is there already: made by this cvad, from the same settings and the same images."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from cvad_cli import __version__
from cvad_cli.adapters.datasets import fingerprint
from cvad_cli.adapters.storage.bundles import Bundle, read_bundle
from cvad_cli.assembly.data.images import open_dataset
from cvad_cli.assembly.run_folders import bundle_folder, evaluation_folder
from cvad_cli.config.load import to_plain
from cvad_cli.config.schema import RunConfig
from cvad_cli.errors import BundleError, DataError
from cvad_cli.files import recover
from cvad_cli.records import Calibration, EvaluationSummary, TrainSummary

ELSEWHERE: Final = ("executor", "output", "qdrant", "ray")
"""Sections that say where work is done and results lie, not what they are."""

AFTERWARDS: Final = ("evaluation",)
"""Sections that training does not read."""


def earlier_training(settings: RunConfig) -> TrainSummary | None:
    """What `cvad train` would make again, from the bundle's own words; None where it would make something else."""
    bundle = _sound_bundle(settings)
    if bundle is None or not _trained_alike(bundle, settings):
        return None
    manifest = bundle.manifest
    return TrainSummary(
        name=settings.name,
        model=settings.model.name,
        bundle=bundle.folder,
        images=manifest["data"]["train_images"],
        skipped=(),
        calibration=Calibration.saved(manifest["calibration"]),
        weights=manifest["model"]["weights"],
        seconds=0.0,
        details=manifest["training"],
    )


def earlier_evaluation(settings: RunConfig, *, classification: bool = False) -> EvaluationSummary | None:
    """What `cvad evaluate` would find again, from its own files; None where it would find something else."""
    folder = evaluation_folder(settings)
    recover(folder)
    bundle = _sound_bundle(settings)
    try:
        metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        provenance = metrics["provenance"]
        alike = (
            bundle is not None
            and provenance["cvad_version"] == __version__
            and provenance["bundle_fingerprint"] == bundle.fingerprint
            and _differing(provenance["settings"], settings, ELSEWHERE) == set()
            and not metrics["skipped"]
            and ("classification" in metrics or not classification)
            and provenance["test_fingerprint"] == fingerprint(open_dataset(settings.data).test)
        )
    except (OSError, ValueError, LookupError, TypeError, DataError):
        return None  # not there, not whole, of another version, or its images are gone: the run itself will say
    images = sum(path.is_file() for path in (folder / "images").rglob("*"))
    return EvaluationSummary(folder, metrics, images) if alike else None


def _sound_bundle(settings: RunConfig) -> Bundle | None:
    try:
        return read_bundle(bundle_folder(settings))
    except BundleError:
        return None


def _trained_alike(bundle: Bundle, settings: RunConfig) -> bool:
    manifest = bundle.manifest
    try:
        return (
            manifest["cvad_version"] == __version__
            and not _differing(manifest["settings"], settings, (*ELSEWHERE, *AFTERWARDS))
            and not manifest["data"]["skipped"]
            and manifest["data"]["fingerprint"] == fingerprint(open_dataset(settings.data).train)
        )
    except (LookupError, TypeError, DataError):
        return False


def _differing(former: Mapping[str, Any], settings: RunConfig, left_out: tuple[str, ...]) -> set[str]:
    """Sections that are not as they were. Where the images lie does not count: their content is compared."""
    now = to_plain(settings)
    return {name for name in now.keys() | former.keys() if name not in left_out and _of(former, name) != _of(now, name)}


def _of(settings: Mapping[str, Any], name: str) -> Any:
    section = settings.get(name)
    return {key: value for key, value in section.items() if key != "root"} if name == "data" and section else section
