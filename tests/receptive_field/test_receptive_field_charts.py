"""Images of receptive fields: whole files on white ground that show what they are given."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from cvad_cli.adapters.charts.receptive_field import MAX_BOXES, coverage_curves, effective_field_chart, nested_fields
from cvad_cli.core.receptive_field.coverage import View
from cvad_cli.core.receptive_field.effective import EffectiveField
from cvad_cli.core.receptive_field.graph import Box, Edge, Graph, Layer, LayerField, analyse
from cvad_cli.core.receptive_field.steps import Window
from cvad_cli.errors import ResourceError


def fields(windows: list[Window], side: int = 96) -> dict[str, LayerField]:
    layers = [Layer("image", "image", (side, side))]
    for at, window in enumerate(windows):
        size = window.cells(layers[-1].size[0])
        layers.append(Layer(f"layer{at}", "conv", (size, size), (Edge(layers[-1].name, (window, window)),)))
    found = analyse(Graph(tuple(layers), (layers[-1].name,)))
    return {name: layer for name, layer in found.items() if name != "image"}


def energy(side: int = 96) -> EffectiveField:
    bell = np.exp(-((np.arange(side) - 48.0) ** 2) / 30)
    square = np.outer(bell, bell)
    return EffectiveField((6, 6), square / square.sum(), 3)


def gray_image(side: int = 96) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (side, side, 3), dtype=np.uint8)


SMALL = [Window(3), Window(2, 2), Window(3)]
LARGE = [Window(7, 2, 3), *[Window(3, padding=1)] * 30]
CHARTS = {
    "small fields": lambda path: nested_fields(path, gray_image(), fields(SMALL), title="small"),
    "fields beyond the image": lambda path: nested_fields(path, gray_image(), fields(LARGE), title="large"),
    "heat": lambda path: effective_field_chart(path, energy(), Box(30, 30, 62, 62), title="heat"),
    "heat of all of the image": lambda path: effective_field_chart(path, energy(), Box(0, 0, 95, 95), title="heat"),
    "coverage in px": lambda path: coverage_curves(path, View((33, 33), (4, 4), (256, 256), (1024, 1024)), title="px"),
    "coverage in mm": lambda path: coverage_curves(
        path, View((33, 33), (4, 4), (256, 256), (1024, 768), 0.05), title="mm", defect=40.0
    ),
    "coverage where no cell sees a defect whole": lambda path: coverage_curves(
        path, View((3, 3), (4, 4), (64, 64), (64, 64)), title="gaps"
    ),
}


@pytest.mark.parametrize("name", CHARTS)
def test_charts_are_opaque_on_white_and_leave_nothing_behind(tmp_path, name):
    path = tmp_path / "new" / "chart.png"
    CHARTS[name](path)
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGBA"))
    assert (pixels[..., 3] == 255).all()
    assert (pixels[[0, 0, -1, -1], [0, -1, 0, -1], :3] == 255).all()
    assert len(np.unique(pixels.reshape(-1, 4), axis=0)) > 20
    assert [item.name for item in path.parent.iterdir()] == ["chart.png"]


def test_nested_fields_are_drawn_in_colours_of_their_own_one_for_each_size(tmp_path):
    from matplotlib import colormaps

    gray = np.full((96, 96, 3), 128, np.uint8)
    repeated = [Window(3), Window(1), Window(1), Window(5)]
    nested_fields(tmp_path / "fields.png", gray, fields(repeated), title="two sizes")
    with Image.open(tmp_path / "fields.png") as image:
        seen = {tuple(colour) for colour in np.asarray(image.convert("RGB")).reshape(-1, 3).tolist()}
    ends = [tuple(int(255 * c + 0.5) for c in colormaps["plasma"](share)[:3]) for share in (0.86, 0.0)]
    assert set(ends) <= seen
    middle = tuple(int(255 * c + 0.5) for c in colormaps["plasma"](0.43)[:3])
    assert middle not in seen


def test_more_fields_than_can_be_told_apart_are_thinned_out():
    from cvad_cli.adapters.charts.receptive_field import _chosen

    chosen = _chosen(fields(LARGE))
    assert len(chosen) == MAX_BOXES
    first, *_, last = chosen
    assert (first, last) == ("layer0", f"layer{len(LARGE) - 1}")


def test_a_field_is_drawn_where_the_cell_nearest_to_the_middle_lies():
    from cvad_cli.adapters.charts.receptive_field import _nominal

    found = fields([Window(3), Window(4, 4)])["layer1"]
    assert (found.h.size, found.h.jump, found.h.offset) == (6, 4.0, 2.5)
    assert _nominal(found, 47.5, 47.5) == (43.5, 43.5, 49.5, 49.5)


def test_charts_that_cannot_be_written_name_the_file(tmp_path):
    (tmp_path / "taken").write_text("a file where a folder should be")
    with pytest.raises(ResourceError, match=r"taken/chart\.png: cannot be written"):
        coverage_curves(tmp_path / "taken" / "chart.png", View((33, 33), (4, 4), (256, 256), (256, 256)), title="x")
