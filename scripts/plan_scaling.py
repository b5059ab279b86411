"""The arithmetic of docs/scaling.md: from cameras and defects to cores, memory, disks and shards.

    python scripts/plan_scaling.py                            # the tables of docs/scaling.md
    python scripts/plan_scaling.py --images-per-core 20     # with a rate that was measured elsewhere

Nothing here was run at these sizes. Assumptions are the constants below, each with where it is from.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass

IMAGES_PER_CORE = 10.0
"""A second: 264 images scored and 5 coresets made in 13.4 s on 2 cores (docs/benchmarks.md), so a lower bound."""

LOAD = 0.6
"""Of the cores, so that a burst does not queue."""

IMAGES_A_CAMERA = 1.0
"""A second. An assumption."""

HOURS_A_DAY = 16
"""Two shifts. An assumption."""

REJECTED = 0.02
"""Share of the images: the default false-alarm rate, in a plant with few defects. An assumption."""

REGIONS = 1.5
"""Of a rejected image. An assumption; classify.max_regions caps it at 4."""

IMAGE_BYTES = 1.0e6
"""A PNG of 1024 x 1024 grey pixels; MVTec AD's grid images are smaller (125 MB / 342)."""

VALUES = 503
"""Of a descriptor (docs/benchmarks.md)."""

GRAPH_BYTES = 2 * 16 * 4
"""Of HNSW's bottom layer: 2 m links of 4 bytes, m = 16 (Qdrant's default). The layers above add a sixteenth."""

ID_BYTES = 40
"""A UUID, a version and the tables that find them, in memory."""

PAYLOAD_BYTES = 600
"""As JSON, on disk: what `cvad index` writes of a region."""

PAYLOAD_INDEX_BYTES = 100
"""Of three keyword indexes (defect_type, category, source), in memory."""

HEADROOM = 1.2
"""For segments that are merged while others serve."""

NODE_MEMORY = 256e9 * 0.8
"""Of a node with 256 GB, of which a fifth is left to the system and its page cache."""

REPLICAS = 2
SHARD_POINTS = 20e6
"""What is comfortable to move between nodes and to rebuild: 20 million points are 40 GB of vectors."""


@dataclass(frozen=True)
class Plant:
    """What a number of cameras asks for."""

    cameras: int
    images_per_core: float = IMAGES_PER_CORE

    @property
    def images_a_second(self) -> float:
        """Of all cameras."""
        return self.cameras * IMAGES_A_CAMERA

    @property
    def cores(self) -> int:
        """With `LOAD`, all of them together."""
        return math.ceil(self.images_a_second / self.images_per_core / LOAD)

    @property
    def images_a_day(self) -> float:
        """Of all cameras."""
        return self.images_a_second * HOURS_A_DAY * 3600

    @property
    def regions_a_day(self) -> float:
        """Of rejected images."""
        return self.images_a_day * REJECTED * REGIONS

    @property
    def kept_bytes_a_day(self) -> float:
        """Rejected images alone; all of them would be 1 / REJECTED times as much."""
        return self.images_a_day * REJECTED * IMAGE_BYTES

    @property
    def core_hours_to_judge_a_day_again(self) -> float:
        """As after training anew."""
        return self.images_a_day / self.images_per_core / 3600

    @property
    def days_to(self) -> float:
        """Until a billion regions are indexed, were each."""
        return 1e9 / self.regions_a_day


@dataclass(frozen=True)
class Index:
    """What a number of indexed regions asks for, one copy of it."""

    points: float
    vectors_in_memory: bool
    quantized: bool

    @property
    def memory(self) -> float:
        """Bytes, one copy."""
        graph = GRAPH_BYTES * (1 + 1 / 16)
        vectors = 4 * VALUES * self.vectors_in_memory + VALUES * self.quantized
        return self.points * (vectors + graph + ID_BYTES + PAYLOAD_INDEX_BYTES) * HEADROOM

    @property
    def disk(self) -> float:
        """Bytes, one copy."""
        per_point = 4 * VALUES + VALUES * self.quantized + GRAPH_BYTES + PAYLOAD_BYTES + PAYLOAD_INDEX_BYTES
        return self.points * per_point * HEADROOM

    @property
    def nodes(self) -> int:
        """With all replicas; never fewer than replicas, where there are several shards."""
        return max(REPLICAS, math.ceil(REPLICAS * self.memory / NODE_MEMORY))

    @property
    def shards(self) -> int:
        """Each of at most `SHARD_POINTS`."""
        return max(1, math.ceil(self.points / SHARD_POINTS))


def plant_table(images_per_core: float) -> list[str]:
    """Rows of cameras."""
    lines = [
        "| cameras | images/s | cores | rejected, a day | regions, a day | days to 10⁹ | a day judged again |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for cameras in (1, 10, 100, 1000):
        plant = Plant(cameras, images_per_core)
        cells = (
            f"{cameras:,}",
            f"{plant.images_a_second:,.0f}",
            f"{plant.cores:,}",
            _bytes(plant.kept_bytes_a_day),
            f"{plant.regions_a_day:,.0f}",
            f"{plant.days_to:,.0f}",
            f"{plant.core_hours_to_judge_a_day_again:,.1f} core-hours",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def index_table() -> list[str]:
    """Rows of indexed regions, for each way to keep them."""
    lines = [
        "| regions | kept | memory, one copy | disk, one copy | shards | 256 GB nodes, 2 replicas |",
        "| ---: | --- | ---: | ---: | ---: | ---: |",
    ]
    ways = (
        ("vectors in memory", True, False),
        ("`quantization: scalar`, `on_disk: true`", False, True),
        ("`on_disk: true` alone", False, False),
    )
    for points in (1e6, 1e8, 1e9):
        for name, in_memory, quantized in ways:
            index = Index(points, in_memory, quantized)
            cells = (
                f"{points:,.0f}",
                name,
                _bytes(index.memory),
                _bytes(index.disk),
                str(index.shards),
                str(index.nodes),
            )
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def _bytes(count: float) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:,.1f} {unit}"
    return f"{count:,.0f} B"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images-per-core", type=float, default=IMAGES_PER_CORE)
    options = parser.parse_args()
    print("\n".join([*plant_table(options.images_per_core), "", *index_table()]))


if __name__ == "__main__":
    main()
