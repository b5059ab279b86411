"""Measures a receptive field on the running network: which pixels reach a cell at all, and which ones matter.

The exact measurement paints part of the image with NaN. Convolution, pooling, norms and activations pass NaN on to
everything computed from it, whatever the weights: a cell is NaN if and only if it depends on a painted pixel. Only
interpolation differs, because it multiplies by weights that may be zero: there a mask carries the painted pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from cvad_cli.adapters.receptive_field.tracing import evaluating
from cvad_cli.core.receptive_field.effective import EffectiveField
from cvad_cli.core.receptive_field.graph import EMPTY, Box
from cvad_cli.errors import ModelError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

MAX_MEASURED_SIDE: Final = 512
"""Pixels: a field is measured on images of at most this side."""

MIN_MEASURED_SIDE: Final = 128
"""Pixels: a small field is measured on an image of three fields or of this side, whichever is larger: then some cells
lie far from all borders."""

NOTHING: Final = 1e-6
"""Smaller interpolation weights are rounding errors: torch computes positions in float32."""

Cell = tuple[int, int]


@dataclass(frozen=True, slots=True)
class AnalysedNetwork:
    """The map to measure: an output of a module that runs on one image."""

    model: nn.Module
    channels: int = 3
    arguments: tuple[Any, ...] = ()
    """What `forward` takes after the image."""
    output: int | str | None = None
    """Which output, where the module gives several."""

    def __call__(self, image: Tensor) -> Tensor:
        """The map (1, d, rows, cols) of an image (1, c, h, w). Raises ModelError if the output is not a map."""
        found = self.model(image, *self.arguments)
        found = found if self.output is None else found[self.output]
        if getattr(found, "ndim", 0) != 4:
            raise ModelError(
                f"{self.name}: expected a map (b, d, rows, cols) to measure, got {type(found).__name__} "
                f"{tuple(getattr(found, 'shape', ()))}; say which output is meant"
            )
        result: Tensor = found
        return result

    @property
    def name(self) -> str:
        """For messages."""
        return type(self.model).__name__

    @property
    def device(self) -> torch.device:
        """Where the module's weights are."""
        import torch

        return next((parameter.device for parameter in self.model.parameters()), torch.device("cpu"))


def bounded(image_size: tuple[int, int], field: tuple[int, int]) -> tuple[int, int]:
    """The image size (h, w) to measure a field of `field` pixels at: the work does not grow with the camera's image.

    Read the layers at this size too: the borders move, and dynamic padding and interpolation depend on the size.
    """
    sides = zip(image_size, field, strict=True)
    h, w = (min(side, MAX_MEASURED_SIDE, max(MIN_MEASURED_SIDE, 3 * size)) for side, size in sides)
    return h, w


def exact_support(
    analysed: AnalysedNetwork,
    image_size: tuple[int, int],
    cells: Sequence[Cell],
    *,
    expected: Sequence[Box] | None = None,
) -> list[Box]:
    """Measure, for each cell, the smallest box that holds every pixel it depends on.

    `expected` saves time and decides nothing. An expected box is accepted only if no pixel outside it reaches the cell
    and all four of its border lines do (5 runs); otherwise bisection finds the box (4 log2(side) runs).
    """
    import torch

    blank = torch.full((1, analysed.channels, *image_size), 0.5, device=analysed.device)
    with evaluating(analysed.model), torch.inference_mode(), _exact_interpolation():
        if bool(analysed(blank).isnan().any()):
            raise ModelError(f"{analysed.name}: gives NaN on a gray image; its weights are broken")
        boxes = []
        for at, cell in enumerate(cells):
            reached = _Painter(analysed, blank, cell).reaches
            guess = expected[at] if expected is not None else None
            boxes.append(
                guess
                if guess is not None and _confirmed(reached, guess, image_size)
                else _searched(reached, image_size)
            )
    return boxes


@dataclass(frozen=True, slots=True)
class _Painter:
    """Asks whether painted pixels reach one cell."""

    analysed: AnalysedNetwork
    blank: Tensor
    cell: Cell

    def reaches(self, rows: slice, cols: slice, *, outside: bool = False) -> bool:
        """Whether the cell depends on a pixel in rows x cols, or on one outside of that."""
        import torch

        painted = torch.full_like(self.blank, torch.nan) if outside else self.blank.clone()
        painted[..., rows, cols] = self.blank[..., rows, cols] if outside else torch.nan
        return bool(self.analysed(painted)[0, :, self.cell[0], self.cell[1]].isnan().any())


