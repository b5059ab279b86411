"""What the embedded store and the server's store share: the collection's fields, and checks of arguments."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Final
from uuid import UUID

import numpy as np

from cvad_cli.errors import StoreError
from cvad_cli.ports import Where
from cvad_cli.records import DefectPoint

INDEXED_FIELDS: Final = ("defect_type", "category", "source")
"""Payload fields that searches filter by; each has an index."""
PAGE: Final = 256
"""Points that `scroll` fetches at a time. It bounds memory and the size of an answer."""


def missing(location: str) -> StoreError:
    """The error for a collection that does not exist."""
    return StoreError(f"{location}: there is no such defect index; make it first, or check qdrant.path and .collection")


def exists_already(location: str) -> StoreError:
    """The error for making a collection that exists."""
    return StoreError(f"{location}: the defect index exists already; add to it, or drop it first")


def batches(points: Iterable[DefectPoint], size: int, dimension: int, location: str) -> Iterator[list[DefectPoint]]:
    """Lists of at most `size` points. Raises StoreError at a batch with a vector of another length."""
    remaining = iter(points)
    while batch := list(islice(remaining, size)):
        for point in batch:
            require_dimension(len(point.vector), dimension, location)
        yield batch


def require_dimension(got: int, dimension: int, location: str) -> None:
    """Raise StoreError where a vector does not fit the collection."""
    if got != dimension:
        raise StoreError(
            f"{location}: holds vectors of {dimension} values, got one of {got}; it was made with another descriptor, "
            "so index again under another qdrant.collection, or drop it first"
        )


def unit_rows(vectors: Sequence[np.ndarray]) -> np.ndarray:
    """The vectors (d,) at length 1 as rows of (n, d) float32. Vectors of length 1 are returned unchanged."""
    rows = np.stack(vectors).astype(np.float32, copy=False)
    lengths = np.sqrt(np.einsum("nd,nd->n", rows, rows, dtype=np.float64))
    # Rounding a second time would make an exported and imported index differ from its source.
    off = np.abs(lengths - 1) >= 1e-6
    rows[off] = rows[off] / lengths[off, None]
    return rows


def plain_metadata(metadata: Mapping[str, Any], dimension: int = 1) -> dict[str, Any]:
    """The metadata as JSON returns it. Raises ValueError for metadata that is not JSON, or a dimension below 1."""
    if dimension < 1:
        raise ValueError(f"dimension: expected a whole number from 1, got {dimension}")
    try:
        plain: dict[str, Any] = json.loads(json.dumps(dict(metadata), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f"metadata: cannot be written as JSON: {error}") from error
    return plain


def query_vector(vector: np.ndarray, limit: int, dimension: int, location: str) -> list[float]:
    """The checked query. Raises StoreError for another length, ValueError for values that are not finite."""
    if limit < 1:
        raise ValueError(f"limit: expected a whole number from 1, got {limit}")
    flat = np.asarray(vector, dtype=np.float32)
    if flat.ndim != 1 or not np.isfinite(flat).all():
        raise ValueError(f"vector: expected finite values of shape (d,), got shape {flat.shape}")
    require_dimension(len(flat), dimension, location)
    return [float(value) for value in flat]


def conditions(where: Where | None) -> dict[str, list[str]]:
    """Field -> allowed values, which may be any text. Only `INDEXED_FIELDS` can be asked for."""
    found = {key: [value] if isinstance(value, str) else list(value) for key, value in (where or {}).items()}
    for key in found:
        if key not in INDEXED_FIELDS:
            raise ValueError(f"where: expected a payload field of {', '.join(INDEXED_FIELDS)}, got {key!r}")
    return found


def rejects_all(allowed: dict[str, list[str]]) -> bool:
    """True where a field has no allowed value, so that nothing can match."""
    return any(not values for values in allowed.values())


def require_selection(ids: Sequence[str] | None, where: Where | None) -> None:
    """Raise ValueError where nothing selects points, which would empty the index, or where an id is not a UUID."""
    if ids is None and not where:
        raise ValueError("delete: give ids, or a field to select by; drop() removes everything")
    for each in ids or ():
        UUID(each)
