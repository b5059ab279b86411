"""`cvad distill-teacher`: trains a patch description network from pretrained backbones on any images."""

from __future__ import annotations

import dataclasses
import shlex
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cvad_cli import __version__
from cvad_cli.adapters.backbones import Backbone
from cvad_cli.adapters.executors.threads import limited_threads
from cvad_cli.adapters.machine.devices import choose_device
from cvad_cli.adapters.pdn import TEACHER_CHANNELS, PdnSize, save_teacher
from cvad_cli.assembly.distillation.feature_targets import SourceBackbone, backbone_features, load_sources
from cvad_cli.assembly.distillation.pretraining_images import ImageSource, RealImages, find_real_images
from cvad_cli.assembly.distillation.training_loop import CheckpointLocation, Distilled, TrainingPlan, distil
from cvad_cli.errors import ConfigError
from cvad_cli.ports import Reporter

DEFAULT_BACKBONES: Final = ("tf_efficientnet_lite0", "mobilenetv2_100")


@dataclass(frozen=True, slots=True)
class DistillSettings:
    """Sources, size and output of the teacher. Raises ConfigError if a value is out of range."""

    output: Path
    images: tuple[Path, ...] = ()
    samples: bool = True
    """Also use crops of scikit-image's sample photographs, if it is installed."""
    size: PdnSize = "small"
    channels: int | None = TEACHER_CHANNELS
    """None: as many as the backbones' layers have together."""
    backbones: tuple[str, ...] = DEFAULT_BACKBONES
    """Each 'name' or 'name:layer,layer'."""
    weights: tuple[str, ...] = ()
    """One file per backbone, in order; empty: the usual locations; 'random': seeded random weights, for tests."""
    steps: int = 10_000
    batch_size: int = 8
    seed: int = 42
    device: str = "auto"
    checkpoint_every: int = 200
    generated_share: float = 0.5
    calibration_images: int = 1024
    held_out_images: int = 48

    def __post_init__(self) -> None:
        at_least_one = ("steps", "batch_size", "checkpoint_every", "calibration_images", "held_out_images")
        for key in at_least_one:
            self._require(key, getattr(self, key) >= 1, "a whole number from 1")
        self._require("channels", self.channels is None or self.channels >= 1, "a whole number from 1")
        self._require("seed", self.seed >= 0, "a whole number from 0")
        self._require("generated_share", 0 <= self.generated_share <= 1, "a share from 0 to 1")
        self._require("size", self.size in ("small", "medium"), "small or medium")
        self._require("output", self.output.suffix == ".safetensors", "a file name that ends in .safetensors")

    def _require(self, key: str, allowed: bool, expected: str) -> None:
        if not allowed:
            raise ConfigError(f"--{key.replace('_', '-')}: expected {expected}, got {str(getattr(self, key))!r}")

    @property
    def checkpoint(self) -> Path:
        """The file with the state of an unfinished run, beside the output."""
        return self.output.with_suffix(".checkpoint.safetensors")


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillRequest:
    """What to do with an unfinished earlier run."""

    restart: bool = False
    """Remove its checkpoint and start again; otherwise continue from it."""


@dataclass(frozen=True, slots=True)
class DistillSummary:
    """The result of `cvad distill-teacher`."""

    output: Path
    size: PdnSize
    channels: int
    sources: tuple[str, ...]
    images: Mapping[str, int]
    """Source of images -> number of images; for generated images, the number drawn."""
    steps: int
    resumed_from: int
    loss: float
    """Mean squared error on held-out images; 1.0 is that of a network that always predicts the mean."""
    curve: tuple[tuple[int, float], ...]
    """(step, held-out loss) at each checkpoint."""
    seconds: float


