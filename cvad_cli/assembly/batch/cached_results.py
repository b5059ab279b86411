"""Finds results that a run would give again: from the same version of cvad, the same settings and the same images."""

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
"""Sections that say where the work is done and where results are stored; they do not change results."""

AFTERWARDS: Final = ("evaluation",)
"""Sections that training does not read."""


def earlier_training(settings: RunConfig) -> TrainSummary | None:
    """The result of an earlier `cvad train`, read from the bundle; None if training would now give another one."""
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
    """The result of an earlier `cvad evaluate`, read from its files; None if it would now give another one."""
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
        return None  # missing, incomplete, of another version, or without its images: the run will report it
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
    """The sections that changed. The folder of the images does not count, because their content is compared."""
    now = to_plain(settings)
    return {name for name in now.keys() | former.keys() if name not in left_out and _of(former, name) != _of(now, name)}


def _of(settings: Mapping[str, Any], name: str) -> Any:
    section = settings.get(name)
    return {key: value for key, value in section.items() if key != "root"} if name == "data" and section else section
