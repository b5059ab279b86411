"""Several runs from one command: `--config` more than once, `--categories`, `--models`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cvad_cli.cli.run_task import Options, TaskCall, load_settings, print_json, quiet_libraries

if TYPE_CHECKING:
    from cvad_cli.assembly.batch.outcomes import BatchSummary

Categories = Annotated[
    str | None,
    typer.Option("--categories", metavar="A,B|all", help="One run per category: these, or all below data.root."),
]
Models = Annotated[
    str | None, typer.Option("--models", metavar="A,B", help="One run per model, as in patchcore,efficientad.")
]
Force = Annotated[bool, typer.Option("--force", help="In a batch: repeat runs even if their results are up to date.")]


@dataclass(frozen=True, slots=True)
class Batch:
    """The configs and the options that multiply them."""

    configs: Sequence[Path]
    categories: str | None
    models: str | None
    force: bool

    @property
    def wanted(self) -> bool:
        """Whether this is more than one run of one config."""
        return len(self.configs) > 1 or self.categories is not None or self.models is not None


Importing = Callable[[], Callable[..., Any]]
"""Imports a function when it is needed."""


def run_batch_of(
    batch: Batch, verb: Literal["train", "evaluate"], options: Options, call: TaskCall, earlier: Importing
) -> BatchSummary:
    """Plan the runs, do them while a table shows their progress, and show the results.

    `call` gives the task of the verb and its request; `earlier` finds the result of an earlier call that is still up to
    date. All configs are read before the first run starts, so that a typo in the last one is found at once.
    """
    from cvad_cli.cli.progress import reporter_for
    from cvad_cli.cli.render.batch import run_table_for

    settings = load_settings(batch.configs, options)
    with quiet_libraries(options):
        from cvad_cli.assembly.batch.plan import plan_batch
        from cvad_cli.tasks.batch import BatchRequest, RunWork, run_batch

        runs = plan_batch(settings, categories=_listed(batch.categories), models=_listed(batch.models))
        with run_table_for(runs, verb, quiet=options.quiet) as table:
            task, task_request = call()
            request = BatchRequest(
                work=RunWork(verb=verb, task=task, request=task_request),
                earlier=earlier(),
                force=batch.force,
                reporter_of=table.reporter,
                watch=table.watch,
            )
            summary = run_batch(runs, request, reporter_for(options.quiet))
    _show(summary, settings[0].executor.kind, options)
    return summary


def exit_with_status(summary: BatchSummary) -> None:
    """Exit with the most severe status of the runs, unless it is 0."""
    if summary.exit_code:
        raise typer.Exit(summary.exit_code)


def _listed(text: str | None) -> list[str]:
    """The parts of 'a,b', without duplicates."""
    if text is None:
        return []
    parts = [part.strip() for part in text.split(",")]
    if not all(parts):
        raise typer.BadParameter(f"expected names with commas between them, got {text!r}")
    return list(dict.fromkeys(parts))


def _show(summary: BatchSummary, executor: str, options: Options) -> None:
    if options.json:
        from cvad_cli.assembly.batch.report import as_document

        print_json(as_document(summary, executor=executor))
    elif not options.quiet:
        from cvad_cli.cli.render.batch import show_batch

        show_batch(summary)
