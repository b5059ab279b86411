"""Trains and calibrates EfficientAD on good images, without internet: teacher and penalty images are local."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from cvad_cli.adapters.datasets import fingerprint
from cvad_cli.adapters.images import resize_image
from cvad_cli.adapters.pdn import fold_linear
from cvad_cli.adapters.runtime_openvino.frozen_networks import device_has_bf16
from cvad_cli.adapters.runtime_torch import TorchEfficientAd
from cvad_cli.adapters.storage.tensor_files import write_tensors
from cvad_cli.assembly.data.images import ImageStream, LazyImages
from cvad_cli.assembly.distillation.image_batches import training_batches
from cvad_cli.assembly.distillation.pretraining_images import ImageSource, RealImages, find_real_images
from cvad_cli.assembly.run_folders import bundle_folder
from cvad_cli.assembly.training.calibration import held_out_scores, plan_calibration
from cvad_cli.assembly.training.efficient_ad_options import PRESETS, EfficientAdOptions, Preset
from cvad_cli.assembly.training.fitted_model import FittedModel
from cvad_cli.assembly.training.pdn_teachers import ChosenTeacher
from cvad_cli.config.schema import RunConfig
from cvad_cli.core.whitening import whitening
from cvad_cli.errors import ConfigError, DataError
from cvad_cli.ports import Reporter
from cvad_cli.records import ImageRecord

if TYPE_CHECKING:
    from cvad_cli.adapters.anomalib_models.efficient_ad_training import TrainingSchedule
    from cvad_cli.adapters.runtime_torch.types import Tensor

SMALLEST_SIDE: Final = 256  # pixels; anomalib's autoencoder halves five times and then wants 8 x 8
VALIDATION_SHARE: Final = 0.1  # of the good images: paper section 4, and anomalib
GENERATED: Final = "generated"


@dataclass(frozen=True, slots=True)
class _Run:
    """What all fits of this command share: the final fit, and one per fold where calibration is cross-conformal."""

    settings: RunConfig
    options: EfficientAdOptions
    teacher: ChosenTeacher
    penalty: RealImages | None
    records: Sequence[ImageRecord]
    images: Sequence[np.ndarray]
    device: str
    reporter: Reporter
    presets: Mapping[str, Preset]

    @property
    def scratch(self) -> Path:
        return bundle_folder(self.settings).parent / "training"


def fit_efficient_ad(
    settings: RunConfig,
    records: Sequence[ImageRecord],
    device: str,
    reporter: Reporter,
    *,
    presets: Mapping[str, Preset] = PRESETS,
) -> FittedModel:
    """Train EfficientAD on the good images that are not held out for calibration, and score the held-out ones.

    A killed run leaves its last checkpoint in `<output.root>/<name>/training`, and the next run continues from it.
    """
    options = EfficientAdOptions.of(settings)
    _require_possible(settings)
    teacher = options.teacher(settings)
    penalty = _penalty_folder(settings.model.penalty_images)
    stream = ImageStream(records, settings.data)
    readable, images = _read_all(stream, settings, reporter)
    run = _Run(settings, options, teacher, penalty, readable, images, device, reporter, presets)
    if not settings.trainer.resume:
        shutil.rmtree(run.scratch, ignore_errors=True)
    plan = plan_calibration(settings.calibration, len(readable), seed=settings.seed, cheap_refit=False)
    model, details = _fit(run, plan.final, "final")
    held_out = []
    for number, (kept, held) in enumerate(plan.folds, 1):
        judge = model
        if kept is not plan.final:
            reporter.note(f"Cross-conformal calibration: fold {number} of {len(plan.folds)}")
            judge, _ = _fit(run, kept, f"fold-{number}")
        held_out.append(_score(run, judge, held))
    return FittedModel(
        kind="efficient_ad",
        description={
            "name": "efficient_ad",
            "model_size": options.size,
            "teacher_out_channels": teacher.channels,
            "padding": options.padding,
            "pad_maps": options.pad_maps,
        },
        writers={"network": (".safetensors", lambda path: write_tensors(path, model.state_dict()))},
        weights=teacher.origin,
        held_out=tuple(held_out),
        used=len(readable),
        skipped=tuple(stream.skipped),
        details=details,
        unseen=tuple(readable[image].key for image in _unseen(plan.final, len(readable), seed=settings.seed)),
        judge=TorchEfficientAd(model, device, settings.data.image_size).predict,
        scratch=run.scratch,
    )


def _require_possible(settings: RunConfig) -> None:
    if settings.data.image_size < SMALLEST_SIDE:
        raise ConfigError(
            f"data.image_size: EfficientAD's autoencoder needs at least {SMALLEST_SIDE} pixels, got "
            f"{settings.data.image_size}"
        )
    if settings.trainer.batch_size not in (None, 1):
        raise ConfigError(
            f"trainer.batch_size: EfficientAD is trained on one image per step (its hard features are those of one "
            f"image), got {settings.trainer.batch_size}; leave it null"
        )
    for key in ("backbone", "layers"):
        if getattr(settings.model, key) is not None:
            raise ConfigError(f"model.{key}: efficient_ad has none; choose its teacher with model.weights")


def _penalty_folder(penalty: str) -> RealImages | None:
    if penalty == GENERATED:
        return None
    try:
        return find_real_images(
            [Path(penalty).expanduser()],
            samples=False,
            remedy="model.penalty_images takes 'generated' or a folder of images",
        )
    except DataError as error:
        raise DataError(f"model.penalty_images: {error}") from error


def _read_all(stream: ImageStream, settings: RunConfig, reporter: Reporter) -> tuple[list[ImageRecord], Any]:
    """The readable good images and their records: in memory, or read again each time where they do not fit."""
    room = settings.train.max_memory_bytes // (3 * settings.data.image_size**2)
    held = len(stream.records) <= room
    readable, images = [], []
    with reporter.stage("Reading the images", len(stream.records)) as advance:
        for record, image in stream:
            readable.append(record)
            if held:
                images.append(image)
            advance(1)
    if len(readable) < 3:
        raise DataError(
            f"EfficientAD needs at least 3 good images, to learn, to validate and to calibrate; "
            f"{len(readable)} of {len(stream.records)} can be read"
        )
    return readable, images if held else LazyImages(readable, settings.data)


def _subset(run: _Run, images: np.ndarray) -> Sequence[np.ndarray]:
    if isinstance(run.images, LazyImages):
        return LazyImages([run.records[image] for image in images], run.settings.data)
    return [run.images[image] for image in images]


def _fit(run: _Run, images: np.ndarray, label: str) -> tuple[Any, dict[str, Any]]:
    """One trained model, and the details of its training."""
    from cvad_cli.adapters.anomalib_models.efficient_ad_training import steps_done
    from cvad_cli.adapters.anomalib_models.seeding import seeded

    learning, held_out = _split(images, seed=run.settings.seed)
    training_schedule = _training_schedule(run, learning, held_out, label)
    done = steps_done(training_schedule)
    # With the first seed, dropout and recolouring would repeat the draws of the first steps.
    with seeded(run.settings.seed + done, run.device):
        return _train(run, training_schedule, (learning, held_out), done)


def _train(
    run: _Run, training_schedule: TrainingSchedule, parts: tuple[np.ndarray, np.ndarray], done: int
) -> tuple[Any, dict[str, Any]]:
    """`parts`: indices of the images to train on, and of those to validate on. `done`: steps of the checkpoint."""
    from cvad_cli.adapters.anomalib_models import efficient_ad, efficient_ad_training, lightning
    from cvad_cli.adapters.torch_training.optimizer import annealed_schedule

    settings, (learning, held_out) = run.settings, parts
    model = efficient_ad.new_model(
        run.options.size, run.teacher.channels, padding=run.options.padding, pad_maps=run.options.pad_maps
    )
    model = efficient_ad.with_teacher(model, run.teacher.network, run.device)
    if not done:  # a checkpoint holds it
        _measure_teacher(run, model, learning)
    else:
        run.reporter.note(
            f"continuing from step {done} of {training_schedule.steps}: {training_schedule.checkpoint.name}"
        )
    learning_rate_schedule = (
        annealed_schedule(training_schedule.steps)
        if settings.trainer.preset == "quick"
        else efficient_ad_training.as_published(
            training_schedule.steps, rate=run.options.lr, weight_decay=run.options.weight_decay
        )
    )
    penalty = _penalty_images(run, range(done, training_schedule.steps))
    module = efficient_ad.LocalEfficientAd.around(model, penalty, learning_rate_schedule)
    options = lightning.where_and_how(
        dataclasses.replace(settings.trainer, precision=_precision(settings.trainer.precision, run.device)), run.device
    )
    with run.reporter.stage("Training efficient_ad", training_schedule.steps - done) as advance, closing(penalty):
        steps = efficient_ad_training.train_steps(
            module, training_schedule, options, (_subset(run, learning), _subset(run, held_out)), advance, first=done
        )
    model = model.to(run.device).eval()
    _take_quantiles(run, model, held_out)
    return model, {"steps": steps, "fitted_on": len(learning), "validated_on": len(held_out)}


def _take_quantiles(run: _Run, model: Any, held_out: np.ndarray) -> None:
    from cvad_cli.adapters.anomalib_models.efficient_ad import set_quantiles

    with run.reporter.stage("Taking the maps' quantiles", len(held_out)) as advance:
        try:
            set_quantiles(model, _tensors(run, held_out, advance))
        except ValueError as error:
            raise DataError(
                f"{run.settings.data.root}: {error}; check that the good images show the part, then train again"
            ) from error


def _split(images: np.ndarray, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Images to train on, and images that normalise the maps and decide when to stop: disjoint, at least one each."""
    count = min(max(1, round(len(images) * VALIDATION_SHARE)), len(images) - 1)
    order = np.random.default_rng([seed, 6]).permutation(images)
    return np.sort(order[count:]), np.sort(order[:count])


