"""Rules for torch operators whose cells read other cells: windows, resampling, pooling, norms. One rule per operator.

A rule takes a `Call` and returns the resulting `Map`.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any, Final

from cvad_cli.adapters.receptive_field.traced_maps import Axes, Call, Map, without
from cvad_cli.core.receptive_field.graph import Edge
from cvad_cli.core.receptive_field.steps import SAME, Border, Span, Step, Window, everything, interpolated, pooled_to
from cvad_cli.core.receptive_field.steps import transposed as transposed_to

BORDERS: Final[dict[str, Border]] = {
    "constant": "zero",
    "reflect": "reflect",
    "replicate": "replicate",
    "circular": "circular",
}


def pointwise(call: Call) -> Map:
    """Each cell by itself: activations, sums and products of maps, joined channels. Branches make a layer."""
    rank = len(call.shape)
    aligned = {(m.axes[0] + rank - len(m.shape), m.axes[1] + rank - len(m.shape)) for m in call.maps if m.axes}
    if len(aligned) > 1:
        call.refuse(f"rows and columns of its inputs lie on different axes: {sorted(aligned)}")
    return joined(call, aligned.pop() if aligned else None)


def joined(call: Call, axes: Axes) -> Map:
    """All inputs cell by cell; an input of one cell is broadcast. Several inputs make a layer."""
    size = (1, 1) if axes is None else (call.shape[axes[0]], call.shape[axes[1]])
    sources = {m.layer: m for m in call.maps}
    if len(sources) == 1 and call.first.size == size:
        return call.passed(axes)
    edges = [
        Edge(name, (_broadcast(s.size[0], size[0]), _broadcast(s.size[1], size[1]))) for name, s in sources.items()
    ]
    return call.made(call.op, edges, axes)


def _broadcast(n: int, m: int) -> Step:
    return SAME if n == m else everything(n, m)


def convolution(call: Call) -> Map:
    """conv2d, with padding as numbers, 'same' or 'valid'."""
    if len(call.args["weight"]) != 4:
        call.refuse("only two-dimensional convolutions are supported")
    padding = call.args.get("padding", 0)
    windows = []
    for axis, (k, s, d) in enumerate(
        zip(call.args["weight"][-2:], _pair(call, "stride"), _pair(call, "dilation"), strict=True)
    ):
        total = d * (k - 1) if padding == "same" else 0
        before = total // 2 if isinstance(padding, str) else _pair(call, "padding", 0)[axis]
        windows.append(Window(k, s, before, d, padding_after=total - before if total % 2 else None))
    return _slid(call, "conv", (windows[0], windows[1]))


def pooling(kind: str) -> Callable[[Call], Map]:
    """max_pool2d and avg_pool2d."""

    def rule(call: Call) -> Map:
        kernel = _pair(call, "kernel_size")
        stride = _pair(call, "stride") if call.args.get("stride") else kernel
        padding, dilation = _pair(call, "padding", 0), _pair(call, "dilation")
        ceil = bool(call.args.get("ceil_mode"))
        sides = zip(kernel, stride, padding, dilation, strict=True)
        h, w = (Window(k, s, p, d, ceil_mode=ceil) for k, s, p, d in sides)
        return _slid(call, kind, (h, w))

    return rule


def _slid(call: Call, kind: str, windows: tuple[Window, Window]) -> Map:
    return call.made(kind, [call.take_padding(call.image_like(call.first), windows)], _last_two(call))


def transposed(call: Call) -> Map:
    """conv_transpose2d."""
    source = call.image_like(call.first)
    if _pair(call, "dilation") != (1, 1):
        call.refuse("a transposed convolution with dilation")
    given = _pair(call, "stride"), _pair(call, "padding", 0), _pair(call, "output_padding", 0)
    sides = zip(source.size, call.args["weight"][-2:], *given, strict=True)
    h, w = (transposed_to(n, Window(k, s, p), extra=extra) for n, k, s, p, extra in sides)
    return call.made("transposed conv", [Edge(source.layer, (h, w))], _last_two(call))


def padding(call: Call) -> Map:
    """F.pad in all its modes; negative padding crops."""
    amounts = list(call.args.get("pad", call.args.get("padding", ())))
    mode = call.args.get("mode", "constant") if call.op == "pad" else call.op.split("_")[0]
    border = BORDERS.get({"reflection": "reflect", "replication": "replicate"}.get(str(mode), str(mode)))
    if border is None:
        call.refuse(f"padding mode {mode!r}")
    rank = len(call.shape)
    amounts += [0] * (2 * rank - len(amounts))
    pads = [tuple(amounts[2 * (rank - 1 - axis) :][:2]) for axis in call.first.axes or ()]
    if not any(map(any, pads)):
        return call.passed(call.first.axes)
    h, w = (Window(1, 1, before, padding_after=after, border=border) for before, after in pads)
    return call.made("pad", [Edge(call.first.layer, (h, w))], call.first.axes)


def cropping(call: Call) -> Map:
    """Slicing: a range of rows or columns is a step; a range of channels is not."""
    axis, axes = call.args.get("dim", 0) % len(call.first.shape), call.first.axes or ()
    n = call.first.shape[axis]
    start = call.args.get("start")
    end = start + call.args["length"] if call.op == "narrow" else call.args.get("end")
    begin, stop, step = slice(start, end, call.args.get("step", 1)).indices(n)
    if axis not in axes or (begin, stop, step) == (0, n, 1):
        return call.passed(call.first.axes)
    window = Window(1, step, -begin, padding_after=stop - n)
    h, w = (window if axis == own else SAME for own in axes)
    return call.made("crop", [Edge(call.first.layer, (h, w))], call.first.axes)


def interpolation(call: Call) -> Map:
    """Nearest and bilinear interpolation, by size or by factor."""
    source = call.image_like(call.first)
    linear = "bilinear" in call.op
    factors = call.args.get("scale_factors") or [call.args.get("scales_h"), call.args.get("scales_w")]
    corners = bool(call.args.get("align_corners"))
    steps = []
    for n, m, factor in zip(source.size, call.shape[-2:], factors, strict=True):
        ratio = Fraction(1 / factor).limit_denominator(1 << 20) if factor else None
        steps.append(interpolated(n, m, linear=linear, align_corners=corners, ratio=ratio))
    return call.made("interpolate", [Edge(source.layer, (steps[0], steps[1]))], _last_two(call))


def adaptive(call: Call) -> Map:
    """Adaptive pooling; pooling to one cell is global pooling."""
    source = call.image_like(call.first)
    whole = "adaptive pooling to one cell averages over the image" if tuple(call.shape[-2:]) == (1, 1) else ""
    steps: list[Span] = []
    for n, m in zip(source.size, call.shape[-2:], strict=True):
        steps.append(everything(n, 1) if m == 1 else pooled_to(n, m))
    return call.made(
        "global pool" if whole else "adaptive pool", [Edge(source.layer, (steps[0], steps[1]), whole)], _last_two(call)
    )


def shuffled(call: Call) -> Map:
    """pixel_shuffle and pixel_unshuffle: blocks of cells become channels, or channels become blocks."""
    source = call.image_like(call.first)
    steps: list[Step] = []
    for n, m in zip(source.size, call.shape[-2:], strict=True):
        steps.append(interpolated(n, m, linear=False) if m >= n else Window(n // m, n // m))
    return call.made(call.op, [Edge(source.layer, (steps[0], steps[1]))], _last_two(call))


def reduction(call: Call) -> Map:
    """Mean, sum, maximum ... over axes; over rows and columns this is global pooling."""
    source, rank = call.first, len(call.first.shape)
    given = call.args.get("dim")
    dims = (
        {d % rank for d in (given if isinstance(given, (list, tuple)) else [given])}
        if given not in (None, [])
        else None
    )
    dims = set(range(rank)) if dims is None else dims
    kept = bool(call.args.get("keepdim"))
    axes = source.axes or ()
    over = [axis in dims for axis in axes]
    if not any(over):
        return call.passed(source.axes if kept else without(source.axes, dims))
    if not all(over) and not kept:
        call.refuse("it drops rows or columns alone; keep the axis with keepdim=True")
    h, w = (everything(n, 1) if hit else SAME for n, hit in zip(source.size, over, strict=True))
    whole = f"{call.op} over {'rows and columns' if all(over) else 'rows' if over[0] else 'columns'}"
    return call.made("global pool", [Edge(source.layer, (h, w), whole)], source.axes if kept else None)


def normalisation(call: Call) -> Map:
    """Norms with running statistics or over channels keep cells apart; the image's statistics mix all cells."""
    rank, axes = len(call.shape), call.first.axes or ()
    if call.op in {"layer_norm", "rms_norm"}:
        mixed = any(axis >= rank - len(call.args["normalized_shape"]) for axis in axes)
    elif call.op == "group_norm":
        mixed = bool(axes)
    else:
        mixed = bool(axes) and bool(call.args.get("training") or call.args.get("use_input_stats"))
    return (
        _mixed(call, "norm", f"{call.op} takes its statistics from the image")
        if mixed
        else call.passed(call.first.axes)
    )


