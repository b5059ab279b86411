"""Writes the images of an evaluation: thumbnails of all test images for the report, and some larger panels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from cvad_cli.adapters.image_panels.anomaly_panel import write_png
from cvad_cli.assembly.evaluation.job import EvaluatedImage, EvaluationStep
from cvad_cli.assembly.evaluation.report_images import ReportImages
from cvad_cli.config.schema import RunConfig
from cvad_cli.records import ImageRecord

PANELS_NAME: Final = "images"
REPORT_IMAGES_NAME: Final = "report_images"


class Drawer:
    """Chooses what to draw, and writes the drawings. Takes every test image once, in order."""

    def __init__(
        self, folder: Path, settings: RunConfig, records: Sequence[ImageRecord], *, portable: bool = False
    ) -> None:
        self.drawn = 0
        """Number of side-by-side images so far."""
        self.report: ReportImages | None = None
        self._folder = folder / PANELS_NAME
        self._wanted = _sampled_keys(records, settings.evaluation.images)
        layout = "portable" if portable else settings.evaluation.report
        if layout != "none":
            self.report = ReportImages(folder / REPORT_IMAGES_NAME, images=len(records), portable=layout == "portable")

    @property
    def step(self) -> EvaluationStep:
        """The step that draws while images are judged."""
        return EvaluationStep(None if self.report is None else self.report.photo_bytes, frozenset(self._wanted))

    def take(self, image: EvaluatedImage) -> None:
        """Write the drawings of one image."""
        if self.report is not None and image.thumbnail is not None:
            self.report.add(image.record, image.score, image.peak, image.thumbnail)
        if image.panel is not None:
            key = image.record.key
            write_png(self._folder / (key if key.endswith(".png") else f"{key}.png"), image.panel)
            self.drawn += 1


def _sampled_keys(records: Sequence[ImageRecord], count: int) -> set[str]:
    """Keys of `count` records, taken from each defect type in turn."""
    by_type: dict[str, list[str]] = {}
    for record in records:
        by_type.setdefault(record.defect_type, []).append(record.key)
    in_turn = [(index, kind, key) for kind, keys in by_type.items() for index, key in enumerate(keys)]
    return {key for _, _, key in sorted(in_turn)[:count]}
