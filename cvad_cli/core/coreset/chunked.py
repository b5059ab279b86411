"""A coreset of more features than memory holds: greed in chunks, and greed over what the chunks kept.

    Malkomes et al.: Fast distributed k-center clustering with outliers on massive data, NeurIPS 2015 (two levels)

Rows are gathered in a buffer. When it is full, it is reduced to its own coreset of k rows; these are rows for a second
such buffer, and so on. A row passes through at most one reduction in each of the m buffers there are in the end.

**What is lost.** Let OPT be the least radius with which k balls, their centres anywhere in space, cover all rows.

- Each buffer holds some of the rows, which the same k balls cover. If greed leaves the radius r in it, its k centres
  and a row at r are k + 1 rows at mutual distances of at least r. Two of them share a ball, so r <= 2 OPT.
- A row has a kept one within r_1 in the first buffer, that one has one within r_2 in the second, and so on. By the
  triangle inequality, the row is within r_1 + ... + r_m <= 2m OPT of the result.

So what fits into one buffer loses nothing against greed on all rows, 2 OPT; two buffers promise 4 OPT. (Greed on all
rows leaves at least OPT, so these are also the factors, at worst, to its radius.) The sum of the radii that were met
is usually far smaller, and comes with the result. With c = chunk_rows / keep, m buffers last for about
chunk_rows c^(m - 1) rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device
from jaxtyping import Float

from cvad_cli.core.coreset.greedy import k_center_greedy
from cvad_cli.core.coreset.space import TOLERANCE, gather, require_features
from cvad_cli.ports import Array


@dataclass(frozen=True, slots=True)
class MergedCoreset:
    """A coreset of more rows than memory holds at once."""

    features: Float[Array, "keep d"]
    """Of the library, type and device of the features that were added."""
    radius_bound: float
    """No row that was added is farther than this from the nearest kept one."""
    merges: int
    """Reductions that any row went through, m: `radius_bound` is at most 2m times the best radius that there is."""


class ChunkedCoreset:
    """Keeps `keep` rows of features that arrive in parts, with room for `chunk_rows` rows at each level of merging."""

    def __init__(self, keep: int, chunk_rows: int, *, rng: np.random.Generator) -> None:
        if keep < 1:
            raise ValueError(f"keep: expected at least 1, got {keep}")
        if chunk_rows < 2 * keep:
            raise ValueError(f"chunk_rows: expected at least 2 * keep = {2 * keep}, got {chunk_rows}")
        self._keep, self._chunk_rows, self._rng = keep, chunk_rows, rng
        self._levels: list[_Buffer] = []

    def add(self, features: Float[Array, "n d"]) -> None:
        """Take in rows, any n; they are copied. All parts share width, type, library and device.

        Raises:
            ValueError: not a finite real (n, d), or d differs from earlier parts.
        """
        require_features("features", features, self._chunk_rows)
        width = self._levels[0].rows.shape[1] if self._levels else features.shape[1]
        if features.shape[1] != width:
            raise ValueError(f"features: expected {width} columns as before, got {features.shape[1]}")
        self._put(features, 0, 0.0)

    def result(self) -> MergedCoreset:
        """The coreset of all rows so far; more may be added afterwards.

        Raises:
            ValueError: fewer than `keep` rows were added.
        """
        added = self._levels[0].filled if self._levels else 0
        if added < self._keep and len(self._levels) < 2:
            raise ValueError(f"keep: expected at most {added}, the rows that were added, got {self._keep}")
        features, slack = self._levels[0].content[:0], 0.0
        for level in self._levels:
            rows = level.content
            union = array_namespace(rows).concat([rows, features]) if features.shape[0] else rows
            features, radius = self._reduce(union)
            slack = max(slack, level.slack) + radius
        return MergedCoreset(features, slack, len(self._levels))

    def _put(self, features: Any, depth: int, slack: float) -> None:
        """Fill the buffer at `depth` with rows that stand for others within `slack` of them; pass it on when full."""
        if depth == len(self._levels):
            self._levels.append(_Buffer.like(features, self._chunk_rows))
        level = self._levels[depth]
        level.slack = max(level.slack, slack)
        start = 0
        while start < features.shape[0]:
            if level.filled == self._chunk_rows:
                kept, radius = self._reduce(level.rows)
                self._put(kept, depth + 1, level.slack + radius)
                level.filled = 0
            start += level.fill(features[start:])

    def _reduce(self, features: Any) -> tuple[Any, float]:
        """At most `keep` rows, and how far any other is from them at most."""
        if features.shape[0] < self._keep:
            return features, 0.0
        coreset = k_center_greedy(features, self._keep, rng=self._rng)
        return gather(features, coreset.rows), coreset.radius * (1 + TOLERANCE)


@dataclass(slots=True)
class _Buffer:
    """Room for `len(rows)` rows, of which the first `filled` are in use; each stands for others within `slack`."""

    rows: Any
    filled: int = 0
    slack: float = 0.0

    @classmethod
    def like(cls, features: Float[Array, "n d"], length: int) -> _Buffer:
        xp = array_namespace(features)
        return cls(xp.empty((length, features.shape[1]), dtype=features.dtype, device=device(features)))

    @property
    def content(self) -> Any:
        return self.rows[: self.filled]

    def fill(self, features: Float[Array, "n d"]) -> int:
        """Copy in as many rows as there is room for, and say how many that was."""
        part = features[: self.rows.shape[0] - self.filled]
        self.rows[self.filled : self.filled + part.shape[0]] = part
        self.filled += part.shape[0]
        return int(part.shape[0])