Reaches = Callable[..., bool]
_ALL: Final = slice(None)


def _confirmed(reaches: Reaches, box: Box, image_size: tuple[int, int]) -> bool:
    """Whether the box holds every pixel that the cell depends on, and could be no smaller."""
    rows, cols = slice(box.top, box.bottom + 1), slice(box.left, box.right + 1)
    if box == EMPTY:
        return not reaches(_ALL, _ALL)
    lines = [(slice(at, at + 1), _ALL) for at in {box.top, box.bottom}]
    lines += [(_ALL, slice(at, at + 1)) for at in {box.left, box.right}]
    whole = (box.top, box.left) == (0, 0) and (box.bottom + 1, box.right + 1) == image_size
    return all(reaches(*line) for line in lines) and (whole or not reaches(rows, cols, outside=True))


def _searched(reaches: Reaches, image_size: tuple[int, int]) -> Box:
    """The box by bisection: how far from each border the image can be painted before the cell changes."""
    if not reaches(_ALL, _ALL):
        return EMPTY
    h, w = image_size
    top = _bisected(h, lambda depth: reaches(slice(0, depth), _ALL))
    bottom = _bisected(h, lambda depth: reaches(slice(h - depth, h), _ALL))
    left = _bisected(w, lambda depth: reaches(_ALL, slice(0, depth)))
    right = _bisected(w, lambda depth: reaches(_ALL, slice(w - depth, w)))
    return Box(top - 1, left - 1, h - bottom, w - right)


def _bisected(n: int, noticed: Callable[[int], bool]) -> int:
    """The smallest depth 1..n at which the cell changes; it changes at n."""
    low, high = 0, n
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if noticed(middle) else (middle, high)
    return high


@contextmanager
def _exact_interpolation() -> Iterator[None]:
    """Make F.interpolate pass NaN only to cells that give the NaN pixel a weight."""
    import torch
    from torch.nn import functional
    from torch.overrides import TorchFunctionMode

    class Exact(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            if func is not functional.interpolate:
                return func(*args, **kwargs)
            given, rest = (args[0], args[1:]) if args else (kwargs.pop("input"), ())
            painted = func(given.isnan().to(given.dtype), *rest, **kwargs) > NOTHING
            return func(given.nan_to_num(), *rest, **kwargs).masked_fill(painted, torch.nan)

    with Exact():
        yield


def effective_fields(
    analysed: AnalysedNetwork, images: np.ndarray, cells: Sequence[Cell], *, rng: np.random.Generator, draws: int = 1
) -> list[EffectiveField]:
    """Where the gradient of each cell falls, averaged over `images`, float32 (b, c, h, w) as the network takes them.

    The signal at the cell is +1 or -1 for each channel, drawn `draws` times for each image: the mean of its squared
    gradient is the sum of the channels' squared gradients, at one backward pass per draw. Images run one at a time.
    Raises ModelError if no gradient reaches the image.
    """
    import torch

    energies = np.zeros((len(cells), *images.shape[-2:]))
    with evaluating(analysed.model), torch.enable_grad():
        for image in images:
            tensor = (
                torch.from_numpy(np.ascontiguousarray(image, np.float32))[None].to(analysed.device).requires_grad_()
            )
            found = analysed(tensor)
            if not found.requires_grad:
                raise ModelError(f"{analysed.name}: its forward switches gradients off; analyse the network inside it")
            passes = [(at, *cell) for at, cell in enumerate(cells) for _ in range(draws)]
            for last, (at, row, col) in enumerate(passes, 1 - len(passes)):
                signs = torch.from_numpy(rng.choice(np.array([-1.0, 1.0], np.float32), found.shape[1])).to(found)
                signal = (found[0, :, row, col] * signs).sum()
                (gradient,) = torch.autograd.grad(signal, tensor, retain_graph=last < 0)
                energies[at] += gradient[0].double().square().sum(dim=0).cpu().numpy()
    totals = energies.sum(axis=(1, 2))
    if not (totals > 0).all():
        dead = cells[int(np.argmin(totals))]
        raise ModelError(f"{analysed.name}: no gradient reaches the image from cell {dead}; try other images")
    shares = energies / totals[:, None, None]
    return [EffectiveField((cell[0], cell[1]), share, len(images)) for cell, share in zip(cells, shares, strict=True)]
