"""The two commands that every run begins with: `cvad train` and `cvad evaluate`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import typer

from cvad_cli.cli import gating
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
    gate: gating.GateFile = None,
    min_: gating.Minimums = [],  # noqa: B006
    max_: gating.Maximums = [],  # noqa: B006
    baseline: gating.BaselinePath = None,
    tolerance: gating.Tolerances = [],  # noqa: B006
    undecided: gating.Undecided = None,
    junit: gating.JunitFile = None,
    summary: gating.SummaryFile = None,
    portable: Annotated[
        bool, typer.Option("--portable", help="Put the pictures into report.html: one file to pass on.")
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Measure a trained detector on labelled test images: AUROC, precision, recall, false alarms, AUPRO.

    Exit status 1: a gate (--gate, --min, --max, --baseline) failed.
    """
    from cvad_cli.config.gates import GateRequest, read_gates

    plan = read_gates(GateRequest(gate, min_, max_, baseline, tolerance, undecided))
    verdicts = gating.Verdicts(junit, summary, tell=json or quiet)

    def task() -> Callable[..., Any]:
        from functools import partial

        from cvad_cli.tasks.evaluate import evaluate

        return verdicts.watch(partial(evaluate, classification=classification, portable=portable, plan=plan))

    with verdicts.written():
        run_each(config, Options(tuple(set_), device, json, quiet, debug), task, gating.show)
    verdicts.exit_on_failure()
