"""Classifies regions: learns from the labelled regions of an index, and gives new regions a type."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import islice
from pathlib import PurePosixPath
from typing import Final, final

import numpy as np

from cvad_cli.assembly.data.images import dataset_home
from cvad_cli.assembly.defect_types.index_points import payload_text
from cvad_cli.assembly.defect_types.inspector import Inspection
from cvad_cli.config.schema import RunConfig
from cvad_cli.core.regions import Region
from cvad_cli.core.voting import LabelledRegions, TypeClassifier, Verdicts, vote
from cvad_cli.errors import StoreError
from cvad_cli.ports import DefectStore
from cvad_cli.records import UNKNOWN, DefectPoint, ImageVerdict, Neighbour, RegionVerdict

MAX_LEARNT: Final = 2000
"""Maximum number of regions to learn from: all pairs are compared, and each image is left out in turn."""

MAX_READ: Final = 50_000
"""Maximum number of regions to choose these from. In a larger index, a very rare type may be missed."""


@final
class DefectClassifier:
    """Gives regions the types of the labelled regions of an index."""

    def __init__(
        self,
        store: DefectStore,
        settings: RunConfig,
        config: str,
        *,
        max_learnt: int = MAX_LEARNT,
        max_read: int = MAX_READ,
    ) -> None:
        """Read the index once, `max_read` regions of it, and learn from `max_learnt` of them.

        Raises StoreError if it is empty.
        """
        points = list(islice(store.scroll(), max_read))
        if not points:
            raise StoreError(f"{config}: the defect index is empty; run `cvad index` with labelled images first")
        self.types, labelled = labelled_regions(thinned(points, max_learnt))
        self._classifier = TypeClassifier.learn(labelled)
        self._store = store
        self._home = dataset_home(settings.data)
        self._config = settings.classify
        self.images = len(np.unique(labelled.images))
        self.regions = store.count() if len(points) == max_read else len(points)
        self._max_learnt, self._read = max_learnt, len(points)

    @property
    def caveats(self) -> list[str]:
        """Warnings about the limits of the labelled set."""
        found = []
        if self._classifier.lowest_p > self._config.unknown_rate:
            found.append(self._never_unknown())
        if self.regions > self._read:
            found.append(
                f"names are learnt from {self._learnt} of the {self.regions} labelled regions, chosen among "
                f"{self._read}: a type that none of these has cannot be named"
            )
        if not self._classifier.labelled.has_mate.any():
            found.append(
                "confidences are not calibrated: no type has two labelled images, so that one could be held out"
            )
        return found

    @property
    def _learnt(self) -> int:
        return len(self._classifier.labelled.types)

    def _never_unknown(self) -> str:
        """Why no region can be called unknown at the requested rate, and the remedy."""
        rate, compared = self._config.unknown_rate, len(self._classifier.own)
        needed = math.ceil(1 / rate) - 1
        limit = (
            f"no region can be called unknown at a rate of {rate:g}: {compared} labelled regions allow "
            f"1/{compared + 1} = {self._classifier.lowest_p:.3g} and no less"
        )
        if needed > self._max_learnt:
            return (
                f"{limit}, and names are learnt from {self._learnt} of the {self.regions} labelled regions: raise "
                f"classify.unknown_rate to 1/{self._max_learnt + 1} or more"
            )
        return (
            f"{limit}; label at least {needed} regions of types that two or more images show, or raise "
            "classify.unknown_rate"
        )

    def verdict(self, image: str, inspection: Inspection, threshold: float) -> ImageVerdict:
        """The verdict on an image: a type for each region, and the vote of the regions for the image."""
        regions: tuple[RegionVerdict, ...] = ()
        name = confidence = None
        if inspection.regions:
            verdicts = self._classifier.judge(inspection.vectors.astype(np.float64))
            unknown = verdicts.unknown(self._config.unknown_rate)
            regions = tuple(
                self._region(region, vector, verdicts, index, anomalous=bool(unknown[index]))
                for index, (region, vector) in enumerate(zip(inspection.regions, inspection.vectors, strict=True))
            )
            name, confidence = self._vote(verdicts, unknown, np.array([region.mass for region in inspection.regions]))
        return ImageVerdict(image, inspection.score, threshold, inspection.rejected, name, confidence, regions)

    def _vote(self, verdicts: Verdicts, unknown: np.ndarray, masses: np.ndarray) -> tuple[str, float]:
        """The type of the image: unknown if more than half of the mass is, otherwise the vote of the known regions."""
        anomalous = float(vote(unknown[:, None].astype(np.float64), masses)[0]) > 0.5
        among = slice(None) if anomalous else ~unknown
        confidences = vote(verdicts.confidences[among], masses[among])
        likeliest = int(confidences.argmax())
        return (UNKNOWN if anomalous else self.types[likeliest]), float(confidences[likeliest])

    def _region(
        self, region: Region, vector: np.ndarray, verdicts: Verdicts, index: int, *, anomalous: bool
    ) -> RegionVerdict:
        confidences = verdicts.confidences[index]
        likeliest = self.types[int(confidences.argmax())]
        return RegionVerdict(
            defect_type=UNKNOWN if anomalous else likeliest,
            likeliest=likeliest,
            confidence=float(confidences.max()),
            p_value=float(verdicts.p_values[index]),
            confidences={name: float(value) for name, value in zip(self.types, confidences, strict=True)},
            neighbours=self._neighbours(vector),
            box=region.box,
            contours=tuple(
                tuple((round(float(y), 1), round(float(x), 1)) for y, x in loop) for loop in region.contours
            ),
            area_px=region.area_px,
            area_mm2=region.area_mm2,
            peak=region.peak,
            mean_score=region.mean_score,
            mass=region.mass,
        )

    def _neighbours(self, vector: np.ndarray) -> tuple[Neighbour, ...]:
        matches = self._store.search(vector, limit=self._config.neighbors)
        return tuple(
            Neighbour(
                defect_type=payload_text(match, "defect_type"),
                similarity=match.similarity,
                source=payload_text(match, "source"),
                path=self._below_home(payload_text(match, "source")),
                box=tuple(int(edge) for edge in match.payload.get("box", ())),
            )
            for match in matches
        )

    def _below_home(self, source: str) -> str | None:
        """The expected path of a neighbour's image; None if its name, in an imported index, leads outside the data."""
        inside = not (PurePosixPath(source).is_absolute() or ".." in PurePosixPath(source).parts)
        return str(self._home / source) if inside else None