def _unseen(final: np.ndarray, images: int, *, seed: int) -> np.ndarray:
    """Indices of the good images that the final model was not trained on: those held out for calibration.

    Cross-conformal calibration holds none out; then these are the images that the training was validated on.
    """
    held_out = np.setdiff1d(np.arange(images), final)
    return held_out if len(held_out) else _split(final, seed=seed)[1]


def _training_schedule(run: _Run, learning: np.ndarray, held_out: np.ndarray, label: str) -> TrainingSchedule:
    from cvad_cli.adapters.anomalib_models.efficient_ad_training import TrainingSchedule

    trainer, preset = run.settings.trainer, run.presets[run.settings.trainer.preset]
    steps = trainer.max_steps or (trainer.max_epochs * len(learning) if trainer.max_epochs else preset.steps)
    return TrainingSchedule(
        steps=steps,
        checkpoint=run.scratch / f"{label}.ckpt",
        every=trainer.checkpoint_every or preset.checkpoint_every,
        check_every=preset.check_every,
        patience=trainer.patience or preset.patience,
        min_improvement=preset.min_improvement,
        seed=run.settings.seed,
        deciding={
            "options": dataclasses.asdict(run.options),
            "teacher": run.teacher.origin,
            "penalty_images": run.penalty.fingerprint if run.penalty else GENERATED,
            "preset": trainer.preset,
            "steps": steps,
            "seed": run.settings.seed,
            "image_size": run.settings.data.image_size,
            "images": fingerprint([run.records[image] for image in [*learning, *held_out]]),
        },
    )


