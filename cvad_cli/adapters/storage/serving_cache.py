"""Keeps compiled networks and search structures, so that a bundle opens quickly. Everything in it can be rebuilt.

An entry is a folder with its files and `entry.json`, which says what the entry was made from and the sha256 of each
file. It lies in `cache/` in the bundle's folder, or below the user's cache folder where that cannot be written. It is
built under a temporary name and renamed at the end. A stale or damaged entry is built again.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

from cvad_cli.errors import ResourceError
from cvad_cli.files import recover, replacing_folder
from cvad_cli.files.digests import file_sha256
from cvad_cli.files.user_folders import user_cache_folder

ENTRY_FILE: Final = "entry.json"
FORMAT: Final = 5
"""Increased when the contents of an entry, or the way engines are built from it, change."""

FOLDER: Final = "cache"

Build = Callable[[Path], Mapping[str, Any]]
"""Writes files into an empty folder and returns facts to store with them, JSON-ready."""


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """Files and facts of one entry."""

    folder: Path
    facts: Mapping[str, Any]
    kept: bool
    """False: the folder is removed when the `opened` block ends."""


@final
class ServingCache:
    """The entries of one bundle."""

    def __init__(self, bundle: Path, fingerprint: str, identity: Mapping[str, Any]) -> None:
        """`identity`, JSON-ready, is what an entry depends on besides the bundle: versions, processor, precision."""
        self._fingerprint = fingerprint
        self._key = {"format": FORMAT, "bundle": fingerprint, **identity}
        name = hashlib.sha256(json.dumps(self._key, sort_keys=True).encode()).hexdigest()[:16]
        self._folders = [root / name for root in (bundle / FOLDER, user_cache_folder() / fingerprint[:16])]

    @contextmanager
    def opened(self, build: Build) -> Iterator[CacheEntry]:
        """The stored entry, or a new one from `build`. Read what you need before the block ends."""
        for folder in self._folders:
            facts = self._verified(folder)
            if facts is not None:
                yield CacheEntry(folder, facts, kept=True)
                return
        with tempfile.TemporaryDirectory(prefix="cvad-", ignore_cleanup_errors=True) as temporary:
            made = Path(temporary)
            facts = dict(build(made))
            kept = self._keep(made, facts)
            yield CacheEntry(made if kept is None else kept, facts, kept=kept is not None)

    def _verified(self, folder: Path) -> Mapping[str, Any] | None:
        """The facts of an entry that is undamaged and has this cache's key; otherwise None."""
        recover(folder)
        try:
            entry = json.loads((folder / ENTRY_FILE).read_text(encoding="utf-8"))
            whole = entry["key"] == self._key and all(
                Path(name).name == name and file_sha256(folder / name) == digest
                for name, digest in entry["files"].items()
            )
            return dict(entry["facts"]) if whole else None
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def _keep(self, made: Path, facts: Mapping[str, Any]) -> Path | None:
        """Copy what was built to the first folder that can be written; None where none can."""
        files = {path.name: file_sha256(path) for path in sorted(made.iterdir())}
        for folder in self._folders:
            if self._verified(folder) is not None:  # another process has stored it and may be reading it
                return folder
            try:
                with replacing_folder(folder) as staged:
                    shutil.copytree(made, staged, dirs_exist_ok=True)
                    entry = {"key": self._key, "facts": facts, "files": files}
                    (staged / ENTRY_FILE).write_text(json.dumps(entry, indent=2) + "\n", encoding="utf-8")
            except ResourceError:
                if self._verified(folder) is not None:  # another process stored it at the same moment
                    return folder
                continue  # read-only or full: try the next one
            self._remove_stale(folder)
            return folder
        return None

    def _remove_stale(self, folder: Path) -> None:
        """Remove entries of the bundle that lay here before, and of other engine versions on this processor."""
        for other in folder.parent.iterdir():
            if other == folder or not (other / ENTRY_FILE).is_file():
                continue
            key = self._key_of(other)
            same_use = all(key.get(name) == self._key.get(name) for name in ("processor", "precision"))
            if key.get("bundle") != self._fingerprint or same_use:
                shutil.rmtree(other, ignore_errors=True)

    @staticmethod
    def _key_of(folder: Path) -> Mapping[str, Any]:
        try:
            key = json.loads((folder / ENTRY_FILE).read_text(encoding="utf-8"))["key"]
            return dict(key)
        except (OSError, ValueError, KeyError, TypeError):
            return {}
