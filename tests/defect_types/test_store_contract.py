"""One contract for every defect store: embedded on disk, qdrant-client in memory and over loopback REST and gRPC, and
the server that CVAD_TEST_QDRANT_URL names, by REST and by gRPC.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from defect_points import DIMENSION, METADATA, point, points
from loopback_grpc import grpc_store, loopback_grpc
from loopback_qdrant import loopback_qdrant

from cvad_cli.adapters.qdrant.embedded import EmbeddedStore
from cvad_cli.adapters.qdrant.retries import RetryingClient
from cvad_cli.adapters.qdrant.server import CollectionOptions, ServerStore
from cvad_cli.adapters.storage.index_export import export_index, import_index
from cvad_cli.assembly.defect_types.open_store import open_store
from cvad_cli.config.schema import QdrantConfig
from cvad_cli.errors import StoreError
from cvad_cli.ports import DefectStore
from cvad_cli.records import DefectPoint, IndexInfo

ODD_LABELS = [
    'crack "deep"',
    "slash/back\\slash",
    "ünïcødé 裂纹 🧵",
    "a.b[0]{c}",
    "it's; DROP",
    "line\nend\ttab",
    " ",
    "",
]


@contextmanager
def opened(kind: str, folder: Path) -> Iterator[DefectStore]:
    if kind == "embedded":
        with EmbeddedStore(folder, "defects", batch_size=7) as store:
            yield store
        return
    if kind == "memory":
        from qdrant_client import QdrantClient

        client = QdrantClient(":memory:")
        call = RetryingClient("memory: defects", retries=0)
        with ServerStore(client, "defects", call=call, collection_options=CollectionOptions(), batch_size=7) as store:
            yield store
        return
    if kind == "wire":
        with loopback_qdrant() as server, open_store(QdrantConfig(url=server.url, batch_size=7, retries=0)) as store:
            yield store
        return
    if kind == "wire-grpc":
        with loopback_grpc() as server, grpc_store(server, batch_size=7) as store:
            yield store
        return
    url = os.environ.get("CVAD_TEST_QDRANT_URL")
    if not url:
        pytest.skip("CVAD_TEST_QDRANT_URL names no Qdrant server")
    key = os.environ.get("CVAD_TEST_QDRANT_API_KEY")
    name = f"cvad-test-{uuid.uuid4().hex}"
    settings = QdrantConfig(url=url, api_key=key, collection=name, batch_size=7, prefer_grpc=kind == "grpc")
    with open_store(settings) as store:
        try:
            yield store
        finally:
            store.drop()


@pytest.fixture(params=["embedded", "memory", "wire", "wire-grpc", "rest", "grpc"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[DefectStore]:
    with opened(request.param, tmp_path / "index") as found:
        yield found


@pytest.fixture
def filled(store: DefectStore) -> DefectStore:
    store.create(DIMENSION, METADATA)
    assert store.upsert(points(20)) == 20
    return store


def assert_same(store: DefectStore, expected: list[DefectPoint]) -> None:
    """The same points; qdrant-client's local mode rounds the last bit of a vector anew at each writing."""
    for here, there in zip(store.scroll(), expected, strict=True):
        assert (here.id, here.payload) == (there.id, there.payload)
        np.testing.assert_allclose(here.vector, there.vector, atol=1e-6)


def test_a_store_without_its_collection_says_so_and_makes_nothing(store: DefectStore, tmp_path: Path) -> None:
    assert store.info() is None
    for ask in (
        store.count,
        store.scroll,
        lambda: store.search(np.ones(DIMENSION, np.float32), limit=1),
        lambda: store.upsert(points(1)),
        lambda: store.delete(where={"source": "a"}),
        lambda: store.set_metadata({}),
    ):
        with pytest.raises(StoreError, match="no such defect index"):
            ask()
    store.drop()
    assert not list(tmp_path.rglob("*"))


def test_an_empty_index_answers_with_nothing(store: DefectStore) -> None:
    store.create(DIMENSION, METADATA)
    assert store.info() == IndexInfo(DIMENSION, 0, METADATA)
    assert store.search(np.ones(DIMENSION, np.float32), limit=5) == []
    assert list(store.scroll()) == []
    assert (store.count(), store.upsert([]), store.delete(where={"category": "grid"})) == (0, 0, 0)


def test_creating_twice_is_refused_and_changes_nothing(filled: DefectStore) -> None:
    with pytest.raises(StoreError, match="exists already"):
        filled.create(DIMENSION + 1, {})
    assert filled.info() == IndexInfo(DIMENSION, 20, METADATA)


