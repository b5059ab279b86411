"""Layer tables read off running networks: published figures, names, paddings, and refusals that say what to do."""

from __future__ import annotations

import importlib
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from cvad_cli.adapters.receptive_field.layer_graph import patch_embedding, read_layers
from cvad_cli.core.receptive_field.graph import analyse, widest_path
from cvad_cli.core.receptive_field.steps import Field, Window, closed_form, everything
from cvad_cli.errors import ModelError


@pytest.fixture(scope="module", autouse=True)
def _anomalib_imported():
    """Importing anomalib warns of its own deprecated parts; only the first import does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        importlib.import_module("anomalib.models.image.efficient_ad.torch_model")
        importlib.import_module("anomalib.models.image.patchcore.torch_model")


def on_meta(build, **kwargs) -> nn.Module:
    """A network without memory for its weights."""
    with torch.device("meta"):
        return build(**kwargs)


def pdn(size: str, *, padding: bool) -> nn.Module:
    from anomalib.models.image.efficient_ad import torch_model

    kind = {"small": torch_model.SmallPatchDescriptionNetwork, "medium": torch_model.MediumPatchDescriptionNetwork}[
        size
    ]
    return kind(out_channels=8, padding=padding)


@pytest.mark.parametrize("size", ["small", "medium"])
@pytest.mark.parametrize(("padding", "offset", "cells"), [(False, 16.0, 56), (True, 0.0, 64)], ids=["valid", "padded"])
def test_pdn_sees_33_px_in_steps_of_4(size, padding, offset, cells):
    graph = read_layers(pdn(size, padding=padding), (256, 256))
    fields = analyse(graph)
    found = fields[graph.outputs[0]]
    assert found.h == found.w == Field(33, 4.0, offset)
    assert found.layer.size == (cells, cells)
    path = widest_path(fields, graph.outputs[0])
    assert closed_form([step for _, step in path]) == found.h
    assert [name for name, _ in path][:3] == ["conv1", "avgpool1", "conv2"]


# samson-wang's table (gist a6073c18f2adf16e0ab5fb95b53db3e6), made from torchvision's ResNets
RESNETS = {
    "resnet18": (43, 99, 211, 435),
    "resnet34": (59, 179, 547, 899),
    "resnet50": (35, 91, 267, 427),
    "resnet101": (35, 91, 811, 971),
}


@pytest.mark.parametrize("name", RESNETS)
def test_torchvision_resnets_have_the_published_fields(name):
    import torchvision

    graph = read_layers(on_meta(getattr(torchvision.models, name), weights=None), (224, 224))
    fields = analyse(graph)
    stages = [fields[graph.stages[f"layer{at}"]] for at in (1, 2, 3, 4)]
    assert tuple(stage.h.size for stage in stages) == tuple(stage.w.size for stage in stages) == RESNETS[name]
    assert [stage.h.jump for stage in stages] == [4, 8, 16, 32]
    assert all(stage.h.offset == 0 for stage in stages)
    for at in (1, 2, 3, 4):
        path = [step for _, step in widest_path(fields, graph.stages[f"layer{at}"])]
        assert closed_form(path).size == RESNETS[name][at - 1]
    assert "adaptive pooling" in fields[graph.outputs[0]].whole_image_because


@pytest.mark.parametrize(
    ("name", "stage", "field", "jump"),
    [
        # Araujo et al. 2019, table of TF-Slim networks: the same architectures in torchvision and timm
        pytest.param("vgg16", "features.30", 212, 32, id="vgg_16/pool5"),
        pytest.param("alexnet", "features.12", 195, 32, id="alexnet_v2/pool5"),
    ],
)
def test_other_networks_have_the_published_fields(name, stage, field, jump):
    import torchvision

    graph = read_layers(on_meta(getattr(torchvision.models, name), weights=None), (224, 224))
    found = analyse(graph)[graph.stages[stage]]
    assert (found.h.size, found.h.jump) == (field, jump)


def test_dynamic_same_padding_follows_the_size_of_the_image():
    import timm

    model = timm.create_model("tf_efficientnet_lite0", pretrained=False, features_only=True, out_indices=(2, 3))
    even, odd = (analyse(read_layers(model, (side, side))) for side in (256, 255))
    assert even["conv_stem"].row()["padding"] == [[0, 1], [0, 1]]
    assert odd["conv_stem"].row()["padding"] == [[1, 1], [1, 1]]
    assert even["blocks.2.1.add"].h == Field(67, 8.0, 7.0)
    assert even["blocks.4.2.add"].h == Field(339, 16.0, 15.0)
    assert odd["conv_stem"].h.offset == 0.0


def test_autoencoder_sees_the_whole_image_through_its_bottleneck():
    from anomalib.models.image.efficient_ad.torch_model import AutoEncoder

    graph = read_layers(AutoEncoder(8, padding=False), (256, 256), arguments=((256, 256),))
    found = analyse(graph)[graph.outputs[0]]
    assert found.layer.size == (56, 56)
    assert "reaches beyond all borders" in found.whole_image_because
    assert "encoder.enconv6" in graph.stages


@pytest.fixture(scope="module")
def patchcore():
    import timm
    from anomalib.models.image.patchcore.torch_model import PatchcoreModel

    model = PatchcoreModel(layers=["layer2", "layer3"], backbone="resnet18", pre_trained=False)
    model.feature_extractor.feature_extractor = timm.create_model(
        "resnet18", pretrained=False, features_only=True, out_indices=(2, 3)
    )
    return model


def test_patch_embedding_is_what_patchcore_compares(patchcore):
    image = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 3, 64, 96)).astype(np.float32))
    with torch.no_grad():
        ours = patch_embedding(patchcore)(image)
        patchcore.train()
        theirs = patchcore(image)
        patchcore.eval()
    assert ours.shape == (1, 384, 8, 12)
    torch.testing.assert_close(ours.permute(0, 2, 3, 1).reshape(-1, 384), theirs)


def test_patchcore_adds_pooling_and_interpolation_to_the_published_fields(patchcore):
    graph = read_layers(patch_embedding(patchcore), (512, 512))
    fields = analyse(graph)
    found = fields[graph.outputs[0]]
    assert fields[graph.stages["layer2"]].h.size == 99
    assert fields[graph.stages["layer3"]].h.size == 211
    # 3x3 pooling adds two steps of 16 px, interpolation one more: 211 + 32 + 16
    assert (found.h.size, found.h.jump, found.layer.size) == (259, 8.0, (64, 64))
    assert any(layer.kind == "interpolate" for layer in graph.layers)


def test_squeeze_excite_is_named_and_its_local_path_equals_the_plain_network():
    import timm

    fields = {}
    for name in ("resnet18", "seresnet18"):
        graph = read_layers(timm.create_model(name, pretrained=False, features_only=True, out_indices=(1, 2)), (64, 64))
        fields[name] = analyse(graph)[graph.outputs[-1]]
    assert fields["resnet18"].h == fields["seresnet18"].h
    assert fields["resnet18"].whole_image_because == ""
    assert fields["seresnet18"].whole_image_because == "layer1.0.se.global_pool: mean over rows and columns"


class Net(nn.Module):
    """A forward from a function and submodules by name."""

    def __init__(self, forward, **children: nn.Module) -> None:
        super().__init__()
        for name, child in children.items():
            self.add_module(name, child)
        self._forward = forward

    def forward(self, image: torch.Tensor):
        return self._forward(self, image)


def test_padding_of_its_own_becomes_part_of_the_window_that_reads_it():
    model = nn.Sequential(nn.ReflectionPad2d((1, 2, 0, 3)), nn.Conv2d(3, 2, 3, stride=2))
    graph = read_layers(model, (20, 20))
    edge = graph.layers[1].edges[0]
    assert [layer.name for layer in graph.layers] == ["image", "1"]
    assert edge.steps == (
        Window(3, 2, 0, padding_after=3, border="reflect"),
        Window(3, 2, 1, padding_after=2, border="reflect"),
    )


def test_padding_that_others_read_stays_a_layer():
    def forward(net, image):
        padded = functional.pad(image, (1, 1, 1, 1))
        return net.conv(padded), padded

    graph = read_layers(Net(forward, conv=nn.Conv2d(3, 2, 3)), (20, 20))
    assert [layer.name for layer in graph.layers] == ["image", "pad", "conv"]
    assert graph.outputs == ("conv", "pad")


def test_layers_are_named_by_the_submodule_that_runs_them_and_counted():
    block = nn.Sequential(nn.Conv2d(3, 3, 3), nn.ReLU(), nn.MaxPool2d(2))

    def forward(net, image):
        once = net.block(image)
        return functional.avg_pool2d(functional.avg_pool2d(once, 2), 2)

    graph = read_layers(Net(forward, block=block), (64, 64))
    assert [layer.name for layer in graph.layers] == ["image", "block.0", "block.2", "avg_pool", "avg_pool#2"]
    assert graph.stages["block"] == "block.2"


def test_flattening_before_a_linear_head_means_the_whole_image():
    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(2 * 6 * 6, 4))
    graph = read_layers(model, (8, 8))
    found = analyse(graph)[graph.outputs[0]]
    assert found.layer.edges[0].steps == (everything(6, 1), everything(6, 1))
    assert found.whole_image_because == "1: flatten puts rows and columns into one axis"


def test_layouts_are_followed_through_permutations_and_splits():
    def forward(net, image):
        moved = net.conv(image).permute(0, 2, 3, 1)
        normed = net.linear(functional.layer_norm(moved, (4,)))
        left, right = normed.permute(0, 3, 1, 2).chunk(2, dim=1)
        stacked = torch.stack([left, right], dim=1).flatten(1, 2)
        return net.last(stacked.unsqueeze(0).squeeze(0))

    model = Net(forward, conv=nn.Conv2d(3, 4, 3), linear=nn.Linear(4, 4), last=nn.Conv2d(4, 1, (3, 1)))
    graph = read_layers(model, (20, 24))
    found = analyse(graph)["last"]
    assert (found.h.size, found.w.size, found.layer.size) == (5, 3, (16, 22))
    assert found.whole_image_because == ""


@pytest.mark.parametrize(
    ("forward", "said"),
    [
        pytest.param(lambda net, x: torch.roll(x, 1, dims=2), "operator roll .* shifted round the border", id="roll"),
        pytest.param(lambda net, x: torch.cat([x, x], dim=2), "operator cat .* joined along rows", id="cat along rows"),
        pytest.param(lambda net, x: x.view(1, 3, 4, 5, 20), r"reshaping \(1, 3, 20, 20\) .* into pieces", id="windows"),
        pytest.param(lambda net, x: x.cumsum(dim=2), "operator cumsum .* not one of the operators", id="unknown"),
        pytest.param(lambda net, x: x @ x, "operator matmul .* matrix product between cells", id="matmul"),
        pytest.param(lambda net, x: net.row(x), "row: operator linear .* along rows", id="linear on rows"),
        pytest.param(lambda net, x: x.mean(dim=2), "operator mean .* keepdim=True", id="rows dropped alone"),
        pytest.param(lambda net, x: functional.interpolate(x, 9, mode="bicubic"), "upsample_bicubic2d", id="bicubic"),
    ],
)
def test_unsupported_operators_are_refused_by_name(forward, said):
    with pytest.raises(ModelError, match=said):
        read_layers(Net(forward, row=nn.Linear(20, 5)), (20, 20))


def test_the_submodule_of_an_unsupported_operator_is_named():
    inner = nn.Sequential(nn.Conv2d(3, 3, 1), Net(lambda net, x: torch.roll(x, 2, dims=-1)))
    with pytest.raises(ModelError, match=r"^stem\.1: operator roll"):
        read_layers(Net(lambda net, x: net.stem(x), stem=inner), (20, 20))


def test_control_flow_on_pixel_values_is_refused():
    model = Net(lambda net, x: net.conv(x) if x.sum() > 0 else x, conv=nn.Conv2d(3, 3, 3))
    with pytest.raises(ModelError, match="Net: stopped in its own forward at 20 x 20 px"):
        read_layers(model, (20, 20))


def test_a_image_too_small_for_the_network_is_refused_with_the_submodule():
    with pytest.raises(ModelError, match=r"stopped in submodule conv2 at 8 x 8 px: .*Kernel size"):
        read_layers(pdn("small", padding=False), (8, 8))


def test_huge_images_cost_no_memory_and_absurd_ones_are_refused():
    graph = read_layers(pdn("small", padding=False), (8192, 4096))
    found = analyse(graph)[graph.outputs[0]]
    assert found.h == Field(33, 4.0, 16.0)
    assert found.layer.size == (2040, 1016)
    with pytest.raises(ModelError, match="100000 x 32: expected sides from 1 to 16384 pixels"):
        read_layers(pdn("small", padding=False), (100_000, 32))


def test_the_module_is_left_as_it_was():
    model = nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3), nn.Dropout(0.5))
    model[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    read_layers(model, (20, 20))
    assert [child.training for child in model] == [True, False, True]
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any(child._forward_hooks or child._forward_pre_hooks for child in model.modules())
