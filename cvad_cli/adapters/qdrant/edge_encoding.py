"""How a point is stored in the embedded engine: in a form that its Python binding reads quickly.

The binding tries to read a payload value as a boolean, an integer and a float before it reads it as text, and each
failed attempt raises a Python exception. It reads a payload key as text at once. So the id and the payload form one
text, which is a key, and each field that searches filter by is a number. The engine's own id is the UUID, so that
points with different ids never replace each other.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Mapping, Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import Any, Final
from uuid import UUID

from cvad_cli.adapters.qdrant.validation import INDEXED_FIELDS, unit_rows
from cvad_cli.records import DefectPoint

_UUID_LENGTH: Final = 36


def packed_rows(points: Sequence[DefectPoint]) -> list[Any]:
    """The engine's points for ours, with vectors at length 1. Raises ValueError for an id that is no UUID."""
    import qdrant_edge as edge

    # NumPy arrays would be read element by element, as NumPy objects; lists of floats take eight times the memory.
    vectors: list[Any] = [array("f", row.tobytes()) for row in unit_rows([each.vector for each in points])]
    return [
        edge.Point(id=engine_id(each.id), vector=vector, payload=_packed(each))
        for each, vector in zip(points, vectors, strict=True)
    ]


def identifier_of(found: Any) -> str:
    """The id of an engine's point, as it was given to `packed_rows`; the engine's own where cvad did not write it."""
    text = _text_of(found)
    return str(found.id) if text is None else text[:_UUID_LENGTH]


def payload_of(found: Any) -> dict[str, Any]:
    """The payload of an engine's point, as it was given to `packed_rows`, except that tuples become lists.

    Empty for a point that cvad did not write.
    """
    text = _text_of(found)
    payload: dict[str, Any] = {} if text is None else json.loads(text[_UUID_LENGTH:])
    return payload


def _text_of(found: Any) -> str | None:
    return next((key for key in found.payload or {} if key not in INDEXED_FIELDS), None)


def engine_id(identifier: str) -> UUID:
    """The id as a UUID. Raises ValueError for text that is not a UUID in its usual spelling."""
    try:
        found = UUID(identifier)
    except ValueError:
        found = None
    if found is None or str(found) != identifier.lower():
        raise ValueError(f"id: expected a UUID, got {identifier!r}")
    return found


def create_field_indexes(shard: Any) -> None:
    """Index the numbers that `engine_filter` asks for, in an empty shard."""
    import qdrant_edge as edge

    for field in INDEXED_FIELDS:
        # Ranges of digests mean nothing, and an index for them would double the time of an update.
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
        must.append(edge.HasIdCondition({engine_id(each) for each in ids}))
    return edge.Filter(must=must) if must else None


def _packed(point: DefectPoint) -> dict[str, Any]:
    payload = point.payload
    packed: dict[str, Any] = {point.id + json.dumps(payload): True}
    for field in INDEXED_FIELDS:
        value = payload.get(field)
        if isinstance(value, str):
            packed[field] = _digest(value)
    return packed


@lru_cache(maxsize=65_536)
def _digest(text: str) -> int:
    """63 bits of BLAKE2b: of a million different texts any two share a number with a probability of 5e-8."""
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big") >> 1
