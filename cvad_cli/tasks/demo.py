"""`cvad demo`: generates images, trains on them and evaluates, in minutes and without internet."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cvad_cli.adapters.sample_data import write_sample_dataset
from cvad_cli.config.schema import (
    CalibrationConfig,
    DataConfig,
    EvaluationConfig,
    ModelConfig,
    OutputConfig,
    RunConfig,
    TrainerConfig,
)
from cvad_cli.ports import Reporter
from cvad_cli.records import DemoSummary, EvaluationSummary

CATEGORIES: Final = ("grid", "leather", "tile")
TRAIN_IMAGES: Final = 40
GOOD_TEST_IMAGES: Final = 20
IMAGES_PER_DEFECT: Final = 4
FALSE_ALARM_RATE: Final = 0.05
"""The lowest rate that 40 good images allow is 1 / 41."""

BACKBONE: Final = "pdn_small"
EFFICIENT_AD_CATEGORY: Final = "grid"
EFFICIENT_AD_STEPS: Final = 60
"""Takes a minute on a CPU. The quick preset has ten times as many steps."""

EFFICIENT_AD_RATE: Final = 0.12
"""It holds 8 good images out; the lowest rate that split-conformal calibration promises with them is 1 / 9."""

PLAIN_WORDS: Final = (
    "the patch description network that comes with cvad; no internet is needed. EfficientAD was trained for "
    f"only {EFFICIENT_AD_STEPS} steps. Generated images say nothing about real parts: they only show how cvad works"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoRequest:
    """How to train and evaluate each run. Tasks do not import each other, so the caller passes these two."""

    train: Callable[[RunConfig, Reporter], object]
    evaluate: Callable[[RunConfig, Reporter], EvaluationSummary]


def demo(settings: RunConfig, request: DemoRequest, reporter: Reporter) -> DemoSummary:
    """Generate data sets below `output.root`, then train and evaluate a run on each, with the seed of `settings`.

    Raises DataError if the folder has files that cvad did not generate.
    """
    folder = Path(settings.output.root)
    metrics = {}
    for run in _prepare(folder, settings.seed, reporter):
        reporter.note(f"{run.name}:")
        request.train(run, reporter)
        metrics[run.name] = request.evaluate(run, reporter).metrics
    return DemoSummary(folder, PLAIN_WORDS, metrics)


def _prepare(folder: Path, seed: int, reporter: Reporter) -> tuple[RunConfig, ...]:
    """The generated data sets, with one PatchCore config per category and one EfficientAD config."""
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
    return (*configs, _efficient_ad(configs[CATEGORIES.index(EFFICIENT_AD_CATEGORY)]))


def _efficient_ad(config: RunConfig) -> RunConfig:
    return dataclasses.replace(
        config,
        name=f"{config.name}_efficientad",
        model=ModelConfig(name="efficient_ad"),
        calibration=CalibrationConfig(false_alarm_rate=EFFICIENT_AD_RATE),
        trainer=TrainerConfig(preset="quick", max_steps=EFFICIENT_AD_STEPS),
    )


def _config(folder: Path, category: str, seed: int) -> RunConfig:
    return RunConfig(
        name=category,
        seed=seed,
        data=DataConfig(root=str(folder / "data"), category=category),
        model=ModelConfig(backbone=BACKBONE, coreset_ratio=0.02),
        calibration=CalibrationConfig(false_alarm_rate=FALSE_ALARM_RATE),
        evaluation=EvaluationConfig(images=12),
        output=OutputConfig(root=str(folder)),
    )
