"""What a check found, and the file that remembers it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from cvad_cli.files import replacing

Figure = int | float | str


@dataclass(frozen=True, slots=True)
class Outcome:
    """The figures of a check, and what went wrong in it."""

    figures: Mapping[str, Figure]
    """Name -> figure, in the order of the table."""
    problems: list[str] = field(default_factory=list)
    """One line per failure; empty where the check passes."""


@dataclass(frozen=True, slots=True)
class Record:
    """A check that has finished."""

    count: int
    outcome: Outcome
    seconds: float
    finished: str
    """Date, and the revision of the code."""


class State:
    """The records of all checks in one JSON file, written after each check."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.records: dict[str, Record] = {}
        if path.exists():
            for name, stored in json.loads(path.read_text(encoding="utf-8")).items():
                self.records[name] = Record(**{**stored, "outcome": Outcome(**stored["outcome"])})

    def get(self, name: str) -> Record | None:
        """The record of a check, if it has finished."""
        return self.records.get(name)

    def put(self, name: str, record: Record) -> None:
        """Remember a check, on disk, beside what another process has put there meanwhile."""
        self.records = {**State(self._path).records, name: record}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(self._path) as staged:
            content = {key: asdict(value) for key, value in self.records.items()}
            staged.write_text(json.dumps(content, indent=1), encoding="utf-8")
