"""The two commands that every run begins with: `cvad train` and `cvad evaluate`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import typer

from cvad_cli.cli.options import Configs, Debug, Device, Json, Overrides, Quiet
from cvad_cli.cli.runs import Options, run_each


def train(
    config: Configs,
    set_: Overrides = [],  # noqa: B006
    device: Device = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Train a detector on good images, calibrate its threshold, write its bundle."""
    from cvad_cli.cli.render import show_training

    def task() -> Callable[..., Any]:
        from cvad_cli.tasks.train import train

        return train

    run_each(config, Options(tuple(set_), device, json, quiet, debug), task, show_training)


def evaluate(  # noqa: PLR0913, PLR0917 - Typer's options are its arguments
    config: Configs,
    set_: Overrides = [],  # noqa: B006
    device: Device = None,
    classification: Annotated[
        bool, typer.Option("--classification", help="Also measure how well defect types are named, from a few each.")
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Measure a trained detector on labelled test images: AUROC, precision, recall, false alarms, AUPRO."""
    from cvad_cli.cli.render import show_evaluation

    def task() -> Callable[..., Any]:
        from functools import partial

        from cvad_cli.tasks.evaluate import evaluate

        return partial(evaluate, classification=classification)

    run_each(config, Options(tuple(set_), device, json, quiet, debug), task, show_evaluation)
