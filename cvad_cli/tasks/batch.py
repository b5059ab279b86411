"""Does many runs. A failure does not stop the other runs, and a run whose result is up to date is not repeated."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal, final

from cvad_cli.assembly.batch.outcomes import BatchSummary, RunOutcome
from cvad_cli.assembly.batch.plan import PlannedRun
from cvad_cli.assembly.batch.report import batch_folder, write_batch_report
from cvad_cli.assembly.execution.executors import open_executor, run_here
from cvad_cli.assembly.run_folders import bundle_folder, evaluation_folder
from cvad_cli.config.schema import RunConfig
from cvad_cli.errors import ConfigError, CvadError, ResourceError
from cvad_cli.ports import Reporter
from cvad_cli.records import EvaluationSummary, TrainSummary

Result = TrainSummary | EvaluationSummary

BUG_STATUS: Final = 70
FOLDERS: Final[Mapping[str, Callable[[RunConfig], Path]]] = {"train": bundle_folder, "evaluate": evaluation_folder}


@dataclass(frozen=True, slots=True, kw_only=True)
class RunWork:
    """The work on each run, which is sent to workers. Tasks do not import each other, so the caller passes the task."""

    verb: Literal["train", "evaluate"]
    task: Callable[[RunConfig, Any, Reporter], Result]
    """A function that a worker can import."""
    request: Any
    """The task's request, the same for each run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRequest:
    """The work on each run, and who follows it."""

    work: RunWork
    earlier: Callable[[RunConfig], Result | None]
    """The result of an earlier call, if the work would give the same again."""
    force: bool = False
    """Do every run, even if an earlier result is up to date."""
    reporter_of: Callable[[str], Reporter]
    """Name of a run that is done in this process -> its reporter."""
    watch: Callable[[PlannedRun, RunOutcome | None], None]
    """Gets a run and None when the run begins, and the run and its outcome when it ends, in any order."""


def run_batch(settings: Sequence[PlannedRun], request: BatchRequest, reporter: Reporter) -> BatchSummary:
    """Do the planned runs on their `executor`; write one report on all of them.

    Runs are distributed over the workers. If there are fewer evaluations than workers, the images of each run are
    distributed instead. Raises ConfigError if the runs name different executors, and ResourceError if the report cannot
    be written; an error in a run becomes its outcome.
    """
    started, runs = time.monotonic(), settings
    _require_one_executor(runs)
    outcomes: dict[str, RunOutcome] = {}
    for run in runs:
        kept = None if request.force else _kept(run, request)
        if kept is not None:
            outcomes[run.settings.name] = kept
            request.watch(run, kept)
    pending = [run for run in runs if run.settings.name not in outcomes]
    if pending:
        for run, outcome in zip(pending, _outcomes(pending, request, reporter), strict=True):
            outcomes[run.settings.name] = outcome
    summary = BatchSummary(
        verb=request.work.verb,
        folder=batch_folder(runs, request.work.verb),
        runs=tuple(outcomes[run.settings.name] for run in runs),
        seconds=time.monotonic() - started,
    )
    write_batch_report(summary, executor=runs[0].settings.executor.kind)
    return summary


def _require_one_executor(runs: Sequence[PlannedRun]) -> None:
    first = runs[0].settings
    for run in runs:
        if (run.settings.executor, run.settings.ray) != (first.executor, first.ray):
            raise ConfigError(
                f"{run.settings.name}: its executor or ray section is not that of {first.name}; a batch has one "
                "executor, which --set executor.kind=... sets for all"
            )


def _kept(run: PlannedRun, request: BatchRequest) -> RunOutcome | None:
    result = request.earlier(run.settings)
    return None if result is None else _outcome(run, request.work.verb, state="kept", seconds=0.0, result=result)


