"""From settings to an opened defect index: embedded by default, on a server if `qdrant.url` is set."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from cvad_cli.adapters.qdrant.embedded import EmbeddedStore
from cvad_cli.adapters.qdrant.retries import RetryingClient
from cvad_cli.adapters.qdrant.server import CollectionOptions, ServerStore, connect
from cvad_cli.config.schema import QdrantConfig
from cvad_cli.ports import DefectStore

DEFAULT_COLLECTION: Final = "defects"
"""The name of the index if no run gives one."""


def open_store(settings: QdrantConfig) -> DefectStore:
    """The store that the `qdrant` section names; close it, or use it in a `with`. Nothing is read or sent yet."""
    collection = settings.collection or DEFAULT_COLLECTION
    if settings.url is None:
        root = Path(settings.path).expanduser()
        return EmbeddedStore(root, collection, batch_size=settings.batch_size, on_disk=settings.on_disk)
    client = connect(
        settings.url, api_key=settings.api_key, prefer_grpc=settings.prefer_grpc, timeout_s=settings.timeout_s
    )
    collection_options = CollectionOptions(
        shard_number=settings.shard_number,
        replication_factor=settings.replication_factor,
        on_disk=settings.on_disk,
        quantization=settings.quantization,
    )
    call = RetryingClient(f"{settings.url}: {collection}", retries=settings.retries, api_key=settings.api_key)
    return ServerStore(
        client, collection, call=call, collection_options=collection_options, batch_size=settings.batch_size
    )
