"""What a user names on the command line -> pictures: files, folders with all below them, and patterns."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from pathlib import Path

from cvad_cli.adapters.datasets import IMAGE_SUFFIXES
from cvad_cli.errors import DataError


def expand(names: Sequence[str]) -> list[Path]:
    """Every picture that the names mean, each once: a file as it is, a folder's images, a pattern's matches.

    Folders and patterns give files with an image suffix, sorted, hidden ones left out; a file named by itself is taken
    whatever its suffix. Raises DataError for a name that means nothing.
    """
    found: dict[str, Path] = {}
    for name in names:
        for path in _meant(name):
            found.setdefault(os.path.realpath(path), path)
    return list(found.values())


def _meant(name: str) -> list[Path]:
    path = Path(name).expanduser()
    if path.is_dir():
        inside = [file for file in sorted(path.rglob("*")) if _is_picture(file, path)]
        if not inside:
            raise DataError(f"{path}: no images in it; looked for {', '.join(sorted(IMAGE_SUFFIXES))}")
        return inside
    if path.exists() or path.is_symlink():
        return [path]
    matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]  # noqa: PTH207 - any pattern
    pictures = [inner for match in matches for inner in (_meant(str(match)) if match.is_dir() else [match])]
    pictures = [picture for picture in pictures if picture.suffix.lower() in IMAGE_SUFFIXES]
    if not pictures:
        what = "matches no image" if glob.has_magic(name) else "no such file or folder"
        raise DataError(f"{name}: {what}")
    return pictures


def _is_picture(file: Path, folder: Path) -> bool:
    hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
    return not hidden and file.suffix.lower() in IMAGE_SUFFIXES and file.is_file()


def distinct_names(paths: Sequence[Path]) -> list[str]:
    """A name for each of the pictures, below a common folder: different pictures never share one.

    Names are made of the parts that tell the pictures apart, so nothing can be written outside the folder they go to.
    """
    if not paths:
        return []
    whole = [Path(os.path.abspath(path)) for path in paths]  # noqa: PTH100 - links keep the names that were given
    common = Path(os.path.commonpath([path.parent for path in whole]))
    return [path.relative_to(common).as_posix() for path in whole]
