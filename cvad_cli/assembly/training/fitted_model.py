"""What every kind of model returns to `cvad train` after fitting."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cvad_cli.records import Prediction, SkippedImage


@dataclass(frozen=True, slots=True)
class FittedModel:
    """A fitted model of any kind: how it is written to a bundle, and its scores of held-out good images."""

    kind: str
    """Which runtime opens it: 'patchcore', 'efficient_ad', or 'anomalib' for every other model."""
    description: Mapping[str, Any]
    """What the manifest stores under `model`: enough to build the network again."""
    writers: Mapping[str, tuple[str, Callable[[Path], None]]]
    """Role of a bundle's file -> (suffix, a function that writes it)."""
    weights: str
    held_out: tuple[tuple[np.ndarray, np.ndarray], ...]
    """(image scores, map peaks) of the held-out good images, one pair per fold."""
    used: int
    """How many training images could be read."""
    skipped: tuple[SkippedImage, ...]
    details: Mapping[str, Any]
    unseen: tuple[str, ...] = ()
    """Keys of the good images that the final model was not fitted on; none where it was fitted on every one."""
    judge: Callable[[Sequence[np.ndarray]], list[Prediction]] | None = None
    """The fitted model itself in float32: what other engines must agree with. None where there is no other engine."""
    scratch: Path | None = None
    """Folder with the state of the training run, which is removed after the bundle is written."""
