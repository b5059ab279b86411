"""faiss finds what NumPy finds: scores are exact whatever the recall, and the recall is measured, not hoped for."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from cvad_cli.adapters.neighbours import EF_SEARCH, MIN_RECALL, BankSearch, SearchOptions
from cvad_cli.core.scoring import MemoryBank


@pytest.fixture(scope="module")
def bank() -> np.ndarray:
    """A curved surface in 24 dimensions: like features, of few dimensions of its own."""
    rng = np.random.default_rng(0)
    positions = rng.uniform(-1, 1, (3000, 3))
    mixing = rng.normal(size=(6, 24))
    return np.ascontiguousarray(np.concatenate([positions, positions**2], axis=1) @ mixing, dtype=np.float32)


@pytest.fixture(scope="module")
def patches(bank: np.ndarray) -> np.ndarray:
    """(5, 40, 24): five images of forty patches near the surface, the last image of anomalous ones."""
    rng = np.random.default_rng(1)
    near = bank[rng.integers(0, len(bank), 200)] + rng.normal(0, 0.2, (200, 24))
    near[160:] += 1.5
    return near.reshape(5, 40, 24).astype(np.float32)


OPTIONS = {
    "exact": SearchOptions(exact_up_to=10_000),
    "hnsw": SearchOptions(exact_up_to=100, graph_up_to=10_000),
    "ivf": SearchOptions(exact_up_to=100, graph_up_to=100),
}


def build(
    kind: str, bank: np.ndarray, patches: np.ndarray, k: int = 5, efforts: tuple[int, ...] = EF_SEARCH
) -> BankSearch:
    options = replace(OPTIONS[kind], efforts=efforts)
    search = BankSearch.build(bank, k, patches.reshape(-1, patches.shape[-1]), options=options)
    assert search.facts.kind == kind
    return search


@pytest.mark.parametrize("kind", ["exact", "hnsw", "ivf"])
@pytest.mark.parametrize("num_neighbors", [1, 5])
def test_image_scores_equal_the_exhaustive_search(
    bank: np.ndarray, patches: np.ndarray, kind: str, num_neighbors: int
) -> None:
    search = build(kind, bank, patches, num_neighbors)
    scores, distances = search.judge(patches)
    reference = MemoryBank(bank, num_neighbors=num_neighbors)
    expected = [reference.score(image) for image in patches]
    np.testing.assert_allclose(scores, [each.image_score for each in expected], rtol=1e-4)
    true = np.stack([each.distances for each in expected])
    assert (distances >= true - 1e-3).all()
    assert np.mean(distances <= true + 1e-3) >= MIN_RECALL


@pytest.mark.parametrize("kind", ["hnsw", "ivf"])
def test_the_largest_distance_is_settled_exactly_where_the_search_misleads(
    bank: np.ndarray, patches: np.ndarray, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    search = build(kind, bank, patches)
    honest = search._nearest

    def misled(queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        distances, rows = honest(queries)
        distances[7::40] += 10  # one patch of each image looks far more anomalous than it is
        return distances, np.zeros_like(rows)

    monkeypatch.setattr(search, "_nearest", misled)
    reference = MemoryBank(bank, num_neighbors=5)
    expected = [reference.score(image).image_score for image in patches]
    np.testing.assert_allclose(search.judge(patches)[0], expected, rtol=1e-4)


def test_the_effort_is_raised_until_the_recall_holds_and_the_recall_is_written_down(
    bank: np.ndarray, patches: np.ndarray
) -> None:
    facts = build("ivf", bank, patches, efforts=(1, 2, 4, 64, 256)).facts
    assert facts.recall >= MIN_RECALL
    assert facts.effort > 1
    assert facts.queries == 200


def test_where_no_effort_is_enough_the_search_is_exact(bank: np.ndarray, patches: np.ndarray) -> None:
    options = replace(OPTIONS["ivf"], efforts=(1,))
    assert BankSearch.build(bank, 5, patches.reshape(-1, 24), options=options).facts.kind == "exact"


def test_patches_that_are_rows_of_the_bank_say_nothing_about_the_recall(bank: np.ndarray) -> None:
    facts = BankSearch.build(bank, 5, bank[:500]).facts
    assert (facts.kind, facts.queries) == ("exact", 0)


def test_without_patches_to_measure_on_the_search_is_exact(bank: np.ndarray) -> None:
    assert BankSearch.build(bank, 5, bank[:0]).facts.kind == "exact"


@pytest.mark.parametrize("kind", ["exact", "hnsw", "ivf"])
def test_what_was_saved_judges_alike(bank: np.ndarray, patches: np.ndarray, tmp_path: Path, kind: str) -> None:
    search = build(kind, bank, patches)
    search.save(tmp_path)
    again = BankSearch.load(tmp_path, bank, asdict(search.facts))
    for mine, other in zip(again.judge(patches), search.judge(patches), strict=True):
        np.testing.assert_array_equal(mine, other)


def test_a_structure_of_another_bank_is_refused(bank: np.ndarray, patches: np.ndarray, tmp_path: Path) -> None:
    search = build("hnsw", bank, patches)
    search.save(tmp_path)
    with pytest.raises(ValueError, match="not that of this memory bank"):
        BankSearch.load(tmp_path, bank[:-1], asdict(search.facts))


def test_a_bank_smaller_than_the_neighbourhood_is_judged(patches: np.ndarray) -> None:
    bank = patches[0, :3].copy()
    scores, _ = BankSearch.build(bank, 9, patches[0]).judge(patches[1:])
    reference = MemoryBank(bank, num_neighbors=9)
    np.testing.assert_allclose(scores, [reference.score(image).image_score for image in patches[1:]], rtol=1e-4)
