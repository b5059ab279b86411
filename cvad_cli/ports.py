"""The seams: what a task needs from the outside, as Protocols that adapters and the command line fill."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import numpy as np

from cvad_cli.records import Prediction


class Reporter(Protocol):
    """Where a task says how far it is. The command line draws it; a test records it."""

    def stage(self, title: str, total: int | None = None) -> AbstractContextManager[Callable[[int], None]]:
        """A stretch of work of `total` steps (None: unknown). Yields `advance(steps)`."""

    def note(self, message: str) -> None:
        """One line that a user would want to read once."""

    def warn(self, message: str) -> None:
        """Something the user should act on, though the work goes on."""


class Detector(Protocol):
    """A trained model that judges pictures. Opened from a bundle; never fitted."""

    @property
    def image_size(self) -> tuple[int, int]:
        """Rows and columns that `predict` takes."""

    def predict(self, images: Sequence[np.ndarray]) -> list[Prediction]:
        """Score pictures of shape (h, w, 3), uint8 RGB, already at `image_size`. Maps come back at `image_size`."""
