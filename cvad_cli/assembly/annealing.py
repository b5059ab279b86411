"""How a teacher's weights move: Muon for the convolutions, Adam for the biases, at a rate that depends on the step.

The rate warms up, stays, and falls over the last part of the run (Hägele et al., "Scaling laws and compute-optimal
training beyond fixed training durations", 2024): as good as one cycle, and the number of steps can still be changed
while the rate stays, which a run of hours on a shared machine needs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, final

if TYPE_CHECKING:
    import torch
    from torch import nn

PEAK_RATE: Final = 6e-3
STUDENT_RATE: Final = 6e-3
BIAS_RATE: Final = 1e-3
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


def annealed_schedule(steps: int) -> Callable[[Any], Any]:
    """Muon and `learning_share` as Lightning's `configure_optimizers` wants them, for EfficientAD's short runs.

    The function returned takes the module; student and autoencoder learn.
    """

    def schedule(module: Any) -> dict[str, Any]:
        from torch.optim.lr_scheduler import LambdaLR

        from cvad_cli.adapters.muon import Muon

        optimiser = Muon(module.learning(), kernel_rate=STUDENT_RATE, bias_rate=BIAS_RATE)
        rates = LambdaLR(optimiser, lambda step: learning_share(min(step, steps - 1), steps))
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": rates, "interval": "step"}}

    return schedule


@final
class Optimiser:
    """Muon and Adam, their state plain named tensors, so that a checkpoint needs no pickle.

    A PDN has no normalisation, and Adam takes hundreds of steps to leave the mean: over 240 small steps it explained
    5 % of the targets' variance, Muon 14 %, at a tenth more time a step.
    """

    def __init__(self, network: nn.Module) -> None:
        import torch

        named = dict(network.named_parameters())
        self._kernels = {name: parameter for name, parameter in named.items() if parameter.ndim > 1}
        self._biases = {name: parameter for name, parameter in named.items() if parameter.ndim == 1}
        self._momentum = {name: torch.zeros_like(kernel) for name, kernel in self._kernels.items()}
        self._adam = torch.optim.Adam(self._biases.values(), lr=BIAS_RATE)

    def step(self, share: float) -> None:
        """Move the weights by their gradients, at this share of the peak rates."""
        import torch

        from cvad_cli.adapters.muon import move_kernel

        for group in self._adam.param_groups:
            group["lr"] = BIAS_RATE * share
        self._adam.step()
        with torch.no_grad():
            for name, kernel in self._kernels.items():
                gradient: Any = kernel.grad
                move_kernel(kernel, gradient, self._momentum[name], PEAK_RATE * share)

    def state(self) -> dict[str, torch.Tensor]:
        """Quantity and name of a parameter -> that quantity."""
        named: dict[str, Any] = {f"momentum:{name}": value for name, value in self._momentum.items()}
        for name, bias in self._biases.items():
            named |= {f"{quantity}:{name}": value for quantity, value in self._adam.state[bias].items()}
        return named

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take up the state that `state` gave."""
        for key, value in state.items():
            quantity, _, name = key.partition(":")
            if quantity == "momentum":
                self._momentum[name].copy_(value)
            else:
                bias = self._biases[name]
                self._adam.state[bias][quantity] = value if quantity == "step" else value.to(bias.device)
