"""The steps about defect types: inspecting new images, and describing labelled ones.

A step is sent to workers without the describer of the bundle; each worker opens it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, final

import numpy as np

from cvad_cli.assembly.data.images import read_mask_of
from cvad_cli.assembly.defect_types.inspector import Inspection, LabelledInspection, RegionInspector
from cvad_cli.assembly.prediction.image_item import ImageId, ImageItem, image_item_of, record_of
from cvad_cli.assembly.prediction.pipeline import Judged, keep_original
from cvad_cli.assembly.serving.open_bundle import OpenBundle
from cvad_cli.config.schema import RunConfig
from cvad_cli.files.digests import file_sha256
from cvad_cli.records import ImageRecord


@final
class ClassifyStep:
    """Image items to inspections."""

    def __init__(self, inspector: RegionInspector | None = None, *, with_images: bool) -> None:
        """`with_images`: the images come back with the inspections, even from another machine."""
        self._inspector, self._with_images = inspector, with_images

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(ClassifyStep, with_images=self._with_images), ()

    def image_item(self, item: ImageItem) -> ImageItem:
        """Sources give image items."""
        return item

    def keep(self, image_id: ImageId, decoded: np.ndarray, size: tuple[int, int]) -> np.ndarray | None:
        """Regions are described on the image at its own size."""
        return keep_original(image_id, decoded, size)

    def start(self, settings: RunConfig, opened: OpenBundle) -> Callable[[Judged], Inspection]:
        """Regions and vectors of rejected images."""
        inspector = self._inspector or RegionInspector.of(opened, settings)
        return partial(inspector.inspect, with_image=self._with_images)


@final
class IndexStep:
    """Records of labelled defects to the SHA-256 of the file and the inspection."""

    def __init__(self, inspector: RegionInspector | None = None) -> None:
        self._inspector = inspector

    def __reduce__(self) -> tuple[Any, ...]:
        return IndexStep, ()

    def image_item(self, item: ImageRecord) -> ImageItem:
        """An image of the data set."""
        return image_item_of(item)

    def keep(self, image_id: ImageId, decoded: np.ndarray, size: tuple[int, int]) -> np.ndarray | None:
        """Regions are described on the image at its own size."""
        return keep_original(image_id, decoded, size)

    def start(self, settings: RunConfig, opened: OpenBundle) -> Callable[[Judged], tuple[str, LabelledInspection]]:
        """The regions that the label of each image belongs to."""
        inspector = self._inspector or RegionInspector.of(opened, settings)

        def described(judged: Judged) -> tuple[str, LabelledInspection]:
            record = record_of(judged.loaded.image_id)
            return file_sha256(record.path), inspector.labelled(judged, read_mask_of(record, settings.data))

        return described
