"""From the names on the command line to images: files, folders with all below them, and patterns."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from cvad_cli.adapters.datasets import IMAGE_SUFFIXES
from cvad_cli.errors import DataError


def expand(names: Sequence[str]) -> list[Path]:
    """Every image that the names mean, each once: a file as it is, a folder's images, a pattern's matches.

    Folders and patterns give files with an image suffix, sorted, hidden ones left out; a file named by itself is taken
    whatever its suffix. Raises DataError for a name without images, or a folder that cannot be read.
    """
    found: dict[str, Path] = {}
    for name in names:
        for path in meant(name):
            if isinstance(path, DataError):
                raise path
            found.setdefault(os.path.realpath(path), path)
    return list(found.values())


def meant(name: str, suffixes: frozenset[str] = IMAGE_SUFFIXES) -> Iterator[Path | DataError]:
    """Yield the images that one name means, lazily; a folder that cannot be read yields its error.

    Raises DataError at the first image if there is none.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        inside = walk(path, suffixes)
        nothing = f"{path}: no images in it; looked for {', '.join(sorted(suffixes))}"
    elif path.exists() or path.is_symlink():
        inside, nothing = iter([path]), ""
    else:
        inside = _matches(str(path), suffixes)
        what = "matches no image" if glob.has_magic(name) else "no such file or folder"
        nothing = f"{name}: {what}"
    first = next(inside, None)
    if first is None:
        raise DataError(nothing)
    yield first
    yield from inside


def _matches(pattern: str, suffixes: frozenset[str]) -> Iterator[Path | DataError]:
    for match in map(Path, sorted(glob.glob(pattern, recursive=True))):  # noqa: PTH207 - any pattern
        if match.is_dir():
            yield from walk(match, suffixes)
        elif match.suffix.lower() in suffixes:
            yield match


def walk(folder: Path, suffixes: frozenset[str] = IMAGE_SUFFIXES) -> Iterator[Path | DataError]:
    """The files below a folder with one of the suffixes, sorted, hidden ones left out, one folder in memory at a time.

    Links to folders are not followed: they may form a cycle.
    """
    try:
        with os.scandir(folder) as entries:
            listed = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        yield DataError(f"{folder}: cannot be listed: {error.strerror or error}")
        return
    for entry in listed:
        if entry.name.startswith("."):
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from walk(Path(entry.path), suffixes)
        elif os.path.splitext(entry.name)[1].lower() in suffixes and entry.is_file():  # noqa: PTH122 - a name, no path
            yield Path(entry.path)


def whole_path(path: Path) -> Path:
    """The absolute path without resolving links; two leading slashes count as one."""
    absolute = os.path.abspath(path)  # noqa: PTH100 - `resolve` would follow links
    return Path(f"/{absolute.lstrip('/')}" if absolute.startswith("//") else absolute)


def common_folder(folders: Iterable[Path]) -> Path | None:
    """The deepest folder, absolute, that all of these lie in or are, relative and absolute ones alike.

    None if they have nothing in common, as on two drives, or if there are none.
    """
    whole = [whole_path(folder) for folder in folders]
    if len({folder.anchor for folder in whole}) != 1:
        return None
    return Path(os.path.commonpath(whole))


def name_below(path: Path, common: Path | None) -> str:
    """A relative name of a file: below `common`, if given, else with its drive as the first folder."""
    whole = whole_path(path)
    if common is not None:
        return whole.relative_to(common).as_posix()
    drive = whole.drive.replace(":", "").replace("\\", "/").strip("/")
    return "/".join(filter(None, (drive, whole.relative_to(whole.anchor).as_posix())))


def distinct_names(paths: Sequence[Path]) -> list[str]:
    """A name for each image, relative to their common folder: different images never share a name.

    Names have no leading slash and no "..", so nothing is written outside the output folder.
    """
    common = common_folder(path.parent for path in paths)
    return [name_below(path, common) for path in paths]


def shown_names(images: Sequence[str]) -> tuple[Path | None, list[str]]:
    """A folder and names below it, as short as possible; None and the paths as given if no common folder helps."""
    paths = [Path(image) for image in images]
    common = common_folder(path.parent for path in paths)
    if common is None or common == Path(common.anchor):
        return None, list(images)
    here = whole_path(Path())
    if common.is_relative_to(here) and not any(path.is_absolute() for path in paths):
        folder = common.relative_to(here)
        return (None if folder == Path() else folder), [name_below(path, common) for path in paths]
    return common, [name_below(path, common) for path in paths]


def with_suffix_added(name: str, suffix: str) -> str:
    """An image's name with the suffix of the written file: a.jpg and a.png stay two files."""
    return name if name.lower().endswith(suffix) else f"{name}{suffix}"
