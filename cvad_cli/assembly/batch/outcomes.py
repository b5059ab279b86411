"""The outcome of a batch: one frozen record per run, and one for all."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cvad_cli.records import EvaluationSummary, TrainSummary


@dataclass(frozen=True, slots=True)
class RunOutcome:
    """The outcome of one run of a batch."""

    name: str
    variant: str
    """Its row in the report: the name of the run without the category."""
    model: str
    category: str
    """Its column in the report."""
    state: Literal["done", "kept", "failed"]
    """`kept`: the result of an earlier call with the same settings and images is up to date."""
    folder: Path
    """The folder for its results, even if the run failed."""
    seconds: float
    result: TrainSummary | EvaluationSummary | None = None
    """None for a run that failed."""
    error: str | None = None
    exit_code: int = 0
    """The exit status of the run by itself."""
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class BatchSummary:
    """The outcomes of all runs of a batch, in the requested order."""

    verb: Literal["train", "evaluate"]
    folder: Path
    """results.csv, results.json, results.md, report.html."""
    runs: tuple[RunOutcome, ...]
    seconds: float

    @property
    def exit_code(self) -> int:
        """The most severe status of the runs: the largest."""
        return max((run.exit_code for run in self.runs), default=0)
