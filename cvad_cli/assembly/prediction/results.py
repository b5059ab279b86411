"""From a verdict to a result: regions, files and figures. Memory does not grow with the number of images."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, final

from cvad_cli.adapters.image_panels.defect_overlay import NEUTRAL, Mark, defect_overlay
from cvad_cli.adapters.images import write_map
from cvad_cli.assembly.data.path_arguments import with_suffix_added
from cvad_cli.assembly.prediction.image_item import ImageId
from cvad_cli.assembly.prediction.pipeline import Judged
from cvad_cli.assembly.prediction.region_extraction import region_rule, regions_of
from cvad_cli.assembly.serving.open_bundle import OpenBundle
from cvad_cli.config.schema import RunConfig
from cvad_cli.core.latency import StageTimes
from cvad_cli.core.regions import Region

RATE_WINDOW_S: Final = 10.0
"""The live rate is the mean over so many seconds."""


@dataclass(frozen=True, slots=True)
class FoundRegion:
    """One region of a rejected part, without a type. Positions are (row, column) in pixels of the original image."""

    box: tuple[int, int, int, int]
    """(top, left, bottom, right), bottom and right exclusive."""
    centre: tuple[float, float]
    contours: tuple[tuple[tuple[float, float], ...], ...]
    area_px: float
    area_mm2: float | None
    peak: float
    mean_score: float
    mass: float


@dataclass(frozen=True, slots=True)
class ImageResult:
    """The result of `cvad predict` for one image."""

    image: str
    score: float
    threshold: float
    rejected: bool
    regions: tuple[FoundRegion, ...]
    latency_ms: float
    """From the start of reading until this result and its files are ready."""
    map: str | None = None
    """The file of its anomaly map."""
    overlay: str | None = None
    """The file of the image with its regions marked."""


@dataclass(frozen=True, slots=True)
class Finished:
    """The result of an image and its time by stage."""

    image_id: ImageId
    result: ImageResult
    latency_s: float
    stages: Mapping[str, float]


@final
class PostProcessor:
    """Finds the regions of rejected images and writes maps and marked images if requested. Threads may share it."""

    def __init__(
        self, opened: OpenBundle, settings: RunConfig, *, maps: Path | None = None, overlays: Path | None = None
    ) -> None:
        self._threshold = opened.calibration.threshold
        self._rule = region_rule(settings, opened.calibration)
        self._settings = settings
        self._maps = maps
        self._overlays = overlays

    def __call__(self, judged: Judged) -> Finished:
        """Write the files and return the result.

        Raises ResourceError if a file cannot be written, DataError if the image to draw on was removed.
        """
        begun = time.perf_counter()
        loaded, prediction = judged.loaded, judged.prediction
        rejected = prediction.score > self._threshold
        regions: tuple[Region, ...] = ()
        if rejected:
            regions = regions_of(prediction.anomaly_map, loaded.size, self._rule, self._settings)
        found = time.perf_counter()
        drawn = self._draw(judged, regions)
        mapped = self._write_map(judged)
        written = time.perf_counter()
        stages = dict(judged.stages)
        stages["wait"] += begun - judged.judged
        stages["post-processing"] = stages.get("post-processing", 0.0) + found - begun
        if self._maps is not None or self._overlays is not None:
            stages["files"] = written - found
        latency = written - loaded.started
        result = ImageResult(
            image=loaded.image_id.image,
            score=prediction.score,
            threshold=self._threshold,
            rejected=rejected,
            regions=tuple(_to_record(region) for region in regions),
            latency_ms=round(1e3 * latency, 3),
            map=mapped,
            overlay=drawn,
        )
        return Finished(loaded.image_id, result, latency, stages)

    def _write_map(self, judged: Judged) -> str | None:
        if self._maps is None:
            return None
        path = self._maps / with_suffix_added(judged.loaded.image_id.name, ".tiff")
        write_map(path, judged.prediction.anomaly_map)
        return str(path)

    def _draw(self, judged: Judged, regions: tuple[Region, ...]) -> str | None:
        if self._overlays is None:
            return None
        image_id, score = judged.loaded.image_id, judged.prediction.score
        path = self._overlays / with_suffix_added(image_id.name, ".png")
        marks = [Mark(region.box, region.contours, f"peak {region.peak:.3g}", NEUTRAL) for region in regions]
        what = "rejected" if score > self._threshold else "passed"
        title = f"{image_id.name}   {what}   score {score:.3g}, threshold {self._threshold:.3g}"
        defect_overlay(path, judged.loaded.original(), marks, title=title)
        return str(path)


def _to_record(region: Region) -> FoundRegion:
    loops = (((round(float(y), 1), round(float(x), 1)) for y, x in loop) for loop in region.contours)
    return FoundRegion(
        box=region.box,
        centre=(round(region.centre[0], 1), round(region.centre[1], 1)),
        contours=tuple(tuple(loop) for loop in loops),
        area_px=region.area_px,
        area_mm2=region.area_mm2,
        peak=region.peak,
        mean_score=region.mean_score,
        mass=region.mass,
    )


@final
class Tally:
    """Counts and times of a run so far, in constant memory."""

    def __init__(self) -> None:
        self.judged = 0
        self.rejected = 0
        self.failed = 0
        self.times = StageTimes()
        self._started = time.perf_counter()
        self._marks: deque[tuple[float, int]] = deque([(self._started, 0)], maxlen=50)

    def count(self, finished: Finished) -> None:
        """Count a result."""
        self.judged += 1
        self.rejected += finished.result.rejected
        self.times.add(finished.latency_s, finished.stages)
        now = time.perf_counter()
        if now - self._marks[-1][0] >= RATE_WINDOW_S / 20:
            self._marks.append((now, self.judged))

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self._started

    @property
    def rejected_share(self) -> float:
        """Share of rejected images among the judged ones; 0 if there is none."""
        return self.rejected / self.judged if self.judged else 0.0

    @property
    def rate(self) -> float:
        """Images per second over the whole run."""
        return self.judged / self.seconds

    @property
    def recent_rate(self) -> float:
        """Images per second over the last `RATE_WINDOW_S`."""
        now = time.perf_counter()
        while len(self._marks) > 1 and now - self._marks[1][0] > RATE_WINDOW_S:
            self._marks.popleft()
        since, before = self._marks[0]
        return (self.judged - before) / max(now - since, 1e-9)
