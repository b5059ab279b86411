"""Progress of a batch: a live table on a terminal, lines in a pipe, only failures when quiet."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol, final

from cvad_cli.cli.progress import LineReporter, QuietReporter
from cvad_cli.ports import Reporter

if TYPE_CHECKING:
    from rich.table import Table

    from cvad_cli.assembly.batch.outcomes import BatchSummary, RunOutcome
    from cvad_cli.assembly.batch.plan import PlannedRun

MAIN_FIGURE: Final = {
    "evaluate": ("image.auroc", "image AUROC"),
    "train": ("calibration.stated_rate", "false-alarm rate of the threshold"),
}
STYLES: Final = {"waiting": "dim", "running": "bold", "done": "green", "kept": "cyan", "failed": "red"}


class RunTable(Protocol):
    """Follows runs as they begin and end."""

    def watch(self, run: PlannedRun, outcome: RunOutcome | None) -> None:
        """`outcome` is None when the run begins."""

    def reporter(self, name: str) -> Reporter:
        """The reporter of a run that is done in this process."""


@contextmanager
def run_table_for(runs: Sequence[PlannedRun], verb: str, *, quiet: bool) -> Iterator[RunTable]:
    """The table for the kind of standard error: a terminal or not."""
    if quiet or not sys.stderr.isatty():
        yield RunLines(len(runs), verb, quiet=quiet)
        return
    from rich.console import Console
    from rich.live import Live

    table = LiveTable(runs, verb, Console(stderr=True))
    with Live(get_renderable=table.drawn, console=table.console, refresh_per_second=4):
        yield table


@final
class RunLines:
    """Prints one line when a run begins and one when it ends, which suits a log file."""

    def __init__(self, total: int, verb: str, *, quiet: bool) -> None:
        self._total, self._verb, self._quiet, self._ended = total, verb, quiet, 0

    def watch(self, run: PlannedRun, outcome: RunOutcome | None) -> None:
        """Print the line. Failures and warnings from workers are printed even when quiet."""
        name = run.settings.name
        if outcome is None:
            self._print(f"{name}: started", always=False)
            return
        self._ended += 1
        for warning in outcome.warnings:
            self._print(f"warning: {name}: {warning}", always=True)
        ending = _ending(outcome, self._verb)
        self._print(f"[{self._ended}/{self._total}] {name}: {ending}", always=outcome.state == "failed")

    def reporter(self, name: str) -> Reporter:
        """The reporter of a single run."""
        del name
        return QuietReporter() if self._quiet else LineReporter()

    def _print(self, line: str, *, always: bool) -> None:
        if always or not self._quiet:
            print(line, file=sys.stderr, flush=True)  # noqa: T201


@dataclass
class _Row:
    """The row of one run."""

    model: str
    category: str
    state: str = "waiting"
    since: float = 0.0
    seconds: float = 0.0
    says: str = ""


@final
class LiveTable:
    """One row per run: its state, its time, its present stage and its result."""

    def __init__(self, runs: Sequence[PlannedRun], verb: str, console: Any) -> None:
        self.console = console
        self._verb = verb
        self._rows = {run.settings.name: _Row(run.settings.model.name, run.category) for run in runs}

    def watch(self, run: PlannedRun, outcome: RunOutcome | None) -> None:
        """Update the row of the run."""
        row = self._rows[run.settings.name]
        if outcome is None:
            row.state, row.since = "running", time.monotonic()
            return
        row.state, row.seconds, row.says = outcome.state, outcome.seconds, _ending(outcome, self._verb)
        for warning in outcome.warnings:
            self.warn(f"{outcome.name}: {warning}")

    def reporter(self, name: str) -> Reporter:
        """A reporter that writes into the run's row."""
        return _RowReporter(self, name)

    def tell(self, name: str, message: str) -> None:
        """Show the present stage of a run."""
        self._rows[name].says = message

    def warn(self, message: str) -> None:
        """Print a warning above the table."""
        self.console.print(f"warning: {message}", style="yellow", highlight=False, markup=False)

    def drawn(self) -> Table:
        """The table in its present state."""
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False)
        for heading in ("run", "model", "category", "state"):
            table.add_column(heading, no_wrap=True)
        table.add_column("seconds", justify="right")
        table.add_column("")
        for name, row in self._rows.items():
            seconds = time.monotonic() - row.since if row.state == "running" else row.seconds
            shown = f"{seconds:.1f}" if seconds else ""
            cells = (name, row.model, row.category, Text(row.state, style=STYLES[row.state]), shown, Text(row.says))
            table.add_row(*cells)
        return table


@final
class _RowReporter:
    """The reporter that writes into the row of one run."""

    def __init__(self, table: LiveTable, name: str) -> None:
        self._table, self._name = table, name

    @contextmanager
    def stage(self, title: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
        """Show the stage and its count in the row."""
        done = 0

        def advance(steps: int) -> None:
            nonlocal done
            done += steps
            self._table.tell(self._name, f"{title} {done}/{total}" if total else f"{title} {done}")

        advance(0)
        yield advance

    def note(self, message: str) -> None:
        """Show it until the next stage."""
        self._table.tell(self._name, message)

    def warn(self, message: str) -> None:
        """Print it above the table, with the run's name."""
        self._table.warn(f"{self._name}: {message}")


def show_batch(summary: BatchSummary) -> None:
    """Print one row per run with its main figures, and the folder of the report."""
    from rich.console import Console
    from rich.table import Table

    from cvad_cli.assembly.batch.report import FIGURES, figure_of

    figures = [figure for figure in FIGURES[summary.verb] if figure.path != "seconds"][:5]
    table = Table(title=f"cvad {summary.verb}: {len(summary.runs)} runs", title_justify="left")
    for heading in ("run", "state"):
        table.add_column(heading, no_wrap=True)
    for figure in figures:
        table.add_column(figure.title, justify="right")
    for run in summary.runs:
        values = [figure_of(run, figure.path) for figure in figures]
        table.add_row(run.name, run.state, *("-" if value is None else _number(value) for value in values))
    console = Console(highlight=False, markup=False, soft_wrap=True)
    console.print(table)
    for run in summary.runs:
        if run.error is not None:
            console.print(f"{run.name}: {run.error}")
    console.print(f"results.csv, results.json and report.html in {summary.folder}")


def _ending(outcome: RunOutcome, verb: str) -> str:
    if outcome.state == "failed":
        return f"failed: {outcome.error}"
    from cvad_cli.assembly.batch.report import figure_of

    path, title = MAIN_FIGURE[verb]
    value = figure_of(outcome, path)
    figure = "" if value is None else f", {title} {_number(value)}"
    if outcome.state == "kept":
        return f"kept, as its settings and images have not changed{figure}"
    return f"done in {outcome.seconds:.1f} s{figure}"


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.4f}"
