"""A Qdrant server's gRPC services for tests: real wire and conversions, answered by qdrant-client's local engine."""

# ruff: noqa: N802 - the methods bear the names of the services' calls

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
from qdrant_client import QdrantClient
from qdrant_client import grpc as q
from qdrant_client.conversions.conversion import GrpcToRest, RestToGrpc
from qdrant_client.grpc.collections_service_pb2_grpc import CollectionsServicer, add_CollectionsServicer_to_server
from qdrant_client.grpc.points_service_pb2_grpc import PointsServicer, add_PointsServicer_to_server

from cvad_cli.adapters.qdrant.retries import RetryingClient
from cvad_cli.adapters.qdrant.server import CollectionOptions, ServerStore, connect


class LoopbackGrpc:
    """`faults` holds gRPC statuses: each spoils one request, in order."""

    def __init__(self, api_key: str | None) -> None:
        self.api_key = api_key
        self.faults: list[grpc.StatusCode] = []
        self.engine = QdrantClient(":memory:")
        self.lock = threading.Lock()
        self.server = grpc.server(ThreadPoolExecutor(2))
        add_CollectionsServicer_to_server(Collections(self), self.server)
        add_PointsServicer_to_server(Points(self), self.server)
        self.port = self.server.add_insecure_port("127.0.0.1:0")
        self.server.start()

    def run(self, context: grpc.ServicerContext, work: Callable[[], Any]) -> Any:
        if self.faults:
            context.abort(self.faults.pop(0), "told to fail")
        if self.api_key and dict(context.invocation_metadata()).get("api-key") != self.api_key:
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "Invalid API key or JWT")
        with self.lock, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                return work()
            except ValueError as error:
                exists = "exists" in str(error)
                context.abort(grpc.StatusCode.ALREADY_EXISTS if exists else grpc.StatusCode.NOT_FOUND, str(error))


class Collections(CollectionsServicer):
    def __init__(self, loopback: LoopbackGrpc) -> None:
        self.run, self.engine = loopback.run, loopback.engine

    def CollectionExists(self, asked: Any, context: Any) -> Any:
        def work() -> Any:
            exists = self.engine.collection_exists(asked.collection_name)
            return q.CollectionExistsResponse(result=q.CollectionExists(exists=exists))

        return self.run(context, work)

    def Get(self, asked: Any, context: Any) -> Any:
        def work() -> Any:
            found = self.engine.get_collection(asked.collection_name)
            return q.GetCollectionInfoResponse(result=RestToGrpc.convert_collection_info(found))

        return self.run(context, work)

    def Create(self, asked: Any, context: Any) -> Any:
        def work() -> Any:
            vectors = GrpcToRest.convert_vectors_config(asked.vectors_config)
            metadata = GrpcToRest.convert_payload(asked.metadata)
            self.engine.create_collection(asked.collection_name, vectors_config=vectors, metadata=metadata)
            return q.CollectionOperationResponse(result=True)

        return self.run(context, work)

    def Update(self, asked: Any, context: Any) -> Any:
        def work() -> Any:
            self.engine.update_collection(asked.collection_name, metadata=GrpcToRest.convert_payload(asked.metadata))
            return q.CollectionOperationResponse(result=True)

        return self.run(context, work)

    def Delete(self, asked: Any, context: Any) -> Any:
        def work() -> Any:
            return q.CollectionOperationResponse(result=self.engine.delete_collection(asked.collection_name))

        return self.run(context, work)


class Points(PointsServicer):
    def __init__(self, loopback: LoopbackGrpc) -> None:
        self.run, self.engine = loopback.run, loopback.engine

    @staticmethod
    def chosen(asked: Any) -> Any:
        return GrpcToRest.convert_filter(asked.filter) if asked.HasField("filter") else None

    @staticmethod
    def done() -> Any:
        return q.PointsOperationResponse(result=q.UpdateResult(operation_id=0, status=q.UpdateStatus.Completed))

    def CreateFieldIndex(self, asked: Any, context: Any) -> Any:
        return self.run(context, self.done)

    def Upsert(self, asked: Any, context: Any) -> Any:
        def work() -> Any:
            self.engine.upsert(asked.collection_name, [GrpcToRest.convert_point_struct(each) for each in asked.points])
            return self.done()

        return self.run(context, work)

    def Delete(self, asked: Any, context: Any) -> Any:
        def work() -> Any:
            self.engine.delete(asked.collection_name, GrpcToRest.convert_points_selector(asked.points))
            return self.done()

        return self.run(context, work)

    def Count(self, asked: Any, context: Any) -> Any:
        def work() -> Any:
            found = self.engine.count(asked.collection_name, self.chosen(asked))
            return q.CountResponse(result=RestToGrpc.convert_count_result(found))

        return self.run(context, work)

    def Scroll(self, asked: Any, context: Any) -> Any:
        def work() -> Any:
            offset = GrpcToRest.convert_point_id(asked.offset) if asked.HasField("offset") else None
            found, following = self.engine.scroll(
                asked.collection_name, self.chosen(asked), limit=asked.limit, offset=offset, with_vectors=True
            )
            page = None if following is None else RestToGrpc.convert_extended_point_id(following)
            return q.ScrollResponse(result=[RestToGrpc.convert_record(each) for each in found], next_page_offset=page)

        return self.run(context, work)

    def Query(self, asked: Any, context: Any) -> Any:
        def work() -> Any:
            vector = list(asked.query.nearest.dense.data)
            chosen = self.chosen(asked)
            found = self.engine.query_points(
                asked.collection_name, query=vector, query_filter=chosen, limit=asked.limit
            )
            return q.QueryResponse(result=[RestToGrpc.convert_scored_point(each) for each in found.points])

        return self.run(context, work)


@contextmanager
def loopback_grpc(api_key: str | None = None) -> Iterator[LoopbackGrpc]:
    loopback = LoopbackGrpc(api_key)
    try:
        yield loopback
    finally:
        loopback.server.stop(0).wait()


def grpc_store(
    loopback: LoopbackGrpc, *, api_key: str | None = None, batch_size: int = 500, pauses: list[float] | None = None
) -> ServerStore:
    """A store that talks to the loopback, three retries, whose pauses are noted down and not waited for."""
    client = connect("http://127.0.0.1:1", api_key=api_key, prefer_grpc=True, timeout_s=10, grpc_port=loopback.port)
    sleep = (pauses if pauses is not None else []).append
    call = RetryingClient("grpc: defects", retries=3, api_key=api_key, sleep=sleep)
    return ServerStore(client, "defects", call=call, collection_options=CollectionOptions(), batch_size=batch_size)
