"""The training loop of a teacher: a PDN learns to give, for half-size images, the backbones' features of whole images.

EfficientAD, arXiv 2303.14535, section 3.1 and appendix: mean squared error to locally pooled, standardised features.
Images depend only on seed and step, and the state is written every few steps. So a killed run loses only the steps
after its last checkpoint, and the resumed run gives the same result as an uninterrupted one.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np

from cvad_cli.adapters.pdn import PdnSize, build_pdn
from cvad_cli.adapters.prefetch import batched
from cvad_cli.adapters.runtime_openvino.frozen_networks import device_has_bf16
from cvad_cli.adapters.runtime_torch import to_tensor
from cvad_cli.adapters.storage.checkpoints import Checkpoint, read_checkpoint, write_checkpoint
from cvad_cli.assembly.distillation.feature_targets import estimate_targets
from cvad_cli.assembly.distillation.image_batches import training_batches
from cvad_cli.assembly.distillation.pretraining_images import ImageSource
from cvad_cli.core.feature_targets import AffineTargets
from cvad_cli.core.learning_rate import fall_begins, learning_share
from cvad_cli.errors import ConfigError, ModelError
from cvad_cli.ports import Reporter

if TYPE_CHECKING:
    from cvad_cli.adapters.runtime_torch.frozen_features import GridFeatures
    from cvad_cli.adapters.runtime_torch.types import Network


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """What decides the result, besides the images and the backbones."""

    size: PdnSize
    channels: int | None
    """None: as many as the backbones give."""
    steps: int
    batch_size: int
    seed: int
    calibration_images: int
    held_out_images: int


@dataclass(frozen=True, slots=True)
class CheckpointLocation:
    """The file of a run's checkpoint."""

    path: Path
    every: int
    """Steps between checkpoints."""
    settings: Mapping[str, Any]
    """JSON-ready: what a checkpoint must share for a run to continue from it."""


@dataclass(frozen=True, slots=True)
class Distilled:
    """A trained teacher and its training."""

    network: Network
    channels: int
    curve: tuple[tuple[int, float], ...]
    """(step, held-out loss). A network that always gives the mean has the loss 1.0."""
    resumed_from: int
    """The step of the checkpoint that the run continued from; 0 for an uninterrupted run."""


def distil(
    plan: TrainingPlan,
    source: ImageSource,
    features: GridFeatures,
    location: CheckpointLocation,
    reporter: Reporter,
) -> Distilled:
    """Train a teacher to the end of the plan, from the checkpoint if there is one.

    Raises ConfigError where the checkpoint was made with other settings, ModelError where the loss is not finite.
    """
    saved = read_checkpoint(location.path, location.settings)
    affine = _saved_targets(saved) if saved else _estimate(plan, source, features, reporter)
    run = _Run(plan, features, affine)
    if saved is not None:
        _require_same_schedule(saved, plan.steps, location.path)
        run.restore(saved)
        reporter.note(f"continuing from step {saved.step} of {plan.steps}: {location.path.name}")
    held_out = run.held_out_images(source)
    steps = range(run.step, plan.steps)
    images = training_batches(source, steps, plan.batch_size, processes=0 if features.device == "cpu" else None)
    with reporter.stage("Distilling the teacher", len(steps)) as advance, closing(images):
        for batch in images:
            run.learn(batch)
            advance(1)
            if run.step % location.every == 0 or run.step == plan.steps:
                loss = run.measure(held_out)
                reporter.note(f"step {run.step} of {plan.steps}: held-out loss {loss:.4f}")
                write_checkpoint(location.path, run.state(), location.settings)
    return Distilled(run.network, len(affine.bias), tuple(run.curve), saved.step if saved else 0)


def _estimate(plan: TrainingPlan, source: ImageSource, features: GridFeatures, reporter: Reporter) -> AffineTargets:
    with reporter.stage("Measuring the features", plan.calibration_images) as advance:
        return estimate_targets(
            features,
            source,
            images=plan.calibration_images,
            channels=plan.channels,
            seed=plan.seed,
            advance=advance,
        )


def _require_same_schedule(saved: Checkpoint, steps: int, path: Path) -> None:
    """Raise ConfigError where the number of steps has changed after the learning rate has begun to fall."""
    former = int(saved.notes["steps"])
    if steps != former and saved.step > fall_begins(min(former, steps)):
        raise ConfigError(
            f"{path}: this run was begun for {former} steps and has done {saved.step}: its learning rate already falls "
            f"towards that end, or would have to for {steps}. Give --steps {former} to go on, or --restart to begin "
            "anew."
        )


def _saved_targets(saved: Checkpoint) -> AffineTargets:
    return AffineTargets(saved.tensors["targets.weight"].numpy(), saved.tensors["targets.bias"].numpy())


@final
class _Run:
    """A training run and its state."""

    def __init__(self, plan: TrainingPlan, features: GridFeatures, affine: AffineTargets) -> None:
        from cvad_cli.adapters.runtime_torch.frozen_features import FeatureTargets
        from cvad_cli.adapters.torch_training.teacher_training import TeacherTraining

        self.step = 0
        self.curve: list[tuple[int, float]] = []
        self._plan, self._affine, self._device = plan, affine, features.device
        network = build_pdn(plan.size, len(affine.bias), padding=True, seed=plan.seed)
        bfloat16 = device_has_bf16(features.device)
        targets = FeatureTargets(features, affine)
        self._training = TeacherTraining(network, targets, device=features.device, bfloat16=bfloat16)

    @property
    def network(self) -> Network:
        """The teacher as it is now."""
        return self._training.network

    def learn(self, images: np.ndarray) -> None:
        """One step on uint8 images (b, s, s, 3)."""
        share = learning_share(self.step, self._plan.steps)
        if not self._training.learn(to_tensor(list(images), self._device), share):
            raise ModelError(f"the loss is not finite after step {self.step}; begin anew with another --seed")
        self.step += 1

    def held_out_images(self, source: ImageSource) -> np.ndarray:
        """The images that `measure` always uses."""
        return source.batch("held_out", 0, self._plan.held_out_images)

    def measure(self, held_out: np.ndarray) -> float:
        """Mean loss over images that are never trained on; it is added to the curve."""
        total = 0.0
        for batch in batched(held_out, self._plan.batch_size):
            total += self._training.loss(to_tensor(batch, self._device)) * len(batch)
        self.curve.append((self.step, total / len(held_out)))
        return self.curve[-1][1]

    def state(self) -> Checkpoint:
        """Everything that `restore` needs."""
        targets = {"targets.weight": self._affine.weight, "targets.bias": self._affine.bias}
        notes = {"curve": self.curve, "steps": self._plan.steps}
        return Checkpoint(self.step, {**self._training.state(), **targets}, notes)

    def restore(self, saved: Checkpoint) -> None:
        """Restore the run from what `state` returned."""
        self._training.restore(saved.tensors)
        self.step = saved.step
        self.curve = [(int(step), float(loss)) for step, loss in saved.notes["curve"]]
