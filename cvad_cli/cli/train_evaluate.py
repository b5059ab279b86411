"""`cvad train` and `cvad evaluate`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import typer

from cvad_cli.cli import gates
from cvad_cli.cli.batch import Batch, Categories, Force, Importing, Models, exit_with_status, run_batch_of
from cvad_cli.cli.options import Configs, Debug, Device, Json, Overrides, Quiet
from cvad_cli.cli.run_task import Options, Task, TaskCall, run_each

Classification = Annotated[
    bool,
    typer.Option(
        "--classification", help="Also measure the classification of defect types from a few labelled images."
    ),
]
Portable = Annotated[
    bool, typer.Option("--portable", help="Put the images into report.html, so that it is a single file.")
]


def train(  # noqa: PLR0913, PLR0917 - Typer's options are its arguments
    config: Configs,
    set_: Overrides = [],  # noqa: B006
    categories: Categories = None,
    models: Models = None,
    force: Force = False,
    device: Device = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Train a detector on good images, calibrate its threshold and write its bundle."""
    from cvad_cli.cli.render.train_evaluate import show_training

    def call() -> tuple[Task, Any]:
        from cvad_cli.tasks.train import TrainRequest, train

        return train, TrainRequest()

    options, batch = Options(tuple(set_), device, json, quiet, debug), Batch(config, categories, models, force)
    if not batch.wanted:
        run_each(config, options, call, show_training)
        return

    def earlier() -> Callable[..., Any]:
        from cvad_cli.assembly.batch.cached_results import earlier_training

        return earlier_training

    exit_with_status(run_batch_of(batch, "train", options, call, earlier))


def evaluate(  # noqa: PLR0913, PLR0917 - Typer's options are its arguments
    config: Configs,
    set_: Overrides = [],  # noqa: B006
    categories: Categories = None,
    models: Models = None,
    force: Force = False,
    device: Device = None,
    classification: Classification = False,
    gate: gates.GateFile = None,
    min_: gates.Minimums = [],  # noqa: B006
    max_: gates.Maximums = [],  # noqa: B006
    baseline: gates.BaselinePath = None,
    tolerance: gates.Tolerances = [],  # noqa: B006
    undecided: gates.Undecided = None,
    junit: gates.JunitFile = None,
    summary: gates.SummaryFile = None,
    portable: Portable = False,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Measure a trained detector on labelled test images: AUROC, precision, recall, false alarms, AUPRO.

    Exit status 1: a gate (--gate, --min, --max, --baseline) failed.
    """
    from cvad_cli.cli.render.gates import show_evaluation_and_gates
    from cvad_cli.config.gates import GateRequest, read_gates

    plan = read_gates(GateRequest(gate, min_, max_, baseline, tolerance, undecided))
    verdicts = gates.Verdicts(junit, summary, tell=json or quiet)
    call = _evaluation(classification=classification, portable=portable, plan=plan)
    options = Options(tuple(set_), device, json, quiet, debug)
    batch = Batch(config, categories, models, force=force or plan is not None)  # gates judge new measurements only
    with verdicts.written():
        if batch.wanted:
            found = run_batch_of(batch, "evaluate", options, call, _evaluated(classification=classification))
            verdicts.add(found)
            exit_with_status(found)
        else:
            run_each(config, options, verdicts.watch(call), show_evaluation_and_gates)
    verdicts.exit_on_failure()


def _evaluation(**wanted: Any) -> TaskCall:
    """Imports the task when it is needed, and makes its request."""

    def call() -> tuple[Task, Any]:
        from cvad_cli.tasks.evaluate import EvaluateRequest, evaluate

        return evaluate, EvaluateRequest(**wanted)

    return call


def _evaluated(**wanted: Any) -> Importing:
    """Imports the search for an earlier evaluation when it is needed."""

    def earlier() -> Callable[..., Any]:
        from functools import partial

        from cvad_cli.assembly.batch.cached_results import earlier_evaluation

        return partial(earlier_evaluation, **wanted)

    return earlier
