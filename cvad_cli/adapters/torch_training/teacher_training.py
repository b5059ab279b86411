"""The steps that distil a teacher: a network learns to give, for half-size images, the backbones' features."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import final

import torch
from torch import nn
from torch.nn import functional

from cvad_cli.adapters.torch_training.optimizer import Optimizer

Targets = Callable[[torch.Tensor], torch.Tensor]
"""RGB (b, 3, s, s) in 0..1 to the features that the teacher should give: float32 (b, c, h, w)."""


@final
class TeacherTraining:
    """A teacher's network and its optimizer on one device."""

    def __init__(self, network: nn.Module, targets: Targets, *, device: str, bfloat16: bool) -> None:
        """`bfloat16`: whether the network computes in bfloat16 during training; targets and loss are float32."""
        self.network: nn.Module = network.train().to(device).to(memory_format=torch.channels_last)
        self._targets, self._kind, self._bfloat16 = targets, device.split(":", maxsplit=1)[0], bfloat16
        self._optimizer = Optimizer(self.network)

    def learn(self, images: torch.Tensor, share: float) -> bool:
        """One step on RGB (b, 3, s, s) in 0..1 at this share of the peak rate; False where the loss is not finite."""
        with torch.no_grad():
            wanted = self._targets(images)
        loss = self._distance(images, wanted)
        if not bool(torch.isfinite(loss)):
            return False
        self.network.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step(share)
        return True

    def loss(self, images: torch.Tensor) -> float:
        """The mean loss over images, without training on them."""
        with torch.no_grad():
            return float(self._distance(images, self._targets(images)))

    def state(self) -> dict[str, torch.Tensor]:
        """Everything that `restore` needs."""
        tensors = {f"network.{name}": tensor for name, tensor in self.network.state_dict().items()}
        return tensors | {f"optimiser.{name}": tensor for name, tensor in self._optimizer.state().items()}

    def restore(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Restore what `state` returned; other tensors are ignored."""

        def part(prefix: str) -> dict[str, torch.Tensor]:
            return {name.removeprefix(prefix): each for name, each in tensors.items() if name.startswith(prefix)}

        self.network.load_state_dict(part("network."))
        self._optimizer.restore(part("optimiser."))

    def _distance(self, images: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        """Mean squared error of the network on `images` at half their size."""
        halved = functional.avg_pool2d(images, 2).contiguous(memory_format=torch.channels_last)
        with torch.autocast(self._kind, torch.bfloat16, enabled=self._bfloat16):
            answer = self.network(halved)
        return functional.mse_loss(answer.float(), wanted)
