"""The latency of a single image from file to verdict, by stage: without queue, batch or thread."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cvad_cli.assembly.prediction.image_item import ImageId, ImageItem
from cvad_cli.assembly.prediction.pipeline import Loader, split_of
from cvad_cli.assembly.prediction.region_extraction import region_rule, regions_of
from cvad_cli.assembly.serving.open_bundle import OpenBundle
from cvad_cli.config.schema import RunConfig
from cvad_cli.core.latency import LatencySummary, StageTimes


@dataclass(frozen=True, slots=True)
class SingleLatency:
    """Latency of single images, whole and by stage. Both are measured separately, so that gaps show."""

    whole: LatencySummary
    stages: dict[str, LatencySummary]
    """`decode` (reading the file included), `resize`, the detector's own stages or `engine`, `post-processing`."""
    explained: float
    """Share of the whole that the stages account for."""


def single_image_latency(
    opened: OpenBundle, settings: RunConfig, paths: Sequence[Path], *, repeats: int = 1, warm_up: int = 3
) -> SingleLatency:
    """Judge each image alone, `repeats` times, as `cvad predict` does with a batch of one.

    The first `warm_up` images are judged once before the measurement. Files may come from the page cache of the system.
    Raises DataError naming an image that cannot be read, ValueError if there is none.
    """
    if not paths or repeats < 1:
        raise ValueError("single_image_latency: expected one or more images and repeats from 1")
    detector, times = opened.detector, StageTimes()
    load = Loader(detector.image_size, max_megapixels=settings.data.max_megapixels)
    rule = region_rule(settings, opened.calibration)

    def judge(path: Path) -> tuple[float, dict[str, float]]:
        started = time.perf_counter()
        loaded = load(ImageItem(ImageId(str(path), path.name), path))
        ready = time.perf_counter()
        (prediction,) = detector.predict([loaded.small])
        judged = time.perf_counter()
        if prediction.score > opened.calibration.threshold:
            regions_of(prediction.anomaly_map, loaded.size, rule, settings)
        finished = time.perf_counter()
        stages = {**loaded.stages, **split_of(detector, judged - ready)}
        stages["post-processing"] = stages.get("post-processing", 0.0) + finished - judged
        return finished - started, stages

    for path in paths[:warm_up]:
        judge(path)
    for _ in range(repeats):
        for path in paths:
            times.add(*judge(path))
    return SingleLatency(times.whole.summary(), times.stages, times.explained)
