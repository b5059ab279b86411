"""`cvad demo`: generated images and the configs that train on them, in minutes, without a network."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from cvad_cli.adapters.backbones import RANDOM_WEIGHTS
from cvad_cli.adapters.sample_data import write_sample_dataset
from cvad_cli.config.schema import (
    CalibrationConfig,
    DataConfig,
    EvaluationConfig,
    ModelConfig,
    OutputConfig,
    RunConfig,
)
from cvad_cli.ports import Reporter

CATEGORIES: Final = ("grid", "leather", "tile")
TRAIN_IMAGES: Final = 40
GOOD_TEST_IMAGES: Final = 20
IMAGES_PER_DEFECT: Final = 4
FALSE_ALARM_RATE: Final = 0.05
"""What 40 good images can promise: no less than 1 / 41."""

BACKBONE: Final = "resnet10t"
LAYERS: Final = ("layer1", "layer2")
"""Shallow, so that random weights still keep the picture's local structure; deep random networks lose it."""

PLAIN_WORDS: Final = (
    "random, seeded: this demo needs no pretrained network and no internet, so its figures show the tool at work, "
    "not what PatchCore reaches with ImageNet weights"
)


def prepare_demo(folder: Path, *, seed: int, reporter: Reporter) -> tuple[RunConfig, ...]:
    """Write the generated data sets below `folder` and return one config a category, ready to train.

    Raises DataError where `folder` holds something that is not ours.
    """
    configs = []
    with reporter.stage("Generating images", len(CATEGORIES)) as advance:
        for category in CATEGORIES:
            write_sample_dataset(
                folder / "data",
                category,
                train=TRAIN_IMAGES,
                test_good=GOOD_TEST_IMAGES,
                per_defect=IMAGES_PER_DEFECT,
                seed=seed,
            )
            configs.append(_config(folder, category, seed))
            advance(1)
    return tuple(configs)


def _config(folder: Path, category: str, seed: int) -> RunConfig:
    return RunConfig(
        name=category,
        seed=seed,
        data=DataConfig(root=str(folder / "data"), category=category),
        model=ModelConfig(backbone=BACKBONE, layers=LAYERS, weights=RANDOM_WEIGHTS, coreset_ratio=0.02),
        calibration=CalibrationConfig(false_alarm_rate=FALSE_ALARM_RATE),
        evaluation=EvaluationConfig(pictures=12),
        output=OutputConfig(root=str(folder)),
    )
