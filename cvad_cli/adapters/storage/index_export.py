"""Exports a defect index to one portable file, and imports it: between embedded and server, and between machines.

gzip over UTF-8 lines of JSON, in this order:

    {"format": "cvad-defect-index", "version": 1, "dimension": d, "metadata": {...}}
    {"id": "<UUID>", "vector": "<base64 of d little-endian float32>", "payload": {...}}   (per point, by id)
    {"points": n, "sha256": "<of all the lines before this one>"}

The file is written and read line by line. It is verified to its last line before any point reaches a store.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

import numpy as np

from cvad_cli.errors import StoreError
from cvad_cli.files import replacing
from cvad_cli.ports import DefectStore
from cvad_cli.records import DefectPoint

FORMAT: Final = "cvad-defect-index"
VERSION: Final = 1
LONGEST_LINE: Final = 16 * 2**20
"""Maximum bytes of a line. It bounds the memory that a damaged or hostile file can take."""


def export_index(store: DefectStore, path: Path) -> int:
    """Write all points of `store` to `path`, in one rename, and say how many.

    Raises StoreError where the store has no collection, ResourceError where the file cannot be written.
    """
    info = store.info()
    if info is None:
        raise StoreError(f"{path}: not written: there is no defect index to export")
    header = {"format": FORMAT, "version": VERSION, "dimension": info.dimension, "metadata": dict(info.metadata)}
    digest, count = hashlib.sha256(), 0
    with (
        replacing(path) as temporary,
        temporary.open("wb") as raw,
        # No time and no name in the file: the same index gives the same bytes.
        gzip.GzipFile(filename="", fileobj=raw, mode="wb", compresslevel=1, mtime=0) as file,
    ):
        _write_line(file, header, digest)
        for point in store.scroll():
            vector = base64.b64encode(point.vector.astype("<f4").tobytes()).decode("ascii")
            _write_line(file, {"id": point.id, "vector": vector, "payload": dict(point.payload)}, digest)
            count += 1
        _write_line(file, {"points": count, "sha256": digest.hexdigest()})
    return count


def import_index(store: DefectStore, path: Path) -> int:
    """Add all points of the file to `store`, making its collection where there is none, and say how many.

    Raises StoreError, with the store as it was, where the file is damaged or the collection has another dimension or
    other metadata.
    """
    with _Snapshot.opened(path) as snapshot:
        for _ in snapshot.points():
            pass  # verify the whole file before any point is stored
    with _Snapshot.opened(path) as snapshot:
        info = store.info()
        if info is None:
            store.create(snapshot.dimension, snapshot.metadata)
        elif info.dimension != snapshot.dimension or dict(info.metadata) != snapshot.metadata:
            raise StoreError(
                f"{path}: was exported from an index of another model or descriptor (dimension {snapshot.dimension}, "
                f"here {info.dimension}; or other metadata); import it under another qdrant.collection, or drop this"
            )
        return store.upsert(snapshot.points())


def _write_line(file: IO[bytes] | gzip.GzipFile, content: dict[str, Any], digest: Any = None) -> None:
    # Sorted, since gRPC's maps do not keep the order of a payload's keys.
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"), sort_keys=True)
    line = text.encode("utf-8") + b"\n"
    file.write(line)
    if digest is not None:
        digest.update(line)


@dataclass(slots=True)
class _Snapshot:
    """An opened file whose header was read."""

    path: Path
    file: gzip.GzipFile
    dimension: int
    metadata: dict[str, Any]
    digest: Any

    @classmethod
    def opened(cls, path: Path) -> _Snapshot:
        """Open the file and read its header. Raises StoreError for a file that is no export or is too new."""
        try:
            file = gzip.GzipFile(filename=path, mode="rb")
        except OSError as error:
            raise StoreError(f"{path}: cannot be read: {error.strerror}") from error
        snapshot = cls(path, file, 0, {}, hashlib.sha256())
        try:
            header = snapshot.read_line()
            if header.get("format") != FORMAT:
                raise StoreError(f"{path}: is no exported defect index")
            if header.get("version") != VERSION:
                raise StoreError(
                    f"{path}: has version {header.get('version')}, this cvad reads {VERSION}; upgrade cvad"
                )
            snapshot.dimension, snapshot.metadata = int(header["dimension"]), dict(header["metadata"])
        except (KeyError, TypeError, ValueError) as error:
            file.close()
            raise snapshot.damaged(f"its header: {error}") from error
        except StoreError:
            file.close()
            raise
        return snapshot

    def __enter__(self) -> _Snapshot:
        return self

    def __exit__(self, *exception: object) -> None:
        self.file.close()

    def points(self) -> Iterator[DefectPoint]:
        """Every point. At the end, the count and the hash are compared with the file's last line."""
        count = 0
        while True:
            seen = self.digest.hexdigest()
            record = self.read_line()
            if "points" in record:
                break
            try:
                vector = np.frombuffer(base64.b64decode(record["vector"], validate=True), dtype="<f4")
                point = DefectPoint(record["id"], vector.astype(np.float32), dict(record["payload"]))
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise self.damaged(f"point {count + 1}: {error}") from error
            if len(vector) != self.dimension:
                raise self.damaged(f"point {count + 1} has {len(vector)} values, its header says {self.dimension}")
            count += 1
            yield point
        if record["points"] != count or record.get("sha256") != seen:
            raise self.damaged(f"it holds {count} points, its last line says {record['points']}, or they were changed")

    def read_line(self) -> dict[str, Any]:
        """The next line's object."""
        try:
            line = self.file.readline(LONGEST_LINE)
        except (OSError, EOFError, zlib.error) as error:
            raise self.damaged(str(error)) from error
        if not line.endswith(b"\n"):
            raise self.damaged("it is cut short" if len(line) < LONGEST_LINE else "a line is too long")
        self.digest.update(line)
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise self.damaged("a line is not JSON") from error
        if not isinstance(record, dict):
            raise self.damaged("a line is not an object")
        return record

    def damaged(self, reason: str) -> StoreError:
        """The error for this file."""
        return StoreError(f"{self.path}: is no sound export of a defect index: {reason}. Export it again")
