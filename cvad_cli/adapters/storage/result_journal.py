"""Results that are their own memory: an append-only file of JSON lines that says what is done.

An image is done when its line is in the file, whole. The line is written at once and forced to disk before anyone is
told, so that whatever kills the process, each image has one line or none, and one without is inspected again. A last
line that was torn is cut off when the file is opened.
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
"""The key of a line that says which content of which file it is about."""


@final
class ResultJournal:
    """One file of results, held by one process. A context manager; raises ResourceError where it cannot be had.

    Memory holds a digest of 16 bytes for each file that is done, in a set of Python: 76 to 102 bytes a file in all, by
    how full the set is. `forget_others` lets go of those that are gone, and makes a second set meanwhile.
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
        """Keep in mind only these of the files that are done: (name, size, mtime_ns). The lines stay."""
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
        """Take in the lines, and give the length of the file up to where the last whole one ends."""
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
        f"{path}: cannot be written: {error.strerror or error}. What it holds is whole; start again to go on"
    )
