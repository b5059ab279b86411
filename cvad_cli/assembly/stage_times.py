"""Where the time of a single image goes: decoding, resizing, and the stages that the detector itself tells apart."""

from __future__ import annotations

import dataclasses
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from cvad_cli.adapters.images import read_image, resize_image
from cvad_cli.config.schema import DataConfig
from cvad_cli.core.timings import latency_of
from cvad_cli.ports import Detector, TimedDetector

WHOLE: Final = "whole"


def split_latency(detector: Detector, files: Sequence[Path], data: DataConfig) -> dict[str, dict[str, float]]:
    """Stage -> percentiles and mean over single images, one after another; `whole` is all of an image, in one clock.

    `other` is what the detector spends outside the stages that it names, so that the means add up to that of `whole`.
    """
    seconds: dict[str, list[float]] = defaultdict(list)
    for file in files:
        for stage, value in _one(detector, file, data).items():
            seconds[stage].append(value)
    return {stage: dataclasses.asdict(latency_of(values)) for stage, values in seconds.items()}


def _one(detector: Detector, file: Path, data: DataConfig) -> Mapping[str, float]:
    began = time.perf_counter()
    image = read_image(file, max_megapixels=data.max_megapixels)
    decoded = time.perf_counter()
    picture = resize_image(image, (data.image_size, data.image_size))
    resized = time.perf_counter()
    detector.predict([picture])
    ended = time.perf_counter()
    stages = {"decode": decoded - began, "resize": resized - decoded}
    if isinstance(detector, TimedDetector):
        split = dict(detector.last_split)
        stages |= {**split, "other": ended - resized - sum(split.values())}
    else:
        stages["detector"] = ended - resized
    return {**stages, WHOLE: ended - began}
