"""Yields each file that appears in a folder once, as soon as it is complete.

The folder is scanned repeatedly, which works on any file system, including network shares. A file is taken

- immediately if it is a PNG: its checksums show whether it is complete;
- immediately if it was moved into the folder: its inode has changed since its content was written;
- otherwise when size and time have not changed for `watch.settle_s`.

A file that cannot be decoded, or changes while it is read, is tried again until it has not changed for
`watch.give_up_s`; then it is reported once. The journal of results records the finished files.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, final

from cvad_cli.adapters.images import is_self_checking
from cvad_cli.adapters.storage.result_journal import ResultJournal
from cvad_cli.assembly.data.path_arguments import walk
from cvad_cli.assembly.prediction.image_item import ImageId, ImageItem, Stamp
from cvad_cli.assembly.prediction.pipeline import Failed, Loaded, Loader
from cvad_cli.config.schema import WatchConfig
from cvad_cli.errors import DataError

SCAN_SHARE: Final = 0.2
"""Maximum share of the time that scanning a large folder may take."""

RETRY_S: Final = 0.5


@dataclass
class _Waiting:
    """A file that has no result yet."""

    stamp: Stamp
    since: float
    """When it was first seen in this state, by `time.monotonic`."""
    at_once: bool
    """It needs no time to settle."""
    busy: bool = False
    """It is in the pipeline."""
    not_before: float = 0.0


@final
class Watcher:
    """Image items of a folder for the pipeline, until `enough` is set. Raises DataError if the folder does not exist.

    `image_items` runs in one thread, `load` in several, `done` in another.
    """

    def __init__(
        self,
        folder: Path,
        journal: ResultJournal,
        config: WatchConfig,
        *,
        enough: threading.Event,
        note: Callable[[str], None],
    ) -> None:
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder; --watch needs an existing folder")
        self._folder = folder
        self._journal = journal
        self._config = config
        self._enough = enough
        self._note = note
        self._waiting: dict[str, _Waiting] = {}
        self._lock = threading.Lock()
        self._folder_identity = _identity(folder)
        self._readable = True

    def image_items(self) -> Iterator[ImageItem]:
        """Every file that is due, in the order of writing; scans again until `enough` is set."""
        while not self._enough.is_set():
            started = time.monotonic()
            found = self._look()
            looked = time.monotonic() - started
            for stamp in found:
                if self._enough.is_set():
                    return
                if self._is_due(stamp):
                    path = self._folder / stamp.name
                    yield ImageItem(ImageId(str(path), stamp.name, stamp), path)
            self._enough.wait(max(self._config.poll_s, looked * (1 / SCAN_SHARE - 1)))

    @property
    def is_live(self) -> bool:
        """True: files come at any time."""
        return True

    def load(self, loader: Loader, image_item: ImageItem) -> Loaded | Failed | None:
        """Read a file; None if it will be tried again later."""
        stamp = image_item.image_id.stamp
        if stamp is None:
            raise ValueError(f"{image_item.image_id.image}: a watched file has a stamp")
        try:
            loaded = loader(image_item)
            if _stamp_of(self._folder, self._folder / stamp.name) not in {stamp, None}:
                raise DataError(f"{image_item.image_id.image}: is being changed")
        except DataError as error:
            return None if self._postpone(stamp) else Failed(image_item.image_id, error)
        return loaded

    def done(self, image_id: ImageId) -> None:
        """Forget an image whose line is in the journal."""
        with self._lock:
            if image_id.stamp is not None and self._waiting[image_id.stamp.name].stamp == image_id.stamp:
                del self._waiting[image_id.stamp.name]

    def _look(self) -> list[Stamp]:
        """The files of the folder that are not finished, oldest first."""
        stamps: list[Stamp] = []
        whole = True
        for path in walk(self._folder):
            stamp = None if isinstance(path, DataError) else _stamp_of(self._folder, path)
            if stamp is None:
                whole = whole and not isinstance(path, DataError)
            else:
                stamps.append(stamp)
        self._say_whether_readable(whole)
        with self._lock:
            if whole:
                self._forget({stamp.name for stamp in stamps})
            # Not if a share was unmounted: the empty mount point says nothing about finished files.
            if (
                whole
                and len(self._journal) > 2 * len(stamps) + 1000
                and _identity(self._folder) == self._folder_identity
            ):
                self._journal.forget_others((stamp.name, stamp.size, stamp.mtime_ns) for stamp in stamps)
        new = [stamp for stamp in stamps if not self._journal.is_done(stamp.name, stamp.size, stamp.mtime_ns)]
        return sorted(new, key=lambda stamp: (stamp.mtime_ns, stamp.name))

    def _say_whether_readable(self, whole: bool) -> None:
        if whole != self._readable:
            self._readable = whole
            what = "can be read again" if whole else "cannot be read; waiting for it to come back"
            self._note(f"{self._folder}: {what}")

    def _forget(self, names: set[str]) -> None:
        """Report each file that disappeared before its turn, because nobody inspects it any more."""
        for name in [name for name, entry in self._waiting.items() if name not in names and not entry.busy]:
            del self._waiting[name]
            self._note(f"{self._folder / name}: disappeared before it was complete; not inspected under this name")

    def _is_due(self, stamp: Stamp) -> bool:
        """Whether a file is due; if so, it is marked as busy."""
        path, now = self._folder / stamp.name, time.monotonic()
        with self._lock:
            entry = self._waiting.get(stamp.name)
            # Checked after the entry: a file finished since the scan has no entry and is in the journal.
            if (entry is not None and entry.busy) or self._journal.is_done(stamp.name, stamp.size, stamp.mtime_ns):
                return False
        if entry is None or entry.stamp != stamp:
            entry = _Waiting(stamp, now, at_once=_was_renamed(path) or _is_self_checking(path))
        settled = entry.at_once or now - entry.since >= self._config.settle_s
        entry.busy = settled and now >= entry.not_before
        with self._lock:
            self._waiting[stamp.name] = entry
        return entry.busy

    def _postpone(self, stamp: Stamp) -> bool:
        """Whether a file that could not be read will be tried again."""
        now = time.monotonic()
        with self._lock:
            entry = self._waiting[stamp.name]
            if now - entry.since >= self._config.give_up_s:
                return False
            entry.busy, entry.not_before = False, now + min(RETRY_S, self._config.give_up_s / 4)
            return True


def _stamp_of(folder: Path, path: Path) -> Stamp | None:
    """The identity of a file's content; None if it cannot be read."""
    try:
        status = path.stat()
    except OSError:
        return None
    return Stamp(path.relative_to(folder).as_posix(), status.st_size, status.st_mtime_ns)


def _was_renamed(path: Path) -> bool:
    """Whether a file was moved after it was written: its inode changed later than its content. Unknown on Windows."""
    if os.name == "nt":
        return False
    try:
        status = path.stat()
    except OSError:
        return False
    return status.st_ctime_ns > status.st_mtime_ns


def _is_self_checking(path: Path) -> bool:
    try:
        return is_self_checking(path)
    except DataError:
        return False


def _identity(folder: Path) -> tuple[int, int] | None:
    try:
        status = folder.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
