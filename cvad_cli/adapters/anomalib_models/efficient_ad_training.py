"""Trains EfficientAD with Lightning: reproducible steps, checkpoints, early stopping, the paper's learning rate."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader, Dataset, IterableDataset

from cvad_cli.adapters.anomalib_models.efficient_ad import LearningRateSchedule, LocalEfficientAd
from cvad_cli.adapters.anomalib_models.lightning import new_trainer, reason, run_fit
from cvad_cli.errors import ModelError, ResourceError, require_same_settings
from cvad_cli.files import replacing

STATE: Final = "cvad_run"


@dataclass(frozen=True, slots=True)
class TrainingSchedule:
    """The length of a run, its checkpoints and its checks on held-out images."""

    steps: int
    checkpoint: Path
    every: int
    """Steps between checkpoints."""
    check_every: int
    """Steps between checks on the held-out good images."""
    patience: int | None
    """Checks without improvement after which training stops; None: never."""
    min_improvement: float
    """A held-out distance that falls by less counts as no improvement. At first it is near 1."""
    seed: int
    deciding: Mapping[str, Any]
    """JSON-ready: settings that a checkpoint must share for a run to continue from it."""


@final
class Steps(IterableDataset[torch.Tensor]):
    """The image of each step, float32 (3, h, w) in 0..1, from step `first` on: a new permutation in each epoch."""

    def __init__(self, images: Sequence[np.ndarray], steps: int, *, first: int, seed: int) -> None:
        self._images, self._steps, self._first, self._seed = images, steps, first, seed

    def __len__(self) -> int:
        """All steps, including those before `first`: Lightning counts them when it continues from a checkpoint."""
        return self._steps

    def __iter__(self) -> Iterator[torch.Tensor]:
        rank, world = _rank_and_world_size()
        current, order = -1, np.empty(0, int)
        for step in range(self._first, self._steps):
            epoch, index = divmod(step * world + rank, len(self._images))
            if epoch != current:
                current = epoch
                order = np.random.default_rng([self._seed, 5, epoch]).permutation(len(self._images))
            yield as_tensor(self._images[int(order[index])])


@final
class Images(Dataset[torch.Tensor]):
    """Images in their order, float32 (3, h, w) in 0..1."""

    def __init__(self, images: Sequence[np.ndarray]) -> None:
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> torch.Tensor:
        return as_tensor(self._images[index])


def as_tensor(image: np.ndarray) -> torch.Tensor:
    """uint8 RGB (h, w, 3) to float32 (3, h, w) in 0..1."""
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1).float().div_(255.0)


def as_batch(image: np.ndarray, device: str) -> torch.Tensor:
    """uint8 RGB (h, w, 3) to float32 (1, 3, h, w) in 0..1 on `device`, in the networks' memory format."""
    return as_tensor(image)[None].to(device).contiguous(memory_format=torch.channels_last)


def as_published(steps: int, *, rate: float, weight_decay: float) -> LearningRateSchedule:
    """Adam, its rate divided by ten for the last 5 % of the steps: paper algorithm 1; anomalib's optimiser."""

    def learning_rate_schedule(module: LocalEfficientAd) -> Any:
        fused = module.device.type == "cuda"  # one kernel for all weights: the number of kernels bounds a step
        optimiser = torch.optim.Adam(module.learning(), lr=rate, weight_decay=weight_decay, fused=fused)
        rates = StepLR(optimiser, step_size=max(1, int(0.95 * steps)), gamma=0.1)
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": rates, "interval": "step"}}

    return learning_rate_schedule


def steps_done(training_schedule: TrainingSchedule) -> int:
    """Steps of the checkpoint that a run will continue from; 0 where there is none.

    Raises ConfigError where it was made with other settings, ModelError for a file that is no checkpoint.
    """
    path = training_schedule.checkpoint
    if not path.exists():
        return 0
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        former, step = json.loads(saved[STATE]), int(saved["global_step"])
    except (pickle.UnpicklingError, RuntimeError, KeyError, TypeError, ValueError, EOFError, OSError) as error:
        raise ModelError(
            f"{path}: is no checkpoint of this training ({reason(error)}); remove it, or begin anew with "
            "--set trainer.resume=false"
        ) from error
    require_same_settings(path, former, training_schedule.deciding, "--set trainer.resume=false")
    return step


def train_steps(
    module: LocalEfficientAd,
    training_schedule: TrainingSchedule,
    options: Mapping[str, Any],
    images: tuple[Sequence[np.ndarray], Sequence[np.ndarray]],
    advance: Callable[[int], None],
    *,
    first: int,
) -> int:
    """Train from step `first`, given by `steps_done`, to the end of the schedule; returns the number of steps done.

    `images`: those to learn from and those held out, uint8 RGB (h, w, 3) at the network's size.
    """
    learning, held_out = images
    callbacks: list[Any] = [_Keeper(training_schedule, advance)]
    if training_schedule.patience is not None:
        callbacks.append(
            EarlyStopping(
                "held_out_distance", patience=training_schedule.patience, min_delta=training_schedule.min_improvement
            )
        )
    trainer = new_trainer(
        {
            **options,
            "max_steps": training_schedule.steps,
            "max_epochs": -1,
            "num_sanity_val_steps": 0,
            "val_check_interval": min(training_schedule.check_every, training_schedule.steps),
            "check_val_every_n_epoch": None,
        },
        callbacks,
    )
    run_fit(
        trainer,
        module,
        train_dataloaders=DataLoader(
            Steps(learning, training_schedule.steps, first=first, seed=training_schedule.seed), batch_size=1
        ),
        val_dataloaders=DataLoader(Images(held_out), batch_size=1),
        ckpt_path=training_schedule.checkpoint if first else None,
        weights_only=True,
    )
    return int(trainer.global_step)


@final
class _Keeper(Callback):
    """Counts the steps and writes checkpoints."""

    def __init__(self, training_schedule: TrainingSchedule, advance: Callable[[int], None]) -> None:
        self._training_schedule, self._advance = training_schedule, advance

    def on_train_batch_end(self, trainer: Any, *_: Any, **__: Any) -> None:
        """Lightning calls this after each step."""
        self._advance(1)
        step = trainer.global_step
        if step % self._training_schedule.every == 0 or step == self._training_schedule.steps:
            self._keep(trainer)

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:  # noqa: ARG002
        """Lightning calls this while it gathers what to save."""
        checkpoint[STATE] = json.dumps(dict(self._training_schedule.deciding))

    def _keep(self, trainer: Any) -> None:
        try:
            if trainer.is_global_zero:
                with replacing(self._training_schedule.checkpoint) as staged:
                    trainer.save_checkpoint(staged)
            else:
                trainer.save_checkpoint(
                    self._training_schedule.checkpoint
                )  # its part of the gathering; it writes nothing
        except (OSError, RuntimeError) as error:
            raise ResourceError(
                f"{self._training_schedule.checkpoint}: could not be written: {reason(error)}"
            ) from error


def _rank_and_world_size() -> tuple[int, int]:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1
