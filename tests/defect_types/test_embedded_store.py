"""The embedded store under rough treatment: kill -9, two processes, damaged files, full folders."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from defect_points import DIMENSION, METADATA, point, points

from cvad_cli.adapters.qdrant.embedded import EmbeddedStore
from cvad_cli.assembly.defect_types.open_store import open_store
from cvad_cli.config.schema import QdrantConfig
from cvad_cli.errors import StoreError
from cvad_cli.records import DefectPoint, IndexInfo

ROOT = Path(__file__).parents[2]
PATHS = (str(ROOT), str(Path(__file__).parents[1]), str(Path(__file__).parent))
WRITER = """
import sys, uuid
from pathlib import Path
import numpy as np
from cvad_cli.adapters.qdrant.embedded import EmbeddedStore
from cvad_cli.records import DefectPoint

first = int(sys.argv[2])
store = EmbeddedStore(Path(sys.argv[1]), "defects", batch_size=16)
if store.info() is None:
    store.create(32, {})
print("ready", flush=True)
while True:
    batch = [
        DefectPoint(str(uuid.UUID(int=number + 1)), np.ones(32, np.float32), {"number": number, "source": "a" * 50})
        for number in range(first, first + 40)
    ]
    store.upsert(batch)
    first += 40
    print(first, flush=True)
"""
REPLACER = """
import sys
from pathlib import Path
from cvad_cli.adapters.qdrant.embedded import EmbeddedStore
from test_embedded_store import versioned

version = int(sys.argv[2])
with EmbeddedStore(Path(sys.argv[1]), "defects", batch_size=50) as store:
    if store.info() is None:
        store.create(32, {})
    while True:
        version += 1
        store.upsert(versioned(version))
        print(version, flush=True)
"""
HOLDER = """
import sys
from pathlib import Path
from cvad_cli.adapters.qdrant.embedded import EmbeddedStore
with EmbeddedStore(Path(sys.argv[1]), "defects") as store:
    store.info()
    print("held", flush=True)
    sys.stdin.readline()
