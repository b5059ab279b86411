"""`cvad demo`: all of cvad on generated images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cvad_cli.cli.options import Debug, Json, Quiet
from cvad_cli.cli.run_task import Options, quiet_libraries, show_result


def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for images and results.")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(min=0, help="Seed of the generated images and of the training.")] = 42,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Generate small data sets that resemble grid, leather and tile; train on them, evaluate, and print the results."""
    _run_demo(output, seed, Options((), None, json, quiet, debug))


def _run_demo(output: Path, seed: int, options: Options) -> None:
    from cvad_cli.cli.progress import reporter_for
    from cvad_cli.cli.render.demo import show_demo

    with quiet_libraries(options):
        from cvad_cli.config.schema import OutputConfig, RunConfig
        from cvad_cli.tasks.demo import DemoRequest, demo
        from cvad_cli.tasks.evaluate import EvaluateRequest, evaluate
        from cvad_cli.tasks.train import TrainRequest, train

        request = DemoRequest(
            train=lambda run, reporter: train(run, TrainRequest(describe=False), reporter),
            evaluate=lambda run, reporter: evaluate(run, EvaluateRequest(), reporter),
        )
        settings = RunConfig(name="demo", seed=seed, output=OutputConfig(root=str(output)))
        result = demo(settings, request, reporter_for(options.quiet))
    show_result(result, options, show_demo)
