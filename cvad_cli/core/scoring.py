"""PatchCore's scoring: patch distances to the memory bank, and the image score.

Roth et al., "Towards Total Recall in Industrial Anomaly Detection", CVPR 2022, section 3.3. One implementation serves
NumPy arrays and torch tensors on any device, through the array API standard.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from array_api_compat import array_namespace
from jaxtyping import Float, Int64

from cvad_cli.ports import Array

CHUNK_VALUES: Final = 1 << 25
"""The largest number of distances held at once: 128 MiB of float32."""


@dataclass(frozen=True, slots=True)
class PatchScores:
    """The anomaly scores of one image's patches, and its image score."""

    distances: Float[np.ndarray, " p"]
    """Distance of each patch to its nearest neighbour in the memory bank."""
    rows: Int64[np.ndarray, " p"]
    """That neighbour's row in the bank."""
    image_score: float


class MemoryBank:
    """The coreset of normal patch features, ready to be searched.

    `features` is float32, a NumPy array or a torch tensor; patches must come from the same library and device.
    """

    def __init__(self, features: Float[Array, "m d"], *, num_neighbors: int, chunk_values: int = CHUNK_VALUES) -> None:
        """`chunk_values` bounds the distances that are held at once."""
        if features.ndim != 2 or features.shape[0] == 0:
            raise ValueError(f"memory bank: expected (m, d) with m >= 1, got shape {tuple(features.shape)}")
        self.features = features
        self.num_neighbors = min(num_neighbors, int(features.shape[0]))
        self._chunk_values = chunk_values
        self._xp: Any = array_namespace(features)
        self._squares = self._xp.sum(features * features, axis=1)

    def nearest(self, patches: Float[Array, "p d"]) -> tuple[Float[Array, " p"], Int64[Array, " p"]]:
        """Distance to, and row of, the nearest bank member of each patch."""
        step = max(1, self._chunk_values // int(self.features.shape[0]))
        parts = [self._nearest(patches[start : start + step]) for start in range(0, int(patches.shape[0]), step)]
        distances, rows = zip(*parts, strict=True)
        return self._xp.concat(distances), self._xp.concat(rows)

    def score(self, patches: Float[Array, "p d"]) -> PatchScores:
        """Score one image from its patches: patch distances and the re-weighted image score (equation 7).

        The patch m* with the largest distance s* decides. Its score is weighted by how isolated its nearest bank
        member n* is: with N_b(n*) the bank's `num_neighbors` members nearest to n* (itself among them),
        s = (1 - exp(s*) / sum over m in N_b(n*) of exp(||m* - m||)) s*.
        """
        distances, rows = self.nearest(patches)
        highest = int(self._xp.argmax(distances))
        score = distances[highest : highest + 1]
        if self.num_neighbors > 1:
            support = self._support(int(rows[highest]))
            score = reweighted(score, patches[highest : highest + 1], support[None])
        return PatchScores(_as_numpy(distances), _as_numpy(rows), float(score[0]))

    def _nearest(self, patches: Float[Array, "p d"]) -> tuple[Float[Array, " p"], Int64[Array, " p"]]:
        squared = self._squared_distances(patches)
        rows = self._xp.argmin(squared, axis=1)
        nearest = self._xp.take_along_axis(squared, rows[:, None], axis=1)[:, 0]
        return self._xp.sqrt(nearest), rows

    def _support(self, row: int) -> Float[Array, "k d"]:
        """The bank's `num_neighbors` members nearest to its member `row`, itself among them."""
        around = self._xp.argsort(self._squared_distances(self.features[row : row + 1])[0])
        return self.features[around[: self.num_neighbors]]

    def _squared_distances(self, patches: Float[Array, "p d"]) -> Float[Array, "p m"]:
        """||x - y||^2 = ||x||^2 - 2 x.y + ||y||^2, one matrix product, clipped at 0 against cancellation."""
        squared = patches @ self._xp.matrix_transpose(self.features)
        squared *= -2.0
        squared += self._xp.sum(patches * patches, axis=1)[:, None]
        squared += self._squares
        return self._xp.clip(squared, 0.0, None)


def reweighted(
    scores: Float[Array, " b"], patches: Float[Array, "b d"], support: Float[Array, "b k d"]
) -> Float[Array, " b"]:
    """Equation 7 for each image: s* times 1 - exp(s*) / sum over m in N_b(n*) of exp(||m* - m||).

    `patches` are the patches m* with the largest distances, `support` the bank members N_b(n*), n* itself among them.
    """
    xp: Any = array_namespace(patches)
    reach = xp.sqrt(xp.sum((support - patches[:, None, :]) ** 2, axis=-1))
    # The largest exponent is taken out, so that exp() stays finite.
    peak = xp.max(reach, axis=-1)
    return scores * (1.0 - xp.exp(scores - peak) / xp.sum(xp.exp(reach - peak[:, None]), axis=-1))


def _as_numpy(values: Any) -> np.ndarray:
    """A NumPy copy of an array of either library, from whatever device it lives on."""
    array: np.ndarray = values if isinstance(values, np.ndarray) else values.cpu().numpy()
    return array
