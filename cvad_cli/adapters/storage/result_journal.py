"""The results file of `predict --watch`: append-only JSON lines that also record which images are done.

An image is done when its complete line is in the file. The line is forced to the disk before the result is reported.
So whatever kills the process, each image has one line or none, and an image without a line is inspected again. An
incomplete last line is removed when the file is opened.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import IO, Any, Final, final

from cvad_cli.errors import ResourceError
from cvad_cli.files import LockedError, ProcessLock, json_line, sync_folder

FILE: Final = "file"
"""The key of a line under which the image's file name, size and modification time stand."""


@final
class ResultJournal:
    """One results file, locked by one process. A context manager; raises ResourceError where it cannot be opened.

    Memory holds a 16-byte digest for each done file in a Python set: 76 to 102 bytes per file, depending on how full
    the set is. `forget_others` removes files that no longer exist; it needs a second set meanwhile.
    """

    def __init__(self, path: Path, warn: Callable[[str], None]) -> None:
        self.path = path
        self._done: set[bytes] = set()
        self._keys = threading.Lock()
        try:
            self._lock = ProcessLock(path.with_name(f".{path.name}.lock"))
        except LockedError as error:
            raise ResourceError(f"{path}: {error}; wait for it, or name another file with --results") from error
        except OSError as error:
            raise _cannot_write(path, error) from error
        try:
            self._file = self._open(warn)
        except OSError as error:
            self._lock.release()
            raise _cannot_write(path, error) from error

    def __enter__(self) -> ResultJournal:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._lock.release()

    def __len__(self) -> int:
        return len(self._done)

    def is_done(self, name: str, size: int, mtime_ns: int) -> bool:
        """Whether this content of the file has a line."""
        return _key(name, size, mtime_ns) in self._done

    def append(self, record: Mapping[str, Any]) -> None:
        """Write the line of one image, durably. `record["file"]` holds name, size and mtime_ns.

        Raises ResourceError where the disk does not take it; nothing after it may then be appended.
        """
        try:
            rest = memoryview(json_line(record))
            while rest:
                rest = rest[self._file.write(rest) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            raise _cannot_write(self.path, error) from error
        with self._keys:
            self._done.add(_key_of(record[FILE]))

    def forget_others(self, present: Iterable[tuple[str, int, int]]) -> None:
        """Remember only these of the done files: (name, size, mtime_ns). The lines in the file stay."""
        kept = {_key(*stamp) for stamp in present}
        with self._keys:
            self._done &= kept

    def _open(self, warn: Callable[[str], None]) -> IO[bytes]:
        file = self.path.open("a+b", buffering=0)
        whole = self._read(warn)
        if whole < file.seek(0, os.SEEK_END):
            file.truncate(whole)
            os.fsync(file.fileno())
        sync_folder(self.path.parent)
        return file

    def _read(self, warn: Callable[[str], None]) -> int:
        """Read the lines, and return the length of the file up to the end of its last complete line."""
        end = 0
        damaged: list[int] = []
        with self.path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    break
                end += len(line)
                try:
                    self._done.add(_key_of(json.loads(line)[FILE]))
                except (ValueError, KeyError, TypeError):
                    damaged.append(number)
        if damaged:
            named = ", ".join(map(str, damaged[:5])) + ("" if len(damaged) <= 5 else f" and {len(damaged) - 5} more")
            warn(f"{self.path}: line {named} is no result of cvad and counts for no image")
        return end


def _key_of(file: Mapping[str, Any]) -> bytes:
    return _key(str(file["name"]), int(file["size"]), int(file["mtime_ns"]))


def _key(name: str, size: int, mtime_ns: int) -> bytes:
    content = b"\0".join([os.fsencode(name), str(size).encode(), str(mtime_ns).encode()])
    return hashlib.blake2b(content, digest_size=16).digest()


def _cannot_write(path: Path, error: OSError) -> ResourceError:
    return ResourceError(
        f"{path}: cannot be written: {error.strerror or error}. Its lines are complete; start again to continue"
    )
