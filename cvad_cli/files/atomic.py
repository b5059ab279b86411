"""Replaces a file or a folder completely or not at all, whatever interrupts it: Ctrl-C, `kill -9`, a power cut.

The new one is written in a scratch folder beside its target, forced to the disk and renamed. A new file gets its mode
from the umask; a replaced one keeps its mode.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from cvad_cli.errors import ResourceError
from cvad_cli.files.durable import Exchange, exchange_names, sync_file, sync_folder, sync_tree
from cvad_cli.files.scratch import FORMER, NEW, areas, is_scratch, remove, scratch_folder, sweep

_ATTEMPTS: Final = 100
"""An attempt fails when another process replaces the same folder at the same time."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path with the suffix of `path`; when the block ends without an error, it replaces `path`.

    Raises ResourceError, naming `path`, where the folder cannot be written or the disk is full.
    """
    inside = is_scratch(path)  # nobody else sees it yet, and its folder is synced later as a whole
    with _naming(path), _inside(path.parent) if inside else scratch_folder(path.parent) as scratch:
        staged = scratch / f"{NEW}{path.suffix}"
        staged.touch()
        mode = _mode(path, staged)
        yield staged
        _set_mode(staged, mode)
        if not inside:
            sync_file(staged)
        staged.replace(path)
        if not inside:
            sync_folder(path.parent)


@contextmanager
def replacing_folder(folder: Path, *, exchange: Exchange = exchange_names) -> Iterator[Path]:
    """Yield an empty temporary folder; when the block ends without an error, it replaces `folder`.

    Whatever interrupts that, the complete former or new folder is there afterwards, once `recover` was called. When
    several processes replace it at once, the last one wins. Raises ResourceError, naming `folder`, where it cannot be
    written or the disk is full.
    """
    with _naming(folder), scratch_folder(folder.parent, folder.name) as scratch:
        staged = scratch / NEW
        staged.mkdir()
        mode = _mode(folder, staged)
        yield staged
        _set_mode(staged, mode)
        if not is_scratch(folder):
            sync_tree(staged)
        _swap(staged, folder, scratch / FORMER, exchange)
        sync_folder(folder.parent)


@contextmanager
def _inside(folder: Path) -> Iterator[Path]:
    """A folder for temporary files inside a scratch folder, whose lock covers it."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=NEW) as name:
        yield Path(name)


def recover(folder: Path) -> None:
    """Finish replacing `folder` where a process was killed while it did so. Call it before you open the folder."""
    if not os.path.lexists(folder):
        for area in areas(folder.parent):
            sweep(area)


def remove_folder(folder: Path) -> None:
    """Remove a folder in one rename: a killed run leaves the whole folder or none. Raises OSError."""
    with scratch_folder(folder.parent) as scratch:
        folder.rename(scratch / FORMER)
        sync_folder(folder.parent)


def require_writable(folder: Path) -> None:
    """Make `folder` and check that a file can be written there, before hours of work.

    Raises ResourceError naming the folder.
    """
    with replacing(folder / ".probe"):
        pass
    (folder / ".probe").unlink(missing_ok=True)


def _swap(fresh: Path, folder: Path, former: Path, exchange: Exchange) -> None:
    """Replace `folder` by `fresh`: in one step where the system can do that, else in two renames."""
    for _ in range(_ATTEMPTS):
        if os.path.lexists(folder):
            if exchange(fresh, folder):
                return
            remove(former)
            try:
                folder.rename(former)
            except FileNotFoundError:
                continue
        try:
            fresh.rename(folder)
        except OSError:
            if os.path.lexists(folder):
                continue
            if os.path.lexists(former):
                former.rename(folder)
            raise
        return
    raise OSError("other processes keep replacing it")


def _mode(path: Path, fresh: Path) -> int:
    """The mode of `path` where it exists and is a file or folder as `fresh` is; otherwise the mode of `fresh`."""
    mode = fresh.stat().st_mode
    try:
        former = path.lstat().st_mode
    except FileNotFoundError:
        return stat.S_IMODE(mode)
    return stat.S_IMODE(former if stat.S_IFMT(former) == stat.S_IFMT(mode) else mode)


def _set_mode(path: Path, mode: int) -> None:
    """Set the mode, which a library or a copy may have changed."""
    if stat.S_IMODE(path.stat().st_mode) != mode:
        path.chmod(mode)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turn OSError into a ResourceError that names `path`, except a broken pipe, which is not about `path`."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise ResourceError(
            f"{path}: cannot be written: {error.strerror or error}. What was there before is untouched."
        ) from error
