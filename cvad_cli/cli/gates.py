"""Gates on the command line: their options, one line per failed gate, and the files that CI reads."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from cvad_cli.cli.run_task import Task, TaskCall
from cvad_cli.errors import CvadError

if TYPE_CHECKING:
    from cvad_cli.assembly.batch.outcomes import BatchSummary
    from cvad_cli.assembly.gates.reports import RunVerdict
    from cvad_cli.ports import Reporter
    from cvad_cli.records import EvaluationSummary, GateResult

GateFile = Annotated[
    Path | None, typer.Option("--gate", metavar="FILE", help="Figures that runs must reach, as in configs/gates.yaml.")
]
Minimums = Annotated[
    list[str], typer.Option("--min", metavar="METRIC=X", help="A gate, as in image.auroc=0.98. Repeatable.")
]
Maximums = Annotated[
    list[str], typer.Option("--max", metavar="METRIC=X", help="A gate, as in decision.false_alarm_rate=0.05.")
]
BaselinePath = Annotated[
    Path | None,
    typer.Option(
        "--baseline", metavar="PATH", help="An earlier metrics.json or its folder; the run must not be worse."
    ),
]
Tolerances = Annotated[
    list[str],
    typer.Option("--tolerance", metavar="[METRIC=]X", help="How much worse than the baseline a figure may be."),
]
Undecided = Annotated[
    str | None,
    typer.Option(
        "--undecided", metavar="pass|fail", help="The verdict if the test set is too small to decide. Default: pass."
    ),
]
JunitFile = Annotated[Path | None, typer.Option("--junit", metavar="FILE", help="Write the verdicts as JUnit XML.")]
SummaryFile = Annotated[
    Path | None, typer.Option("--summary", metavar="FILE", help="Write the verdicts as GitHub-flavoured Markdown.")
]

STEP_SUMMARY: Final = "GITHUB_STEP_SUMMARY"
"""The file to which a step of GitHub Actions may append Markdown."""


class Verdicts:
    """Collects the verdicts of each run of a call, and writes the reports at the end, even after a failure."""

    def __init__(self, junit: Path | None, summary: Path | None, *, tell: bool) -> None:
        """`tell`: print one line per failed gate, because nothing else of the result is shown."""
        self._junit, self._summary, self._tell = junit, summary, tell
        self._runs: list[RunVerdict] = []

    @contextmanager
    def written(self) -> Iterator[None]:
        """Write the reports at the end of the block, even after an error: CI then shows the runs before a crash too."""
        try:
            yield
        finally:
            if self._runs:
                self._write()

    def watch(self, call: TaskCall) -> TaskCall:
        """The same call, with a task whose verdicts are collected."""

        def watched() -> tuple[Task, Any]:
            task, request = call()
            return self._watched(task), request

        return watched

    def _watched(self, evaluate: Task) -> Task:
        from cvad_cli.assembly.gates.reports import RunVerdict

        def watched(settings: Any, request: Any, reporter: Reporter) -> EvaluationSummary:
            started = time.monotonic()
            try:
                result: EvaluationSummary = evaluate(settings, request, reporter)
            except Exception as error:
                reason = str(error) if isinstance(error, CvadError) else f"bug: {type(error).__name__}: {error}"
                seconds = time.monotonic() - started
                self._runs.append(RunVerdict(settings.name, settings.data.category, (), seconds, reason))
                raise
            data, seconds = result.metrics["provenance"]["data"], time.monotonic() - started
            self._runs.append(RunVerdict(settings.name, data, result.gates, seconds))
            if self._tell:
                _tell_failed(settings.name, result.gates)
            return result

        return watched

    def add(self, batch: BatchSummary) -> None:
        """Add the verdicts of a batch and print one line per failed gate; the table of a batch shows figures only."""
        from cvad_cli.assembly.gates.reports import RunVerdict
        from cvad_cli.records import EvaluationSummary

        for run in batch.runs:
            gates = run.result.gates if isinstance(run.result, EvaluationSummary) else ()
            self._runs.append(RunVerdict(run.name, run.category, gates, run.seconds, run.error))
            _tell_failed(run.name, gates)

    def exit_on_failure(self) -> None:
        """Raise `typer.Exit(1)` if a gate failed."""
        if any(not gate.passed for run in self._runs for gate in run.gates):
            raise typer.Exit(1)

    def _write(self) -> None:
        from cvad_cli.assembly.gates.reports import junit_xml, markdown
        from cvad_cli.files import replacing

        if self._junit:
            with replacing(self._junit) as temporary:
                temporary.write_bytes(junit_xml(self._runs))
        text = markdown(self._runs)
        if self._summary:
            with replacing(self._summary) as temporary:
                temporary.write_text(text, encoding="utf-8")
        step = os.environ.get(STEP_SUMMARY)
        if step and any(run.gates for run in self._runs):
            try:
                with Path(step).open("a", encoding="utf-8") as file:
                    file.write(text)
            except OSError as error:
                typer.secho(f"warning: {STEP_SUMMARY} ({step}) cannot be written: {error.strerror}", err=True)


def _tell_failed(name: str, gates: Sequence[GateResult]) -> None:
    from cvad_cli.cli.render.gates import gate_line

    for gate in gates:
        if not gate.passed:
            typer.secho(f"gate failed: {name}: {gate_line(gate)}", err=True)
