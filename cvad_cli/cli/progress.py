"""Progress of a task on standard error: bars on a terminal, plain lines in a pipe, warnings only when quiet."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import final

from cvad_cli.ports import Reporter


def reporter_for(quiet: bool) -> Reporter:
    """The reporter for the kind of standard error: a terminal or not."""
    if quiet:
        return QuietReporter()
    return BarReporter() if sys.stderr.isatty() else LineReporter()


@final
class QuietReporter:
    """Warnings only."""

    @contextmanager
    def stage(self, title: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
        """Yield a counter that does nothing."""
        del title, total
        yield lambda _steps: None

    def note(self, message: str) -> None:
        """Print nothing."""

    def warn(self, message: str) -> None:
        """Print the warning."""
        print(f"warning: {message}", file=sys.stderr)  # noqa: T201


@final
class LineReporter:
    """Prints one line when a stage ends, which suits a log file."""

    @contextmanager
    def stage(self, title: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
        """Time the stage and count its steps."""
        started, done = time.perf_counter(), 0

        def advance(steps: int) -> None:
            nonlocal done
            done += steps

        yield advance
        count = f"{done}/{total}" if total else str(done)
        self.note(f"{title}: {count} in {time.perf_counter() - started:.1f} s")

    def note(self, message: str) -> None:
        """Print the line."""
        print(message, file=sys.stderr, flush=True)  # noqa: T201

    def warn(self, message: str) -> None:
        """Print the line with the prefix 'warning'."""
        self.note(f"warning: {message}")


@final
class BarReporter:
    """Shows a bar with an estimate of the remaining time."""

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(stderr=True)

    @contextmanager
    def stage(self, title: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
        """Draw the bar; it stays on the screen after the stage."""
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        columns = (
            TextColumn("{task.description:<24}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self._console) as progress:
            bar = progress.add_task(title, total=total)
            yield lambda steps: progress.advance(bar, steps)

    def note(self, message: str) -> None:
        """Print the line above the bars."""
        self._console.print(message, highlight=False, markup=False)

    def warn(self, message: str) -> None:
        """Print the line in yellow."""
        self._console.print(f"warning: {message}", style="yellow", highlight=False, markup=False)
