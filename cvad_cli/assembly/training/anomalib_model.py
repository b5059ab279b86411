"""Any anomalib model other than PatchCore and EfficientAD, from good images to a checkpoint and held-out scores."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cvad_cli.adapters.anomalib_models import GenericModel, describe
from cvad_cli.adapters.backbones import RANDOM_WEIGHTS
from cvad_cli.adapters.backbones.weights import find_weights
from cvad_cli.assembly.data.images import ImageStream, LazyImages
from cvad_cli.assembly.training.calibration import held_out_scores, plan_calibration
from cvad_cli.assembly.training.fitted_model import FittedModel
from cvad_cli.config.schema import DataConfig, RunConfig
from cvad_cli.errors import DataError
from cvad_cli.ports import Reporter
from cvad_cli.records import ImageRecord


def fit_generic(settings: RunConfig, records: Sequence[ImageRecord], device: str, reporter: Reporter) -> FittedModel:
    """Fit the anomalib model that the config names, and score the good images that were held out.

    Cross-conformal calibration fits it once more for each fold; `auto` holds a share of the images out instead.
    """
    readable, skipped = _readable(settings, records, reporter)
    plan = plan_calibration(settings.calibration, len(readable), seed=settings.seed, cheap_refit=False)
    final = _fit(settings, readable, plan.final, device, reporter)
    held_out = []
    for number, (kept, held) in enumerate(plan.folds, 1):
        model = final
        if kept is not plan.final:
            reporter.note(f"Cross-conformal calibration: fold {number} of {len(plan.folds)}")
            model = _fit(settings, readable, kept, device, reporter)
        held_out.append(_score(settings, model, [readable[image] for image in held], reporter))
    return FittedModel(
        kind="anomalib",
        description=describe(settings.model, final.backbone_kwargs),
        writers={"checkpoint": (".ckpt", final.save)},
        weights=settings.model.weights or "by each backbone's name, from the usual locations",
        held_out=tuple(held_out),
        used=len(readable),
        skipped=tuple(skipped),
        details={"steps": final.steps, "fitted_on": len(plan.final)},
    )


def _readable(
    settings: RunConfig, records: Sequence[ImageRecord], reporter: Reporter
) -> tuple[list[ImageRecord], list[Any]]:
    """Open every image once before hours of training, so that an unreadable one is reported now or skipped."""
    stream = ImageStream(records, settings.data)
    with reporter.stage("Checking the images", len(records)) as advance:
        readable = []
        for record, _ in stream:
            readable.append(record)
            advance(1)
    if len(readable) < 2:
        raise DataError(f"training needs at least 2 good images, {len(readable)} of {len(records)} can be read")
    return readable, stream.skipped


def _fit(
    settings: RunConfig, readable: Sequence[ImageRecord], images: np.ndarray, device: str, reporter: Reporter
) -> GenericModel:
    def weights_of(name: str) -> tuple[Path | None, Mapping[str, Any]] | None:
        return None if settings.model.weights == RANDOM_WEIGHTS else find_weights(name, settings.model.weights)

    model = GenericModel.build(settings.model, settings.data.image_size, device, weights_of, seed=settings.seed)
    training = LazyImages([readable[image] for image in images], settings.data)
    with reporter.stage(
        f"Training {settings.model.name}", model.planned_steps(len(training), settings.trainer)
    ) as advance:
        model.fit(training, settings.trainer, seed=settings.seed, advance=advance)
    return model


def _score(
    settings: RunConfig, model: GenericModel, records: Sequence[ImageRecord], reporter: Reporter
) -> tuple[np.ndarray, np.ndarray]:
    images, batch = _images(records, settings.data), settings.runtime.batch_size
    return held_out_scores(model, images, count=len(records), batch_size=batch, reporter=reporter)


def _images(records: Sequence[ImageRecord], data: DataConfig) -> Iterator[np.ndarray]:
    for _, image in ImageStream(records, data):
        yield image
