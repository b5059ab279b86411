"""Nothing half-written: files and folders are made under a temporary name and take their place in one rename."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cvad_cli.errors import ResourceError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; when the block ends well, the file written there becomes `path`.

    Raises ResourceError, naming `path`, where the folder cannot be written or the disk is full.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=f".tmp{path.suffix}")
        os.close(handle)
    except OSError as error:
        raise _cannot_write(path, error) from error
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise _cannot_write(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty temporary folder beside `folder`; when the block ends well, it takes the place of `folder`.

    Raises ResourceError, naming `folder`, where it cannot be written or the disk is full.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-", suffix=".tmp"))
    except OSError as error:
        raise _cannot_write(folder, error) from error
    try:
        yield temporary
        temporary.chmod(0o755)
        _swap(temporary, folder)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise _cannot_write(folder, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _swap(fresh: Path, folder: Path) -> None:
    """Put `fresh` in the place of `folder`; whatever interrupts it, one of the two stands there afterwards."""
    former = fresh.with_suffix(".old")
    if folder.exists():
        folder.replace(former)
    try:
        fresh.replace(folder)
    except BaseException:
        if former.exists() and not folder.exists():
            former.replace(folder)
        raise
    if former.is_dir():
        shutil.rmtree(former, ignore_errors=True)
    else:
        former.unlink(missing_ok=True)


def require_writable(folder: Path) -> None:
    """Make `folder` and see that a file can be written there: before hours of work, not after.

    Raises ResourceError naming the folder.
    """
    with replacing_folder(folder / ".probe"):
        pass
    shutil.rmtree(folder / ".probe", ignore_errors=True)


def _cannot_write(path: Path, error: OSError) -> ResourceError:
    return ResourceError(f"{path}: cannot be written: {error.strerror or error}. What was there before is untouched.")