def test_metadata_is_replaced_and_not_merged(filled: DefectStore) -> None:
    filled.set_metadata({"bundle": "other", "none": None})
    info = filled.info()
    assert info is not None
    assert info.metadata == {"bundle": "other", "none": None}


def test_indexing_twice_changes_nothing(filled: DefectStore) -> None:
    before = list(filled.scroll())
    assert filled.upsert(points(20)) == 20
    assert_same(filled, before)


def test_a_point_of_the_same_id_is_replaced_whole(filled: DefectStore) -> None:
    moved = replace(point(3), vector=point(99).vector, payload={"defect_type": "new"})
    filled.upsert([moved])
    assert filled.count() == 20
    nearest = filled.search(moved.vector, limit=1)[0]
    assert (nearest.id, nearest.payload) == (moved.id, {"defect_type": "new"})


def test_a_search_finds_the_nearest_by_cosine_best_first(filled: DefectStore) -> None:
    query = point(4).vector * 7.5
    found = filled.search(query, limit=6)
    matrix = np.stack([each.vector / np.linalg.norm(each.vector) for each in points(20)])
    expected = np.sort(matrix @ (query / np.linalg.norm(query)))[::-1][:6]
    assert found[0].id == point(4).id
    assert found[0].payload == point(4).payload
    np.testing.assert_allclose([each.similarity for each in found], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("where", "numbers"),
    [
        pytest.param({"defect_type": "cut"}, range(0, 20, 3), id="one value"),
        pytest.param({"defect_type": ["cut", "hole"]}, [n for n in range(20) if n % 3 < 2], id="one of several"),
        pytest.param({"defect_type": "cut", "source": ["3.png", "4.png"]}, [3], id="all fields must hold"),
        pytest.param({"defect_type": "no such"}, [], id="an unknown value"),
        pytest.param({"defect_type": []}, [], id="no value allowed"),
        pytest.param({}, range(20), id="no condition"),
        pytest.param(None, range(20), id="none"),
    ],
)
def test_conditions_choose_the_same_points_everywhere(filled: DefectStore, where: dict, numbers: range) -> None:
    expected = {point(number).id for number in numbers}
    assert {each.id for each in filled.scroll(where=where)} == expected
    assert {each.id for each in filled.search(point(0).vector, limit=50, where=where)} == expected
    assert filled.count(where=where) == len(expected)


def test_odd_characters_in_labels_are_kept_found_and_deleted(filled: DefectStore) -> None:
    odd = [point(100 + number, defect_type=label) for number, label in enumerate(ODD_LABELS)]
    filled.upsert(odd)
    for label, expected in zip(ODD_LABELS, odd, strict=True):
        (found,) = filled.scroll(where={"defect_type": label})
        assert (found.id, found.payload) == (expected.id, expected.payload)
    assert filled.delete(where={"defect_type": ODD_LABELS}) == len(ODD_LABELS)
    assert filled.count() == 20


def test_payloads_come_back_as_they_were(filled: DefectStore) -> None:
    rich = {
        "box": [0, 1, 2, 3],
        "score": 0.1,
        "area": 12345678901,
        "known": True,
        "by": None,
        "deep": {"a": [{"b": 1}]},
    }
    filled.upsert([DefectPoint(point(7).id, point(7).vector, rich)])
    found = filled.search(point(7).vector, limit=1)[0].payload
    assert found == rich
    assert {key: type(value) for key, value in found.items()} == {key: type(value) for key, value in rich.items()}


def test_scrolling_gives_unit_vectors_in_the_order_of_ids_over_many_pages(store: DefectStore) -> None:
    store.create(DIMENSION, METADATA)
    store.upsert(points(600))
    found = list(store.scroll())
    assert [each.id for each in found] == sorted(each.id for each in points(600))
    by_id = {each.id: each.vector for each in points(600)}
    for each in found:
        expected = by_id[each.id] / np.linalg.norm(by_id[each.id])
        np.testing.assert_allclose(each.vector, expected, atol=1e-6)


def test_a_vector_of_another_length_is_refused_with_a_remedy(filled: DefectStore) -> None:
    wrong = DefectPoint(point(50).id, np.ones(DIMENSION + 1, np.float32), {})
    with pytest.raises(StoreError, match=r"vectors of 8 values, got one of 9.*index again"):
        filled.upsert([wrong])
    with pytest.raises(StoreError, match="vectors of 8 values, got one of 9"):
        filled.search(wrong.vector, limit=1)
    assert filled.count() == 20


