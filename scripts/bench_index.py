"""Write and query the defect index with our embedded store and with qdrant-client's local mode, and print the ratios.

    python scripts/bench_index.py                                  # 20,000 points of 384 values
    python scripts/bench_index.py --points 2000 --json             # a part of them

Both sides get the same points, in one process, and keep them on disk: `EmbeddedStore` as `cvad` uses it, checks and
final flush included, and `QdrantClient(path=...)` with `upsert` of the same batches. Imports are done and both
collections are made before the clock starts. The queries are the same, filtered by defect type, five nearest; the
answers of both are compared. Nothing is repeated: one write each, then the queries.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import time
import uuid
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from cvad_cli.adapters.qdrant.embedded import EmbeddedStore
from cvad_cli.config.processors import usable_processors
from cvad_cli.records import DefectPoint

BATCH = 500
TYPES = ("bent", "broken", "cut", "glue", "hole", "thread")


def make_points(count: int, dimension: int, seed: int) -> list[DefectPoint]:
    """Random directions with a payload such as a defect has."""
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((count, dimension)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return [
        DefectPoint(
            str(uuid.uuid5(uuid.NAMESPACE_URL, str(number))),
            vectors[number],
            {
                "category": "grid",
                "defect_type": TYPES[number % len(TYPES)],
                "source": f"test/{TYPES[number % len(TYPES)]}/{number:05d}.png",
                "box": [number % 200, number % 190, 20, 30],
                "area": 600,
                "score": 1.5,
                "labelled_by": "dataset",
            },
        )
        for number in range(count)
    ]


def time_cvad(points: list[DefectPoint], queries: list[tuple[np.ndarray, str]], folder: Path) -> dict[str, Any]:
    """`EmbeddedStore`: the upsert returns when the points are on the disk."""
    with EmbeddedStore(folder, "bench", batch_size=BATCH) as store:
        store.create(len(points[0].vector), {})
        started = time.perf_counter()
        store.upsert(points)
        upsert = time.perf_counter() - started
        started = time.perf_counter()
        found = [store.search(vector, limit=5, where={"defect_type": kind}) for vector, kind in queries]
        query = (time.perf_counter() - started) / len(queries)
    return {"upsert": upsert, "query": query, "found": [[each.id for each in answer] for answer in found]}


def time_local_mode(points: list[DefectPoint], queries: list[tuple[np.ndarray, str]], folder: Path) -> dict[str, Any]:
    """qdrant-client's local mode, as its documentation shows it."""
    from qdrant_client import QdrantClient, models

    client = QdrantClient(path=str(folder))
    vectors = models.VectorParams(size=len(points[0].vector), distance=models.Distance.COSINE)
    client.create_collection("bench", vectors_config=vectors)
    started = time.perf_counter()
    for first in range(0, len(points), BATCH):
        batch = points[first : first + BATCH]
        rows = [
            models.PointStruct(id=each.id, vector=each.vector.tolist(), payload=dict(each.payload)) for each in batch
        ]
        client.upsert("bench", rows)
    upsert = time.perf_counter() - started
    started = time.perf_counter()
    found = []
    for vector, kind in queries:
        match = models.FieldCondition(key="defect_type", match=models.MatchValue(value=kind))
        answer = client.query_points("bench", query=vector, query_filter=models.Filter(must=[match]), limit=5)
        found.append([str(each.id) for each in answer.points])
    query = (time.perf_counter() - started) / len(queries)
    client.close()
    return {"upsert": upsert, "query": query, "found": found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=20_000)
    parser.add_argument("--dimension", type=int, default=384)
    parser.add_argument("--queries", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print the figures as JSON alone")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")

    import qdrant_client
    import qdrant_edge

    del qdrant_client, qdrant_edge
    points = make_points(arguments.points, arguments.dimension, arguments.seed)
    rng = np.random.default_rng(arguments.seed + 1)
    queries = [
        (rng.standard_normal(arguments.dimension).astype(np.float32), TYPES[number % len(TYPES)])
        for number in range(arguments.queries)
    ]
    with tempfile.TemporaryDirectory() as scratch:
        ours = time_cvad(points, queries, Path(scratch) / "cvad")
        theirs = time_local_mode(points, queries, Path(scratch) / "local")
    same = sum(mine == other for mine, other in zip(ours.pop("found"), theirs.pop("found"), strict=True))
    result = {
        "points": arguments.points,
        "dimension": arguments.dimension,
        "queries": arguments.queries,
        "same_answers": same,
        "processors": usable_processors(),
        "machine": platform.machine(),
        "versions": {name: version(name) for name in ("qdrant-client", "qdrant-edge-py")},
        "seconds": {"cvad": ours, "local_mode": theirs},
        "ratio": {key: theirs[key] / ours[key] for key in ("upsert", "query")},
    }
    if arguments.json:
        print(json.dumps(result, indent=2))
    else:
        print(f"{arguments.points} points of {arguments.dimension} values, {usable_processors()} processors")
        for key, unit, scale in (("upsert", "s", 1), ("query", "ms", 1000)):
            mine, other = ours[key] * scale, theirs[key] * scale
            print(f"{key:7s} local mode {other:8.2f} {unit}   cvad {mine:8.2f} {unit}   ratio {other / mine:6.1f}x")
    if same != arguments.queries:
        sys.exit(f"the two stores disagree on {arguments.queries - same} of {arguments.queries} queries")


if __name__ == "__main__":
    main()