def _outcomes(pending: Sequence[PlannedRun], request: BatchRequest, reporter: Reporter) -> Iterator[RunOutcome]:
    """The outcome of each run, in order."""

    def watch(index: int, outcome: RunOutcome | None) -> None:
        request.watch(pending[index], outcome)

    def lost(run: PlannedRun, reason: ResourceError) -> RunOutcome:
        return _failure(run, work.verb, 0.0, reason)

    settings, work = pending[0].settings, request.work
    with open_executor(settings, reporter.warn) as executor:
        workers = executor.workers
        if work.verb == "train" or len(pending) >= workers:
            elsewhere = settings.executor.kind == "ray" or workers > 1
            job = RunJob(work, None if elsewhere else request.reporter_of)
            runs = [replace(run, settings=run_here(run.settings)) for run in pending]
            for outcome in executor.map(job, runs, watch=watch, lost=lost):
                yield outcome if not elsewhere else _seen(outcome, pending, work.verb)
            return
    job = RunJob(work, request.reporter_of)
    for index, run in enumerate(pending):
        watch(index, None)
        (outcome,) = job([run])
        watch(index, outcome)
        yield outcome


def _seen(outcome: RunOutcome, pending: Sequence[PlannedRun], verb: str) -> RunOutcome:
    """The outcome, or a failure if another node wrote the results to a disk that this machine does not see."""
    there = outcome.folder / ("manifest.json" if verb == "train" else "metrics.json")
    if outcome.state == "failed" or there.is_file():
        return outcome
    (run,) = (run for run in pending if run.settings.name == outcome.name)
    reason = ResourceError(
        f"{outcome.folder}: was written on another node and is not visible here; set output.root to storage that all "
        "nodes share, under one path"
    )
    return _failure(run, verb, outcome.seconds, reason)


@final
class RunJob:
    """Planned runs -> outcomes. On a worker it has no reporters; the outcomes bring the warnings back."""

    bundle = None

    def __init__(self, work: RunWork, reporters: Callable[[str], Reporter] | None) -> None:
        self._work, self._reporters = work, reporters

    def __reduce__(self) -> tuple[Any, ...]:
        return RunJob, (self._work, None)

    def at(self, bundle: Path) -> RunJob:
        """The same job: it has no bundle."""
        del bundle
        return self

    def __call__(self, items: Iterable[PlannedRun]) -> Iterator[RunOutcome]:
        """Do the runs one after another; an error in a run becomes its outcome."""
        for run in items:
            yield self._done(run)

    def _done(self, run: PlannedRun) -> RunOutcome:
        heard = Listener()
        reporter = heard if self._reporters is None else self._reporters(run.settings.name)
        started = time.monotonic()
        verb = self._work.verb
        try:
            result = self._work.task(run.settings, self._work.request, reporter)
        except (Exception, MemoryError) as error:  # noqa: BLE001 - a bug in one run must not cost the others
            return replace(_failure(run, verb, time.monotonic() - started, error), warnings=tuple(heard.warnings))
        seconds = time.monotonic() - started
        return replace(
            _outcome(run, verb, state="done", seconds=seconds, result=result), warnings=tuple(heard.warnings)
        )


@final
class Listener:
    """A reporter for workers: collects the warnings."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    @contextmanager
    def _counted(self) -> Iterator[Callable[[int], None]]:
        yield lambda _steps: None

    def stage(self, title: str, total: int | None = None) -> AbstractContextManager[Callable[[int], None]]:
        """Count nothing."""
        del title, total
        return self._counted()

    def note(self, message: str) -> None:
        """Ignore the message."""

    def warn(self, message: str) -> None:
        """Collect the warning."""
        self.warnings.append(message)


def _failure(run: PlannedRun, verb: str, seconds: float, error: BaseException) -> RunOutcome:
    if isinstance(error, CvadError):
        reason, status = str(error), error.exit_code
    elif isinstance(error, MemoryError):
        reason, status = "out of memory; lower train.max_memory or runtime.batch_size", ResourceError.exit_code
    else:
        reason, status = f"bug: {type(error).__name__}: {error}", BUG_STATUS
    return replace(_outcome(run, verb, state="failed", seconds=seconds), error=reason, exit_code=status)


def _outcome(
    run: PlannedRun,
    verb: str,
    *,
    state: Literal["done", "kept", "failed"],
    seconds: float,
    result: Result | None = None,
) -> RunOutcome:
    return RunOutcome(
        name=run.settings.name,
        variant=run.variant,
        model=run.settings.model.name,
        category=run.category,
        state=state,
        folder=FOLDERS[verb](run.settings),
        seconds=seconds,
        result=result,
    )
