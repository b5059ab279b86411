"""Every chart draws its title as it is written: a run's own name may hold a dollar or Chinese letters."""

from __future__ import annotations

import numpy as np
import pytest
from test_receptive_field_charts import SMALL, energy, fields, gray_image

from cvad_cli.adapters.charts import benchmark, evaluation, receptive_field
from cvad_cli.core.receptive_field.coverage import View
from cvad_cli.core.receptive_field.graph import Box

TITLE = r"50 $ \frac{ _x $ 划痕"
SCORES, TYPES = np.arange(4.0), ["good", "good", "bent", "bent"]
DEFECTIVE = np.array([False, False, True, True])
STAGES = {name: {"mean_ms": 1.0, "p95_ms": 2.0} for name in ("decode", "whole")}
GROWTH = {"image_size": [{"value": side, "ms_per_image": side / 9, "memory_mb": side} for side in (128, 256)]}
BIN = {"from": 0.9, "to": 1.0, "accuracy": 0.8, "confidence": 0.9, "images": 5}
RELIABILITY = {"expected_calibration_error": 0.1, "bins": [BIN]}
CHARTS = {
    "ROC": lambda path, title: evaluation.roc_chart(path, SCORES, DEFECTIVE, threshold=2.0, title=title),
    "precision": lambda path, title: evaluation.precision_recall_chart(
        path, SCORES, DEFECTIVE, threshold=2.0, title=title
    ),
    "histogram": lambda path, title: evaluation.score_histogram(path, SCORES, TYPES, threshold=2.0, title=title),
    "confusion": lambda path, title: evaluation.confusion_chart(path, np.eye(2, dtype=int), ["a", "b"], title=title),
    "reliability": lambda path, title: evaluation.reliability_chart(path, RELIABILITY, title=title),
    "nested fields": lambda path, title: receptive_field.nested_fields(path, gray_image(), fields(SMALL), title=title),
    "effective field": lambda path, title: receptive_field.effective_field_chart(
        path, energy(), Box(30, 30, 62, 62), title=title
    ),
    "coverage": lambda path, title: receptive_field.coverage_curves(
        path, View((33, 33), (4, 4), (256, 256), (1024, 1024)), title=title
    ),
    "stages": lambda path, title: benchmark.stages_chart(path, STAGES, title=title),
    "growth": lambda path, title: benchmark.growth_chart(path, GROWTH, title=title),
}


@pytest.mark.parametrize("name", CHARTS)
def test_a_title_is_drawn_as_it_is_written(tmp_path, monkeypatch, name):
    from matplotlib.figure import Figure

    drawn, save = [], Figure.savefig

    def keep(self, *args, **options):
        drawn.append(self)
        save(self, *args, **options)

    monkeypatch.setattr(Figure, "savefig", keep)
    CHARTS[name](tmp_path / "chart.png", TITLE)
    assert drawn[0].get_suptitle().splitlines()[0] == TITLE
    assert [path.name for path in tmp_path.iterdir()] == ["chart.png"]
