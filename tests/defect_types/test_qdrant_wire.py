"""The server's store over a real socket: what passes is tried again, what does not is told, and no key leaks."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from defect_points import DIMENSION, METADATA, point, points
from grpc import StatusCode
from loopback_grpc import grpc_store, loopback_grpc
from loopback_qdrant import LoopbackQdrant, loopback_qdrant

from cvad_cli.adapters.qdrant.retries import RetryingClient
from cvad_cli.adapters.qdrant.server import CollectionOptions, ServerStore, connect
from cvad_cli.assembly.defect_types.open_store import open_store
from cvad_cli.config.schema import QdrantConfig
from cvad_cli.errors import StoreError
from cvad_cli.records import DefectPoint, IndexInfo

AS_THE_SERVER_LIKES = CollectionOptions()
KEY = "qd-key.0123456789_ABCDEF"


@pytest.fixture
def server() -> Iterator[LoopbackQdrant]:
    with loopback_qdrant() as running:
        yield running


@pytest.fixture
def pauses() -> list[float]:
    return []


@pytest.fixture
def open_at(pauses: list[float]) -> Iterator[Callable[..., ServerStore]]:
    opened = []

    def build(
        server: LoopbackQdrant,
        *,
        retries: int = 3,
        api_key: str | None = None,
        timeout_s: int = 20,
        collection_options: CollectionOptions = AS_THE_SERVER_LIKES,
    ) -> ServerStore:
        client = connect(server.url, api_key=api_key, prefer_grpc=False, timeout_s=timeout_s)
        call = RetryingClient(f"{server.url}: defects", retries=retries, api_key=api_key, sleep=pauses.append)
        opened.append(ServerStore(client, "defects", call=call, collection_options=collection_options, batch_size=5))
        return opened[-1]

    yield build
    for store in opened:
        store.close()


def test_server_errors_that_pass_are_waited_for_longer_each_time(
    server: LoopbackQdrant, open_at: Callable[..., ServerStore], pauses: list[float]
) -> None:
    store = open_at(server)
    store.create(DIMENSION, METADATA)
    server.faults.extend([500, 503, 502])
    server.only = "PUT /collections/defects/points"
    assert store.upsert(points(12)) == 12
    assert pauses == [0.25, 0.5, 1.0]
    assert store.count() == 12


@pytest.mark.parametrize("when", ["7", "Wed, 25 Nov 2026 07:28:00 GMT", "60"])
def test_a_server_that_is_busy_is_waited_for_within_bounds(
    server: LoopbackQdrant, open_at: Callable[..., ServerStore], pauses: list[float], when: str
) -> None:
    server.faults.append(429)
    server.retry_after = when
    assert open_at(server).info() is None
    assert pauses == [{"7": 7.0, "60": 10.0}.get(when, 0.25)]


@pytest.mark.parametrize("fault", ["before", "after"])
def test_a_connection_that_breaks_in_mid_batch_loses_and_doubles_nothing(
    server: LoopbackQdrant, open_at: Callable[..., ServerStore], pauses: list[float], fault: str
) -> None:
    store = open_at(server)
    store.create(DIMENSION, METADATA)
    server.faults.extend([None, fault, None, fault])
    server.only = "PUT /collections/defects/points"
    assert store.upsert(points(20)) == 20
    assert len(pauses) == 2
    assert [each.id for each in store.scroll()] == sorted(each.id for each in points(20))


def test_a_batch_that_never_gets_through_is_reported_and_the_ones_before_stay(
    server: LoopbackQdrant, open_at: Callable[..., ServerStore]
) -> None:
    store = open_at(server, retries=2)
    store.create(DIMENSION, METADATA)
    server.faults.extend([None, "before", "before", "before"])
    server.only = "PUT /collections/defects/points"
    with pytest.raises(StoreError, match=r"127.0.0.1.*no usable answer after 3 attempts.*qdrant.url"):
        store.upsert(points(20))
    assert store.count() == 5
    assert store.upsert(points(20)) == 20


def test_a_silent_server_is_given_up_after_the_timeout_and_tried_again(
    server: LoopbackQdrant, open_at: Callable[..., ServerStore], pauses: list[float]
) -> None:
    open_at(server).create(DIMENSION, METADATA)
    store = open_at(server, retries=1, timeout_s=1)
    server.faults.extend(["stall"])
    server.only = "POST /collections/defects/points/count"
    assert store.count() == 0
    server.faults.extend(["stall", "stall"])
    with pytest.raises(StoreError, match=r"after 2 attempts: ReadTimeout.*timeout_s"):
        store.count()
    assert len(pauses) == 2


@pytest.mark.parametrize("status", [400, 404, 409, 422])
def test_what_the_server_refuses_is_not_asked_again(
    server: LoopbackQdrant, open_at: Callable[..., ServerStore], pauses: list[float], status: int
) -> None:
    store = open_at(server)
    store.create(DIMENSION, METADATA)
    server.faults.append(status)
    with pytest.raises(StoreError, match="told to fail"):
        store.count()
    assert pauses == []


def test_an_answer_that_is_not_qdrants_is_reported(server: LoopbackQdrant, open_at: Callable[..., ServerStore]) -> None:
    server.faults.append("garbage")
    with pytest.raises(StoreError, match=r"an answer that is not Qdrant's.*check qdrant.url"):
        open_at(server).info()


def test_a_missing_server_is_reported(server: LoopbackQdrant, open_at: Callable[..., ServerStore]) -> None:
    server.server_close()
    with pytest.raises(StoreError, match="after 4 attempts: ConnectError"):
        open_at(server).info()


def test_a_create_whose_answer_was_lost_succeeds(
    server: LoopbackQdrant, open_at: Callable[..., ServerStore], pauses: list[float]
) -> None:
    server.faults.append("after")
    server.only = "PUT /collections/defects"
    store = open_at(server)
    store.create(DIMENSION, METADATA)
    assert len(pauses) == 1
    assert store.info() == IndexInfo(DIMENSION, 0, METADATA)


def test_a_server_too_old_for_metadata_is_refused_and_left_clean(
    server: LoopbackQdrant, open_at: Callable[..., ServerStore]
) -> None:
    server.keeps_metadata = False
    with pytest.raises(StoreError, match=r"Qdrant 1\.16"):
        open_at(server).create(DIMENSION, METADATA)
    assert not server.engine.collection_exists("defects")


def test_a_collection_of_someone_else_is_never_touched(
    server: LoopbackQdrant, open_at: Callable[..., ServerStore]
) -> None:
    from qdrant_client import models

    theirs = models.VectorParams(size=DIMENSION, distance=models.Distance.COSINE)
    server.engine.create_collection("defects", vectors_config=theirs, metadata={"owner": "search team"})
    store = open_at(server)
    for act in (store.info, store.drop, lambda: store.upsert(points(1)), lambda: store.delete(where={"source": "b"})):
        with pytest.raises(StoreError, match="not made by cvad"):
            act()
    assert server.engine.collection_exists("defects")


def test_the_layout_of_a_collection_reaches_the_server(
    server: LoopbackQdrant, open_at: Callable[..., ServerStore]
) -> None:
    collection_options = CollectionOptions(shard_number=4, replication_factor=2, on_disk=True, quantization="scalar")
    open_at(server, collection_options=collection_options).create(DIMENSION, METADATA)
    body = next(body for body in server.bodies if "vectors" in body)
    assert (body["shard_number"], body["replication_factor"]) == (4, 2)
    assert body["vectors"]["on_disk"] is True
    assert body["quantization_config"]["scalar"]["type"] == "int8"
    fields = [body["field_name"] for body in server.bodies if "field_name" in body]
    assert fields == ["defect_type", "category", "source"]


def test_settings_reach_the_server_through_the_factory(server: LoopbackQdrant) -> None:
    with open_store(QdrantConfig(url=server.url, collection="from-settings", batch_size=3)) as store:
        store.create(DIMENSION, METADATA)
        assert store.upsert(points(7)) == 7
        assert store.search(point(2).vector, limit=1)[0].id == point(2).id
    assert server.requests.count("PUT /collections/from-settings/points") == 3


def shown(error: BaseException) -> str:
    """All that `--debug` prints of an error, and its repr."""
    return "".join(traceback.format_exception(error)) + repr(error)


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        pytest.param(None, r"asks for an API key \(401\); set qdrant.api_key", id="no key"),
        pytest.param("wrong-" + KEY, r"API key is refused \(403\)", id="a wrong key"),
    ],
)
def test_a_wrong_key_is_reported_at_once_and_not_shown(
    open_at: Callable[..., ServerStore], pauses: list[float], sent: str | None, message: str
) -> None:
    with loopback_qdrant(api_key=KEY) as server, pytest.raises(StoreError, match=message) as caught:
        open_at(server, api_key=sent).info()
    assert pauses == []
    assert KEY not in shown(caught.value)


def test_the_right_key_opens(open_at: Callable[..., ServerStore]) -> None:
    with loopback_qdrant(api_key=KEY) as server:
        store = open_at(server, api_key=KEY)
        store.create(DIMENSION, METADATA)
        assert KEY not in repr(store) + repr(vars(store))


@pytest.mark.parametrize("fault", ["echo", "before", "garbage", 500])
def test_no_failure_shows_the_key_even_where_the_server_repeats_it(
    open_at: Callable[..., ServerStore], fault: str | int
) -> None:
    with loopback_qdrant(api_key=KEY) as server:
        server.faults.extend([fault] * 4)
        with pytest.raises(StoreError) as caught:
            open_at(server, api_key=KEY).info()
    assert KEY[:12] not in shown(caught.value)


def test_points_with_unusual_labels_cross_the_wire(
    server: LoopbackQdrant, open_at: Callable[..., ServerStore], tmp_path: Path
) -> None:
    store = open_at(server)
    store.create(3, {})
    label = 'glue «"\\» 裂纹 \u2028 🧵'
    store.upsert([DefectPoint(point(1).id, np.array([1, 2, 3], np.float32), {"defect_type": label})])
    assert store.search(np.array([1, 2, 3], np.float32), limit=1, where={"defect_type": label})[0].payload == {
        "defect_type": label
    }


@pytest.mark.parametrize("status", ["UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "INTERNAL"])
def test_grpc_failures_that_pass_are_waited_for(pauses: list[float], status: str) -> None:
    with loopback_grpc() as loopback, grpc_store(loopback, pauses=pauses) as store:
        loopback.faults += [StatusCode[status]] * 2
        assert store.info() is None
    assert pauses == [0.25, 0.5]


def test_grpc_refusals_are_reported_at_once(pauses: list[float]) -> None:
    with loopback_grpc() as loopback, grpc_store(loopback, pauses=pauses) as store:
        loopback.faults.append(StatusCode.INVALID_ARGUMENT)
        with pytest.raises(StoreError, match=r"refuses: told to fail \(INVALID_ARGUMENT\)"):
            store.info()
    assert pauses == []


def test_grpc_tells_a_wrong_key_and_shows_none() -> None:
    with loopback_grpc(api_key=KEY) as loopback:
        with grpc_store(loopback, api_key="wrong-" + KEY) as store:
            with pytest.raises(StoreError, match=r"API key is refused \(UNAUTHENTICATED\)") as caught:
                store.info()
            assert KEY not in shown(caught.value)
        with grpc_store(loopback, api_key=KEY) as store:
            store.create(DIMENSION, METADATA)
            assert store.info() == IndexInfo(DIMENSION, 0, METADATA)
