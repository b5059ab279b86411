"""A module as it runs in use, and afterwards as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Dropout off and norms on their running statistics, for as long as it lasts."""
    training = [child for child in model.modules() if child.training]
    model.eval()
    try:
        yield
    finally:
        for child in training:
            child.training = True
