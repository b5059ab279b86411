"""What the running network depends on, measured: theory must agree with it, cell by cell and border by border."""

from __future__ import annotations

import importlib
import warnings

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from cvad_cli.adapters.receptive_field.layer_graph import patch_embedding, read_layers
from cvad_cli.adapters.receptive_field.measured_field import AnalysedNetwork, bounded, effective_fields, exact_support
from cvad_cli.core.receptive_field.graph import EMPTY, Box, analyse
from cvad_cli.errors import ModelError


@pytest.fixture(scope="module", autouse=True)
def _anomalib_imported():
    """Importing anomalib warns of its own deprecated parts; only the first import does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        importlib.import_module("anomalib.models.image.efficient_ad.torch_model")
        importlib.import_module("anomalib.models.image.patchcore.torch_model")


@pytest.fixture(autouse=True)
def _seeded():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def theory_and_measurement(
    model: nn.Module, size: tuple[int, int], *, channels=3, cells=None, helped=False, arguments=()
):
    """Boxes of some cells, first by the layer table, then measured: by searching, or `helped` by what to expect."""
    graph = read_layers(model, size, channels=channels, arguments=arguments)
    found = analyse(graph)[graph.outputs[0]]
    rows, cols = found.layer.size
    cells = cells or [(0, 0), found.centre, (rows - 1, cols - 1)]
    theory = [found.box(*cell) for cell in cells]
    return theory, exact_support(
        AnalysedNetwork(model, channels, arguments), size, cells, expected=theory if helped else None
    )


@st.composite
def stacks(draw) -> nn.Module:
    """Random convolutions and poolings, one channel each, both axes on their own."""
    layers: list[nn.Module] = []
    for _ in range(draw(st.integers(1, 5))):
        kernel = draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
        stride = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
        dilation = draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
        room = [draw(st.integers(0, k // 2)) for k in kernel]
        ceil = draw(st.booleans())
        kind = draw(st.sampled_from(["conv", "max", "avg"]))
        if kind == "conv":
            wide = draw(st.tuples(st.integers(0, 4), st.integers(0, 4)))
            layers.append(nn.Conv2d(1, 1, kernel, stride, wide, dilation))
        elif kind == "max":
            layers.append(nn.MaxPool2d(kernel, stride, tuple(room), dilation, ceil_mode=ceil))
        else:
            layers.append(nn.AvgPool2d(kernel, stride, tuple(room), ceil_mode=ceil))
    return nn.Sequential(*layers)


@settings(max_examples=40, deadline=None)
@given(stacks(), st.integers(16, 40), st.integers(16, 40), st.data())
def test_theory_equals_exact_support_on_random_stacks(model, height, width, data):
    try:
        graph = read_layers(model, (height, width), channels=1)
    except ModelError:  # the stack shrinks the image to nothing
        return
    # a dilated maximum over padding alone is -inf, and the next convolution makes NaN of it
    assume(not model(torch.full((1, 1, height, width), 0.5)).isnan().any())
    rows, cols = graph.layers[-1].size
    cells = [(data.draw(st.integers(0, rows - 1)), data.draw(st.integers(0, cols - 1))) for _ in range(2)]
    theory, measured = theory_and_measurement(model, (height, width), channels=1, cells=cells)
    assert measured == theory


class Net(nn.Module):
    """A forward from a function and submodules by name."""

    def __init__(self, forward, **children: nn.Module) -> None:
        super().__init__()
        for name, child in children.items():
            self.add_module(name, child)
        self._forward = forward

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self._forward(self, image)


def conv(*args, **kwargs) -> nn.Conv2d:
    return nn.Conv2d(3, 3, *args, **kwargs)


def u_net(net, image: torch.Tensor) -> torch.Tensor:
    fine = net.fine(image)
    coarse = functional.interpolate(net.coarse(fine), size=fine.shape[-2:], mode="bilinear")
    return torch.cat([fine, coarse], dim=1)


def gated(net, image: torch.Tensor) -> torch.Tensor:
    found = net.conv(image)
    return found * torch.sigmoid(found.mean((2, 3), keepdim=True))


def strip_gated(net, image: torch.Tensor) -> torch.Tensor:
    found = net.conv(image)
    return found * torch.sigmoid(found.mean(3, keepdim=True))


def fine_and_coarse(*, mode: str, **how) -> nn.Module:
    def forward(net, image):
        return net.last(functional.interpolate(net.first(image), mode=mode, **how))

    return Net(forward, first=conv(3, 2), last=conv(3, padding=1))


NETWORKS = {
    "same padding, even kernel": nn.Sequential(conv((4, 3), padding="same"), conv(3, dilation=2, padding="same")),
    "reflected border": nn.Sequential(conv(5, 2, 2, padding_mode="reflect"), conv(3, padding=1)),
    "circular border": nn.Sequential(conv(3, padding=1, padding_mode="circular"), conv(3)),
    "replicated border": nn.Sequential(nn.ReplicationPad2d((3, 0, 1, 2)), conv(3, 2)),
    "padding larger than the kernel": nn.Sequential(conv(3, 2, 5), conv(2, 2, 1)),
    "far padding cropped": nn.Sequential(nn.ZeroPad2d((-2, 4, 1, -3)), conv(3)),
    "transposed": nn.Sequential(conv(3, 2), nn.ConvTranspose2d(3, 3, 4, 2, 1)),
    "transposed with gaps": nn.Sequential(conv(3), nn.ConvTranspose2d(3, 3, 2, 3, output_padding=1)),
    "adaptive pooling": nn.Sequential(conv(3), nn.AdaptiveAvgPool2d((7, 5)), conv(2)),
    "adaptive max pooling": nn.Sequential(conv(3, 2), nn.AdaptiveMaxPool2d((4, 9))),
    "twice as fine, bilinear": fine_and_coarse(mode="bilinear", scale_factor=2),
    "three times as fine, bilinear": fine_and_coarse(mode="bilinear", scale_factor=3),
    "one and a half, bilinear": fine_and_coarse(mode="bilinear", scale_factor=1.5),
    "1.7 times, by its rounded size": fine_and_coarse(mode="bilinear", scale_factor=1.7, recompute_scale_factor=True),
    "to a size, bilinear": fine_and_coarse(mode="bilinear", size=(29, 13)),
    "corners aligned": fine_and_coarse(mode="bilinear", size=(29, 13), align_corners=True),
    "nearest": fine_and_coarse(mode="nearest", size=(29, 13)),
    "a third as fine, bilinear": nn.Sequential(conv(3, padding=1), nn.Upsample(scale_factor=1 / 3, mode="bilinear")),
    "blocks to channels": nn.Sequential(conv(3), nn.PixelUnshuffle(2), nn.Conv2d(12, 12, 3), nn.PixelShuffle(2)),
    "cropped branch": Net(lambda net, x: net.a(x)[:, :, 1:-1, 2:-2] + net.b(x), a=conv(1), b=conv((3, 5))),
    "every second row": Net(lambda net, x: net.a(x)[:, :, 1::2], a=conv(3)),
    "U-net": Net(u_net, fine=conv(3, padding=1), coarse=conv(3, 2, padding=1)),
    "squeeze-excite": Net(gated, conv=conv(3)),
    "squeeze-excite by rows": Net(strip_gated, conv=conv(3)),
    "instance norm": nn.Sequential(conv(3), nn.InstanceNorm2d(3)),
    "batch norm": nn.Sequential(conv(3), nn.BatchNorm2d(3), nn.Dropout(0.5)),
    "softmax over channels": nn.Sequential(conv(3), nn.Softmax2d()),
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
@pytest.mark.parametrize("name", NETWORKS)
def test_theory_equals_exact_support_on_every_kind_of_layer(name):
    theory, measured = theory_and_measurement(NETWORKS[name], (34, 28))
    assert measured == theory


ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish)
ACTIVATIONS += (nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Softsign, nn.LogSigmoid)


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda kind: kind.__name__)
def test_activations_pass_nan_on(activation):
    theory, measured = theory_and_measurement(nn.Sequential(conv(3), activation(), nn.MaxPool2d(3, 2, 1)), (16, 12))
    assert measured == theory


@pytest.mark.parametrize("size", ["Small", "Medium"])
@pytest.mark.parametrize("padding", [False, True], ids=["valid", "padded"])
def test_pdn_sees_33_px_in_steps_of_4_when_measured(size, padding):
    from anomalib.models.image.efficient_ad import torch_model

    model = getattr(torch_model, f"{size}PatchDescriptionNetwork")(out_channels=4, padding=padding)
    at, side = (5, 56) if padding else (0, 40)
    expected = analyse(read_layers(model, (side, side)))["conv4" if size == "Small" else "conv6"]
    cells = [(at, at), (at + 1, at)]
    first, second = exact_support(
        AnalysedNetwork(model), (side, side), cells, expected=[expected.box(*cell) for cell in cells]
    )
    assert [first, second] == [expected.box(*cell) for cell in cells]
    assert (first.bottom - first.top + 1, first.right - first.left + 1) == (33, 33)
    assert (second.top - first.top, second.left - first.left) == (4, 0)


def test_autoencoder_with_its_interpolations_is_measured_as_read():
    from anomalib.models.image.efficient_ad.torch_model import AutoEncoder

    theory, measured = theory_and_measurement(
        AutoEncoder(4, padding=True), (320, 256), arguments=((320, 256),), cells=[(0, 0)], helped=True
    )
    assert measured == theory


def test_first_stage_of_resnet18_is_measured_as_published():
    import timm

    model = timm.create_model("resnet18", pretrained=False, features_only=True, out_indices=(1,))
    published = [Box(48 - 21, 48 - 21, 48 + 21, 48 + 21)]
    assert exact_support(AnalysedNetwork(model, output=0), (96, 96), [(12, 12)], expected=published) == published


@pytest.mark.parametrize(
    ("backbone", "layers", "size"),
    [
        pytest.param("tf_efficientnet_lite0", ["blocks.1", "blocks.2"], (64, 64), id="lite0"),
        pytest.param("tf_efficientnet_lite0", ["blocks.1", "blocks.2"], (61, 52), id="lite0, odd and rounding sizes"),
        pytest.param("resnet18", ["layer1", "layer2"], (72, 56), id="resnet18, rounding sizes"),
    ],
)
def test_patchcore_patches_are_measured_as_read(backbone, layers, size):
    import timm
    from anomalib.models.image.patchcore.torch_model import PatchcoreModel

    model = PatchcoreModel(layers=layers, backbone=backbone, pre_trained=False)
    network = timm.create_model(backbone, pretrained=False, features_only=True, out_indices=(1, 2))
    model.feature_extractor.feature_extractor = network
    theory, measured = theory_and_measurement(patch_embedding(model), size, helped=True)
    assert measured == theory


def test_an_expectation_saves_runs_but_decides_nothing():
    model = nn.Sequential(conv(3, 2), conv(3))
    cells = [(4, 4), (0, 0), (9, 9)]
    searched = exact_support(AnalysedNetwork(model), (25, 25), cells)
    runs = []
    model.register_forward_hook(lambda *_: runs.append(1))
    assert exact_support(AnalysedNetwork(model), (25, 25), cells, expected=searched) == searched
    assert len(runs) == 1 + 5 * len(cells)
    box = searched[0]
    for wrong in (
        Box(box.top - 1, box.left, box.bottom, box.right),
        Box(box.top, box.left, box.bottom, box.right - 1),
        Box(0, 0, 24, 24),
        EMPTY,
    ):
        assert exact_support(AnalysedNetwork(model), (25, 25), cells[:1], expected=[wrong]) == searched[:1]


def test_measuring_leaves_the_module_as_it_was():
    model = nn.Sequential(conv(3), nn.BatchNorm2d(3), nn.Dropout(0.5))
    model[1].eval()
    before = model[1].running_mean.clone()
    exact_support(AnalysedNetwork(model), (12, 12), [(0, 0)])
    effective_fields(
        AnalysedNetwork(model), np.ones((1, 3, 12, 12), np.float32), [(0, 0)], rng=np.random.default_rng(0)
    )
    assert [child.training for child in model] == [True, False, True]
    assert torch.equal(model[1].running_mean, before)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_broken_weights_are_named_before_anything_is_concluded():
    model = nn.Sequential(conv(3))
    model[0].weight.data[0] = torch.nan
    with pytest.raises(ModelError, match="Sequential: gives NaN on a gray image"):
        exact_support(AnalysedNetwork(model), (12, 12), [(0, 0)])


def test_an_output_that_is_no_map_is_refused():
    model = nn.Sequential(conv(3), nn.Flatten())
    with pytest.raises(ModelError, match=r"expected a map \(b, d, rows, cols\) to measure, got Tensor \(1, 300\)"):
        exact_support(AnalysedNetwork(model), (12, 12), [(0, 0)])
    listed = Net(lambda net, x: [net.conv(x)], conv=conv(3))
    with pytest.raises(ModelError, match=r"got list .* say which output is meant"):
        exact_support(AnalysedNetwork(listed), (12, 12), [(0, 0)])


@pytest.mark.parametrize(
    ("image", "field", "measured"),
    [
        pytest.param((8000, 300), (387, 387), (512, 300), id="large fields at most at 512 px"),
        pytest.param((256, 100), (33, 33), (128, 100), id="small fields on a small image"),
        pytest.param((256, 256), (67, 67), (201, 201), id="three fields"),
    ],
)
def test_the_measured_size_is_bounded(image, field, measured):
    assert bounded(image, field) == measured


def test_gradient_energy_of_one_convolution_is_its_squared_kernel():
    model = nn.Conv2d(2, 1, (3, 5), bias=False)
    images = np.random.default_rng(1).normal(size=(2, 2, 9, 11)).astype(np.float32)
    (found,) = effective_fields(AnalysedNetwork(model, channels=2), images, [(4, 3)], rng=np.random.default_rng(0))
    kernel = model.weight.detach()[0].double().square().sum(dim=0).numpy()
    expected = np.zeros((9, 11))
    expected[4:7, 3:8] = kernel / kernel.sum()
    np.testing.assert_allclose(found.energy, expected, atol=1e-9)
    assert (found.cell, found.images) == ((4, 3), 2)


def test_random_signs_average_to_the_energy_of_all_channels():
    model = nn.Conv2d(1, 16, 3, bias=False)
    images = np.zeros((400, 1, 3, 3), np.float32)
    (found,) = effective_fields(AnalysedNetwork(model, channels=1), images, [(0, 0)], rng=np.random.default_rng(0))
    energy = model.weight.detach().double().square().sum(dim=(0, 1)).numpy()
    np.testing.assert_allclose(found.energy, energy / energy.sum(), rtol=0.2)


def test_several_draws_an_image_come_nearer_to_it():
    model = nn.Conv2d(1, 16, 3, bias=False)
    energy = model.weight.detach().double().square().sum(dim=(0, 1)).numpy()
    missed = []
    for draws in (1, 400):
        image = np.zeros((1, 1, 3, 3), np.float32)
        rng = np.random.default_rng(0)
        (found,) = effective_fields(AnalysedNetwork(model, channels=1), image, [(0, 0)], rng=rng, draws=draws)
        missed.append(np.abs(found.energy - energy / energy.sum()).max())
    assert missed[1] < 0.02 < missed[0]


def test_gradient_stays_inside_the_theoretical_field_and_concentrates():
    from anomalib.models.image.efficient_ad.torch_model import SmallPatchDescriptionNetwork

    model = SmallPatchDescriptionNetwork(8)
    images = np.random.default_rng(2).random((2, 3, 64, 64)).astype(np.float32)
    graph = read_layers(model, (64, 64))
    box = analyse(graph)["conv4"].box(4, 4)
    found, again = (
        effective_fields(AnalysedNetwork(model), images, [(4, 4)], rng=np.random.default_rng(0))[0] for _ in range(2)
    )
    assert found.energy[box.top : box.bottom + 1, box.left : box.right + 1].sum() == pytest.approx(1.0)
    assert found.side(0.5) < found.side(0.9) <= found.side(0.95) < 33
    np.testing.assert_array_equal(found.energy, again.energy)


def test_a_forward_without_gradients_is_refused():
    model = Net(torch.no_grad()(lambda net, x: net.conv(x)), conv=conv(3))
    with pytest.raises(ModelError, match="Net: its forward switches gradients off"):
        effective_fields(
            AnalysedNetwork(model), np.ones((1, 3, 8, 8), np.float32), [(0, 0)], rng=np.random.default_rng(0)
        )


def test_a_dead_cell_is_named():
    model = nn.Sequential(conv(3), nn.ReLU())
    model[0].bias.data.fill_(-1e3)
    with pytest.raises(ModelError, match=r"no gradient reaches the image from cell \(1, 1\)"):
        effective_fields(
            AnalysedNetwork(model), np.ones((1, 3, 8, 8), np.float32), [(1, 1)], rng=np.random.default_rng(0)
        )
