"""One picture to inspect, before it is read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cvad_cli.errors import DataError


@dataclass(frozen=True, slots=True)
class Stamp:
    """Which content of a file is meant: a file that is written again is another one."""

    name: str
    """Below the watched folder, with forward slashes."""
    size: int
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class Subject:
    """Which picture is spoken of."""

    image: str
    """What results call it: the path as it was given, `line.mp4#12`, `camera:0#12`."""
    name: str
    """Relative, of this picture alone: what files about it are called."""
    stamp: Stamp | None = None
    """Of a watched file."""


@dataclass(frozen=True, slots=True)
class Shot:
    """One picture to inspect: a file, a frame, or what could not even be listed."""

    subject: Subject
    origin: Path | np.ndarray | DataError
