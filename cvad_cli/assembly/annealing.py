"""How a teacher's weights move: AdamW on a rate that depends on the step alone.

The rate warms up, stays, and falls over the last part of the run (Hägele et al., "Scaling laws and compute-optimal
training beyond fixed training durations", 2024): as good as one cycle, and the number of steps can still be changed
while the rate stays, which a run of hours on a shared machine needs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, final

if TYPE_CHECKING:
    import torch
    from torch import nn

PEAK_RATE: Final = 1e-3
WARM_UP_STEPS: Final = 50
FALL: Final = 0.3  # of all steps


def fall_begins(steps: int) -> int:
    """The first step, of `steps`, whose rate depends on how many steps there are."""
    return steps - round(steps * FALL)


def learning_share(step: int, steps: int) -> float:
    """The share of the peak rate at `step` of `steps`: up in a line, level, then 1 - sqrt down to nearly nothing."""
    begins = fall_begins(steps)
    fallen = max(0, step - begins + 1) / (steps - begins + 1)
    return min((step + 1) / WARM_UP_STEPS, 1.0) * (1 - math.sqrt(fallen))


@final
class Optimiser:
    """AdamW whose state is plain named tensors, so that a checkpoint needs no pickle."""

    def __init__(self, network: nn.Module) -> None:
        import torch

        self._parameters = dict(network.named_parameters())
        self._adam = torch.optim.AdamW(self._parameters.values(), lr=PEAK_RATE, weight_decay=0.0)

    def step(self, share: float) -> None:
        """Move the weights by their gradients, at this share of the peak rate."""
        for group in self._adam.param_groups:
            group["lr"] = PEAK_RATE * share
        self._adam.step()

    def state(self) -> dict[str, torch.Tensor]:
        """Name of a parameter and of a quantity -> that quantity."""
        named: dict[str, Any] = {}
        for name, parameter in self._parameters.items():
            for quantity, value in self._adam.state[parameter].items():
                named[f"{quantity}:{name}"] = value
        return named

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take up the state that `state` gave."""
        for key, value in state.items():
            quantity, _, name = key.partition(":")
            parameter = self._parameters[name]
            placed = value if quantity == "step" else value.to(parameter.device)
            self._adam.state[parameter][quantity] = placed
