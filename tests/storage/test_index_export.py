"""A portable export of a defect index: the same bytes for the same index, and never half-believed."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import tracemalloc
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from defect_points import DIMENSION, METADATA, point, points

from cvad_cli.adapters.qdrant.embedded import EmbeddedStore
from cvad_cli.adapters.storage.index_export import export_index, import_index
from cvad_cli.errors import StoreError
from cvad_cli.records import DefectPoint


@pytest.fixture
def store(tmp_path: Path) -> Iterator[EmbeddedStore]:
    with EmbeddedStore(tmp_path, "defects") as opened:
        yield opened


@pytest.fixture
def export(tmp_path: Path) -> Path:
    path = tmp_path / "defects.cvad"
    with EmbeddedStore(tmp_path, "source") as source:
        source.create(DIMENSION, METADATA)
        source.upsert(points(5))
        assert export_index(source, path) == 5
    return path


def test_an_export_is_lines_of_json_that_any_tool_reads(export: Path) -> None:
    header, *records, last = [json.loads(line) for line in gzip.decompress(export.read_bytes()).splitlines()]
    assert header == {"format": "cvad-defect-index", "version": 1, "dimension": DIMENSION, "metadata": METADATA}
    assert [record["id"] for record in records] == sorted(each.id for each in points(5))
    vector = np.frombuffer(base64.b64decode(records[0]["vector"]), "<f4")
    assert np.linalg.norm(vector) == pytest.approx(1)
    assert last["points"] == 5


def test_importing_bit_for_bit(export: Path, store: EmbeddedStore, tmp_path: Path) -> None:
    assert import_index(store, export) == 5
    export_index(store, tmp_path / "again.cvad")
    assert (tmp_path / "again.cvad").read_bytes() == export.read_bytes()


def test_importing_adds_to_an_index_of_the_same_make(export: Path, store: EmbeddedStore) -> None:
    store.create(DIMENSION, METADATA)
    store.upsert([point(4), point(70)])
    assert import_index(store, export) == 5
    assert store.count() == 6


@pytest.mark.parametrize(("dimension", "metadata"), [(DIMENSION + 1, METADATA), (DIMENSION, {"bundle": "another"})])
def test_an_index_of_another_model_takes_no_import(
    export: Path, store: EmbeddedStore, dimension: int, metadata: dict
) -> None:
    store.create(dimension, metadata)
    with pytest.raises(StoreError, match="another model"):
        import_index(store, export)
    assert store.count() == 0


def test_exporting_nothing_is_told_and_leaves_no_file(store: EmbeddedStore, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no defect index to export"):
        export_index(store, tmp_path / "out.cvad")
    assert not (tmp_path / "out.cvad").exists()


def test_an_empty_index_travels_too(store: EmbeddedStore, tmp_path: Path) -> None:
    store.create(DIMENSION, METADATA)
    assert export_index(store, tmp_path / "out.cvad") == 0
    store.drop()
    assert import_index(store, tmp_path / "out.cvad") == 0
    assert store.count() == 0


def lines_of(export: Path) -> list[bytes]:
    return gzip.decompress(export.read_bytes()).splitlines(keepends=True)


def edited(change: Callable[[list[bytes]], list[bytes]]) -> Callable[[Path], None]:
    return lambda export: export.write_bytes(gzip.compress(b"".join(change(lines_of(export)))))


def resealed(line: bytes) -> Callable[[Path], None]:
    """A file with one more point, whose count and hash are right: what a hostile hand could make."""

    def change(lines: list[bytes]) -> list[bytes]:
        body = [*lines[:-1], line + b"\n"]
        seal = {"points": len(body) - 1, "sha256": hashlib.sha256(b"".join(body)).hexdigest()}
        return [*body, json.dumps(seal).encode() + b"\n"]

    return edited(change)


def flip(export: Path) -> None:
    content = bytearray(export.read_bytes())
    content[len(content) // 2] ^= 0x10
    export.write_bytes(bytes(content))


SHORT = json.dumps({"id": str(uuid.uuid4()), "vector": base64.b64encode(b"\0\0\x80?").decode(), "payload": {}}).encode()


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(Path.unlink, id="missing"),
        pytest.param(lambda export: export.write_bytes(b""), id="empty"),
        pytest.param(lambda export: export.write_bytes(b"PK\x03\x04 not gzip at all"), id="another kind of file"),
        pytest.param(lambda export: export.write_bytes(export.read_bytes()[:-40]), id="cut short"),
        pytest.param(flip, id="a flipped bit"),
        pytest.param(edited(lambda lines: lines[:-1]), id="no last line"),
        pytest.param(edited(lambda lines: [lines[0], *lines[2:]]), id="a point taken out"),
        pytest.param(edited(lambda lines: [lines[0], lines[2], lines[1], *lines[3:]]), id="points swapped"),
        pytest.param(edited(lambda lines: [line.replace(b"cut", b"hole") for line in lines]), id="a label changed"),
        pytest.param(edited(lambda lines: lines[1:]), id="no header"),
        pytest.param(
            edited(lambda lines: [lines[0].replace(b'"version":1', b'"version":9'), *lines[1:]]), id="too new"
        ),
        pytest.param(edited(lambda lines: [lines[0].replace(b":8,", b":-8,"), *lines[1:]]), id="a dimension below 1"),
        pytest.param(edited(lambda lines: [lines[0].replace(b":8,", b":{},"), *lines[1:]]), id="no dimension"),
        pytest.param(resealed(b"not json"), id="a line that is not JSON"),
        pytest.param(resealed(b"[1, 2]"), id="a line that is no object"),
        pytest.param(resealed(SHORT), id="a vector of another length"),
        pytest.param(resealed(b'{"id": 3, "vector": "", "payload": {}}'), id="an id that is no text"),
        pytest.param(resealed(b'{"id": "x", "vector": "%%%", "payload": {}}'), id="a vector that is not base64"),
        pytest.param(resealed(b"[" * 100_000), id="a line nested without end"),
    ],
)
def test_a_damaged_export_is_refused_before_the_store_is_touched(
    export: Path, store: EmbeddedStore, damage: Callable[[Path], None]
) -> None:
    damage(export)
    with pytest.raises(StoreError, match=r"defects\.cvad"):
        import_index(store, export)
    assert store.info() is None


def test_a_line_without_end_is_given_up_in_bounded_memory(export: Path, store: EmbeddedStore) -> None:
    export.write_bytes(gzip.compress(b" " * (200 * 2**20), compresslevel=1))
    tracemalloc.start()
    with pytest.raises(StoreError, match="a line is too long"):
        import_index(store, export)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100 * 2**20


def test_moving_an_index_holds_a_part_of_it_at_a_time(tmp_path: Path) -> None:
    count, width = 2000, 1024
    with EmbeddedStore(tmp_path, "big") as big, EmbeddedStore(tmp_path, "copy", batch_size=100) as copy:
        big.create(width, {})
        big.upsert(
            DefectPoint(str(uuid.UUID(int=n + 1)), np.random.default_rng(n).random(width, np.float32), {})
            for n in range(count)
        )
        tracemalloc.start()
        export_index(big, tmp_path / "big.cvad")
        import_index(copy, tmp_path / "big.cvad")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert copy.count() == count
    assert peak < count * width * 4
