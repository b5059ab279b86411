"""The figures of docs/scaling.md follow from its assumptions, and its simulation from what a queue must do."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

REPOSITORY = Path(__file__).parents[2]


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, REPOSITORY / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(__import__("sys").modules, name, module)  # dataclasses look their module up
        spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def plan() -> ModuleType:
    return script("plan_scaling")


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    return script("bench_scaling")


def test_the_page_holds_the_tables_that_the_scripts_compute(plan: ModuleType, bench: ModuleType) -> None:
    page = (REPOSITORY / "docs" / "scaling.md").read_text("utf-8")
    for table in (plan.plant_table(plan.IMAGES_PER_CORE), plan.index_table(), bench.planned_table()):
        assert "\n".join(table) in page


def test_a_hundred_lines_add_up(plan: ModuleType) -> None:
    plant = plan.Plant(1000)
    assert plant.images_a_day == 1000 * 16 * 3600 == 57_600_000
    assert plant.cores == 167  # 1,000 images a second at 10 a core and 60 % load
    assert plant.regions_a_day == pytest.approx(57_600_000 * 0.02 * 1.5)
    assert plant.days_to == pytest.approx(1e9 / 1_728_000)
    assert plant.kept_bytes_a_day == pytest.approx(1.152e12)


def test_a_billion_regions_add_up(plan: ModuleType) -> None:
    scalar = plan.Index(1e9, vectors_in_memory=False, quantized=True)
    assert scalar.memory == pytest.approx(1e9 * (503 + 136 + 40 + 100) * 1.2)
    assert scalar.disk == pytest.approx(1e9 * (2012 + 503 + 128 + 600 + 100) * 1.2)
    assert scalar.nodes == 10  # 2 x 934.8 GB over 204.8 GB
    assert scalar.shards == 50
    whole = plan.Index(1e9, vectors_in_memory=True, quantized=False)
    rule_of_thumb = 1e9 * 503 * 4 * 1.5  # Qdrant's
    assert 0.8 < whole.memory / rule_of_thumb < 1.25


def test_simulated_workers_scale_until_the_collector_is_the_queue(bench: ModuleType) -> None:
    def rate(workers: int, collect: float) -> float:
        return bench.simulated_rate(workers, [1.0], shard=10, collect_seconds=collect, shards=2000)

    assert rate(1, 0.0) == pytest.approx(10.0)
    assert rate(8, 0.0) == pytest.approx(80.0, rel=0.01)
    assert rate(8, 0.001) == pytest.approx(80.0, rel=0.01), "collecting is done while workers work"
    assert rate(1000, 0.001) == pytest.approx(1000.0, rel=0.05), "one image a millisecond is all it can take"
    rates = [rate(workers, 0.001) for workers in (1, 2, 4, 8, 16, 32, 64, 128, 256)]
    assert rates == sorted(rates)


def test_uneven_shards_cost_no_more_than_the_window_allows(bench: ModuleType) -> None:
    uneven = bench.simulated_rate(4, [0.5, 1.5], shard=10, collect_seconds=0.0, shards=4000)
    assert 30.0 < uneven <= 40.0
