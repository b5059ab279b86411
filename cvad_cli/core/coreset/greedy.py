"""Lazy exact k-center greedy: always take the row that is farthest from all rows taken so far.

The covering radius that this leaves is at most twice the best that k centres anywhere in space can reach (Gonzalez
1985), and no polynomial algorithm promises less in every metric space unless P = NP.

    Roth et al.: Towards Total Recall in Industrial Anomaly Detection, CVPR 2022, algorithm 1 (arXiv 2106.08265)
    Gonzalez: Clustering to minimize the maximum intercluster distance, Theoretical Computer Science 38, 1985
    Minoux: Accelerated greedy algorithms for maximizing submodular set functions, 1978 (stale values as bounds)

**Lazy.** The plain algorithm measures all n rows against every new centre. Here, a row is measured only where it might
be the next one taken. Write D_k(p) for the distance of row p to the nearest of the first k centres. A minimum over
more centres is never larger, so D_j(p) >= D_k(p) for j <= k: a value that was right when p had seen j centres stays an
upper bound. Keep one such bound u(p) for each row, and repeat:

1. The *block* B is the rows with the largest bounds; t is the largest bound outside it.
2. Rows of B are measured against the centres that they have not seen, some hundreds at a time, until their bound is
   under t, and they are dropped, or is up to date.
3. While an up-to-date row has D(p) >= t, the one with the largest D(p) is taken, and the up-to-date rows see it.

**Exact.** The row p taken in step 3 is a farthest one. A row q outside B has D(q) <= u(q) <= t <= D(p). A dropped row
q of B has D(q) <= u(q) < t <= D(p). The up-to-date rows are compared by their own distances. Nothing in this asks how
many rows were taken since B was formed, so it holds for every pick until D(p) < t for all of them, and then the next
block is due. The rows taken are those of the plain algorithm; where two are equally far, either may go first.

**Fast.** A row in the thick of the data falls under t after a few hundred centres and is left alone for long. The rest
is one matrix product for many centres and many rows, where the plain algorithm reads all features from memory for each
centre. Of the n k distances among 270,336 patches of MVTec AD grid (d = 152), 0.30 are measured for k = n / 100, where
no scheme that shows the centres to each row in order could do with less than 0.22, and 0.35 for k = n / 10.

**Rounding.** Bounds come from fast arithmetic with its error added, so they are above the truth. Rows that reach step 3
are measured again, exactly, to the centre that was found nearest. A pick is thus a farthest row, unless some row has
two centres so equally near that they were confused, and then to within 1e-4 (`space` has the argument, and goes on in
finer arithmetic where distances get too short for it). With Gonzalez' argument, the factor of 2 becomes 2.0002 at most.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from array_api_compat import device
from jaxtyping import Float, Int64

from cvad_cli.core.coreset.space import FLOATS, Space, gather, require_features
from cvad_cli.ports import Array

CENTRES_AT_ONCE: Final = 256
"""Centres a row is measured against before it is asked again whether it still matters."""


@dataclass(frozen=True, slots=True)
class Coreset:
    """The rows that stand for all others, in the order in which they were taken."""

    rows: Int64[np.ndarray, " keep"]
    """All different. The first `j` of them are the coreset of size `j`."""
    radius: float
    """Largest distance of any row to the nearest kept one, in the unit of the features."""


def k_center_greedy(
    features: Float[Array, "n d"],
    keep: int,
    *,
    rng: np.random.Generator,
    block: int = 4096,
    advance: Callable[[int], None] | None = None,
    float_types: Sequence[str] = FLOATS,
) -> Coreset:
    """Keep `keep` of n rows such that the farthest row from a kept one is as near as greed can make it.

    Copies of kept rows are taken last, and no row twice. Besides the features, memory holds about 32 bytes a row, the
    kept rows twice, a few copies of `block` rows and, at worst, block^2 distances.

    Args:
        features: finite reals, a NumPy array or a torch tensor on any device.
        keep: rows to keep, 1..n.
        rng: draws the first row, which decides all others.
        block: rows brought up to date at a time. It changes the time, not the result.
        advance: gets the number of rows taken since its last call; the counts sum to `keep`.
        float_types: names of the types to compute in, from coarse to fine, as far as the device has them.

    Raises:
        ValueError: `features` is not a finite real (n, d), or `keep` or `block` is out of range.
    """
    if block < 1:
        raise ValueError(f"block: expected at least 1, got {block}")
    require_features("features", features, block)
    n = int(features.shape[0])
    if not 1 <= keep <= n:
        raise ValueError(f"keep: expected 1 to {n}, the rows of features, got {keep}")
    cover = _Cover(features, block, room=keep, float_types=float_types)
    batches = []
    for rows in cover.take(keep, first=int(rng.integers(n))):
        batches.append(rows)
        if advance is not None:
            advance(len(rows))
    return Coreset(np.concatenate(batches), cover.radius())


def covering_radius(features: Float[Array, "n d"], centres: Float[Array, "k d"], *, block: int = 4096) -> float:
    """Largest distance of any row of `features` to the nearest of `centres`, to 1e-4 of itself.

    Raises:
        ValueError: one of them is not a finite real array of two axes, or their widths or types differ.
    """
    require_features("features", features, block)
    require_features("centres", centres, block)
    if centres.shape[1] != features.shape[1]:
        raise ValueError(f"centres: expected {features.shape[1]} columns as features have, got {centres.shape[1]}")
    if centres.dtype != features.dtype:
        raise ValueError(f"centres: expected {features.dtype} as features are, got {centres.dtype}")
    cover = _Cover(features, block, room=int(centres.shape[0]))
    cover.start_from(centres)
    return cover.radius()


class _Cover:
    """Room for some centres, and for each row an upper bound on its squared distance to the nearest centre so far.

    On the host, (n,) each: `bounds`, minus infinity for rows taken; `nearest`, the centre that the bound belongs to;
    `seen`: the bound counts this many centres. A device has only distances to compute.
    """

    def __init__(
        self, features: Float[Array, "n d"], block: int, *, room: int, float_types: Sequence[str] = FLOATS
    ) -> None:
        self._space = Space(features, block, float_types=float_types)
        self._n, self._block = int(features.shape[0]), block
        self._bounds = np.full(self._n, np.inf)
        self._nearest = np.zeros(self._n, dtype=np.int64)
        self._seen = np.zeros(self._n, dtype=np.int64)
        self._centres = self._space.xp.empty((room, features.shape[1]), dtype=features.dtype, device=device(features))
        self._count = 0
        self._pages: list[Any] = []  # the centres' duals, CENTRES_AT_ONCE to a page

    def start_from(self, centres: Float[Array, "k d"]) -> None:
        """Give every row a first bound, from the first page of `centres` (k, d)."""
        self._add(centres)
        for start in range(0, self._n, self._block):
            self._refresh(np.arange(start, min(start + self._block, self._n)), np.inf)

    def take(self, keep: int, *, first: int) -> Iterator[np.ndarray]:
        """Take `first` and then `keep` - 1 times a farthest row; yields what was taken, some rows at a time."""
        self._bounds[first] = -np.inf
        self.start_from(self._space.rows(np.asarray([first])))
        yield np.asarray([first], dtype=np.int64)
        left = keep - 1
        while left > 0:
            rows = self._take_farthest(left)
            yield rows
            left -= len(rows)

    def radius(self) -> float:
        """Distance of the farthest row to its nearest centre, in the unit of the features."""
        if self._bounds.max() == -np.inf:
            return 0.0
        rows, _ = self._frontier()
        return self._space.length(self._bounds[rows].max())

    def _frontier(self) -> tuple[np.ndarray, float]:
        """Up-to-date rows, a farthest one among them, and the bar: any of them at or above it beats all other rows."""
        while True:
            block, outside = self._largest()
            bar = max(outside, self._space.floor)
            self._refresh(block, bar)
            rows = block[self._bounds[block] >= bar]
            self._bounds[rows] = self._space.apart(self._space.rows(rows), gather(self._centres, self._nearest[rows]))
            rows = rows[self._bounds[rows] >= bar]
            if rows.size:
                return rows, bar
            if outside < self._space.floor:
                self._step_down()

    def _largest(self) -> tuple[np.ndarray, float]:
        """The block of rows with the largest bounds, in their own order, and the largest bound outside it."""
        cut = self._n - self._block
        if cut <= 0:
            return np.arange(self._n), -np.inf
        order = np.argpartition(self._bounds, cut - 1)
        return np.sort(order[cut:]), float(self._bounds[order[cut - 1]])

    def _refresh(self, rows: np.ndarray, bar: float) -> None:
        """Measure `rows` against the centres they have not seen, each until its bound is under `bar` or up to date."""
        bounds, nearest, seen = self._bounds[rows], self._nearest[rows], self._seen[rows]
        points = self._space.points(self._space.rows(rows))
        for page in range(int(seen.min()) // CENTRES_AT_ONCE, len(self._pages)):
            start = page * CENTRES_AT_ONCE
            stop = min(start + CENTRES_AT_ONCE, self._count)
            live = np.flatnonzero((seen < stop) & (bounds >= bar) & (bounds > 0))
            if live.size:
                squared, which = self._space.nearest(gather(points, live), self._pages[page])
                closer = squared < bounds[live]
                bounds[live[closer]] = squared[closer]
                nearest[live[closer]] = start + which[closer]
                seen[live] = stop
        self._bounds[rows], self._nearest[rows], self._seen[rows] = bounds, nearest, seen

    def _take_farthest(self, limit: int) -> np.ndarray:
        """Take what the frontier decides: at least one row, at most `limit`."""
        rows, bar = self._frontier()
        candidates, bounds = self._space.rows(rows), self._bounds[rows]
        copies_only = bounds.max() == 0
        between = np.broadcast_to(0.0, (len(rows), len(rows))) if copies_only else self._space.between(candidates)
        picks, nearest = _pick(bounds, between, bar, limit)
        closer = nearest >= 0
        self._nearest[rows[closer]] = self._count + nearest[closer]
        self._add(gather(candidates, picks))
        self._bounds[rows], self._seen[rows] = bounds, self._count
        taken: np.ndarray = rows[picks]
        return taken

    def _add(self, centres: Any) -> None:
        stop = self._count + int(centres.shape[0])
        self._centres[self._count : stop] = centres
        self._count = stop
        self._write(centres)

    def _write(self, centres: Any) -> None:
        """Append the duals of `centres` (k, d) to the pages, filling up the last one."""
        fresh = self._space.duals(centres)
        if self._pages and self._pages[-1].shape[0] < CENTRES_AT_ONCE:
            fresh = self._space.xp.concat([self._pages.pop(), fresh])
        self._pages += [fresh[start : start + CENTRES_AT_ONCE] for start in range(0, fresh.shape[0], CENTRES_AT_ONCE)]

    def _step_down(self) -> None:
        """Go on in finer arithmetic: every centre is to be seen again, and bounds stay well above the truth."""
        self._bounds += self._space.floor
        self._seen[:] = 0
        self._space.step_down()
        self._pages = []
        self._write(self._centres[: self._count])


def _pick(bounds: np.ndarray, between: np.ndarray, bar: float, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """Greed among m rows, given their squared distances to centres (m,) and to each other (m, m).

    `bounds` is updated in place. Returns the picks, and for each row the number of the pick that is nearest now, or -1
    where none is nearer than the centres before: (picks,), (m,).
    """
    picks: list[int] = []
    nearest = np.full(len(bounds), -1)
    while len(picks) < limit:
        row = int(bounds.argmax())
        if bounds[row] < bar:
            break
        closer = between[row] < bounds
        bounds[closer] = between[row][closer]
        nearest[closer] = len(picks)
        bounds[row] = -np.inf
        picks.append(row)
    return np.asarray(picks, dtype=np.int64), nearest
