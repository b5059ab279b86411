"""The defect index on a Qdrant server or cluster, through qdrant-client: REST, or gRPC.

cvad's metadata lies under one key of the collection's metadata, since the server merges top-level keys. A collection
without that key was made by someone else and is never changed.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, final
from urllib.parse import urlsplit

import numpy as np

from cvad_cli.adapters.qdrant.retries import RefusedError, RetryingClient
from cvad_cli.adapters.qdrant.validation import (
    INDEXED_FIELDS,
    PAGE,
    batches,
    conditions,
    exists_already,
    missing,
    plain_metadata,
    query_vector,
    rejects_all,
    require_selection,
    unit_rows,
)
from cvad_cli.errors import StoreError
from cvad_cli.ports import Where
from cvad_cli.records import DefectMatch, DefectPoint, IndexInfo

if TYPE_CHECKING:
    from qdrant_client import QdrantClient, models

OURS: Final = "cvad"
"""The top-level key of the collection's metadata that holds cvad's metadata."""
GRPC_PORT: Final = 6334
"""Qdrant's default. For REST the URL contains the port."""


VALUES_A_REQUEST: Final = 1_000_000
"""Vector values in one upsert: about 20 MB of JSON, below the 32 MB that a server takes by default."""


@dataclass(frozen=True, slots=True)
class CollectionOptions:
    """The layout of a new collection; None leaves it to the server. An existing collection is not changed."""

    shard_number: int | None = None
    replication_factor: int | None = None
    on_disk: bool = False
    quantization: Literal["scalar"] | None = None


def connect(
    url: str, *, api_key: str | None, prefer_grpc: bool, timeout_s: int, grpc_port: int = GRPC_PORT
) -> QdrantClient:
    """A client of the server at `url`. Nothing is sent yet."""
    from qdrant_client import QdrantClient

    loopback = urlsplit(url).hostname in ("localhost", "127.0.0.1", "::1")
    with warnings.catch_warnings():
        if loopback:
            warnings.filterwarnings("ignore", message="Api key is used with an insecure connection")
        return QdrantClient(
            url=url,
            api_key=api_key,
            prefer_grpc=prefer_grpc,
            timeout=timeout_s,
            grpc_port=grpc_port,
            # The check would send a request from another thread; `create` checks what is needed.
            check_compatibility=False,
            # The environment's proxy is for outside addresses.
            trust_env=not loopback,
        )


