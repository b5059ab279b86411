"""The step of `cvad evaluate`: drawings and masks, made by the worker that judges the image.

Each image is decoded once, for the network and for the drawings of the report.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import numpy as np

from cvad_cli.adapters.image_panels.anomaly_panel import anomaly_panel
from cvad_cli.adapters.image_panels.report_thumbnails import Thumbnail, shrunk, thumbnail
from cvad_cli.adapters.images import resize_map, resize_mask
from cvad_cli.adapters.images.masks import LabelledMask
from cvad_cli.assembly.data.images import read_mask_of
from cvad_cli.assembly.prediction.image_item import ImageId, ImageItem, image_item_of, record_of
from cvad_cli.assembly.prediction.pipeline import Judged
from cvad_cli.assembly.serving.open_bundle import OpenBundle
from cvad_cli.config.schema import RunConfig
from cvad_cli.records import Calibration, ImageRecord


@dataclass(frozen=True, slots=True)
class EvaluatedImage:
    """A test image with the data for its figures."""

    record: ImageRecord
    score: float
    peak: float
    """The maximum of the map."""
    anomaly_map: np.ndarray
    """float32 (h, w), at the network's size."""
    mask: np.ndarray | None
    """bool (h, w), at the size for pixel metrics; None for a good part, and if it is not known."""
    caution: str | None
    """Why the mask may not be aligned with its image; None if there is no sign of that."""
    size: tuple[int, int]
    """Rows and columns for pixel metrics if there is no mask."""
    thumbnail: Thumbnail | None
    """For the page; None if there is no page."""
    panel: np.ndarray | None
    """uint8 RGB (h, w, 3), side by side; None if it is not requested."""

    def aligned(self) -> tuple[np.ndarray, np.ndarray | None]:
        """Map and mask at the same size; the mask is empty for a good part, and None if it is not known."""
        mask = np.zeros(self.size, dtype=np.bool_) if self.record.is_normal else self.mask
        if mask is None or mask.shape == self.anomaly_map.shape:
            return self.anomaly_map, mask
        return resize_map(self.anomaly_map, (mask.shape[0], mask.shape[1])), mask


@final
@dataclass(frozen=True)
class EvaluationStep:
    """Records of test images to `EvaluatedImage`."""

    photo_bytes: int | None
    """Maximum bytes of a photo on the page; None if there is no page."""
    panels: frozenset[str]
    """Keys of the images that are drawn side by side."""

    def image_item(self, item: ImageRecord) -> ImageItem:
        """An image of the data set."""
        return image_item_of(item)

    def keep(self, image_id: ImageId, decoded: np.ndarray, size: tuple[int, int]) -> np.ndarray | None:
        """The image at the size of the page, which is enough for a panel too."""
        del size
        return shrunk(decoded) if self.draws(record_of(image_id)) else None

    def draws(self, record: ImageRecord) -> bool:
        """Whether the image is drawn."""
        return self.photo_bytes is not None or record.key in self.panels

    def start(self, settings: RunConfig, opened: OpenBundle) -> Callable[[Judged], EvaluatedImage]:
        """Reads the mask and draws."""
        evaluate = self.evaluator(settings, opened)
        return lambda judged: evaluate(judged, read_mask_of(record_of(judged.loaded.image_id), settings.data))

    def evaluator(self, settings: RunConfig, opened: OpenBundle) -> Evaluator:
        """The same for a caller that has already read the mask."""
        return Evaluator(self, settings, opened.calibration)


@final
class Evaluator:
    """Draws images and resizes masks. Threads may share it."""

    def __init__(self, step: EvaluationStep, settings: RunConfig, calibration: Calibration) -> None:
        self._step = step
        self._calibration = calibration
        self._side = settings.data.image_size
        self._at_original = settings.evaluation.resolution == "original"

    def __call__(self, judged: Judged, found: LabelledMask | None) -> EvaluatedImage:
        """`found`: None for a good part, and if the mask is not known."""
        loaded, prediction = judged.loaded, judged.prediction
        record = record_of(loaded.image_id)
        mask = None if found is None else found.mask
        shown = np.zeros((1, 1), dtype=np.bool_) if record.is_normal else mask
        view = shrunk(loaded.kept) if loaded.kept is not None and self._step.draws(record) else None
        drawn = panel = None
        if view is not None and self._step.photo_bytes is not None:
            bound, threshold = self._step.photo_bytes, self._calibration.pixel_threshold
            drawn = thumbnail(view, prediction.anomaly_map, shown, threshold=threshold, photo_bytes=bound)
        if view is not None and record.key in self._step.panels:
            panel = self._panel(judged, view, shown)
        return EvaluatedImage(
            record=record,
            score=prediction.score,
            peak=float(prediction.anomaly_map.max()),
            anomaly_map=prediction.anomaly_map,
            mask=None if record.is_normal or mask is None else self._counted(mask, prediction.anomaly_map),
            caution=None if found is None else found.caution,
            size=loaded.size if self._at_original else (self._side, self._side),
            thumbnail=drawn,
            panel=panel,
        )

    def _counted(self, mask: np.ndarray, anomaly_map: np.ndarray) -> np.ndarray:
        """The mask at the network's input size, or at its own size if `evaluation.resolution` is original."""
        if self._at_original or mask.shape == anomaly_map.shape:
            return mask
        return resize_mask(mask, (self._side, self._side))

    def _panel(self, judged: Judged, view: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
        key, score = record_of(judged.loaded.image_id).key, judged.prediction.score
        verdict = "rejected" if score > self._calibration.threshold else "passed"
        title = f"{key}: {verdict}, score {score:.4g}, threshold {self._calibration.threshold:.4g}"
        threshold = self._calibration.pixel_threshold
        return anomaly_panel(view, judged.prediction.anomaly_map, mask, threshold=threshold, title=title)
