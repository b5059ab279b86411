"""Reads any torch module as a graph of layers: kernels, strides, paddings and branches as they run.

No architecture is described by hand: anomalib's and timm's own modules run once on fake tensors.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from cvad_cli.adapters.receptive_field.rules import rule_for
from cvad_cli.adapters.receptive_field.traced_maps import Call, Layers, Map
from cvad_cli.adapters.receptive_field.tracing import Trace, trace
from cvad_cli.core.receptive_field.graph import Graph

if TYPE_CHECKING:
    from anomalib.models.image.patchcore.torch_model import PatchcoreModel
    from torch import nn
    from torch.fx import Node

IMAGE: Final = "image"
"""Name of a graph's first layer, the network's input."""


def read_layers(
    model: nn.Module, image_size: tuple[int, int], *, channels: int = 3, arguments: tuple[Any, ...] = ()
) -> Graph:
    """The layers of `model` as it runs in eval mode on one image of `image_size` (h, w).

    `arguments` follow the image in `forward`: anomalib's autoencoder takes the image size there. The graph's `outputs`
    names the maps that the module returns, in order. Per layer, cost and memory grow with h + w, not with h * w.
    Raises ModelError, naming the submodule and the operator, if the module cannot run or has an unknown operator.
    """
    found = trace(model, image_size, channels, arguments)
    layers = Layers()
    layers.add(IMAGE, IMAGE, image_size, ())
    maps: dict[Node, Map] = {}
    outputs: tuple[str, ...] = ()
    for node in found.nodes:
        sources = [maps[source] for source in node.all_input_nodes if source in maps]
        if node.op == "placeholder":
            maps[node] = Map(IMAGE, _shape(node), (2, 3), only_here=False)
        elif node.op == "output":
            outputs = tuple(source.layer for source in sources)
        elif node.target is operator.getitem and sources:
            maps[node] = sources[0]
        elif node.op == "call_function" and sources:
            call = _call(node, maps, found, layers)
            maps[node] = rule_for(call, node.target)(call)
    stages = {name: maps[node].layer for name, node in found.returned.items() if name and node in maps}
    kept = {name: layer for name, layer in stages.items() if layer in layers.table}
    return Graph(tuple(layers.table.values()), outputs, kept)


def patch_embedding(patchcore: PatchcoreModel) -> nn.Module:
    """A traceable module that turns an image into the patch features that PatchCore compares, (b, d, rows, cols).

    The backbone, the 3x3 pooling and the code that brings layers to one grid are `patchcore`'s own. Submodules keep
    their names in the backbone, such as `layer2` or `blocks.4`.
    """
    from torch import Tensor
    from torch import nn as layers

    class PatchEmbedding(layers.Module):
        def __init__(self) -> None:
            super().__init__()
            for name, child in network.named_children():
                self.add_module(name, child)  # before `backbone`: a module keeps its first name
            self.backbone = network
            self.feature_pooler = patchcore.feature_pooler

        def forward(self, image: Tensor) -> Tensor:
            maps = zip(patchcore.layers, self.backbone(image), strict=True)
            joined: Tensor = patchcore.generate_embedding({name: self.feature_pooler(each) for name, each in maps})
            return joined

    network = patchcore.feature_extractor.feature_extractor
    return PatchEmbedding().eval()


def pooled(network: nn.Module) -> nn.Module:
    """A network whose output maps are averaged over 3x3 cells, as PatchCore averages them (section 3.1)."""
    from torch import Tensor
    from torch import nn as layers

    class Pooled(layers.Module):
        def __init__(self) -> None:
            super().__init__()
            for name, child in network.named_children():
                self.add_module(name, child)
            self.backbone = network
            self.feature_pooler = layers.AvgPool2d(3, 1, 1)

        def forward(self, image: Tensor) -> list[Tensor] | Tensor:
            maps = self.backbone(image)
            if isinstance(maps, Tensor):
                averaged: Tensor = self.feature_pooler(maps)
                return averaged
            return [self.feature_pooler(each) for each in maps]

    return Pooled().eval()


def _call(node: Node, maps: Mapping[Node, Map], found: Trace, layers: Layers) -> Call:
    """The node as a rule takes it: arguments by name, a `Map` for what depends on the image, a shape for weights."""
    from torch.fx.node import map_arg

    def known(source: Node) -> Any:
        return maps[source] if source in maps else _shape(source)

    names = [argument.name for argument in node.target._schema.arguments]  # type: ignore[union-attr] # noqa: SLF001
    arguments = dict(zip(names, map_arg(node.args, known), strict=False)) | map_arg(dict(node.kwargs), known)
    submodule = found.modules.get(node, "")
    return Call(
        op=_base(node),
        args=arguments,
        maps=tuple(maps[source] for source in node.all_input_nodes if source in maps),
        shape=_shape(node),
        submodule=submodule,
        leaf=submodule in found.leaves,
        lone=len(node.users) == 1,
        layers=layers,
    )


def _base(node: Node) -> str:
    """`relu` for aten::relu_."""
    name = str(node.target._schema.name).split("::")[-1]  # type: ignore[union-attr] # noqa: SLF001
    return name.rstrip("_")


def _shape(node: Node) -> tuple[int, ...]:
    """Shape of the tensor that a node returns, or of the first of several; empty for anything else."""
    value = node.meta.get("val")
    while isinstance(value, (list, tuple)) and value:
        value = value[0]
    return tuple(int(n) for n in getattr(value, "shape", ()))
