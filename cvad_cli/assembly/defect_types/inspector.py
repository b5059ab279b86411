"""Inspects judged images: finds the regions behind the verdict, and describes each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, final

import numpy as np

from cvad_cli.adapters.images import resize_map
from cvad_cli.adapters.images.masks import LabelledMask
from cvad_cli.assembly.defect_types.describer import Describer, open_describer
from cvad_cli.assembly.prediction.pipeline import Judged
from cvad_cli.assembly.prediction.region_extraction import region_rule, regions_of
from cvad_cli.assembly.serving.open_bundle import OpenBundle, open_detector
from cvad_cli.config.schema import RunConfig
from cvad_cli.core.descriptors import query_vector
from cvad_cli.core.regions import Region, mask_regions, overlaps

MAIN_SHARE: Final = 0.5
"""Without a mask, a region gets the label of its image if it has this share of the largest mass."""


@dataclass(frozen=True, slots=True)
class Inspection:
    """The regions of one image, with their vectors."""

    score: float
    rejected: bool
    """The image score is above the calibrated threshold."""
    regions: tuple[Region, ...]
    """Largest mass first; none if the part passes, unless regions are always requested."""
    vectors: np.ndarray
    """float32 (n, d), length 1: one descriptor per region, the mean of its eight orientations."""
    image: np.ndarray | None = None
    """uint8 RGB (h, w, 3), at its own size, if requested."""


@dataclass(frozen=True, slots=True)
class LabelledInspection:
    """The regions of a defective image, rejected or not, and those that its label belongs to."""

    found: Inspection
    regions: tuple[Region, ...]
    vectors: np.ndarray
    """float32 (n, d), one for each of `regions`."""
    caution: str | None
    """Why the mask may not be aligned with its image; None if there is no sign of that."""


@final
class RegionInspector:
    """The describer of one bundle, with the config's rule for regions. Called from threads."""

    def __init__(self, opened: OpenBundle, describer: Describer, settings: RunConfig) -> None:
        self.opened = opened
        self.describer = describer
        self.rule = region_rule(settings, opened.calibration)
        self._settings = settings

    @classmethod
    def open(cls, settings: RunConfig, device: str) -> RegionInspector:
        """Open the bundle of a config. Raises BundleError if it has no describer."""
        return cls.of(open_detector(settings, device), settings)

    @classmethod
    def of(cls, opened: OpenBundle, settings: RunConfig) -> RegionInspector:
        """Use an open bundle. Raises BundleError if it has no describer."""
        return cls(opened, open_describer(opened.bundle, opened.device), settings)

    @property
    def fingerprint(self) -> str:
        """The bundle's: descriptors of different bundles must not be compared."""
        return self.opened.bundle.fingerprint

    @property
    def threshold(self) -> float:
        """A part is rejected when its score is above."""
        return self.opened.calibration.threshold

    def inspect(self, judged: Judged, *, always: bool = False, with_image: bool = False) -> Inspection:
        """Find and describe the regions of a judged image: where it is rejected, or `always`.

        Raises DataError where the image is needed at its own size and cannot be read again.
        """
        prediction = judged.prediction
        rejected = prediction.score > self.threshold
        regions: tuple[Region, ...] = ()
        if rejected or always:
            regions = regions_of(prediction.anomaly_map, judged.loaded.size, self.rule, self._settings)
        image = judged.loaded.original() if regions or with_image else None
        vectors = self.describe(image, regions)
        return Inspection(prediction.score, rejected, regions, vectors, image if with_image else None)

    def describe(self, image: np.ndarray | None, regions: Sequence[Region]) -> np.ndarray:
        """float32 (n, d), length 1: the vectors for index and search. Without regions, no image is needed."""
        if image is None:
            return np.empty((0, self.describer.dimension), np.float32)
        return query_vector(self.describer.describe(image, regions)).astype(np.float32)

    def labelled(self, judged: Judged, found: LabelledMask | None) -> LabelledInspection:
        """The regions of a defective image that its label belongs to, and their vectors.

        With a mask: the regions that overlap it; if none does, the parts of the mask. Without a mask: the regions with
        at least `MAIN_SHARE` of the largest mass, because smaller ones may be false.
        """
        inspection = self.inspect(judged, always=True)
        regions, mask = inspection.regions, None if found is None else found.mask
        caution = None if found is None else found.caution
        if mask is None or not mask.any():
            kept = [n for n, region in enumerate(regions) if region.mass >= MAIN_SHARE * regions[0].mass]
        else:
            kept = [n for n, region in enumerate(regions) if overlaps(region, mask)]
            if not kept:
                drawn = self._drawn(judged, mask)
                return LabelledInspection(inspection, drawn, self.describe(judged.loaded.original(), drawn), caution)
        return LabelledInspection(inspection, tuple(regions[n] for n in kept), inspection.vectors[kept], caution)

    def _drawn(self, judged: Judged, mask: np.ndarray) -> tuple[Region, ...]:
        """The parts of a mask as regions, with the map's scores."""
        values = judged.prediction.anomaly_map
        share = resize_map(mask.astype(np.float32), (values.shape[0], values.shape[1]))
        return mask_regions(share, values, judged.loaded.size, self.rule)
