"""Nearest neighbours in the memory bank by faiss: exact for small banks, otherwise approximate with measured recall.

An approximate search finds the true distance or a larger one. So the largest true distance of an image is found at
little cost: compute the true distance of the patch with the largest approximate one, and continue while another patch
has a larger approximate distance than the largest true one. Image scores are therefore exact for any recall; in maps,
at most 1 % of the patches score a little too high.

Malkov and Yashunin, "Efficient and robust approximate nearest neighbor search using Hierarchical Navigable Small World
graphs", TPAMI 2020; Jégou et al., "Product quantization for nearest neighbor search", TPAMI 2011 (inverted lists).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, final

import numpy as np

from cvad_cli.config.processors import computing_threads
from cvad_cli.core.scoring import reweighted

Kind = Literal["exact", "hnsw", "ivf"]


M: Final = 16
"""Neighbours of a row in the graph."""

EF_CONSTRUCTION: Final = 200
"""Candidates from which a row's links are chosen while the graph is built."""

MIN_RECALL: Final = 0.99
EF_SEARCH: Final = (4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
"""Candidates that a search keeps (graph), or lists that it searches: raised until the recall is high enough."""

WIDEST_ROUND: Final = 16
"""At most this many patches of an image get their true distances at a time."""

QUERIES: Final = 4096
"""At most this many patches measure the recall."""

EXACT_TABLE_WORK: Final = 3e11
"""Up to this many multiplications, the table of each row's neighbours is exact; beyond, it is approximate."""

WAIT_POLICY: Final = "OMP_WAIT_POLICY"

INDEX_FILE: Final = "bank.faiss"
TABLE_FILE: Final = "neighbours.npy"


@dataclass(frozen=True, slots=True)
class SearchOptions:
    """Which structure is built for a memory bank, and how hard it searches."""

    exact_up_to: int = 1_000
    """A bank with at most this many rows is searched exhaustively."""
    graph_up_to: int = 1_000_000
    """Up to this many rows a graph is built; for more, inverted lists, which are built in a fraction of the time."""
    efforts: tuple[int, ...] = EF_SEARCH
    """Tried in this order until the recall holds."""


DEFAULT_OPTIONS: Final = SearchOptions()


@dataclass(frozen=True, slots=True)
class SearchFacts:
    """What is known of a search structure."""

    kind: Kind
    rows: int
    effort: int
    recall: float
    """Share of the queries whose nearest row was found: 1 where the search is exact."""
    queries: int
    """Good patches, not rows of the bank, on which the recall was measured."""


@final
class BankSearch:
    """Distances of patches to a memory bank (m, d), and image scores."""

    def __init__(self, index: Any, bank: np.ndarray, table: np.ndarray, facts: SearchFacts) -> None:
        """`table` (m, k): the rows of the k members nearest to each member, including itself."""
        self.facts = facts
        self._index = index
        self._bank = bank
        self._squares = np.einsum("md,md->m", bank, bank)
        self._table = table
        self._pool = _Pool()

    @classmethod
    def build(
        cls, bank: np.ndarray, num_neighbors: int, patches: np.ndarray, *, options: SearchOptions = DEFAULT_OPTIONS
    ) -> BankSearch:
        """Choose the structure by size, and raise its effort until `MIN_RECALL` holds on good `patches` (n, d).

        Where no effort is enough, the search is exact.
        """
        bank = np.ascontiguousarray(bank, dtype=np.float32)
        queries = patches[np.linspace(0, len(patches) - 1, min(QUERIES, len(patches)), dtype=int)]
        index, facts = _choose(bank, np.ascontiguousarray(queries, dtype=np.float32), options)
        wanted = min(num_neighbors, len(bank))
        return cls(index, bank, _neighbour_table(index, bank, wanted), facts)

    @classmethod
    def load(cls, folder: Path, bank: np.ndarray, facts: Mapping[str, Any]) -> BankSearch:
        """Open what `save` wrote, for the same bank."""
        faiss = _faiss()
        known = SearchFacts(**facts)
        index = faiss.read_index(str(folder / INDEX_FILE)) if known.kind != "exact" else _exact_index(bank)
        _set_effort(index, known.kind, known.effort)
        table = np.load(folder / TABLE_FILE, allow_pickle=False)
        if index.ntotal != len(bank) or index.d != bank.shape[1] or len(table) != len(bank):
            raise ValueError(f"{folder}: the search structure is not that of this memory bank")
        return cls(index, bank, table, known)

    def save(self, folder: Path) -> None:
        """Write the structure and the table of neighbours; the bank itself lies in the bundle."""
        if self.facts.kind != "exact":
            _faiss().write_index(self._index, str(folder / INDEX_FILE))
        np.save(folder / TABLE_FILE, self._table, allow_pickle=False)

    def judge(self, patches: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Patches (b, p, d) of b images to image scores (b,), equation 7, and patch distances (b, p)."""
        images, count, width = patches.shape
        distances, rows = self._nearest(patches.reshape(-1, width))
        distances, rows = distances.reshape(images, count), rows.reshape(images, count)
        if self.facts.kind != "exact":
            self._settle_largest(patches, distances, rows)
        highest = distances.argmax(axis=1)
        every = np.arange(images)
        scores = distances[every, highest]
        if self._table.shape[1] > 1:
            support = self._bank[self._table[rows[every, highest]]]
            scores = reweighted(scores, patches[every, highest], support)
        return scores, distances

    def _nearest(self, patches: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        squared, rows = self._pool.search(self._index, patches)
        if self.facts.kind == "exact":  # faiss loses digits by cancellation: compute the distance again
            return np.linalg.norm(patches - self._bank[rows], axis=1), rows
        return np.sqrt(squared), rows

    def _settle_largest(self, patches: np.ndarray, distances: np.ndarray, rows: np.ndarray) -> None:
        """Replace distances by true ones, in place, largest first, until each image's largest distance is true."""
        settled = np.zeros(distances.shape, dtype=np.bool_)
        open_images, at_once = np.arange(len(distances)), 1
        while True:
            largest = distances[open_images].argmax(axis=1)
            open_images = open_images[~settled[open_images, largest]]
            if not len(open_images):
                return
            unsure = np.where(settled[open_images], -np.inf, distances[open_images])
            highest = np.argpartition(unsure, -at_once, axis=1)[:, -at_once:].ravel()
            images = np.repeat(open_images, at_once)
            found = patches[images, highest]
            nearest = (self._squares - 2.0 * (found @ self._bank.T)).argmin(axis=1)
            rows[images, highest] = nearest
            distances[images, highest] = np.linalg.norm(found - self._bank[nearest], axis=1)
            settled[images, highest] = True
            # Reading the bank costs more than comparing with it, so the rounds get wider.
            at_once = min(2 * at_once, WIDEST_ROUND, distances.shape[1])


@final
class _Pool:
    """Searches on every core that OMP_NUM_THREADS allows; each thread of this pool takes a share of the queries.

    faiss gets one thread. Its own threads may spin for milliseconds after their work and take cores from the network
    that runs next.
    """

    def __init__(self) -> None:
        self._shares = computing_threads()
        self._threads = ThreadPoolExecutor(
            self._shares, "cvad-search", initializer=_faiss().omp_set_num_threads, initargs=(1,)
        )

    def search(self, index: Any, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Squared distance and row of the nearest member: (n, d) -> (n,), (n,)."""
        parts = [part for part in np.array_split(np.ascontiguousarray(queries), self._shares) if len(part)]
        found = list(self._threads.map(lambda part: index.search(part, 1), parts))
        squared, rows = (np.concatenate([each[output][:, 0] for each in found]) for output in (0, 1))
        return np.maximum(squared, 0), rows


def faiss_version() -> str:
    """The library's version: a structure written by another one is stale."""
    return str(_faiss().__version__)


def _choose(bank: np.ndarray, queries: np.ndarray, options: SearchOptions) -> tuple[Any, SearchFacts]:
    exact = _exact_index(bank)
    approximate: Kind = "hnsw" if len(bank) <= options.graph_up_to else "ivf"
    kind: Kind = "exact" if len(bank) <= options.exact_up_to else approximate
    if kind != "exact":
        # faiss expands the square, which loses digits by cancellation: the distances are computed again from the rows.
        nearest = np.linalg.norm(queries - bank[exact.search(queries, 1)[1][:, 0]], axis=1)
        # A query that is itself a row of the bank is always found, so it says nothing about the recall.
        apart = nearest > 1e-3 * np.linalg.norm(queries, axis=1)
        queries, nearest = queries[apart], nearest[apart]
        index = _graph(bank) if kind == "hnsw" else _lists(bank)
        for effort in options.efforts if len(queries) else ():
            _set_effort(index, kind, effort)
            found = np.linalg.norm(queries - bank[index.search(queries, 1)[1][:, 0]], axis=1)
            recall = float(np.mean(found <= nearest * (1 + 1e-5)))
            if recall >= MIN_RECALL:
                return index, SearchFacts(kind, len(bank), effort, recall, len(queries))
    return exact, SearchFacts("exact", len(bank), 0, 1.0, 0)


def _exact_index(bank: np.ndarray) -> Any:
    index = _faiss().IndexFlatL2(bank.shape[1])
    index.add(bank)
    return index


def _graph(bank: np.ndarray) -> Any:
    faiss = _faiss()
    graph = faiss.IndexHNSWFlat(bank.shape[1], M)
    graph.hnsw.efConstruction = EF_CONSTRUCTION
    # Keep links that pruning would drop. Without them some rows are hardly connected, and patches near them are found
    # at three times their true distance. This happens where rows are added in the order of the coreset.
    graph.keep_max_size_level0 = True
    index = faiss.IndexIDMap(graph)
    order = np.random.default_rng(0).permutation(len(bank))
    index.add_with_ids(bank[order], order)
    return index


def _lists(bank: np.ndarray) -> Any:
    faiss = _faiss()
    count = int(4 * np.sqrt(len(bank)))
    index = faiss.IndexIVFFlat(faiss.IndexFlatL2(bank.shape[1]), bank.shape[1], count)
    index.train(bank)
    index.add(bank)
    return index


def _set_effort(index: Any, kind: Kind, effort: int) -> None:
    if kind == "hnsw":
        _faiss().downcast_index(index.index).hnsw.efSearch = effort
    elif kind == "ivf":
        index.nprobe = effort


def _neighbour_table(index: Any, bank: np.ndarray, wanted: int) -> np.ndarray:
    """int32 (m, k): rows of the members nearest to each member. Where faiss finds too few, the member stands in."""
    if wanted == 1:
        return np.arange(len(bank), dtype=np.int32)[:, None]
    source = _exact_index(bank) if float(len(bank)) ** 2 * bank.shape[1] <= EXACT_TABLE_WORK else index
    rows = source.search(bank, wanted)[1]
    return np.where(rows < 0, np.arange(len(bank))[:, None], rows).astype(np.int32)


def _faiss() -> Any:
    """faiss, loaded so that its threads sleep while they wait: on shared cores, spinning at a barrier costs seconds.

    Its OpenMP reads this setting once, when it is loaded. torch has an OpenMP of its own, which is not affected.
    """
    if "faiss" in sys.modules:
        return sys.modules["faiss"]
    unset = WAIT_POLICY not in os.environ
    os.environ.setdefault(WAIT_POLICY, "PASSIVE")
    try:
        import faiss
    finally:
        if unset:
            del os.environ[WAIT_POLICY]
    return faiss
