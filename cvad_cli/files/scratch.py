"""Scratch folders, in which a process writes files and folders before it renames them to their target beside it.

    <parent>/.cvad-tmp-<user>/<target>-<random>/.lock      held for as long as the process works there
                                                .new       what is being written
                                                .former    what stood at <target>, while two renames swap it

A process that can take the lock knows that the owner has died: it finishes an interrupted swap and removes the rest.
All scratch folders lie in one folder, so that a parent with a million files never has to be listed.
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
    """Yield an empty folder below `parent` that is removed when the block ends; clean up after dead processes first.

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
    """Whether a path lies in a scratch folder, which no other process reads, and which is synced as a whole."""
    return any(part.startswith(AREA_PREFIX) for part in path.parts)


def sweep(area: Path) -> None:
    """Finish the interrupted swaps of dead processes, and remove the rest of their files."""
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
        except (FileNotFoundError, FileExistsError):  # another process removed the empty folder meanwhile
            continue
        try:
            if try_lock(lock) and _stands_at(lock, folder / LOCK):
                return folder, lock
        except OSError:
            lock.close()
            return folder, None
        lock.close()
    raise FileExistsError(f"{area}: other processes keep removing the folders made there")


def _stands_at(file: IO[bytes], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _remove_if_dead(folder: Path) -> None:
    """Finish and remove one scratch folder, unless its owner is alive."""
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
            # While the lock is held: a process that has just made the folder and locks it next finds it removed.
            shutil.rmtree(folder, ignore_errors=True)
    if dead and os.name == "nt":  # an open file cannot be removed there
        shutil.rmtree(folder, ignore_errors=True)


def _finish_swap(folder: Path) -> None:
    """Where only the first of two renames was done, the new folder is complete and its target is missing: rename it."""
    if not os.path.lexists(folder / FORMER):
        return
    new, parent = folder / NEW, folder.parent.parent
    target = parent / folder.name[: -2 * _RANDOM_BYTES - 1]
    if new.is_dir() and not os.path.lexists(target):
        with contextlib.suppress(OSError):  # another process has done it
            new.rename(target)
            sync_folder(parent)


def _discard(folder: Path) -> None:
    """Empty a scratch folder, the former folder first: without it, `.new` counts as unfinished."""
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
    """The user's number, since another user's folder may not be writable."""
    return os.getuid() if hasattr(os, "getuid") else 0
