"""Scratch folders: where a process prepares what it will move into place beside them.

    <parent>/.cvad-tmp-<user>/<target>-<random>/.lock      held for as long as the process works there
                                                .new       what is being written
                                                .former    what stood at <target>, while two renames swap it

Who can take the lock knows that the owner died: it finishes a swap that was cut in two, and removes the rest. A folder
of its own keeps the names out of the way of a parent with a million files, which is never listed.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

from cvad_cli.files.durable import make_folder, sync_folder
from cvad_cli.files.locks import try_lock

AREA_PREFIX: Final = ".cvad-tmp-"
LOCK: Final = ".lock"
NEW: Final = ".new"
FORMER: Final = ".former"
_RANDOM_BYTES: Final = 4
_ATTEMPTS: Final = 100


@contextmanager
def scratch_folder(parent: Path, target: str = "work") -> Iterator[Path]:
    """Yield an empty folder below `parent` that goes when the block ends; sweep those of dead processes first.

    `target` is the name of the folder in `parent` that will be swapped, if one will be. Raises OSError.
    """
    make_folder(parent)
    area = parent / f"{AREA_PREFIX}{_user()}"
    sweep(area)
    folder, lock = _created(area, target)
    try:
        yield folder
    finally:
        _finish_swap(folder)  # where Ctrl-C came between two renames
        _discard(folder)
        if lock is not None:
            lock.close()
        with contextlib.suppress(OSError):
            (folder / LOCK).unlink()
            folder.rmdir()
        _remove_empty(area)


def areas(parent: Path) -> list[Path]:
    """The folders below `parent` that hold scratch folders, of any user."""
    return list(parent.glob(f"{AREA_PREFIX}*"))


def is_scratch(path: Path) -> bool:
    """Whether a path lies in a scratch folder: nobody else looks there, and it is synced as a whole."""
    return any(part.startswith(AREA_PREFIX) for part in path.parts)


def sweep(area: Path) -> None:
    """Finish what dead processes were moving into place, and remove the rest of what they left."""
    try:
        names = os.listdir(area)  # noqa: PTH208 - names are enough
    except OSError:  # none there, or not ours to read
        return
    for name in names:
        _remove_if_dead(area / name)
    _remove_empty(area)


def _created(area: Path, target: str) -> tuple[Path, IO[bytes] | None]:
    """A new scratch folder and its lock; None where the file system has no locks, and then nobody sweeps it."""
    for _ in range(_ATTEMPTS):
        folder = area / f"{target}-{secrets.token_hex(_RANDOM_BYTES)}"
        try:
            area.mkdir(exist_ok=True)
            folder.mkdir()
            lock = (folder / LOCK).open("xb")
        except (FileNotFoundError, FileExistsError):  # another one swept the empty folder meanwhile
            continue
        try:
            if try_lock(lock) and _stands_at(lock, folder / LOCK):
                return folder, lock
        except OSError:
            lock.close()
            return folder, None
        lock.close()
    raise FileExistsError(f"{area}: other processes remove what is made there")


def _stands_at(file: IO[bytes], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _remove_if_dead(folder: Path) -> None:
    """Settle one scratch folder, unless its owner lives."""
    try:
        lock = (folder / LOCK).open("ab")
    except OSError:
        return
    with lock:
        try:
            dead = try_lock(lock)
        except OSError:  # no locks here: nobody can tell
            dead = False
        if dead:
            _finish_swap(folder)
            _discard(folder)
            # With the lock held: who has just made the folder, and gets the lock after us, finds it gone.
            shutil.rmtree(folder, ignore_errors=True)
    if dead and os.name == "nt":  # an open file cannot be removed there
        shutil.rmtree(folder, ignore_errors=True)


def _finish_swap(folder: Path) -> None:
    """After the first of two renames the new folder is whole, and its place is empty: move it there."""
    if not os.path.lexists(folder / FORMER):
        return
    new, parent = folder / NEW, folder.parent.parent
    target = parent / folder.name[: -2 * _RANDOM_BYTES - 1]
    if new.is_dir() and not os.path.lexists(target):
        with contextlib.suppress(OSError):  # another process was quicker
            new.rename(target)
            sync_folder(parent)


def _discard(folder: Path) -> None:
    """Remove what lies in a scratch folder, the former one first: without it `.new` counts as unfinished."""
    with contextlib.suppress(OSError):
        for name in sorted(os.listdir(folder), key=lambda name: name != FORMER):  # noqa: PTH208 - names are enough
            if name != LOCK:
                remove(folder / name)


def remove(path: Path) -> None:
    """Remove a file, a link or a folder, as far as possible."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def _remove_empty(area: Path) -> None:
    with contextlib.suppress(OSError):
        area.rmdir()


def _user() -> int:
    """A number of our own: another user's folder may not be writable for us."""
    return os.getuid() if hasattr(os, "getuid") else 0
