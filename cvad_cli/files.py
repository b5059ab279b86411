"""Nothing half-written: a temporary name, then one rename. And one process at a time, by an advisory lock."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final, final

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


def json_line(record: object) -> bytes:
    """One line of JSON, UTF-8. A file name that is no UTF-8 is escaped, so that it can be read back.

    Raises ValueError for a number that JSON does not have.
    """
    text = json.dumps(record, ensure_ascii=False, allow_nan=False)
    try:
        return f"{text}\n".encode()
    except UnicodeEncodeError:
        return f"{json.dumps(record, allow_nan=False)}\n".encode("ascii")


def require_writable(folder: Path) -> None:
    """Make `folder` and see that a file can be written there: before hours of work, not after.

    Raises ResourceError naming the folder.
    """
    with replacing_folder(folder / ".probe"):
        pass
    shutil.rmtree(folder / ".probe", ignore_errors=True)


def _cannot_write(path: Path, error: OSError) -> ResourceError:
    return ResourceError(f"{path}: cannot be written: {error.strerror or error}. What was there before is untouched.")


_LOCKED_BYTE: Final = 1 << 20
"""Windows locks ranges of bytes, and a locked range cannot be read: keep clear of the text at the start."""


class LockedError(Exception):
    """Another process holds the lock; says which where it is known."""


@final
class ProcessLock:
    """One process at a time: held from construction to `release`; the system lets go of it when a process dies.

    Raises LockedError where another process holds it, OSError where the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a+b")
        try:
            _lock(self._file)
        except OSError as error:
            holder = _holder(self._file)
            self._file.close()
            raise LockedError(f"in use by another process{holder}") from error
        self._file.truncate(0)
        self._file.write(str(os.getpid()).encode())
        self._file.flush()

    def release(self) -> None:
        """Let go; doing so twice does no harm."""
        if not self._file.closed:
            _unlock(self._file)
            self._file.close()


def _holder(file: IO[bytes]) -> str:
    with contextlib.suppress(OSError):
        file.seek(0)
        text = file.read(16).decode("ascii", "replace").strip()
        return f" (process {text})" if text.isdigit() else ""
    return ""


if sys.platform == "win32":
    import msvcrt

    def _lock(file: IO[bytes]) -> None:
        file.seek(_LOCKED_BYTE)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)

    def _unlock(file: IO[bytes]) -> None:
        file.seek(_LOCKED_BYTE)
        msvcrt.locking(file.fileno(), msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    def _lock(file: IO[bytes]) -> None:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _unlock(file: IO[bytes]) -> None:
        # Said aloud, since a forked child holds the same open file and would keep the lock.
        fcntl.flock(file.fileno(), fcntl.LOCK_UN)
