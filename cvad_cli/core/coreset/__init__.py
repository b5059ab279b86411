"""The coreset of PatchCore, exactly and lazily: of n patch features keep k, such that none is far from a kept one.

`k_center_greedy` takes the rows that the plain algorithm takes, at a fraction of its work; `ChunkedCoreset` does so
for features that do not fit into memory, at a stated price. NumPy arrays and torch tensors, on any device.
"""

from __future__ import annotations

from cvad_cli.core.coreset.chunked import ChunkedCoreset, MergedCoreset
from cvad_cli.core.coreset.greedy import Coreset, covering_radius, k_center_greedy

__all__ = ["ChunkedCoreset", "Coreset", "MergedCoreset", "covering_radius", "k_center_greedy"]
