"""Rules for torch operators that move cells without mixing them: join, split, reorder, reshape."""

from __future__ import annotations

import math
from collections.abc import Sequence

from cvad_cli.adapters.receptive_field.spatial_ops import joined, pointwise
from cvad_cli.adapters.receptive_field.traced_maps import Call, Map, without
from cvad_cli.core.receptive_field.graph import Edge
from cvad_cli.core.receptive_field.steps import everything


def joining(call: Call) -> Map:
    """cat along channels, or stack along a new axis."""
    axis = call.args.get("dim", 0) % len(call.shape)
    if call.op == "stack":
        moved = {(m.axes[0] + (m.axes[0] >= axis), m.axes[1] + (m.axes[1] >= axis)) for m in call.maps if m.axes}
        return joined(call, moved.pop() if moved else None)
    if any(m.axes and axis in m.axes for m in call.maps):
        call.refuse("maps joined along rows or columns have no one jump")
    return pointwise(call)


def parting(call: Call) -> Map:
    """chunk, split, unbind: if channels are split, each part has all cells."""
    axis = call.args.get("dim", 0) % len(call.first.shape)
    if axis in (call.first.axes or ()):
        call.refuse("rows or columns split into several maps; slice them one at a time")
    return call.passed(without(call.first.axes, {axis}) if call.op in {"unbind", "select"} else call.first.axes)


def rolling(call: Call) -> Map:
    """roll along channels."""
    dims = call.args.get("dims") or range(len(call.shape))
    if {d % len(call.shape) for d in dims} & set(call.first.axes or ()):
        call.refuse("rows or columns shifted round the border")
    return call.passed(call.first.axes)


def reordering(call: Call) -> Map:
    """permute and transpose."""
    order = list(range(len(call.shape)))
    if call.op == "permute":
        order = [d % len(order) for d in call.args["dims"]]
    else:
        a, b = (call.args[k] % len(order) for k in (("dim0", "dim1") if "dim0" in call.args else ("axis0", "axis1")))
        order[a], order[b] = order[b], order[a]
    axes = call.first.axes
    return call.passed(axes and (order.index(axes[0]), order.index(axes[1])))


def unsqueezing(call: Call) -> Map:
    """A new axis of length one."""
    at, axes = call.args["dim"] % len(call.shape), call.first.axes
    return call.passed(axes and (axes[0] + (axes[0] >= at), axes[1] + (axes[1] >= at)))


def squeezing(call: Call) -> Map:
    """Axes of length one are removed."""
    rank, given = len(call.first.shape), call.args.get("dim")
    dims = range(rank) if given is None else [given] if isinstance(given, int) else given
    gone = {d % rank for d in dims if call.first.shape[d] == 1}
    return call.passed(without(call.first.axes, gone))


def reshaping(call: Call) -> Map:
    """view, reshape, flatten: rows and columns stay axes, or both merge into one axis and positions are lost."""
    source, axes = call.first, call.first.axes
    if axes is None or source.shape == call.shape:
        return call.passed(axes)
    if source.size == (1, 1):
        return call.passed(None)
    found = [_carried(source.shape, call.shape, axis) for axis in axes]
    if found[0] is not None and found[1] is not None:
        return call.passed((found[0], found[1]))
    if any(found) or any(_cut(source.shape, call.shape, axis) for axis in axes):
        call.refuse(f"reshaping {source.shape} to {call.shape} cuts rows or columns into pieces")
    all_cells = everything(source.size[0], 1), everything(source.size[1], 1)
    return call.made(call.op, [Edge(source.layer, all_cells, f"{call.op} puts rows and columns into one axis")], None)


def _carried(before: Sequence[int], after: Sequence[int], axis: int) -> int | None:
    """The axis of `after` that is this axis of `before`, whole; None if there is none."""
    ahead = math.prod(before[:axis])
    same = [at for at, n in enumerate(after) if n == before[axis] and math.prod(after[:at]) == ahead]
    return same[-1] if same else None


def _cut(before: Sequence[int], after: Sequence[int], axis: int) -> bool:
    """Whether a boundary between axes of `after` falls inside this axis of `before`."""
    ahead = math.prod(before[:axis])
    return any(ahead < math.prod(after[:at]) < ahead * before[axis] for at in range(len(after)))