def thinned(points: Sequence[DefectPoint], max_points: int = MAX_LEARNT) -> list[DefectPoint]:
    """At most `max_points` points, the same number of each type as far as the types have so many.

    Points come ordered by id, which is a hash: the first ones are as good as a random draw, and always the same.
    Neighbours are searched among all points.
    """
    if len(points) <= max_points:
        return list(points)
    by_type: dict[str, list[DefectPoint]] = {}
    for point in points:
        by_type.setdefault(payload_text(point, "defect_type"), []).append(point)
    in_turn = sorted(
        ((index, point.id, point) for mine in by_type.values() for index, point in enumerate(mine)),
        key=lambda entry: entry[:2],
    )
    return [point for _, _, point in in_turn[: max(max_points, len(by_type))]]


def labelled_regions(points: Sequence[DefectPoint]) -> tuple[tuple[str, ...], LabelledRegions]:
    """The sorted names of the types, and the regions with types and images as numbers."""
    types, numbers = np.unique([payload_text(point, "defect_type") for point in points], return_inverse=True)
    sources = [f"{payload_text(point, 'category')}\0{payload_text(point, 'source')}" for point in points]
    _, images = np.unique(sources, return_inverse=True)
    vectors = np.stack([point.vector for point in points]).astype(np.float64)
    return tuple(map(str, types)), LabelledRegions(vectors[:, None, :], numbers, images)
