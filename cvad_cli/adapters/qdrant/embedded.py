"""The defect index inside this process: qdrant-edge, Qdrant's own engine, over a folder.

    <path>/<collection>/index.json     format, dimension, metadata
    <path>/<collection>/shard/         the engine's write-ahead log and segments
    <path>/.<collection>.lock          one process at a time

Searches compare with every point that passes the filter. This is exact, and fast for the thousands of defects that a
plant labels (docs/benchmarks.md). Larger indexes belong on a server.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, final

import numpy as np

from cvad_cli.adapters.qdrant.edge_encoding import (
    create_field_indexes,
    engine_filter,
    identifier_of,
    packed_rows,
    payload_of,
)
from cvad_cli.adapters.qdrant.validation import (
    PAGE,
    batches,
    conditions,
    exists_already,
    missing,
    plain_metadata,
    query_vector,
    rejects_all,
    require_selection,
)
from cvad_cli.errors import CvadError, ResourceError, StoreError
from cvad_cli.files import LockedError, ProcessLock, remove_folder, replacing, replacing_folder
from cvad_cli.ports import Where
from cvad_cli.records import DefectMatch, DefectPoint, IndexInfo

FORMAT: Final = 5
"""Format 4 stored a point under 64 bits of its id, so that two ids with the same 64 bits replaced each other."""


@final
class EmbeddedStore:
    """`DefectStore` over a folder. Opened at the first call that needs it, and locked from then until `close`."""

    def __init__(self, root: Path, collection: str, *, batch_size: int = 500, on_disk: bool = False) -> None:
        self._folder = root / collection
        self._location = str(self._folder)
        self._batch_size, self._on_disk = batch_size, on_disk
        self._lock: ProcessLock | None = None
        self._shard: Any = None
        self._dimension = 0
        self._metadata: dict[str, Any] = {}

    def __enter__(self) -> EmbeddedStore:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def info(self) -> IndexInfo | None:
        """Size and metadata; None where there is no such folder."""
        if not self._opened():
            return None
        return IndexInfo(self._dimension, self.count(), dict(self._metadata))

    def create(self, dimension: int, metadata: Mapping[str, Any]) -> None:
        """Make the folder with an empty shard, in one rename."""
        import qdrant_edge as edge

        plain = plain_metadata(metadata, dimension)
        self._hold()
        if self._opened():
            raise exists_already(self._location)
        memory = edge.Memory.Cold if self._on_disk else edge.Memory.Cached
        vectors = edge.EdgeVectorParams(size=dimension, distance=edge.Distance.Cosine, memory=memory)
        with replacing_folder(self._folder) as fresh, self._engine():
            # Without the log, a run that is killed while it replaces points leaves new vectors with old payloads.
            config = edge.EdgeConfig(vectors=vectors, wal_enabled=True)
            shard = edge.EdgeShard.create(str(fresh / "shard"), config)
            create_field_indexes(shard)
            shard.flush()
            shard.close()
            _write_index_file(fresh / "index.json", dimension, plain)
        self._opened()

    def set_metadata(self, metadata: Mapping[str, Any]) -> None:
        """Replace the metadata, in one rename."""
        self._require()
        plain = plain_metadata(metadata)
        _write_index_file(self._folder / "index.json", self._dimension, plain)
        self._metadata = plain

    def upsert(self, points: Iterable[DefectPoint]) -> int:
        """Add or replace, then flush: once this returns, the points are on the disk."""
        import qdrant_edge as edge

        shard, count = self._require(), 0
        for batch in batches(points, self._batch_size, self._dimension, self._location):
            with self._engine():
                shard.update(edge.UpdateOperation.upsert_points(packed_rows(batch)))
            count += len(batch)
        with self._engine():
            shard.flush()
        return count

    def search(self, vector: np.ndarray, *, limit: int, where: Where | None = None) -> list[DefectMatch]:
        """The nearest points by cosine, best first."""
        import qdrant_edge as edge

        shard, allowed = self._require(), conditions(where)
        query = edge.Query.Nearest(query_vector(vector, limit, self._dimension, self._location))
        if rejects_all(allowed):
            return []
        with self._engine():
            found = shard.query(
                edge.QueryRequest(limit=limit, query=query, filter=engine_filter(allowed), with_payload=True)
            )
        return [DefectMatch(identifier_of(each), float(each.score), payload_of(each)) for each in found]

    def scroll(self, *, where: Where | None = None) -> Iterator[DefectPoint]:
        """Every point, ordered by id, a page at a time."""
        shard, allowed = self._require(), conditions(where)
        return iter(()) if rejects_all(allowed) else self._pages(shard, allowed)

    def _pages(self, shard: Any, allowed: dict[str, list[str]]) -> Iterator[DefectPoint]:
        """The engine gives points in the order of their ids."""
        import qdrant_edge as edge

        offset = None
        while True:
            request = edge.ScrollRequest(
                offset=offset, limit=PAGE, filter=engine_filter(allowed), with_payload=True, with_vector=True
            )
            with self._engine():
                found, offset = shard.scroll(request)
            for each in found:
                yield DefectPoint(identifier_of(each), np.asarray(each.vector, dtype=np.float32), payload_of(each))
            if offset is None:
                return

    def count(self, *, where: Where | None = None) -> int:
        """How many points there are, exactly."""
        import qdrant_edge as edge

        shard, allowed = self._require(), conditions(where)
        if rejects_all(allowed):
            return 0
        with self._engine():
            return int(shard.count(edge.CountRequest(exact=True, filter=engine_filter(allowed))))

    def delete(self, *, ids: Sequence[str] | None = None, where: Where | None = None) -> int:
        """Remove the points that both arguments select, flush, and return their number."""
        import qdrant_edge as edge

        require_selection(ids, where)
        shard, allowed = self._require(), conditions(where)
        if rejects_all(allowed) or (ids is not None and not ids):
            return 0
        with self._engine():
            chosen = engine_filter(allowed, ids)
            removed = int(shard.count(edge.CountRequest(exact=True, filter=chosen)))
            shard.update(edge.UpdateOperation.delete_points_by_filter(chosen))
            shard.flush()
        return removed

    def drop(self) -> None:
        """Remove the folder in one step: a run that is killed meanwhile leaves the whole index or none."""
        if not self._folder.exists():
            return
        self._hold()
        self._close_shard()
        try:
            remove_folder(self._folder)
        except OSError as error:
            raise StoreError(f"{self._location}: cannot be removed: {error.strerror}") from error

    def close(self) -> None:
        """Close the shard and release the lock."""
        self._close_shard()
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _close_shard(self) -> None:
        shard, self._shard = self._shard, None
        if shard is not None:
            with self._engine():
                shard.close()

    def _hold(self) -> None:
        if self._lock is None:
            path = self._folder.with_name(f".{self._folder.name}.lock")
            try:
                self._lock = ProcessLock(path)
            except LockedError as error:
                raise StoreError(
                    f"{self._location}: {error}; an embedded index serves one at a time. Wait for it, "
                    "or set qdrant.url to share a server"
                ) from error
            except OSError as error:
                raise StoreError(
                    f"{path}: cannot be written: {error.strerror}; the index needs a folder it can write"
                ) from error

    def _require(self) -> Any:
        if not self._opened():
            raise missing(self._location)
        return self._shard

    def _opened(self) -> bool:
        """True once the shard is open; False where there is no index, and then nothing was changed."""
        if self._shard is not None:
            return True
        if not self._folder.exists():
            return False
        import qdrant_edge as edge

        self._hold()
        self._dimension, self._metadata = _read_index_file(self._folder / "index.json")
        with self._engine():
            self._shard = edge.EdgeShard.load(str(self._folder / "shard"))
        return True

    @contextmanager
    def _engine(self) -> Iterator[None]:
        """Turn the engine's exceptions, and its panics for internal bugs, into a StoreError that names the folder."""
        try:
            yield
        except (CvadError, ValueError, TypeError, OverflowError):
            raise  # wrong arguments are bugs of ours
        except BaseException as error:
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            text = str(error)
            if "No space left" in text:
                raise ResourceError(f"{self._location}: no space left on its disk: {text}") from error
            raise StoreError(
                f"{self._location}: the index engine refused: {text}. If it was damaged, import an export of it, or "
                "index again"
            ) from error


def _write_index_file(path: Path, dimension: int, metadata: dict[str, Any]) -> None:
    contents = {"format": FORMAT, "dimension": dimension, "metadata": metadata}
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(contents, indent=2, allow_nan=False), encoding="utf-8")


def _read_index_file(path: Path) -> tuple[int, dict[str, Any]]:
    try:
        contents = json.loads(path.read_text(encoding="utf-8"))
        version, dimension, metadata = contents["format"], int(contents["dimension"]), dict(contents["metadata"])
    except FileNotFoundError as error:
        raise StoreError(f"{path}: is missing, so {path.parent} is no defect index; check qdrant.path") from error
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise StoreError(f"{path}: cannot be read as a defect index: {error}; import an export of it") from error
    if version != FORMAT:
        older = isinstance(version, int) and version < FORMAT
        remedy = "export it with the cvad that wrote it and import that" if older else "upgrade cvad"
        raise StoreError(f"{path}: has format {version}, this cvad reads {FORMAT}; {remedy}, or index again")
    return dimension, metadata
