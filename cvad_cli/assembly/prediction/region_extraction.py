"""The rule for regions: the `classify` section of a config and the calibrated map threshold of the bundle."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from cvad_cli.config.schema import SMALLEST_MAP_PX, RunConfig
from cvad_cli.core.regions import Region, RegionRule, find_regions
from cvad_cli.errors import ConfigError
from cvad_cli.records import Calibration


def regions_of(
    anomaly_map: np.ndarray, size: tuple[int, int], rule: RegionRule, settings: RunConfig
) -> tuple[Region, ...]:
    """The regions of a rejected image of `size` (rows, columns), largest mass first."""
    if settings.classify.min_area_px is None:
        rule = replace(rule, min_area_px=SMALLEST_MAP_PX * size[0] * size[1] / anomaly_map.size)
    return find_regions(anomaly_map, size, rule, rejected=True)


def region_rule(settings: RunConfig, calibration: Calibration) -> RegionRule:
    """The rule of the `classify` section, with the bundle's calibrated map threshold."""
    config, seed = settings.classify, calibration.pixel_threshold
    if config.min_area_mm2 > 0 and settings.data.pixel_size_mm is None:
        raise ConfigError("classify.min_area_mm2: needs data.pixel_size_mm, the side of a pixel of the original image")
    return RegionRule(
        seed=seed,
        grow=seed - (1 - config.hysteresis) * abs(seed),
        bridge_px=config.bridge_px,
        min_area_px=config.min_area_px or 0.0,
        min_area_mm2=config.min_area_mm2,
        pixel_size_mm=settings.data.pixel_size_mm,
        max_regions=config.max_regions,
    )
