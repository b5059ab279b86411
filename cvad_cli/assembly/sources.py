"""What `cvad predict` is pointed at -> shots, one picture each, found as they are asked for: memory stays flat."""

from __future__ import annotations

import os
import re
import select
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from cvad_cli.adapters.datasets import IMAGE_SUFFIXES
from cvad_cli.adapters.prefetch import WAKE_S
from cvad_cli.adapters.videos import VIDEO_SUFFIXES, read_frames
from cvad_cli.assembly.inputs import meant
from cvad_cli.errors import ConfigError, DataError

STDIN: Final = "-"
_CAMERA: Final = re.compile(r"camera:(\d+)")
_ELSEWHERE: Final = "_elsewhere"


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


@dataclass(frozen=True, slots=True)
class Listing:
    """Where a list of paths comes from: an open file, and what stands between two of them."""

    descriptor: int
    separator: bytes = b"\n"


def camera_number(source: str) -> int | None:
    """N of `camera:N`; None for anything else. Raises ConfigError for a camera that is no number."""
    found = _CAMERA.fullmatch(source)
    if found is None and source.startswith("camera:") and not Path(source).exists():
        raise ConfigError(f"{source}: a camera is named by its number, as in camera:0")
    return int(found.group(1)) if found else None


def is_live(source: str) -> bool:
    """Whether pictures come when they will: what is there is then judged at once, in smaller batches."""
    return source == STDIN or camera_number(source) is not None


def require_meaning(sources: Sequence[str]) -> None:
    """See that every source is there before the first is worked on. Raises DataError or ConfigError naming it."""
    if sources.count(STDIN) > 1:
        raise ConfigError("-: standard input can be read once")
    for source in sources:
        if not is_live(source):
            next(meant(source, IMAGE_SUFFIXES | VIDEO_SUFFIXES), None)


def shots(
    sources: Sequence[str], ended: Callable[[], bool], *, listing: Listing, max_megapixels: float = 100.0
) -> Iterator[Shot]:
    """Each source's pictures, one source after another; `-` stands for the paths of `listing`. Ends when `ended`.

    A folder gives its images, a file or a pattern also videos, frame by frame.
    """
    naming = _Naming(sources)
    for source in sources:
        camera = camera_number(source)
        if camera is not None:
            found = _frames(camera, source, naming, max_megapixels)
        elif source == STDIN:
            found = _listed(listing, ended, naming, max_megapixels)
        else:
            found = _named(source, naming, max_megapixels)
        for shot in found:
            if ended():
                return
            yield shot


def _named(source: str, naming: _Naming, max_megapixels: float) -> Iterator[Shot]:
    suffixes = IMAGE_SUFFIXES if Path(source).expanduser().is_dir() else IMAGE_SUFFIXES | VIDEO_SUFFIXES
    for path in meant(source, suffixes):
        if isinstance(path, DataError):
            yield Shot(Subject(source, naming.of(Path(source))), path)
        else:
            yield from _of_path(path, naming, max_megapixels)


def _listed(listing: Listing, ended: Callable[[], bool], naming: _Naming, max_megapixels: float) -> Iterator[Shot]:
    for line in _lines(listing, ended):
        yield from _of_path(Path(os.fsdecode(line)), naming, max_megapixels)


def _of_path(path: Path, naming: _Naming, max_megapixels: float) -> Iterator[Shot]:
    if path.suffix.lower() in VIDEO_SUFFIXES:
        yield from _frames(path, str(path), naming, max_megapixels)
    else:
        yield Shot(Subject(str(path), naming.of(path)), path)


def _frames(place: Path | int, source: str, naming: _Naming, max_megapixels: float) -> Iterator[Shot]:
    name = naming.of(place) if isinstance(place, Path) else f"camera_{place}"
    try:
        for number, frame in enumerate(read_frames(place, max_megapixels=max_megapixels)):
            yield Shot(Subject(f"{source}#{number}", f"{name}/{number:08d}"), frame)
    except DataError as error:
        yield Shot(Subject(source, name), error)


def _lines(listing: Listing, ended: Callable[[], bool]) -> Iterator[bytes]:
    """What stands between the separators, as soon as it is there; empty lines are none."""
    rest = b""
    while not ended():
        if not _can_read(listing.descriptor):
            continue
        block = os.read(listing.descriptor, 1 << 16)
        *whole, rest = (rest + block).split(listing.separator)
        if not block:
            whole, rest = [rest], b""
        for line in whole:
            path = line.rstrip(b"\r") if listing.separator == b"\n" else line
            if path:
                yield path
        if not block:
            return


def _can_read(descriptor: int) -> bool:
    """Whether there is something to read, or the end; False after a short while without, so that the end is seen."""
    if os.name == "nt":  # select takes sockets alone there
        return True
    return bool(select.select([descriptor], [], [], WAKE_S)[0])


class _Naming:
    """Names for files about pictures: the path below what all sources have in common, so two never share one."""

    def __init__(self, sources: Sequence[str]) -> None:
        roots = [_root(source) for source in sources if camera_number(source) is None]
        self._common = Path(os.path.commonpath(roots)) if roots else Path.cwd()

    def of(self, path: Path) -> str:
        """A relative name that leads nowhere else."""
        whole = _whole(path)
        if whole.is_relative_to(self._common):
            return whole.relative_to(self._common).as_posix()
        return f"{_ELSEWHERE}/{whole.relative_to(whole.anchor).as_posix()}"


def _root(source: str) -> Path:
    """The folder that a source's pictures lie below."""
    if source == STDIN:
        return Path.cwd()
    whole = _whole(Path(source).expanduser())
    while not whole.is_dir() and whole != whole.parent:
        whole = whole.parent
    return whole


def _whole(path: Path) -> Path:
    return Path(os.path.abspath(path))  # noqa: PTH100 - links keep the names that were given
