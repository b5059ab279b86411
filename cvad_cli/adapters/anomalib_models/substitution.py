"""A library's function in another's place for a while: for what a library calls by itself and lets nobody hand in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def substituted(module: Any, name: str, value: Any) -> Iterator[None]:
    """`module.name` is `value` until the block ends, however it ends. Not for several threads at once."""
    former = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, former)