def test_deleting_needs_a_selection_and_counts_what_went(filled: DefectStore) -> None:
    for empty in ({}, {"where": {}}):
        with pytest.raises(ValueError, match=r"drop\(\)"):
            filled.delete(**empty)
    unknown = str(uuid.uuid4())
    assert filled.delete(ids=[]) == 0
    assert filled.delete(ids=[point(0).id, point(1).id, unknown]) == 2
    assert filled.delete(ids=[point(3).id, point(4).id], where={"defect_type": "cut"}) == 1
    assert {each.payload["source"] for each in filled.scroll()}.isdisjoint({"0.png", "1.png", "3.png"})
    assert filled.count() == 17


def test_arguments_that_make_no_sense_are_refused_alike(store: DefectStore) -> None:
    for dimension, metadata in [(0, {}), (-1, {}), (DIMENSION, {"x": float("nan")}), (DIMENSION, {"x": {1, 2}})]:
        with pytest.raises(ValueError, match=r"dimension|metadata"):
            store.create(dimension, metadata)
        assert store.info() is None
    store.create(DIMENSION, METADATA)
    for limit in (0, -1):
        with pytest.raises(ValueError, match="limit"):
            store.search(point(0).vector, limit=limit)
    for vector in (np.full(DIMENSION, np.nan), np.ones((1, DIMENSION))):
        with pytest.raises(ValueError, match="finite values of shape"):
            store.search(vector, limit=1)
    with pytest.raises(ValueError, match="UUID"):
        store.delete(ids=["7"])
    with pytest.raises(ValueError, match="metadata"):
        store.set_metadata({"x": {1, 2}})
    assert store.info() == IndexInfo(DIMENSION, 0, METADATA)


def test_a_dropped_index_is_gone_and_can_be_made_anew(filled: DefectStore) -> None:
    filled.drop()
    assert filled.info() is None
    filled.create(3, {"new": True})
    assert filled.info() == IndexInfo(3, 0, {"new": True})


def test_conditions_take_fields_with_an_index_alone(filled: DefectStore) -> None:
    for ask in (filled.count, filled.scroll, lambda where: filled.search(point(0).vector, limit=1, where=where)):
        with pytest.raises(ValueError, match="payload field"):
            ask(where={'x" OR "1': "a"})
        with pytest.raises(ValueError, match="defect_type"):
            ask(where={"labelled_by": "a"})


def test_an_export_moves_between_kinds_of_store_and_back(filled: DefectStore, tmp_path: Path) -> None:
    file = tmp_path / "defects.cvad"
    assert export_index(filled, file) == 20
    with EmbeddedStore(tmp_path / "elsewhere", "moved") as other:
        assert import_index(other, file) == 20
        assert other.info() == filled.info()
        assert_same(other, list(filled.scroll()))
        again = tmp_path / "again.cvad"
        export_index(other, again)
        assert again.read_bytes() == file.read_bytes()
        filled.drop()
        assert import_index(filled, again) == 20
        assert import_index(filled, again) == 20
        assert filled.info() == other.info()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        pytest.param({"id": "7"}, "UUID", id="an id that is none"),
        pytest.param({"id": str(uuid.uuid4()).upper()}, "UUID", id="an id spelled otherwise"),
        pytest.param({"vector": np.ones(4)}, "float32", id="float64"),
        pytest.param({"vector": np.ones((2, 2), np.float32)}, "float32", id="two axes"),
        pytest.param({"vector": np.array([1, np.nan], np.float32)}, "finite", id="not a number"),
        pytest.param({"vector": np.zeros(4, np.float32)}, "direction", id="no direction"),
        pytest.param({"payload": {"score": float("nan")}}, "JSON", id="NaN in the payload"),
        pytest.param({"payload": {"score": np.float32(1)}}, "JSON", id="an array's number in the payload"),
        pytest.param({"payload": {"source": "\udcff.png"}}, "JSON", id="a file name that is no text"),
        pytest.param({"payload": {1: "x"}}, "keys", id="a key that is no text"),
    ],
)
def test_a_point_checks_itself(wrong: dict, message: str) -> None:
    right = {"id": str(uuid.uuid4()), "vector": np.ones(4, np.float32), "payload": {}}
    with pytest.raises(ValueError, match=message):
        DefectPoint(**{**right, **wrong})
