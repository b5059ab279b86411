"""What an evaluation draws while the test set streams past: all images small, for the report, and some larger."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np

from cvad_cli.adapters.images import read_image
from cvad_cli.adapters.panels import anomaly_panel
from cvad_cli.assembly.pictures import View
from cvad_cli.assembly.report_pictures import ReportPictures
from cvad_cli.config.schema import RunConfig
from cvad_cli.records import Calibration, ImageRecord, Prediction

PANELS_NAME: Final = "pictures"
REPORT_PICTURES_NAME: Final = "report_pictures"


class Drawer:
    """Takes every test image once, in order."""

    def __init__(
        self,
        folder: Path,
        settings: RunConfig,
        calibration: Calibration,
        records: Sequence[ImageRecord],
        *,
        portable: bool = False,
    ) -> None:
        self.drawn = 0
        """Side-by-side pictures so far."""
        self.report: ReportPictures | None = None
        self._folder = folder / PANELS_NAME
        self._max_megapixels = settings.data.max_megapixels
        self._calibration = calibration
        self._wanted = _spread(records, settings.evaluation.pictures)
        layout = "portable" if portable else settings.evaluation.report
        if layout != "none":
            self.report = ReportPictures(
                folder / REPORT_PICTURES_NAME,
                images=len(records),
                pixel_threshold=calibration.pixel_threshold,
                portable=layout == "portable",
            )

    @property
    def view(self) -> View | None:
        """What makes of a picture what the report needs of it; None where no report is wanted."""
        return None if self.report is None else self.report.view

    def offer(
        self, record: ImageRecord, view: np.ndarray | None, prediction: Prediction, mask: np.ndarray | None
    ) -> None:
        """Draw what is wanted of one image; `view` is what that property's function gave."""
        if self.report is not None and view is not None:
            self.report.add(record, view, prediction, mask)
        if record.key in self._wanted:
            self._draw_panel(record, prediction, mask)

    def _draw_panel(self, record: ImageRecord, prediction: Prediction, mask: np.ndarray | None) -> None:
        image = read_image(record.path, max_megapixels=self._max_megapixels)
        verdict = "rejected" if prediction.score > self._calibration.threshold else "passed"
        anomaly_panel(
            self._folder / (record.key if record.key.endswith(".png") else f"{record.key}.png"),
            image,
            prediction.anomaly_map,
            mask,
            threshold=self._calibration.pixel_threshold,
            title=f"{record.key}: {verdict}, score {prediction.score:.4g}, threshold {self._calibration.threshold:.4g}",
        )
        self.drawn += 1


def _spread(records: Sequence[ImageRecord], count: int) -> set[str]:
    """Keys of `count` records, taken from each defect type in turn."""
    by_type: dict[str, list[str]] = {}
    for record in records:
        by_type.setdefault(record.defect_type, []).append(record.key)
    in_turn = [(place, kind, key) for kind, keys in by_type.items() for place, key in enumerate(keys)]
    return {key for _, _, key in sorted(in_turn)[:count]}