"""


def versioned(version: int) -> list[DefectPoint]:
    """The same 300 ids in every version, with other vectors and payloads of other lengths."""
    vectors = np.random.default_rng(version).standard_normal((300, 32)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    payload = {"version": version, "defect_type": f"type {version % 7}", "more": "x" * (version * 37 % 200)}
    return [
        DefectPoint(str(uuid.uuid5(uuid.NAMESPACE_URL, str(number))), vector, {**payload, "number": number})
        for number, vector in enumerate(vectors)
    ]


def start(script: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", script, *map(str, arguments)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": os.pathsep.join(PATHS)}, **pipes)


def killed(writer: subprocess.Popen[str], acknowledged: int, chance: random.Random) -> int:
    """Kill a writer that acknowledged so much when we last looked; what it has acknowledged in the end."""
    assert writer.stdout is not None
    time.sleep(chance.uniform(0.0, 0.05))  # somewhere inside a batch that is not acknowledged yet
    os.kill(writer.pid, signal.SIGKILL)
    lines = [line for line in writer.stdout.read().splitlines(keepends=True) if line.endswith("\n")]
    return int(lines[-1]) if lines else acknowledged


KILLS = pytest.mark.parametrize("kills", [3, pytest.param(40, marks=pytest.mark.long)])


@KILLS
@pytest.mark.skipif(sys.platform == "win32", reason="there is no kill -9 on Windows")
def test_kill_9_while_writing_loses_no_acknowledged_point(tmp_path: Path, kills: int) -> None:
    chance, acknowledged = random.Random(4), 0
    for _ in range(kills):
        with start(WRITER, tmp_path, acknowledged) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "ready\n"
            for _ in range(chance.randint(1, 6)):
                acknowledged = int(writer.stdout.readline())
            acknowledged = killed(writer, acknowledged, chance)
        with EmbeddedStore(tmp_path, "defects") as store:
            numbers = {each.payload["number"] for each in store.scroll()}
            assert numbers >= set(range(acknowledged))
            assert store.count() == len(numbers)
            assert len(store.search(np.ones(32, np.float32), limit=5)) == min(5, len(numbers))


@KILLS
@pytest.mark.skipif(sys.platform == "win32", reason="there is no kill -9 on Windows")
def test_kill_9_while_replacing_leaves_every_point_whole(tmp_path: Path, kills: int) -> None:
    chance, acknowledged = random.Random(5), 0
    for _ in range(kills):
        with start(REPLACER, tmp_path, acknowledged) as writer:
            assert writer.stdout is not None
            acknowledged = int(writer.stdout.readline())
            acknowledged = killed(writer, acknowledged, chance)
        with EmbeddedStore(tmp_path, "defects") as store:
            held = list(store.scroll())
            kinds = Counter(each.payload["defect_type"] for each in held)
            assert {kind: store.count(where={"defect_type": kind}) for kind in kinds} == kinds
        assert sorted(each.payload["number"] for each in held) == list(range(300))
        assert {each.payload["version"] for each in held} <= {acknowledged, acknowledged + 1}
        for each in held:
            expected = versioned(each.payload["version"])[each.payload["number"]]
            assert (each.id, each.payload) == (expected.id, expected.payload)
            np.testing.assert_allclose(each.vector, expected.vector, atol=1e-6)
        acknowledged = max(each.payload["version"] for each in held)


def test_a_second_process_learns_which_process_holds_the_index(tmp_path: Path) -> None:
    with EmbeddedStore(tmp_path, "defects") as store:
        store.create(DIMENSION, METADATA)
        store.upsert(points(3))
    with start(HOLDER, tmp_path) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with EmbeddedStore(tmp_path, "defects") as second:
            for ask in (second.info, second.count, second.drop, lambda: second.create(DIMENSION, {})):
                with pytest.raises(
                    StoreError, match=rf"in use by another process \(process {holder.pid}\).*qdrant.url"
                ):
                    ask()
            holder.communicate("go\n")
            assert second.count() == 3


def test_two_stores_of_one_process_do_not_share_an_index_either(tmp_path: Path) -> None:
    with EmbeddedStore(tmp_path, "defects") as first, EmbeddedStore(tmp_path, "defects") as second:
        first.create(DIMENSION, METADATA)
        with pytest.raises(StoreError, match="in use"):
            second.info()
        with EmbeddedStore(tmp_path, "others") as neighbour:
            neighbour.create(DIMENSION, METADATA)
        first.close()
        assert second.info() == IndexInfo(DIMENSION, 0, METADATA)


def test_a_closed_store_opens_again_at_the_next_call(tmp_path: Path) -> None:
    store = EmbeddedStore(tmp_path, "defects")
    store.create(DIMENSION, METADATA)
    store.upsert(points(5))
    store.close()
    store.close()
    assert store.count() == 5
    store.close()


CREATOR = """
import sys
from pathlib import Path
from cvad_cli.files import replacing_folder
with replacing_folder(Path(sys.argv[1]) / sys.argv[2]) as fresh:
    (fresh / "shard").mkdir()
    print("creating", flush=True)
    sys.stdin.readline()