def _measure_teacher(run: _Run, model: Any, learning: np.ndarray) -> None:
    """Whiten the teacher's features on the training images, and store their statistics in the model."""
    from cvad_cli.adapters.anomalib_models.efficient_ad import set_statistics, teacher_moments

    with run.reporter.stage("Measuring the teacher's features", len(learning)) as advance:
        mean, covariance = teacher_moments(model.teacher, _tensors(run, learning, advance)).result()
    if run.options.whitening:
        matrix = whitening(covariance, run.options.whitening)
        fold_linear(model.teacher, matrix)
        mean, covariance = matrix @ mean, matrix @ covariance @ matrix
    set_statistics(model, mean, covariance)


def _precision(wanted: str, device: str) -> str:
    if wanted != "auto":
        return wanted
    return "bf16-mixed" if device_has_bf16(device) else "32-true"


def _tensors(run: _Run, images: np.ndarray, advance: Any) -> Iterator[Tensor]:
    """Images one by one on the device: float32 (1, 3, h, w) in 0..1."""
    from cvad_cli.adapters.anomalib_models.efficient_ad_training import as_batch

    for image in images:
        yield as_batch(run.images[image], run.device)
        advance(1)


def _penalty_images(run: _Run, steps: range) -> Generator[Tensor]:
    """The penalty image of each of these steps, loaded ahead: (1, 3, h, w) in 0..1."""
    from cvad_cli.adapters.anomalib_models.efficient_ad_training import as_batch

    real, share = (RealImages((), (), (), ""), 1.0) if run.penalty is None else (run.penalty, 0.0)
    source = ImageSource(real, generated_share=share, seed=run.settings.seed)
    side = run.settings.data.image_size
    with closing(training_batches(source, steps, 1, processes=0 if run.device == "cpu" else None)) as batches:
        for images in batches:
            yield as_batch(resize_image(images[0], (side, side)), "cpu")


def _score(run: _Run, model: Any, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    detector = TorchEfficientAd(model, run.device, run.settings.data.image_size)
    pixels, batch = (run.images[image] for image in images), run.settings.runtime.batch_size
    return held_out_scores(detector, pixels, count=len(images), batch_size=batch, reporter=run.reporter)
