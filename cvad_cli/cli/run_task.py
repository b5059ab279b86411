"""Run one task over one or several configs: load settings, silence libraries, show progress, collect failures."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from cvad_cli.errors import CvadError

if TYPE_CHECKING:
    from cvad_cli.config.schema import RunConfig
    from cvad_cli.ports import Reporter


@dataclass(frozen=True, slots=True)
class Options:
    """The options that every command has."""

    overrides: tuple[str, ...]
    device: str | None
    json: bool
    quiet: bool
    debug: bool


Task = Callable[[Any, Any, "Reporter"], Any]
"""`(settings, request, reporter) -> record`: every task in cvad_cli/tasks."""

TaskCall = Callable[[], tuple[Task, Any]]
"""Imports a task when it is needed, and returns it with its request."""


def run_each(configs: Sequence[Path], options: Options, call: TaskCall, show: Callable[[Any], None]) -> list[Any]:
    """Run the task for each config, in order, and return the results; a failure does not stop the other configs.

    All configs are read before the first task starts, so that a typo in the last one is found at once. With several
    configs the JSON is a list, and the exit status is that of the first failure.
    """
    from cvad_cli.cli.progress import reporter_for
    from cvad_cli.cli.render.as_json import as_json

    settings = load_settings(configs, options)
    failures: list[CvadError] = []
    results = []
    with quiet_libraries(options):
        task, request = call()
        for path, setting in zip(configs, settings, strict=True):
            try:
                results.append(task(setting, request, reporter_for(options.quiet)))
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
        print_json(plain[0] if len(configs) == 1 else plain)
    if failures:
        raise typer.Exit(failures[0].exit_code)
    return results


def load_settings(configs: Sequence[Path], options: Options) -> list[RunConfig]:
    """The settings of each config, with the options' overrides; a warning that several configs share is shown once."""
    from cvad_cli.cli.progress import reporter_for
    from cvad_cli.config.load import load_config

    warn = functools.cache(reporter_for(options.quiet).warn)

    overrides = [*options.overrides, *([f"device={options.device}"] if options.device else [])]
    return [load_config(path, overrides, warn=warn) for path in configs]


def show_result(result: object, options: Options, show: Callable[[Any], None]) -> None:
    """Show the record of a command that reads no configs: as JSON, with `show`, or not at all."""
    from cvad_cli.cli.render.as_json import as_json

    if options.json:
        print_json(as_json(result))
    elif not options.quiet:
        show(result)


def print_json(document: Any) -> None:
    """Print a JSON document on standard output."""
    typer.echo(json.dumps(document, indent=2, ensure_ascii=False))


@contextlib.contextmanager
def quiet_libraries(options: Options) -> Iterator[None]:
    """Keep messages of libraries off the terminal, and standard output free for results. `--debug` shows everything."""
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
