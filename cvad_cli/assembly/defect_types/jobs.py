"""What is done about defect types where images are judged: inspecting new ones, describing labelled ones.

A step travels without the bundle's describer: a worker opens it for itself.
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
    """Shots to what was found in them."""

    def __init__(self, inspector: RegionInspector | None = None, *, with_images: bool) -> None:
        """`with_images`: they come back with what was found in them, even from another machine."""
        self._inspector, self._with_images = inspector, with_images

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(ClassifyStep, with_images=self._with_images), ()

    def image_item(self, item: ImageItem) -> ImageItem:
        """Sources give shots."""
        return item

    def keep(self, image_id: ImageId, decoded: np.ndarray, size: tuple[int, int]) -> np.ndarray | None:
        """Regions are described on the image at its own size."""
        return keep_original(image_id, decoded, size)

    def start(self, settings: RunConfig, opened: OpenBundle) -> Callable[[Judged], Inspection]:
        """Regions and vectors of what is rejected."""
        inspector = self._inspector or RegionInspector.of(opened, settings)
        return partial(inspector.inspect, with_image=self._with_images)


@final
class IndexStep:
    """Records of labelled defects to the SHA-256 of their files, and their regions and vectors."""

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
        """The regions that each image's label is true of."""
        inspector = self._inspector or RegionInspector.of(opened, settings)

        def described(judged: Judged) -> tuple[str, LabelledInspection]:
            record = record_of(judged.loaded.image_id)
            return file_sha256(record.path), inspector.labelled(judged, read_mask_of(record, settings.data))

        return described
