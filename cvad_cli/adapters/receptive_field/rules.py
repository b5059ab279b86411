"""Table of torch operators and the rules that read them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from cvad_cli.adapters.receptive_field import shape_ops, spatial_ops
from cvad_cli.adapters.receptive_field.traced_maps import Call, Map

_OPERATORS: Final[dict[Callable[[Call], Map], str]] = {
    spatial_ops.convolution: "conv2d",
    spatial_ops.transposed: "conv_transpose2d",
    spatial_ops.pooling("max pool"): "max_pool2d max_pool2d_with_indices",
    spatial_ops.pooling("avg pool"): "avg_pool2d",
    spatial_ops.adaptive: "adaptive_avg_pool2d _adaptive_avg_pool2d adaptive_max_pool2d",
    spatial_ops.interpolation: "upsample_nearest2d upsample_bilinear2d",
    spatial_ops.padding: "pad constant_pad_nd reflection_pad2d replication_pad2d",
    spatial_ops.cropping: "slice narrow",
    spatial_ops.shuffled: "pixel_shuffle pixel_unshuffle",
    spatial_ops.reduction: "mean sum amax amin max min var std var_mean std_mean linalg_vector_norm norm logsumexp "
    "prod",
    spatial_ops.normalisation: "batch_norm native_batch_norm instance_norm group_norm layer_norm rms_norm",
    spatial_ops.softmax: "softmax log_softmax _softmax _log_softmax",
    spatial_ops.linear: "linear",
    spatial_ops.product: "matmul bmm mm addmm einsum scaled_dot_product_attention",
    spatial_ops.pointwise: "expand expand_as dropout feature_dropout alias contiguous clone to _to_copy detach "
    "lift_fresh_copy type_as channel_shuffle alpha_dropout feature_alpha_dropout hardswish prelu _prelu_kernel "
    "log_sigmoid logsigmoid tanhshrink softsign float",
    shape_ops.joining: "cat concat stack",
    shape_ops.parting: "chunk split split_with_sizes tensor_split unbind select",
    shape_ops.rolling: "roll",
    shape_ops.reordering: "permute transpose swapaxes",
    shape_ops.unsqueezing: "unsqueeze",
    shape_ops.squeezing: "squeeze",
    shape_ops.reshaping: "view reshape _unsafe_view flatten unflatten view_as reshape_as",
}

RULES: Final = {name: rule for rule, names in _OPERATORS.items() for name in names.split()}
"""The rule of each operator, by its name in torch's schema without the underscore of in-place variants."""


def rule_for(call: Call, target: Any) -> Callable[[Call], Map]:
    """The operator's rule; operators that torch tags as pointwise need none of their own.

    Raises ModelError, naming the submodule and the operator, if there is no rule.
    """
    import torch

    of_two_maps = call.op in {"max", "min"} and "other" in call.args
    if call.op in RULES and not of_two_maps:
        return RULES[call.op]
    plain = getattr(torch.ops.aten, call.op, None)  # the tag is on the variant that does not write in place
    overloads = [target, *(getattr(plain, name) for name in (plain.overloads() if plain else ()))]
    if not any(torch.Tag.pointwise in getattr(overload, "tags", ()) for overload in overloads):
        call.refuse("it is not one of the operators that cvad knows")
    return spatial_ops.pointwise