@limited_threads(None)
def distill_teacher(settings: DistillSettings, request: DistillRequest, reporter: Reporter) -> DistillSummary:
    """Distil the teacher, from its checkpoint if there is one, and write it with its provenance.

    Raises a CvadError that names the remedy. If the process is killed, the last checkpoint remains, and the former
    output is unchanged.
    """
    started = time.perf_counter()
    device = choose_device(settings.device)
    real = find_real_images(settings.images, samples=settings.samples)
    if not real.training and settings.generated_share < 1:
        reporter.warn("no real images (give --images, or install scikit-image): every image is generated")
    backbones = load_sources(
        [SourceBackbone.parse(text) for text in settings.backbones], settings.weights, seed=settings.seed
    )
    if request.restart:
        settings.checkpoint.unlink(missing_ok=True)
    source = ImageSource(real, generated_share=settings.generated_share, seed=settings.seed)
    location = CheckpointLocation(settings.checkpoint, settings.checkpoint_every, _deciding(settings, backbones, real))
    features = backbone_features(backbones, device)
    distilled = distil(_plan(settings), source, features, location, reporter)
    for line in source.skipped:
        reporter.warn(f"passed over: {line}")
    summary = _summary(settings, backbones, real, distilled, time.perf_counter() - started)
    save_teacher(settings.output, distilled.network, _provenance(settings, summary))
    settings.checkpoint.unlink(missing_ok=True)
    return summary


def _plan(settings: DistillSettings) -> TrainingPlan:
    return TrainingPlan(
        size=settings.size,
        channels=settings.channels,
        steps=settings.steps,
        batch_size=settings.batch_size,
        seed=settings.seed,
        calibration_images=settings.calibration_images,
        held_out_images=settings.held_out_images,
    )


def _deciding(settings: DistillSettings, backbones: tuple[Backbone, ...], real: RealImages) -> dict[str, Any]:
    """The settings that determine the result, for the checkpoint; device and output do not.

    The number of steps is not among them: the training loop knows until when it may change.
    """
    return {
        "backbones": _described(backbones),
        "weights": [backbone.weights for backbone in backbones],
        "size": settings.size,
        "channels": settings.channels,
        "batch_size": settings.batch_size,
        "seed": settings.seed,
        "generated_share": settings.generated_share,
        "calibration_images": settings.calibration_images,
        "held_out_images": settings.held_out_images,
        "real_images": real.fingerprint,
    }


def _described(backbones: tuple[Backbone, ...]) -> list[str]:
    return [f"{backbone.spec.name}:{','.join(backbone.spec.layers)}" for backbone in backbones]


def _summary(
    settings: DistillSettings,
    backbones: tuple[Backbone, ...],
    real: RealImages,
    distilled: Distilled,
    seconds: float,
) -> DistillSummary:
    share = settings.generated_share if real.training else 1.0
    drawn = round(settings.steps * settings.batch_size * share)
    return DistillSummary(
        output=settings.output,
        size=settings.size,
        channels=distilled.channels,
        sources=tuple(_described(backbones)),
        images={"generated": drawn, **dict(real.sources)},
        steps=settings.steps,
        resumed_from=distilled.resumed_from,
        loss=distilled.curve[-1][1],
        curve=distilled.curve,
        seconds=seconds,
    )


def _provenance(settings: DistillSettings, summary: DistillSummary) -> dict[str, Any]:
    return {
        "cvad": __version__,
        "command": command_line(settings),
        "backbones": list(summary.sources),
        "images": dict(summary.images),
        "generated_share": settings.generated_share,
        "steps": settings.steps,
        "batch_size": settings.batch_size,
        "seed": settings.seed,
        "held_out_loss": round(summary.loss, 5),
    }


def _default(key: str) -> object:
    return next(field.default for field in dataclasses.fields(DistillSettings) if field.name == key)


def command_line(settings: DistillSettings) -> str:
    """The command that makes this teacher again. Folders are named without their paths, because the file may be moved.

    >>> command_line(DistillSettings(Path("a/t.safetensors"), backbones=("resnet18",), seed=1, steps=5))
    'cvad distill-teacher --output t.safetensors --size small --channels 384 --backbone resnet18 --steps 5 \
--batch-size 8 --seed 1 --generated-share 0.5'
    """
    words = ["cvad", "distill-teacher", "--output", settings.output.name]
    for folder in settings.images:
        words += ["--images", folder.name]
    if not settings.samples:
        words.append("--no-samples")
    words += ["--size", settings.size, "--channels", str(settings.channels or 0)]
    for backbone in settings.backbones:
        words += ["--backbone", backbone]
    words += ["--steps", str(settings.steps), "--batch-size", str(settings.batch_size), "--seed", str(settings.seed)]
    words += ["--generated-share", f"{settings.generated_share:g}"]
    for key in ("calibration_images", "held_out_images"):
        if getattr(settings, key) != _default(key):
            words += [f"--{key.replace('_', '-')}", str(getattr(settings, key))]
    return shlex.join(words)
