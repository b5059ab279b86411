"""How a point's payload lies in the embedded engine: the whole of it as one text, and a number for each field that is
searched by.

The engine takes a payload over value by value. It tries a value as a truth value, a whole number and a float before
it reads it as a text, and each attempt that fails is a Python exception: a text costs ten times what a number does.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Mapping, Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import Any, Final

from cvad_cli.adapters.qdrant.contract import INDEXED_FIELDS, unit_rows
from cvad_cli.records import DefectPoint

_PAYLOAD: Final = "payload"


def packed_rows(points: Sequence[DefectPoint]) -> list[Any]:
    """The engine's points for ours, with vectors at length 1."""
    import qdrant_edge as edge

    # NumPy arrays would be read number by number, each an object of NumPy; lists of floats take eight times the room.
    vectors: list[Any] = [array("f", row.tobytes()) for row in unit_rows([each.vector for each in points])]
    return [
        edge.Point(id=each.id, vector=vector, payload=_packed(each.payload))
        for each, vector in zip(points, vectors, strict=True)
    ]


def unpacked(packed: Mapping[str, Any] | None) -> dict[str, Any]:
    """The payload as it was given to `packed_rows`, but for tuples, which come back as lists."""
    payload: dict[str, Any] = json.loads((packed or {}).get(_PAYLOAD, "{}"))
    return payload


def create_field_indexes(shard: Any) -> None:
    """Index the numbers that `engine_filter` asks for, in an empty shard."""
    import qdrant_edge as edge

    for field in INDEXED_FIELDS:
        # Ranges of digests mean nothing, and their tree would double an update's time.
        exact = edge.IntegerIndexParams(lookup=True, range=False)
        shard.update(edge.UpdateOperation.create_field_index(field, exact))


def engine_filter(allowed: Mapping[str, Sequence[str]], ids: Sequence[str] | None = None) -> Any:
    """Points whose every field has one of its allowed values, and whose id is one of `ids`; None where all may pass."""
    import qdrant_edge as edge

    must: list[Any] = [
        edge.FieldCondition(key=field, match=edge.MatchAny([_digest(value) for value in values]))
        for field, values in allowed.items()
    ]
    if ids is not None:
        must.append(edge.HasIdCondition(set(ids)))
    return edge.Filter(must=must) if must else None


def _packed(payload: Mapping[str, Any]) -> dict[str, Any]:
    numbers = {field: _digest(payload[field]) for field in INDEXED_FIELDS if isinstance(payload.get(field), str)}
    return {**numbers, _PAYLOAD: json.dumps(payload)}


@lru_cache(maxsize=65_536)
def _digest(text: str) -> int:
    """64 bits of BLAKE2b: of a million different texts any two share a number with a probability of 3e-8."""
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big", signed=True)