"""


def test_what_a_killed_run_left_is_cleared_and_what_a_living_one_makes_is_not(tmp_path: Path) -> None:
    with start(CREATOR, tmp_path, "defects") as killed_one, start(CREATOR, tmp_path, "neighbour") as living:
        for each in (killed_one, living):
            assert each.stdout is not None
            assert each.stdout.readline() == "creating\n"
        killed_one.kill()
        killed_one.wait()
        with EmbeddedStore(tmp_path, "defects") as store:
            store.create(DIMENSION, METADATA)
            store.drop()
        living.communicate("go on\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".defects.lock", "neighbour"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        pytest.param(lambda folder: (folder / "index.json").unlink(), "is no defect index", id="no index.json"),
        pytest.param(lambda folder: (folder / "index.json").write_text("{"), "cannot be read", id="torn index.json"),
        pytest.param(lambda folder: (folder / "index.json").write_text("[]"), "cannot be read", id="another JSON"),
        pytest.param(lambda folder: rewrite(folder, format=99), "upgrade cvad", id="a newer format"),
        pytest.param(lambda folder: rewrite(folder, format=4), "format 4.*index again", id="an older format"),
        pytest.param(lambda folder: shutil.rmtree(folder / "shard"), "engine refused", id="no shard"),
        pytest.param(lambda folder: spoil(folder, "segment.json"), "engine refused", id="a spoilt segment"),
        pytest.param(lambda folder: spoil(folder, "chunk_0.mmap"), "engine refused", id="spoilt vectors"),
    ],
)
def test_a_damaged_index_is_reported_with_a_remedy(tmp_path: Path, damage: object, message: str) -> None:
    with EmbeddedStore(tmp_path, "defects") as store:
        store.create(DIMENSION, METADATA)
        store.upsert(points(30))
    damage(tmp_path / "defects")
    with EmbeddedStore(tmp_path, "defects") as store:
        with pytest.raises(StoreError, match=message):
            list(store.scroll())
        store.drop()
        assert store.info() is None


def rewrite(folder: Path, **changes: object) -> None:
    contents = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps({**contents, **changes}))


def spoil(folder: Path, name: str) -> None:
    found = list(folder.rglob(name))
    assert found, f"no {name} in {folder}"
    for path in found:
        path.write_bytes(b"spoilt")


def test_a_folder_that_cannot_be_written_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with EmbeddedStore(tmp_path / "file", "defects") as store, pytest.raises(StoreError, match="cannot be written"):
        store.create(DIMENSION, METADATA)


def test_settings_reach_the_folder_through_the_factory(tmp_path: Path) -> None:
    settings = QdrantConfig(path=str(tmp_path / "deep" / "index"), collection="grid.v2", on_disk=True)
    with open_store(settings) as store:
        store.create(DIMENSION, METADATA)
        store.upsert(points(4))
        assert store.search(point(2).vector, limit=1)[0].id == point(2).id
    assert (tmp_path / "deep" / "index" / "grid.v2" / "index.json").is_file()


def test_a_stream_of_points_is_taken_a_batch_at_a_time(tmp_path: Path) -> None:
    held: list[int] = []

    def stream() -> object:
        for number in range(50):
            held.append(number)
            yield DefectPoint(str(uuid.UUID(int=number + 1)), np.ones(4, np.float32), {})

    with EmbeddedStore(tmp_path, "defects", batch_size=10) as store:
        store.create(4, {})
        arriving = stream()
        assert store.upsert(next(arriving) for _ in range(20)) == 20
        assert len(held) == 20
        assert store.upsert(arriving) == 30


def test_ids_whose_halves_have_one_sum_are_two_points(tmp_path: Path) -> None:
    """Format 4 kept 64 bits, high * 0x9E3779B97F4A7C15 + low: the second of these replaced the first."""
    ids = [str(uuid.UUID(int=value)) for value in (0x9E3779B97F4A7C15, 1 << 64)]
    with EmbeddedStore(tmp_path, "defects") as store:
        store.create(4, {})
        store.upsert(DefectPoint(each, np.ones(4, np.float32), {"id": each}) for each in ids)
        assert [(each.id, each.payload) for each in store.scroll()] == [(each, {"id": each}) for each in sorted(ids)]
        assert store.delete(ids=ids[:1]) == 1
        assert [each.id for each in store.scroll()] == ids[1:]


def test_ids_differ_by_both_halves_and_must_be_uuids(tmp_path: Path) -> None:
    ids = [str(uuid.UUID(int=high << 64 | low)) for high, low in ((1, 2), (1, 3), (2, 2), (0, 2))]
    with EmbeddedStore(tmp_path, "defects") as store:
        store.create(4, {})
        store.upsert(DefectPoint(each, np.ones(4, np.float32), {}) for each in ids)
        assert [each.id for each in store.scroll()] == sorted(ids)
        for wrong in ("7", "x" * 36, uuid.UUID(int=5).hex):
            with pytest.raises(ValueError, match=r"UUID|invalid literal"):
                store.upsert([DefectPoint(wrong, np.ones(4, np.float32), {})])
        assert store.delete(ids=ids[:2]) == 2
        assert {each.id for each in store.search(np.ones(4), limit=9)} == set(ids[2:])
