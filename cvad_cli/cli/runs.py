"""One task over one or several configs: settings loaded, libraries kept quiet, progress shown, failures collected."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from cvad_cli.errors import CvadError


@dataclass(frozen=True, slots=True)
class Options:
    """What every command takes beside its configs."""

    overrides: tuple[str, ...]
    device: str | None
    json: bool
    quiet: bool
    debug: bool


def run_each(
    configs: Sequence[Path], options: Options, task: Callable[[], Callable[..., Any]], show: Callable[[Any], None]
) -> list[Any]:
    """Run the task for each config, in order, and return the results; one that fails does not stop the others.

    All configs are read before the first task starts: a typo in the last one is found at once. With several configs
    the JSON is a list, and the exit status is that of the first failure.
    """
    from cvad_cli.cli.progress import reporter_for
    from cvad_cli.cli.render import as_json
    from cvad_cli.config.load import load_config

    overrides = [*options.overrides, *([f"device={options.device}"] if options.device else [])]
    settings = [load_config(path, overrides) for path in configs]
    failures: list[CvadError] = []
    results = []
    with quiet_libraries(options):
        run = task()
        for path, setting in zip(configs, settings, strict=True):
            try:
                results.append(run(setting, reporter_for(options.quiet)))
            except CvadError as error:
                if len(configs) == 1:
                    raise
                typer.secho(f"{path}: error: {error}", err=True)
                failures.append(error)
                continue
            if not (options.json or options.quiet):
                show(results[-1])
    if options.json:
        plain = [as_json(result) for result in results]
        typer.echo(json.dumps(plain[0] if len(configs) == 1 else plain, indent=2, ensure_ascii=False))
    if failures:
        raise typer.Exit(failures[0].exit_code)
    return results


def run_demo(output: Path, seed: int, options: Options) -> None:
    """Generate, train and evaluate each category; then the table."""
    from cvad_cli.cli.progress import reporter_for
    from cvad_cli.cli.render import as_json, show_demo
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
    if options.json:
        typer.echo(json.dumps(as_json(result), indent=2, ensure_ascii=False))
    elif not options.quiet:
        show_demo(result)


def run_distillation(options: Options, **settings: Any) -> None:
    """Distil a teacher; then what it was made of."""
    from cvad_cli.cli.progress import reporter_for
    from cvad_cli.cli.render import as_json, show_distillation

    with quiet_libraries(options):
        from cvad_cli.tasks.distill_teacher import DistillSettings, distill_teacher

        result = distill_teacher(DistillSettings(**settings), reporter_for(options.quiet))
    if options.json:
        typer.echo(json.dumps(as_json(result), indent=2, ensure_ascii=False))
    elif not options.quiet:
        show_distillation(result)


@contextlib.contextmanager
def quiet_libraries(options: Options) -> Iterator[None]:
    """Keep third-party chatter off the terminal, and standard output for results. `--debug` lets everything through."""
    with contextlib.ExitStack() as stack:
        if options.json:
            stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        if not options.debug:
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
            os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
            os.environ.setdefault("OPENCV_LOG_LEVEL", "ERROR")
            logging.disable(logging.ERROR)
            stack.callback(logging.disable, logging.NOTSET)
        yield
