"""The sources of `cvad predict` as image items, listed only when needed, so that memory stays constant."""

from __future__ import annotations

import os
import re
import select
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, final

from cvad_cli.adapters.datasets import IMAGE_SUFFIXES
from cvad_cli.adapters.images.video_frames import VIDEO_SUFFIXES, read_frames
from cvad_cli.adapters.prefetch import WAKE_S
from cvad_cli.assembly.data.path_arguments import common_folder, meant, name_below, whole_path
from cvad_cli.assembly.prediction.image_item import ImageId, ImageItem
from cvad_cli.assembly.prediction.pipeline import Failed, Loaded, Loader
from cvad_cli.errors import ConfigError, DataError

STDIN: Final = "-"
_CAMERA: Final = re.compile(r"camera:(\d+)")
_ELSEWHERE: Final = "_elsewhere"


@dataclass(frozen=True, slots=True)
class Listing:
    """A list of paths: an open file, and the separator between two paths."""

    descriptor: int
    separator: bytes = b"\n"


STANDARD_INPUT: Final = Listing(0)


def camera_number(source: str) -> int | None:
    """N of `camera:N`; None for anything else. Raises ConfigError if N is not a number."""
    found = _CAMERA.fullmatch(source)
    if found is None and source.startswith("camera:") and not Path(source).exists():
        raise ConfigError(f"{source}: a camera is named by its number, as in camera:0")
    return int(found.group(1)) if found else None


def is_live(source: str) -> bool:
    """Whether images come at any time: available images are then judged immediately, in smaller batches."""
    return source == STDIN or camera_number(source) is not None


def require_meaning(sources: Sequence[str]) -> None:
    """Check that every source exists before the work begins. Raises DataError or ConfigError naming it."""
    if sources.count(STDIN) > 1:
        raise ConfigError("-: standard input can be read once")
    for source in sources:
        if not is_live(source):
            next(meant(source, IMAGE_SUFFIXES | VIDEO_SUFFIXES), None)


@final
class Sources:
    """Image items of the named sources, one source after another, until `enough` is set.

    A folder gives its images, a file or a pattern also videos, frame by frame; `-` the paths of `listing`.
    """

    def __init__(
        self, names: Sequence[str], enough: threading.Event, *, listing: Listing, max_megapixels: float = 100.0
    ) -> None:
        self._names = names
        self._enough = enough
        self._listing = listing
        self._max_megapixels = max_megapixels
        self._naming = _Naming(names)
        self.is_live = any(map(is_live, names))

    def image_items(self) -> Iterator[ImageItem]:
        """Every image, listed only when needed."""
        for name in self._names:
            for image_item in self._of(name):
                if self._enough.is_set():
                    return
                yield image_item

    @staticmethod
    def load(loader: Loader, image_item: ImageItem) -> Loaded | Failed:
        """Read an image; if it cannot be read, return its failure."""
        try:
            return loader(image_item)
        except DataError as error:
            return Failed(image_item.image_id, error)

    def _of(self, name: str) -> Iterator[ImageItem]:
        camera = camera_number(name)
        if camera is not None:
            yield from self._frames(camera, name)
        elif name == STDIN:
            for line in _lines(self._listing, self._enough):
                yield from self._of_path(Path(os.fsdecode(line)))
        else:
            suffixes = IMAGE_SUFFIXES if Path(name).expanduser().is_dir() else IMAGE_SUFFIXES | VIDEO_SUFFIXES
            for path in meant(name, suffixes):
                if isinstance(path, DataError):
                    yield ImageItem(ImageId(name, self._naming.of(Path(name))), path)
                else:
                    yield from self._of_path(path)

    def _of_path(self, path: Path) -> Iterator[ImageItem]:
        if path.suffix.lower() in VIDEO_SUFFIXES:
            yield from self._frames(path, str(path))
        else:
            yield ImageItem(ImageId(str(path), self._naming.of(path)), path)

    def _frames(self, video: Path | int, source: str) -> Iterator[ImageItem]:
        name = self._naming.of(video) if isinstance(video, Path) else f"camera_{video}"
        try:
            for number, frame in enumerate(read_frames(video, max_megapixels=self._max_megapixels)):
                yield ImageItem(ImageId(f"{source}#{number}", f"{name}/{number:08d}"), frame)
        except DataError as error:
            yield ImageItem(ImageId(source, name), error)


def require_outside(folder: Path, sources: Sequence[str], option: str) -> None:
    """Raise ConfigError if `folder` is inside a source: written files would be read as images."""
    whole = folder.expanduser().resolve()
    for source in sources:
        inside = Path(source).expanduser()
        if inside.is_dir() and whole.is_relative_to(inside.resolve()):
            raise ConfigError(f"{option} {folder}: is inside {source}, which is read; choose a folder outside it")


def _lines(listing: Listing, enough: threading.Event) -> Iterator[bytes]:
    """The paths between separators, as soon as they are complete; empty lines are ignored."""
    rest = b""
    while not enough.is_set():
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
    """Whether there is data or the end of the file; False after a short wait, so that `enough` is checked again."""
    if os.name == "nt":  # select accepts only sockets there
        return True
    return bool(select.select([descriptor], [], [], WAKE_S)[0])


class _Naming:
    """Unique names for files about images: the path below the common folder of all sources."""

    def __init__(self, sources: Sequence[str]) -> None:
        self._common = common_folder(_root(source) for source in sources if camera_number(source) is None)

    def of(self, path: Path) -> str:
        """A relative name that stays below the output folder."""
        if self._common is not None and whole_path(path).is_relative_to(self._common):
            return name_below(path, self._common)
        return f"{_ELSEWHERE}/{name_below(path, None)}"


def _root(source: str) -> Path:
    """The folder that contains the images of a source."""
    if source == STDIN:
        return Path.cwd()
    whole = whole_path(Path(source).expanduser())
    while not whole.is_dir() and whole != whole.parent:
        whole = whole.parent
    return whole
