"""Locks between processes. The operating system releases a lock when its process dies."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final, final

_HOLDER_AT: Final = 1
"""Offset of the holder's process number. On Windows the first byte is locked and cannot be read."""
_NO_LOCKS: Final = {errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK, errno.EINVAL}
"""Errors of file systems without locks."""
_POLL_S: Final = 0.02


class LockedError(Exception):
    """Another process holds the lock; the message names it where it is known."""


@final
class ProcessLock:
    """A lock that one process holds from construction to `release`. The system releases it when the process dies.

    Raises LockedError where another process holds it, OSError where the file cannot be written or locked.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = _opened(path)
        try:
            if not try_lock(self._file):
                raise LockedError(f"in use by another process{_holder(self._file)}")
            # Overwrite without truncating: ext4 flushes a truncated file when it is closed (4 ms).
            self._file.seek(_HOLDER_AT)
            self._file.write(f"{os.getpid():<16}".encode())
        except BaseException:
            self._file.close()
            raise

    def release(self) -> None:
        """Release the lock. May be called twice."""
        if not self._file.closed:
            from filelock import unlock_descriptor

            unlock_descriptor(self._file.fileno())  # explicitly: a forked child may hold the same open file
            self._file.close()


def try_lock(file: IO[bytes]) -> bool:
    """Lock an open file until it is closed; False where another has it. Raises OSError where there are no locks."""
    from filelock import lock_descriptor

    return lock_descriptor(file.fileno(), blocking=False)


@contextmanager
def taking_turns(path: Path, *, timeout_s: float = 60.0) -> Iterator[None]:
    """Wait until no other process is in a block with the same lock file, `path`.

    On a file system without locks there is no waiting. Raises LockedError after `timeout_s`.
    """
    lock = _taken(path, time.monotonic() + timeout_s)
    try:
        yield
    finally:
        if lock is not None:
            lock.release()


def _taken(path: Path, deadline: float) -> ProcessLock | None:
    """The lock, as soon as it is free; None where the file system has no locks."""
    while True:
        with contextlib.suppress(LockedError):
            return _taken_at_once(path)
        if time.monotonic() > deadline:
            return _taken_at_once(path)
        time.sleep(_POLL_S)


def _taken_at_once(path: Path) -> ProcessLock | None:
    try:
        return ProcessLock(path)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return None


def _opened(path: Path) -> IO[bytes]:
    """Open for reading and writing without a buffer; the file is made if missing, and never truncated."""
    return open(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b", buffering=0)  # noqa: PTH123 - a descriptor


def _holder(file: IO[bytes]) -> str:
    with contextlib.suppress(OSError):
        file.seek(_HOLDER_AT)
        text = file.read(16).decode("ascii", "replace").strip()
        return f" (process {text})" if text.isdigit() else ""
    return ""
