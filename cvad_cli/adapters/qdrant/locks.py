"""One process at a time on an embedded index: an advisory lock that the system lets go of when a process dies."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import IO, Final, final

from cvad_cli.errors import StoreError

_LOCKED_BYTE: Final = 1 << 20
"""Windows locks ranges of bytes, and a locked range cannot be read: keep clear of the text at the start."""


@final
class ProcessLock:
    """Held from construction to `release`. Raises StoreError, naming `place`, where another process holds it."""

    def __init__(self, path: Path, place: str) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a+b")
        except OSError as error:
            raise StoreError(
                f"{path}: cannot be written: {error.strerror}; the index needs a folder it can write"
            ) from error
        try:
            _lock(self._file)
        except OSError as error:
            holder = _holder(self._file)
            self._file.close()
            raise StoreError(
                f"{place}: in use by another process{holder}; an embedded index serves one at a time. Wait for it, "
                "or set qdrant.url to share a server"
            ) from error
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
