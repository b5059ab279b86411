"""Charts are PNG files that say what was measured, written as a whole, without matplotlib's global state."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from cvad_cli.adapters.charts import evaluation as charts
from cvad_cli.errors import ResourceError

TYPES = ["good"] * 6 + ["bent"] * 4 + ["glue"] * 2
SCORES = np.array([1.0, 1.1, 1.2, 1.4, 1.5, 2.2, 1.8, 2.4, 2.6, 3.0, 2.5, 4.0])
DEFECTIVE = np.array(TYPES) != "good"
CHARTS = [
    pytest.param(charts.roc_chart, DEFECTIVE, id="ROC"),
    pytest.param(charts.precision_recall_chart, DEFECTIVE, id="precision-recall"),
    pytest.param(charts.score_histogram, TYPES, id="histogram"),
]


@pytest.fixture
def drawn(monkeypatch):
    """The figure, caught on its way to the file."""
    figures = []
    save = charts.save_figure

    def keep(path, figure):
        figures.append(figure)
        save(path, figure)

    monkeypatch.setattr(charts, "save_figure", keep)
    return figures


def texts(figure):
    from matplotlib.text import Text

    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


@pytest.mark.parametrize(("chart", "labels"), CHARTS)
@pytest.mark.parametrize("threshold", [2.0, 99.0, -99.0])
def test_a_chart_is_an_opaque_image_on_white(tmp_path, chart, labels, threshold):
    chart(tmp_path / "chart.png", SCORES, labels, threshold=threshold, title="grid")
    with Image.open(tmp_path / "chart.png") as image:
        assert image.format == "PNG"
        pixels = np.asarray(image.convert("RGBA"))
    assert (pixels[..., 3] == 255).all()
    assert (pixels[[0, 0, -1, -1], [0, -1, 0, -1]] == 255).all()
    assert min(pixels.shape[:2]) > 400
    assert [path.name for path in tmp_path.iterdir()] == ["chart.png"]


@pytest.mark.parametrize(("chart", "labels"), CHARTS)
def test_a_title_is_drawn_as_it_is_written(tmp_path, drawn, chart, labels):
    chart(tmp_path / "chart.png", SCORES, labels, threshold=2.0, title=r"50 $ \frac{ _x 划痕")
    assert r"50 $ \frac{ _x 划痕" in texts(drawn[0])


def test_roc_chart_states_the_area_and_the_operating_point(tmp_path, drawn):
    charts.roc_chart(tmp_path / "roc.png", SCORES, DEFECTIVE, threshold=2.0, title="grid")
    assert "detector, AUROC 0.9722" in texts(drawn[0])  # 35 of 36 pairs
    assert "threshold 2: recall 83.3%, false alarms 16.7%" in texts(drawn[0])
    marker = drawn[0].axes[0].get_lines()[-1]
    assert (marker.get_xdata()[0], marker.get_ydata()[0]) == pytest.approx((1 / 6, 5 / 6))


def test_precision_recall_chart_states_the_average_and_the_operating_point(tmp_path, drawn):
    charts.precision_recall_chart(tmp_path / "pr.png", SCORES, DEFECTIVE, threshold=2.0, title="grid")
    assert "threshold 2: recall 83.3%, precision 83.3%" in texts(drawn[0])
    assert "chance (50.0% are defective)" in texts(drawn[0])


def test_precision_recall_chart_marks_no_point_when_nothing_is_rejected(tmp_path, drawn):
    charts.precision_recall_chart(tmp_path / "pr.png", SCORES, DEFECTIVE, threshold=4.0, title="grid")
    assert not [text for text in texts(drawn[0]) if text.startswith("threshold")]


def test_histogram_counts_each_type_and_what_lies_above_the_threshold(tmp_path, drawn):
    charts.score_histogram(tmp_path / "scores.png", SCORES, TYPES, threshold=2.2, title="grid")
    rows = drawn[0].axes
    assert [row.get_ylabel() for row in rows] == ["good (6)", "bent (4)", "glue (2)"]
    assert [row.texts[0].get_text() for row in rows] == ["0 of 6 above", "3 of 4 above", "2 of 2 above"]
    for row, images, above in zip(rows, (6, 4, 2), (0, 3, 2), strict=True):
        assert sum(bar.get_height() for bar in row.patches) == images
        assert sum(bar.get_height() for bar in row.patches if bar.get_x() > 2.2 - 1e-9) == above


def test_histogram_of_equal_scores_still_draws_them(tmp_path, drawn):
    charts.score_histogram(tmp_path / "scores.png", [7.0] * 3, ["good"] * 3, threshold=7.0, title="grid")
    assert sum(bar.get_height() for bar in drawn[0].axes[0].patches) == 3


def test_histogram_gathers_the_rarest_of_many_types_in_one_row(tmp_path, drawn):
    types = ["good"] + [f"type {index:02d}" for index in range(40) for _ in range(2)] + ["type 39"]
    charts.score_histogram(tmp_path / "scores.png", np.arange(len(types)), types, threshold=9, title="grid")
    labels = [row.get_ylabel() for row in drawn[0].axes]
    assert len(labels) == 1 + charts.MAX_ROWS
    assert labels[:3] == ["good (1)", "type 39 (3)", "type 00 (2)"]
    assert labels[-1] == "25 other types (50)"


@pytest.mark.parametrize("chart", [charts.roc_chart, charts.precision_recall_chart])
@pytest.mark.parametrize("labels", [np.zeros(12, bool), np.ones(12, bool), np.ones(3, bool)])
def test_a_curve_needs_both_classes(tmp_path, chart, labels):
    with pytest.raises(ValueError, match="scores of good and of defective images"):
        chart(tmp_path / "chart.png", SCORES, labels, threshold=2.0, title="grid")


@pytest.mark.parametrize(("scores", "types"), [([], []), ([1.0, 2.0], ["good"])])
def test_a_histogram_needs_a_type_for_each_score(tmp_path, scores, types):
    with pytest.raises(ValueError, match="n scores and n defect types"):
        charts.score_histogram(tmp_path / "scores.png", scores, types, threshold=2.0, title="grid")


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    path = tmp_path / "file" / "scores.png"
    with pytest.raises(ResourceError, match=r"scores\.png: cannot be written: "):
        charts.score_histogram(path, SCORES, TYPES, threshold=2.0, title="grid")


def test_a_write_that_fails_leaves_nothing_behind(tmp_path):
    (tmp_path / "roc.png").mkdir()
    with pytest.raises(ResourceError, match=r"roc\.png"):
        charts.roc_chart(tmp_path / "roc.png", SCORES, DEFECTIVE, threshold=2.0, title="grid")
    assert [path.name for path in tmp_path.iterdir()] == ["roc.png"]


def test_charts_never_load_pyplot(tmp_path):
    code = (
        "import sys, pathlib; from cvad_cli.adapters.charts import evaluation as charts;"
        "assert 'matplotlib' not in sys.modules;"
        "charts.score_histogram(pathlib.Path(sys.argv[1]), [1.0, 2.0], ['good', 'bent'], threshold=1.5, title='t');"
        "assert 'matplotlib' in sys.modules; assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "scores.png")], check=True)
