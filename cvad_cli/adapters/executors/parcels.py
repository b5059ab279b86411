"""A bundle on its way to another node: its files as arrays, which an object store keeps once a node, and back."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

import numpy as np

from cvad_cli.errors import BundleError, ResourceError
from cvad_cli.files import replacing_folder

MANIFEST: Final = "manifest.json"

LEFT_OUT: Final = "cache"
"""What was compiled for the machine that it lies on; another one makes its own beside the copy."""

KEPT: Final = 8
"""Unpacked bundles that a node keeps; the one unused for longest goes first."""


@dataclass(frozen=True, slots=True)
class Parcel:
    """The files of a folder."""

    origin: str
    """Where the folder is on the machine that packed it."""
    digest: str
    """SHA-256 over names and contents."""
    files: Mapping[str, np.ndarray]
    """Path below the folder, with forward slashes -> uint8 (n,)."""


def pack(folder: Path) -> Parcel:
    """Read every file of a bundle but hidden ones and its cache. Raises BundleError naming one that cannot be read."""
    try:
        found = {
            path.relative_to(folder).as_posix(): np.fromfile(path, dtype=np.uint8)
            for path in sorted(folder.rglob("*"))
            if path.is_file() and not _left_out(path.relative_to(folder).parts)
        }
    except OSError as error:
        raise BundleError(f"{error.filename or folder}: cannot be read: {error.strerror}") from error
    return Parcel(str(folder.resolve()), _digest(found), found)


def _left_out(parts: tuple[str, ...]) -> bool:
    return parts[0] == LEFT_OUT or any(part.startswith(".") for part in parts)


def unpack(parcel: Parcel, cache: Path) -> Path:
    """The folder of a parcel on this machine: where it came from if that is seen here unchanged, else below `cache`.

    A folder below `cache` is named after its content and stands there whole or not at all, so that several workers
    of a node may ask at once. Raises ResourceError where nothing can be written there.
    """
    origin = Path(parcel.origin)
    if _holds(origin, parcel):
        return origin
    folder = cache / parcel.digest
    if not _holds(folder, parcel):
        with replacing_folder(folder) as staged:
            for name, content in parcel.files.items():
                content.tofile(_inside(staged, name))
    try:
        os.utime(folder)
        for old in sorted(cache.glob("[0-9a-f]*"), key=lambda path: path.stat().st_mtime, reverse=True)[KEPT:]:
            shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise ResourceError(f"{folder}: cannot be kept: {error.strerror}") from error
    return folder


def _holds(folder: Path, parcel: Parcel) -> bool:
    """Whether a folder has the parcel's files. Sizes tell, and the manifest: it names the hash of each data file."""
    try:
        manifest = parcel.files.get(MANIFEST)
        same = manifest is None or (folder / MANIFEST).read_bytes() == manifest.tobytes()
        return same and all((folder / name).stat().st_size == len(held) for name, held in parcel.files.items())
    except OSError:
        return False


def _inside(folder: Path, name: str) -> Path:
    parts = PurePosixPath(name).parts
    if not parts or ".." in parts or PurePosixPath(name).is_absolute():
        raise BundleError(f"{name}: leads out of the bundle's folder")
    path = folder.joinpath(*parts)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _digest(files: Mapping[str, np.ndarray]) -> str:
    whole = hashlib.sha256()
    for name, content in files.items():
        whole.update(f"{name}\0{len(content)}\0".encode())
        whole.update(content.data)
    return whole.hexdigest()
