"""Temporarily replaces a function that a library calls internally and does not take as an argument."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def substituted(module: Any, name: str, value: Any) -> Iterator[None]:
    """Set `module.name` to `value` until the block ends. Not for several threads at once."""
    former = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, former)
