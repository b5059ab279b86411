"""Receptive fields on paper: recursion, closed form, graphs against brute force, and what follows for defects."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from cvad_cli.core.receptive_field.coverage import View, options, view_of
from cvad_cli.core.receptive_field.effective import EffectiveField, fit_gaussian
from cvad_cli.core.receptive_field.graph import Box, Edge, Graph, Layer, analyse, widest_path
from cvad_cli.core.receptive_field.steps import (
    Field,
    Span,
    Window,
    closed_form,
    everything,
    growth,
    interpolated,
    pooled_to,
    through,
    transposed,
)
from cvad_cli.errors import ModelError

VGG_BLOCK = [Window(3, padding=1)] * 2 + [Window(2, 2)]
VGG_DEEP_BLOCK = [Window(3, padding=1)] * 3 + [Window(2, 2)]
VGG16 = VGG_BLOCK * 2 + VGG_DEEP_BLOCK * 3
ALEXNET_V2 = [Window(11, 4), Window(3, 2), Window(5, padding=2), Window(3, 2)]
ALEXNET_V2 += [Window(3, padding=1)] * 3 + [Window(3, 2)]
SMALL_PDN = [Window(4), Window(2, 2), Window(4), Window(2, 2), Window(3), Window(4)]


@pytest.mark.parametrize(
    ("windows", "field"),
    [
        pytest.param([], Field(1, 1, 0.0), id="a pixel sees itself"),
        pytest.param([Window(2, 2)] * 3, Field(8, 8, 3.5), id="three halvings tile the input"),
        pytest.param([Window(3, dilation=4)], Field(9, 1, 4.0), id="dilation spreads the taps"),
        pytest.param([Window(1, 2), Window(3)], Field(5, 2, 2.0), id="a stride skips pixels"),
        pytest.param([Window(3, padding=1)] * 5, Field(11, 1, 0.0), id="same padding keeps the first centre"),
        pytest.param(SMALL_PDN, Field(33, 4, 16.0), id="EfficientAD's small PDN sees 33 px in steps of 4"),
        # Araujo et al. 2019 publish field, stride and padding P; the first centre is (field - 1) / 2 - P
        pytest.param(VGG16, Field(212, 32, 211 / 2 - 90), id="VGG-16 pool5: 212, 32, padding 90"),
        pytest.param(ALEXNET_V2, Field(195, 32, 194 / 2 - 64), id="AlexNet v2 pool5: 195, 32, padding 64"),
    ],
)
def test_field_grows_by_kernel_times_step(windows, field):
    assert through(windows) == field
    assert closed_form(windows) == field


def test_growth_says_what_each_layer_adds():
    assert growth(SMALL_PDN) == (3, 1, 6, 2, 8, 12)


WINDOWS = st.builds(
    Window,
    kernel=st.integers(1, 5),
    stride=st.integers(1, 3),
    padding=st.integers(0, 2),
    dilation=st.integers(1, 2),
    padding_after=st.none() | st.integers(0, 2),
    ceil_mode=st.booleans(),
)


@settings(deadline=None)
@given(st.lists(WINDOWS, max_size=7))
def test_recursion_and_closed_form_agree(windows):
    assert through(windows) == closed_form(windows)


@pytest.mark.parametrize(
    ("window", "n", "cells"),
    [
        pytest.param(Window(4, padding=3), 256, 259, id="padding of three round a kernel of four"),
        pytest.param(Window(3, 2), 8, 3, id="the remainder is dropped"),
        pytest.param(Window(3, 2, ceil_mode=True), 8, 4, id="ceil mode keeps it"),
        pytest.param(Window(2, 2, 1, ceil_mode=True), 5, 3, id="ceil mode opens no window in the far padding"),
        pytest.param(Window(3, 2, 0, padding_after=1), 256, 128, id="TensorFlow's same on an even side"),
        pytest.param(Window(1, 1, -2, padding_after=-3), 10, 5, id="negative padding crops"),
        pytest.param(Window(5), 4, 0, id="too small a map gives nothing"),
    ],
)
def test_map_sizes(window, n, cells):
    assert window.cells(n) == cells


@pytest.mark.parametrize(
    ("step", "taps"),
    [
        pytest.param(interpolated(2, 4), [[-1, 0], [0, 1], [0, 1], [1, 2]], id="twice as fine"),
        pytest.param(interpolated(4, 2), [[0, 1], [2, 3]], id="half as fine"),
        pytest.param(interpolated(2, 6), [[-1, 0], [0], [0, 1], [0, 1], [1], [1, 2]], id="three times as fine"),
        pytest.param(interpolated(6, 2), [[1], [4]], id="a third as fine hits cells exactly"),
        pytest.param(interpolated(3, 5, align_corners=True), [[0], [0, 1], [1], [1, 2], [2]], id="corners aligned"),
        pytest.param(interpolated(2, 5, linear=False), [[0], [0], [0], [1], [1]], id="nearest"),
        pytest.param(pooled_to(5, 2), [[0, 1, 2], [2, 3, 4]], id="adaptive windows overlap"),
        pytest.param(everything(3, 2), [[0, 1, 2], [0, 1, 2]], id="everything"),
        pytest.param(transposed(2, Window(3, 2, 1)), [[0], [0, 1], [1]], id="transposed"),
        pytest.param(transposed(2, Window(1, 2)), [[0], [], [1]], id="transposed, with gaps"),
    ],
)
def test_steps_read_these_cells(step, taps):
    found, counts = step.taps(np.arange(step.size))
    assert [row[mask].tolist() for row, mask in zip(found, counts, strict=True)] == taps


def chain(n: int, steps) -> Graph:
    layers = [Layer("image", "image", (n, n))]
    for at, step in enumerate(steps):
        size = step.cells(layers[-1].size[0])
        layers.append(Layer(f"layer{at}", "step", (size, size), (Edge(layers[-1].name, (step, step)),)))
    return Graph(tuple(layers), (layers[-1].name,))


@settings(deadline=None)
@given(st.lists(WINDOWS, min_size=1, max_size=5))
def test_a_graph_without_branches_is_the_recursion(windows):
    graph = chain(300, windows)
    assume(min(layer.size[0] for layer in graph.layers) > 0)
    found = analyse(graph)[graph.outputs[0]]
    assert found.h == through(windows) == found.w
    assert [step for _, step in widest_path(analyse(graph), graph.outputs[0])] == [w for w in windows if w != Window(1)]


SPANS = st.one_of(
    st.builds(lambda m, linear: lambda n: interpolated(n, m, linear=linear), st.integers(1, 30), st.booleans()),
    st.builds(lambda m: lambda n: pooled_to(n, m), st.integers(1, 12)),
)


def brute_force(n: int, steps) -> list[set[int]]:
    """Pixels of every cell, from the definitions: sets instead of intervals, and loops instead of tables."""
    seen = [{i} for i in range(n)]
    for step in steps:
        cells = []
        for i in range(step.cells(len(seen))):
            if isinstance(step, Window):
                at = [i * step.stride - step.padding + step.dilation * t for t in range(step.kernel)]
                at = [k for k in at if 0 <= k < len(seen)]
            else:
                at = [min(max(k, 0), len(seen) - 1) for k in reads(step, i)]
            cells.append(set().union(*(seen[k] for k in at)))
        seen = cells
    return seen


def reads(step: Span, i: int) -> list[int]:
    (a, b, d), (_, e, _) = step.first, step.last
    return list(range((a * i + b) // d, (a * i + e) // d + 1))


@settings(deadline=None)
@given(st.integers(20, 60), st.lists(WINDOWS | SPANS, min_size=1, max_size=5))
def test_boxes_are_the_hull_of_all_paths(n, plan):
    steps, cells = [], n
    for item in plan:
        step = item if isinstance(item, Window) else item(cells)
        if step.cells(cells) < 1:
            break
        steps.append(step)
        cells = step.cells(cells)
    graph = chain(n, steps)
    found = analyse(graph)[graph.outputs[0]]
    for (first, last), pixels in zip(found.seen_h.tolist(), brute_force(n, steps), strict=True):
        assert (first, last) == (min(pixels), max(pixels)) if pixels else last < first


def test_interpolation_between_layers_widens_the_field_by_one_coarse_step():
    graph = chain(64, [Window(3, 1, 1), Window(2, 2), Window(2, 2), interpolated(16, 32)])
    found = analyse(graph)
    coarse, fine = found["layer2"].h, found["layer3"].h
    assert coarse == Field(6, 4, 1.5)
    assert (fine.size, fine.jump, fine.offset) == (6 + 4, 2.0, 1.5 - 2.0)


def two_branches(other: Window, join: tuple[int, int] = (32, 32)) -> Graph:
    return Graph(
        (
            Layer("image", "image", (64, 64)),
            Layer("wide", "conv", (32, 32), (Edge("image", (Window(7, 2, 3), Window(7, 2, 3))),)),
            Layer("other", "conv", join, (Edge("image", (other, other)),)),
            Layer("sum", "add", join, (Edge("wide"), Edge("other"))),
        ),
        ("sum",),
    )


def test_branches_are_joined_by_their_union():
    found = analyse(two_branches(Window(3, 2, 0, padding_after=5)))["sum"]
    assert found.h == Field(7, 2.0, 0.0)  # -3..3 and 0..2
    assert found.widest.parent == "wide"
    assert analyse(two_branches(Window(9, 2, 1, padding_after=6)))["sum"].h == Field(11, 2.0, 2.0)  # -3..3 and -1..7


def test_branches_of_different_pace_are_refused_by_name():
    with pytest.raises(ModelError, match=r"sum \(add\): its branches wide and other step 2 and 1 px a cell"):
        analyse(two_branches(Window(33)))


def test_a_image_too_small_for_the_graph_is_refused_by_the_layer():
    with pytest.raises(ModelError, match=r"layer1 \(step\): no cell is left of an image of \(8, 8\) px"):
        analyse(chain(8, [Window(3, 2), Window(5)]))


def test_squeeze_excite_sees_the_whole_image_and_its_local_path_is_kept():
    graph = Graph(
        (
            Layer("image", "image", (40, 30)),
            Layer("conv", "conv", (40, 30), (Edge("image", (Window(5, padding=2), Window(3, padding=1))),)),
            Layer("gate", "pool", (1, 1), (Edge("conv", (everything(40, 1), everything(30, 1)), "mean over all"),)),
            Layer("scaled", "mul", (40, 30), (Edge("conv"), Edge("gate", (everything(1, 40), everything(1, 30))))),
            Layer("next", "conv", (38, 28), (Edge("scaled", (Window(3), Window(3))),)),
        ),
        ("next",),
    )
    found = analyse(graph)
    assert found["conv"].whole_image_because == ""
    assert found["gate"].whole_image_because == found["next"].whole_image_because == "gate: mean over all"
    assert found["gate"].h == Field(40, 0.0, 19.5)
    assert (found["next"].h, found["next"].w) == (Field(7, 1.0, 1.0), Field(5, 1.0, 1.0))
    assert found["next"].box(0, 0) == Box(0, 0, 39, 29)
    assert found["conv"].box(0, 29) == Box(0, 28, 2, 29)
    assert found["next"].row()["kernel"] == [3, 3]
    assert found["next"].nearest(20, 14) == (19, 13)


def test_a_field_larger_than_the_image_says_so():
    graph = chain(16, [Window(33, padding=16)])
    assert analyse(graph)["layer0"].whole_image_because == "its field of 33 x 33 px reaches beyond all borders"
    assert analyse(chain(16, [Window(5, padding=2)]))["layer0"].whole_image_because == ""


def lattice_counts(view: View, side: float) -> tuple[int, int]:
    """Fewest cells that see all of a defect, and whose centre it covers, over all its positions: by trying them."""
    wholes, hits = [], []
    for axis in (0, 1):
        r, j = view.field[axis], view.stride[axis]
        centres = np.arange(-60, 60) * j
        starts = np.arange(0, 1, 1 / 1024) * j + 1e-7
        low, high = centres[None] - r / 2, centres[None] + r / 2
        wholes.append(int(((low <= starts[:, None]) & (starts[:, None] + side <= high)).sum(axis=1).min()))
        inside = (starts[:, None] <= centres[None]) & (centres[None] <= starts[:, None] + side)
        hits.append(int(inside.sum(axis=1).min()))
    return wholes[0] * wholes[1], hits[0] * hits[1]


@pytest.mark.parametrize("side", [1.5, 8.0, 15.9, 16.1, 31.0, 40.0, 61.0, 99.0, 131.0, 150.0])
def test_sure_counts_are_the_worst_of_all_positions(side):
    view = View((33, 21), (4, 2), (256, 256), (1024, 2048))
    assert (view.cells_whole(side), view.cells_hit(side)) == lattice_counts(view, side)


@pytest.mark.parametrize("side", [5.0, 50.0, 110.0, 118.0, 132.0, 140.0, 300.0])
def test_shares_are_the_best_cell_at_the_worst_and_best_position(side):
    view = View((33, 33), (4, 4), (256, 256), (1024, 1024))
    shifts = np.linspace(0, view.stride[0], 401)[:, None] - np.arange(-5, 6) * view.stride[0]
    r = view.field[0]
    overlap = np.clip(np.minimum(shifts + side / 2, r / 2) - np.maximum(shifts - side / 2, -r / 2), 0, None).max(axis=1)
    seen = (overlap.min() / side) ** 2, (overlap.max() / side) ** 2
    filled = (overlap.min() / r) ** 2, (overlap.max() / r) ** 2
    assert view.share_seen(side) == pytest.approx(seen, abs=1e-9)
    assert view.share_filled(side) == pytest.approx(filled, abs=1e-9)


def test_pdn_at_256_on_a_1024_image_in_pixels_and_millimetres():
    view = View((33, 33), (4, 4), (256, 256), (1024, 1024), pixel_size_mm=0.05)
    assert (view.field, view.stride) == ((132.0, 132.0), (16.0, 16.0))
    assert view.largest_whole() == 29 * 4  # 33 - 4, in original pixels
    assert view.largest_whole(4) == 25 * 4
    assert (view.smallest_hit(), view.smallest_hit(4), view.smallest_hit(5)) == (16.0, 32.0, 48.0)
    assert view.millimetres(view.field[0]) == pytest.approx(6.6)
    assert View((33, 33), (4, 4), (256, 256), (256, 256)).millimetres(10) is None


@settings(deadline=None)
@given(st.integers(3, 60), st.integers(1, 8), st.integers(1, 6))
def test_largest_and_smallest_defect_are_limits(field, jump, cells):
    view = View((field, field + 4), (jump, jump), (256, 128), (512, 512))
    smallest, largest = view.smallest_hit(cells), view.largest_whole(cells)
    assert view.cells_hit(smallest) >= cells > view.cells_hit(smallest * 0.999)
    assert largest == 0 or view.cells_whole(largest) >= cells
    assert view.cells_whole(largest * 1.001 + 0.001) < cells


def test_one_cell_for_the_whole_image_sees_every_defect():
    graph = chain(32, [everything(32, 1)])
    view = view_of(analyse(graph)["layer0"], (32, 32), (64, 64))
    assert (view.cells_whole(10.0), view.cells_whole(64.0), view.cells_whole(65.0)) == (1, 1, 0)
    assert view.share_seen(10.0)[1] == 1.0


def test_options_mend_what_is_wrong_and_nothing_else():
    view = View((33, 33), (4, 4), (256, 256), (1024, 1024))
    deep, shallow = View((99, 99), (8, 8), (256, 256), (1024, 1024)), View((5, 5), (1, 1), (256, 256), (1024, 1024))
    layers = {"deep": deep, "shallow": shallow}
    assert options(view, layers, defect=60.0) == []
    small = {option.change: option for option in options(view, layers, defect=8.0)}
    assert set(small) == {"image_size 512 x 512", "2 x 2 tiles", "take layer shallow"}
    assert all(option.view.cells_hit(8.0) >= 1 for option in small.values())
    assert small["2 x 2 tiles"].cost == small["image_size 512 x 512"].cost == 4.0
    large = {option.change: option for option in options(view, layers, defect=200.0)}
    assert set(large) == {"image_size 128 x 128", "take layer deep"}
    assert all(option.view.cells_whole(200.0) >= 1 for option in large.values())


def test_options_without_a_defect_halve_the_step_and_warn_of_empty_enlargement():
    found = options(View((33, 33), (4, 4), (256, 256), (300, 300)), {})
    assert [option.view.smallest_hit() for option in found] == pytest.approx([300 / 512 * 4, 150 / 256 * 4])
    assert "larger than the camera's image" in found[0].note
    assert "not more detail" in found[1].note


@pytest.mark.parametrize("wrong", [{"field_px": (0, 3)}, {"pixel_size_mm": -1.0}, {"original_size": (0, 10)}])
def test_a_view_without_extent_is_refused(wrong):
    right = {"field_px": (3, 3), "jump_px": (1, 1), "image_size": (9, 9), "original_size": (9, 9)}
    with pytest.raises(ValueError, match="above 0"):
        View(**{**right, **wrong})


def bell(h: int, w: int, centre: tuple[float, float], sigma: tuple[float, float]) -> np.ndarray:
    rows, cols = (
        np.exp(-((np.arange(n) - c) ** 2) / (2 * s**2)) for n, c, s in zip((h, w), centre, sigma, strict=True)
    )
    gradient = np.outer(rows, cols)
    return gradient**2 / (gradient**2).sum()


def test_gaussian_of_the_gradient_is_found_from_its_energy():
    effective = EffectiveField((8, 8), bell(101, 121, (50.0, 57.5), (6.0, 9.0)), 1)
    rows, cols = effective.gaussian()
    assert (rows.centre, rows.sigma, rows.explained) == pytest.approx((50.0, 6.0, 1.0), abs=1e-4)
    assert (cols.centre, cols.sigma, cols.explained) == pytest.approx((57.5, 9.0, 1.0), abs=1e-4)
    assert effective.centre == pytest.approx((50.0, 57.5))


def test_shares_of_energy_as_areas_and_squares():
    flat = np.zeros((30, 30))
    flat[5:15, 10:20] = 1 / 100
    effective = EffectiveField((0, 0), flat, 1)
    assert [effective.area(share) for share in (0.5, 0.9, 1.0)] == [50, 90, 100]
    single = np.zeros((9, 9))
    single[3, 4], single[3, 6] = 0.95, 0.05
    assert [EffectiveField((0, 0), single, 1).side(share) for share in (0.5, 0.95, 0.96)] == [1, 1, 5]


def test_energy_that_is_no_distribution_is_refused():
    with pytest.raises(ValueError, match="sums to 1"):
        EffectiveField((0, 0), np.ones((4, 4)), 1)


def test_a_single_spike_has_a_narrow_bell():
    profile = np.zeros(21)
    profile[7] = 3.0
    found = fit_gaussian(profile)
    assert found.centre == pytest.approx(7.0, abs=0.05)
    assert found.sigma < 0.5


def test_paces_multiply_exactly_where_sizes_do_not_divide():
    graph = chain(264, [Window(2, 2)] * 3 + [interpolated(33, 64), interpolated(64, 33)])
    assert Fraction(analyse(graph)["layer4"].h.jump).limit_denominator(1000) == 8
