"""Traces a torch module to a flat torch.fx graph of operators, with sizes and the submodule that ran each operator.

The module runs once on fake tensors: nothing is allocated or computed, however large the image, and control flow
that depends on sizes is resolved. Symbolic tracing fails at timm's dynamic padding and at anomalib's interpolation.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from cvad_cli.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.fx import Node

LARGEST_SIDE: Final = 16384
"""Pixels. Larger images make the tables of a network too large, and are cut into tiles anyway."""


@dataclass(slots=True)
class Trace:
    """One run of a module."""

    nodes: list[Node] = field(default_factory=list)
    modules: dict[Node, str] = field(default_factory=dict)
    """The dotted name of the innermost submodule that ran a node; empty for the module itself."""
    returned: dict[str, Node] = field(default_factory=dict)
    """The last node that a submodule ran, by the submodule's dotted name."""
    leaves: frozenset[str] = frozenset()
    """Dotted names of submodules without children."""


@dataclass(slots=True)
class _Observer:
    """Records through hooks which submodule is running while nodes are added."""

    running: list[str] = field(default_factory=list)
    owners: list[str] = field(default_factory=list)
    returned: dict[str, int] = field(default_factory=dict)

    def entered(self, name: str) -> None:
        self._settle()
        self.running.append(name)

    def left(self, name: str) -> None:
        self._settle()
        self.running.pop()
        self.returned[name] = len(self.owners) - 1

    def _settle(self) -> None:
        """Assign the nodes recorded since the last call to the submodule that is running."""
        from torch.fx.experimental.proxy_tensor import get_proxy_mode

        mode = get_proxy_mode()
        recorded = len(mode.tracer.graph.nodes) if mode is not None else 0
        self.owners += [self.running[-1] if self.running else ""] * (recorded - len(self.owners))

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        with ExitStack() as hooks:
            for name, child in model.named_modules():
                before = child.register_forward_pre_hook(lambda _m, _i, name=name: self.entered(name))
                after = child.register_forward_hook(lambda _m, _i, _o, name=name: self.left(name))
                hooks.callback(before.remove)
                hooks.callback(after.remove)
            yield


def trace(model: nn.Module, image_size: tuple[int, int], channels: int, arguments: tuple[Any, ...]) -> Trace:
    """Run `model` in eval mode on one fake image (1, channels, h, w), followed by `arguments`.

    Raises ModelError for sides beyond `LARGEST_SIDE`, and, naming the submodule, if the module does not run.
    """
    import torch
    from torch.fx.experimental.proxy_tensor import make_fx

    if not all(1 <= side <= LARGEST_SIDE for side in image_size):
        raise ModelError(
            f"image size {image_size[0]} x {image_size[1]}: expected sides from 1 to {LARGEST_SIDE} pixels"
        )

    def forward(image: Tensor) -> Any:
        return model(image, *arguments)

    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    image = torch.zeros(1, device=device).expand(1, channels, *image_size)  # of this size, but one number in memory
    fake = make_fx(forward, tracing_mode="fake", _allow_non_fake_inputs=True, pre_dispatch=True)
    observer = _Observer()
    try:
        with observer.watching(model), evaluating(model), torch.no_grad():
            nodes = list(fake(image).graph.nodes)
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:
        raise ModelError(_stopped(model, image_size, observer.running, error)) from error
    modules = dict(zip(nodes, observer.owners, strict=False))
    returned = {name: nodes[last] for name, last in observer.returned.items() if last >= 0}
    leaves = frozenset(name for name, child in model.named_modules() if not any(True for _ in child.children()))
    return Trace(nodes, modules, returned, leaves)


def _stopped(model: nn.Module, image_size: tuple[int, int], running: list[str], error: Exception) -> str:
    where = f"in submodule {running[-1]}" if running and running[-1] else "in its own forward"
    message = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return (
        f"{type(model).__name__}: stopped {where} at {image_size[0]} x {image_size[1]} px: {message}. The image may be "
        "too small for it, or its control flow may depend on pixel values: analyse the part before that"
    )


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Switch to eval mode within the block: no dropout, norms with their running statistics."""
    training = [child for child in model.modules() if child.training]
    model.eval()
    try:
        yield
    finally:
        for child in training:
            child.training = True
