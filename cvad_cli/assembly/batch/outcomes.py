"""What came of a batch: a frozen record a run, and one of them all."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cvad_cli.records import EvaluationSummary, TrainSummary


@dataclass(frozen=True, slots=True)
class RunOutcome:
    """What came of one run of a batch."""

    name: str
    variant: str
    """What tells it from the other runs on the same category: its row in the report."""
    model: str
    category: str
    """Its column."""
    state: Literal["done", "kept", "failed"]
    """`kept`: the result of an earlier call with the same settings and images still holds."""
    folder: Path
    """Where its results are, or would be."""
    seconds: float
    result: TrainSummary | EvaluationSummary | None = None
    """None for a run that failed."""
    error: str | None = None
    exit_code: int = 0
    """The status that the run alone would have ended with."""
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class BatchSummary:
    """What came of all runs of a batch, in the order in which they were asked for."""

    verb: Literal["train", "evaluate"]
    folder: Path
    """results.csv, results.json, results.md, report.html."""
    runs: tuple[RunOutcome, ...]
    seconds: float

    @property
    def exit_code(self) -> int:
        """The gravest of the runs' statuses: the largest."""
        return max((run.exit_code for run in self.runs), default=0)