@final
class ServerStore:
    """`DefectStore` over a `QdrantClient`, which it closes. `collection_options` is the layout of a new collection."""

    def __init__(
        self,
        client: QdrantClient,
        collection: str,
        *,
        call: RetryingClient,
        collection_options: CollectionOptions,
        batch_size: int = 500,
    ) -> None:
        self._client, self._name, self._call, self._collection_options = client, collection, call, collection_options
        self._location, self._batch_size = call.location, batch_size
        self._dimension: int | None = None

    def __enter__(self) -> ServerStore:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def info(self) -> IndexInfo | None:
        """Size and metadata; None where the server has no such collection."""
        found = self._described()
        if found is None:
            return None
        dimension, metadata = self._ours(found)
        return IndexInfo(dimension, self._count(None), metadata)

    def create(self, dimension: int, metadata: Mapping[str, Any]) -> None:
        """Make the collection and its payload indexes. Raises StoreError where the server cannot keep metadata."""
        wanted = plain_metadata(metadata, dimension)
        if self._described() is not None:
            raise exists_already(self._location)
        from qdrant_client import models

        int8 = models.ScalarQuantizationConfig(type=models.ScalarType.INT8, quantile=0.99, always_ram=True)
        quantization = (
            models.ScalarQuantization(scalar=int8) if self._collection_options.quantization == "scalar" else None
        )
        vectors = models.VectorParams(
            size=dimension, distance=models.Distance.COSINE, on_disk=self._collection_options.on_disk
        )
        try:
            self._call(
                lambda: self._client.create_collection(
                    self._name,
                    vectors_config=vectors,
                    shard_number=self._collection_options.shard_number,
                    replication_factor=self._collection_options.replication_factor,
                    quantization_config=quantization,
                    metadata={OURS: wanted},
                )
            )
        except RefusedError as error:
            # An attempt whose answer was lost may have made the collection: then it is exactly the wanted one.
            made = self._described() if error.code in (400, 409, "ALREADY_EXISTS", "INVALID_ARGUMENT") else None
            if made is None or _state(made) != (dimension, wanted):
                raise
        found = self._described()
        if found is None or _state(found) != (dimension, wanted):
            self._call(lambda: self._client.delete_collection(self._name))
            raise StoreError(
                f"{self._location}: the server does not keep a collection's metadata; use Qdrant 1.16 or newer"
            )
        self._dimension = dimension
        self._index_payload(found)

    def set_metadata(self, metadata: Mapping[str, Any]) -> None:
        """Replace the metadata."""
        self._require()
        ours = {OURS: plain_metadata(metadata)}
        self._call(lambda: self._client.update_collection(self._name, metadata=ours))

    def upsert(self, points: Iterable[DefectPoint]) -> int:
        """Add or replace, waiting for the server's confirmation after each batch."""
        from qdrant_client import models

        dimension, count = self._require(), 0
        size = max(1, min(self._batch_size, VALUES_A_REQUEST // dimension))
        for batch in batches(points, size, dimension, self._location):
            vectors = unit_rows([each.vector for each in batch])
            rows = [
                models.PointStruct(id=each.id, vector=vector.tolist(), payload=dict(each.payload))
                for each, vector in zip(batch, vectors, strict=True)
            ]
            self._upsert_rows(rows)
            count += len(batch)
        return count

    def _upsert_rows(self, rows: list[models.PointStruct]) -> None:
        self._call(lambda: self._client.upsert(self._name, rows, wait=True))

    def search(self, vector: np.ndarray, *, limit: int, where: Where | None = None) -> list[DefectMatch]:
        """The nearest points by cosine, best first."""
        query, allowed = query_vector(vector, limit, self._require(), self._location), conditions(where)
        if rejects_all(allowed):
            return []
        chosen = _filter(allowed)
        answer = self._call(
            lambda: self._client.query_points(
                self._name, query=query, query_filter=chosen, limit=limit, with_payload=True
            )
        )
        return [DefectMatch(str(each.id), float(each.score), _payload_of(each)) for each in answer.points]

    def scroll(self, *, where: Where | None = None) -> Iterator[DefectPoint]:
        """Every point, ordered by id, a page at a time."""
        self._require()
        allowed = conditions(where)
        return iter(()) if rejects_all(allowed) else self._pages(_filter(allowed))

    def _pages(self, chosen: models.Filter | None) -> Iterator[DefectPoint]:
        offset: Any = None
        while True:
            found, offset = self._page(chosen, offset)
            for each in found:
                yield DefectPoint(str(each.id), np.asarray(each.vector, dtype=np.float32), _payload_of(each))
            if offset is None:
                return

    def _page(self, chosen: models.Filter | None, offset: Any) -> tuple[list[Any], Any]:
        return self._call(
            lambda: self._client.scroll(
                self._name, scroll_filter=chosen, limit=PAGE, offset=offset, with_payload=True, with_vectors=True
            )
        )

    def count(self, *, where: Where | None = None) -> int:
        """How many points there are, exactly."""
        self._require()
        allowed = conditions(where)
        return 0 if rejects_all(allowed) else self._count(_filter(allowed))

    def _count(self, chosen: models.Filter | None) -> int:
        return self._call(lambda: self._client.count(self._name, count_filter=chosen, exact=True)).count

    def delete(self, *, ids: Sequence[str] | None = None, where: Where | None = None) -> int:
        """Remove the points that both arguments select, and return their number."""
        from qdrant_client import models

        require_selection(ids, where)
        self._require()
        allowed = conditions(where)
        if rejects_all(allowed) or (ids is not None and not ids):
            return 0
        chosen = _filter(allowed, ids)
        removed = self._count(chosen)
        selector = models.FilterSelector(filter=chosen)
        self._call(lambda: self._client.delete(self._name, points_selector=selector, wait=True))
        return removed

    def drop(self) -> None:
        """Remove the collection. Raises StoreError where cvad did not make it."""
        found = self._described()
        if found is not None:
            self._ours(found)
            self._call(lambda: self._client.delete_collection(self._name))
        self._dimension = None

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _described(self) -> models.CollectionInfo | None:
        if not self._call(lambda: self._client.collection_exists(self._name)):
            return None
        return self._call(lambda: self._client.get_collection(self._name))

    def _require(self) -> int:
        """The collection's dimension, requested once. Where the collection vanishes later, the server reports it."""
        if self._dimension is None:
            found = self._described()
            if found is None:
                raise missing(self._location)
            self._dimension, _ = self._ours(found)
            self._index_payload(found)
        return self._dimension

    def _ours(self, found: models.CollectionInfo) -> tuple[int, dict[str, Any]]:
        state = _state(found)
        if state is None:
            raise StoreError(f"{self._location}: was not made by cvad; choose another qdrant.collection")
        return state

    def _index_payload(self, found: models.CollectionInfo) -> None:
        """Make the payload indexes that are missing, also those that a killed run did not make."""
        for name in INDEXED_FIELDS:
            if name not in (found.payload_schema or {}):
                self._index_field(name)

    def _index_field(self, name: str) -> None:
        from qdrant_client import models

        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Payload indexes have no effect in the local Qdrant")
            self._call(
                lambda: self._client.create_payload_index(
                    self._name, field_name=name, field_schema=models.PayloadSchemaType.KEYWORD, wait=True
                )
            )


def _state(found: models.CollectionInfo) -> tuple[int, dict[str, Any]] | None:
    """Dimension and metadata of a collection that cvad made; None for any other."""
    from qdrant_client import models

    vectors, metadata = found.config.params.vectors, found.config.metadata or {}
    if not isinstance(vectors, models.VectorParams) or not isinstance(metadata.get(OURS), dict):
        return None
    return vectors.size, dict(metadata[OURS])


def _filter(allowed: dict[str, list[str]], ids: Sequence[str] | None = None) -> Any:
    from qdrant_client import models

    must: list[Any] = [
        models.FieldCondition(key=key, match=models.MatchAny(any=values)) for key, values in allowed.items()
    ]
    if ids is not None:
        must.append(models.HasIdCondition(has_id=list(ids)))
    return models.Filter(must=must) if must else None


def _payload_of(found: Any) -> dict[str, Any]:
    """A found point's payload as a plain dictionary."""
    return dict(found.payload or {})