def softmax(call: Call) -> Map:
    """Softmax over channels keeps cells apart; over rows or columns it mixes them."""
    mixed = call.args["dim"] % len(call.shape) in (call.first.axes or ())
    return _mixed(call, "softmax", "softmax over rows or columns") if mixed else call.passed(call.first.axes)


def _mixed(call: Call, kind: str, whole: str) -> Map:
    source = call.first
    everywhere = everything(source.size[0], source.size[0]), everything(source.size[1], source.size[1])
    return call.made(kind, [Edge(source.layer), Edge(source.layer, everywhere, whole)], source.axes)


def linear(call: Call) -> Map:
    """A linear layer on the last axis: channels, or the flattened image."""
    if len(call.shape) - 1 in (call.first.axes or ()):
        call.refuse("a linear layer along rows or columns")
    return call.passed(call.first.axes)


def product(call: Call) -> Map:
    """Matrix products and attention of tensors without rows and columns."""
    if any(m.axes for m in call.maps):
        call.refuse("a matrix product between cells; flatten rows and columns first if the whole image is meant")
    return joined(call, None)


def _last_two(call: Call) -> tuple[int, int]:
    return len(call.shape) - 2, len(call.shape) - 1


def _pair(call: Call, name: str, default: int = 1) -> tuple[int, int]:
    """An argument that torch accepts as one number or two."""
    given: Any = call.args.get(name)
    values = list(given) if isinstance(given, (list, tuple)) else [default if given is None else given]
    return (values[0], values[-1])
