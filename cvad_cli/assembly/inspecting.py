"""One picture, inspected: the detector's verdict, the regions behind it, and a descriptor for each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, final

import numpy as np

from cvad_cli.adapters.images import read_image, read_labelled_mask, resize_image, resize_map
from cvad_cli.adapters.images.masks import LabelledMask
from cvad_cli.adapters.prefetch import prefetch
from cvad_cli.assembly.describing import Describer, open_describer
from cvad_cli.assembly.detectors import OpenBundle, open_detector
from cvad_cli.assembly.region_rules import region_rule, regions_of
from cvad_cli.config.schema import RunConfig
from cvad_cli.core.descriptors import query_vector
from cvad_cli.core.regions import Region, mask_regions, overlaps
from cvad_cli.errors import DataError
from cvad_cli.records import ImageRecord

READ_AHEAD: Final = 4
"""Pictures at their own size that wait for the network."""

MAIN_SHARE: Final = 0.5
"""Of the largest region's mass: what a region needs to be labelled with its picture where there is no mask."""


@dataclass(frozen=True, slots=True)
class Inspection:
    """What was found in one picture."""

    score: float
    rejected: bool
    """The image score is above the calibrated threshold."""
    regions: tuple[Region, ...]
    """Most mass first; none in a part that passes, unless regions were asked for whatever the verdict."""
    vectors: np.ndarray
    """float32 (n, d), length 1: one descriptor a region, the mean of its eight orientations."""
    picture: np.ndarray
    """uint8 RGB (h, w, 3), at its own size."""
    anomaly_map: np.ndarray


@final
class Inspector:
    """The detector and the describer of one bundle, with the config's rule for regions."""

    def __init__(self, opened: OpenBundle, describer: Describer, settings: RunConfig) -> None:
        self.opened = opened
        self.describer = describer
        self.rule = region_rule(settings, opened.calibration)
        self._data = settings.data
        self._settings = settings

    @classmethod
    def open(cls, settings: RunConfig, device: str, folder: Path | None = None) -> Inspector:
        """Open the bundle of a config, or a copy in `folder`. Raises BundleError where it is none with a describer."""
        opened = open_detector(settings, device, folder)
        return cls(opened, open_describer(opened.bundle, opened.device), settings)

    @property
    def fingerprint(self) -> str:
        """The bundle's: descriptors of different bundles must not be compared."""
        return self.opened.bundle.fingerprint

    @property
    def threshold(self) -> float:
        """A part is rejected when its score is above."""
        return self.opened.calibration.threshold

    @property
    def stops_on_error(self) -> bool:
        """Whether an unreadable picture ends the work, or is passed over and listed."""
        return self._data.on_error == "stop"

    def pictures(self, paths: Sequence[Path]) -> Iterator[tuple[Path, np.ndarray | DataError]]:
        """Pictures at their own size, read ahead, in order; an unreadable one comes as its error."""

        def read(path: Path) -> np.ndarray | DataError:
            try:
                return read_image(path, max_megapixels=self._data.max_megapixels)
            except DataError as error:
                return error

        yield from zip(paths, prefetch(paths, read, ahead=READ_AHEAD), strict=True)

    def labelled_pictures(
        self, records: Sequence[ImageRecord]
    ) -> Iterator[tuple[np.ndarray, LabelledMask | None] | DataError]:
        """Images at their own size with their masks, read ahead, in order; what cannot be used comes as its error."""

        def read(record: ImageRecord) -> tuple[np.ndarray, LabelledMask | None] | DataError:
            bound = self._data.max_megapixels
            try:
                return read_image(record.path, max_megapixels=bound), read_labelled_mask(record, max_megapixels=bound)
            except DataError as error:
                return error

        yield from prefetch(records, read, ahead=READ_AHEAD)

    def inspect(self, picture: np.ndarray, *, always: bool = False) -> Inspection:
        """Judge a picture, uint8 RGB (h, w, 3), and describe its regions: where it is rejected, or `always`."""
        rows, columns = self.opened.detector.image_size
        (prediction,) = self.opened.detector.predict([resize_image(picture, (rows, columns))])
        rejected = prediction.score > self.threshold
        regions: tuple[Region, ...] = ()
        if rejected or always:
            size = (picture.shape[0], picture.shape[1])
            regions = regions_of(prediction.anomaly_map, size, self.rule, self._settings)
        vectors = self.describe(picture, regions)
        return Inspection(prediction.score, rejected, regions, vectors, picture, prediction.anomaly_map)

    def describe(self, picture: np.ndarray, regions: Sequence[Region]) -> np.ndarray:
        """float32 (n, d), length 1: what a region is indexed and searched by."""
        return query_vector(self.describer.describe(picture, regions)).astype(np.float32)

    def labelled(self, inspection: Inspection, found: LabelledMask | None) -> tuple[tuple[Region, ...], np.ndarray]:
        """The regions of a defective picture that its label is true of, and their vectors.

        With a mask: the regions that overlap it; where none does, the mask's own parts.
        Without one, a region of little mass may be a chance find: those of at least `MAIN_SHARE` of the largest.
        """
        regions = inspection.regions
        mask = None if found is None else found.mask
        if mask is None or not mask.any():
            kept = [n for n, region in enumerate(regions) if region.mass >= MAIN_SHARE * regions[0].mass]
            return tuple(regions[n] for n in kept), inspection.vectors[kept]
        kept = [n for n, region in enumerate(regions) if overlaps(region, mask)]
        if kept:
            return tuple(regions[n] for n in kept), inspection.vectors[kept]
        values, picture = inspection.anomaly_map, inspection.picture
        share = resize_map(mask.astype(np.float32), (values.shape[0], values.shape[1]))
        drawn = mask_regions(share, values, (picture.shape[0], picture.shape[1]), self.rule)
        return drawn, self.describe(picture, drawn)
