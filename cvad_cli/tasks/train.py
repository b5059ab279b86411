"""`cvad train`: from good images to a calibrated bundle."""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass

from cvad_cli.adapters.anomalib_models import require_known
from cvad_cli.adapters.datasets import fingerprint
from cvad_cli.adapters.machine.devices import choose_device
from cvad_cli.adapters.storage.bundles import write_bundle
from cvad_cli.assembly.data.images import open_dataset
from cvad_cli.assembly.defect_types.describer import fit_describer
from cvad_cli.assembly.execution.executors import keeping_threads
from cvad_cli.assembly.run_folders import bundle_folder
from cvad_cli.assembly.training.agreement_samples import make_agreement_samples
from cvad_cli.assembly.training.anomalib_model import fit_generic
from cvad_cli.assembly.training.calibration import calibrate
from cvad_cli.assembly.training.efficient_ad import fit_efficient_ad
from cvad_cli.assembly.training.fitted_model import FittedModel
from cvad_cli.assembly.training.patchcore import fit_patchcore
from cvad_cli.config.load import to_plain
from cvad_cli.config.schema import RunConfig
from cvad_cli.errors import DataError
from cvad_cli.files import require_writable
from cvad_cli.ports import Reporter
from cvad_cli.records import Calibration, ImageRecord, TrainSummary

FAST_PATHS = {"patchcore": fit_patchcore, "efficient_ad": fit_efficient_ad}
"""Models with training code of our own; anomalib alone trains all others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainRequest:
    """What to make beside the detector."""

    describe: bool = True
    """Whether the bundle gets a describer; without one it does not classify defects."""


@keeping_threads
def train(settings: RunConfig, request: TrainRequest, reporter: Reporter) -> TrainSummary:
    """Fit the model of the config on the good training images, calibrate it and write the bundle.

    Raises a CvadError that names the remedy. An earlier bundle stays unchanged until the new one is complete.
    """
    started = time.perf_counter()
    device = choose_device(settings.device)
    require_writable(bundle_folder(settings).parent)
    dataset = open_dataset(settings.data)
    if len(dataset.train) < 2:
        raise DataError(f"{settings.data.root}: training needs at least 2 good images, found {len(dataset.train)}")
    with reporter.stage("Loading anomalib", 1) as advance:
        require_known(settings.model.name)
        advance(1)
    fitted = FAST_PATHS.get(settings.model.name, fit_generic)(settings, dataset.train, device, reporter)
    calibration = calibrate(fitted.held_out, false_alarm_rate=settings.calibration.false_alarm_rate)
    for warning in _warnings(fitted, calibration):
        reporter.warn(warning)
    good = _readable(dataset.train, fitted)
    describer = fit_describer(settings, good, device, reporter) if request.describe else None
    details = {**fitted.details, "describer": None if describer is None else describer.summary}
    contents = {
        "name": settings.name,
        "model": {"kind": fitted.kind, "weights": fitted.weights, **fitted.description},
        "preprocessing": {"image_size": settings.data.image_size, "colour": "RGB"},
        "calibration": dataclasses.asdict(calibration),
        "data": _provenance(dataset.name, good, fitted),
        "training": details,
        "settings": to_plain(settings),
    }
    writers = {} if describer is None else describer.writers
    if fitted.judge is not None:
        writers |= make_agreement_samples(settings, fitted, good, reporter).writers
    bundle = write_bundle(bundle_folder(settings), contents, {**fitted.writers, **writers})
    if fitted.scratch is not None:
        shutil.rmtree(fitted.scratch, ignore_errors=True)
    return TrainSummary(
        name=settings.name,
        model=settings.model.name,
        bundle=bundle.folder,
        images=fitted.used,
        skipped=fitted.skipped,
        calibration=calibration,
        weights=fitted.weights,
        seconds=time.perf_counter() - started,
        details=details,
    )


def _warnings(fitted: FittedModel, calibration: Calibration) -> list[str]:
    """Warnings about skipped images, and about a false-alarm rate that needs more images."""
    skipped = [f"skipped {image.key}: {image.reason}" for image in fitted.skipped]
    return skipped if calibration.caveat is None else [*skipped, calibration.caveat]


def _readable(records: Sequence[ImageRecord], fitted: FittedModel) -> list[ImageRecord]:
    skipped = {image.key for image in fitted.skipped}
    return [record for record in records if record.key not in skipped]


def _provenance(name: str, good: list[ImageRecord], fitted: FittedModel) -> dict[str, object]:
    return {
        "name": name,
        "train_images": fitted.used,
        "fingerprint": fingerprint(good),
        "skipped": [dataclasses.asdict(image) for image in fitted.skipped],
    }
