"""Packs a bundle's files as arrays, which an object store keeps once per node, and unpacks them on that node."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

import numpy as np

from cvad_cli.errors import BundleError, ResourceError
from cvad_cli.files import replacing

MANIFEST: Final = "manifest.json"

LEFT_OUT: Final = "cache"
"""The serving cache is compiled for one machine, so it is not sent. The other machine builds its own."""

KEPT: Final = 8
"""Unpacked bundles that a node keeps. The least recently used one is removed first."""

IN_USE_S: Final = 3600.0
"""A bundle that was used within the last hour is not removed: a worker may be about to open it."""

CLEARED: Final = ".old"
"""Suffix of a bundle that is being removed."""


@dataclass(frozen=True, slots=True)
class BundleArchive:
    """The files of a folder."""

    origin: str
    """Where the folder is on the machine that packed it."""
    digest: str
    """SHA-256 over names and contents."""
    files: Mapping[str, np.ndarray]
    """Path below the folder, with forward slashes -> uint8 (n,)."""


def pack(folder: Path) -> BundleArchive:
    """Read every file of a bundle except hidden ones and its cache. Raises BundleError naming a file it cannot read."""
    try:
        found = {
            path.relative_to(folder).as_posix(): np.fromfile(path, dtype=np.uint8)
            for path in sorted(folder.rglob("*"))
            if path.is_file() and not _left_out(path.relative_to(folder).parts)
        }
    except OSError as error:
        raise BundleError(f"{error.filename or folder}: cannot be read: {error.strerror}") from error
    return BundleArchive(str(folder.resolve()), _digest(found), found)


def _left_out(parts: tuple[str, ...]) -> bool:
    return parts[0] == LEFT_OUT or any(part.startswith(".") for part in parts)


def unpack(archive: BundleArchive, cache: Path) -> Path:
    """The bundle's folder on this machine: the original if it is visible here and unchanged, else a copy in `cache`.

    A copy is named after its content. Several processes of a node may unpack the same bundle at once: a correct file
    is kept, any other file is replaced in one rename with the same content. Raises ResourceError where the copy cannot
    be written.
    """
    origin = Path(archive.origin)
    if all(_is_there(origin, name, content) for name, content in archive.files.items()):
        return origin
    folder = cache / archive.digest
    try:
        folder.mkdir(parents=True, exist_ok=True)
        os.utime(folder)  # first, so that no other process removes it meanwhile
    except OSError as error:
        raise ResourceError(f"{folder}: cannot be kept: {error.strerror}") from error
    for name in sorted(
        archive.files, key=lambda name: name == MANIFEST
    ):  # the manifest last: it says that the copy is complete
        _write(folder, name, archive.files[name])
    _clear(cache)
    return folder


def _is_there(folder: Path, name: str, content: np.ndarray) -> bool:
    """Whether a folder has this file: by size, and the manifest by content, which includes each data file's hash."""
    path = _inside(folder, name)
    try:
        return path.read_bytes() == content.tobytes() if name == MANIFEST else path.stat().st_size == len(content)
    except OSError:
        return False


def _write(folder: Path, name: str, content: np.ndarray) -> None:
    if _is_there(folder, name, content):
        return
    try:
        with replacing(_inside(folder, name)) as staged:
            content.tofile(staged)
    except ResourceError:
        if not _is_there(folder, name, content):  # otherwise another process has written it
            raise


def _inside(folder: Path, name: str) -> Path:
    parts = PurePosixPath(name).parts
    if not parts or ".." in parts or PurePosixPath(name).is_absolute():
        raise BundleError(f"{name}: leads out of the bundle's folder")
    return folder.joinpath(*parts)


def _clear(cache: Path) -> None:
    """Remove the least recently used copies. Other processes may do the same at the same time."""
    for old in sorted(cache.glob("[0-9a-f]*"), key=_last_use, reverse=True)[KEPT:]:
        if time.time() - _last_use(old) > IN_USE_S:
            with contextlib.suppress(OSError):  # in one rename, so that no process sees half a bundle
                old.replace(old.with_name(f".{old.name}-{uuid.uuid4().hex}{CLEARED}"))
    for aside in cache.glob(f".*{CLEARED}"):
        shutil.rmtree(aside, ignore_errors=True)


def _last_use(folder: Path) -> float:
    """When the folder was last used; the current time where it has just been removed."""
    try:
        return folder.stat().st_mtime
    except OSError:
        return time.time()


def _digest(files: Mapping[str, np.ndarray]) -> str:
    whole = hashlib.sha256()
    for name, content in files.items():
        whole.update(f"{name}\0{len(content)}\0".encode())
        whole.update(content.data)
    return whole.hexdigest()
