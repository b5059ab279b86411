"""`cvad demo`: the whole of cvad on generated images."""

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
    """Generate a small data set of grid, leather and tile look-alikes, train on it, measure, show where it all is."""
    _run_demo(output, seed, Options((), None, json, quiet, debug))


def _run_demo(output: Path, seed: int, options: Options) -> None:
    """Generate, train and evaluate each category; then the table."""
    from cvad_cli.cli.progress import reporter_for
    from cvad_cli.cli.render.demo import show_demo
    from cvad_cli.records import DemoSummary

    reporter = reporter_for(options.quiet)
    with quiet_libraries(options):
        from cvad_cli.tasks.demo import PLAIN_WORDS, prepare_demo
        from cvad_cli.tasks.evaluate import evaluate
        from cvad_cli.tasks.train import train

        metrics = {}
        for settings in prepare_demo(output, seed=seed, reporter=reporter):
            reporter.note(f"{settings.name}:")
            train(settings, reporter, naming=False)
            metrics[settings.name] = evaluate(settings, reporter).metrics
    result = DemoSummary(output, PLAIN_WORDS, metrics)
    show_result(result, options, show_demo)
