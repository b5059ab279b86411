"""Work ahead of the network: items are loaded in threads, a bounded number ahead, and come out in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Loaded = TypeVar("Loaded")


def prefetch(
    items: Iterable[Item], load: Callable[[Item], Loaded], *, ahead: int = 16, workers: int = 2
) -> Iterator[Loaded]:
    """Yield `load(item)` for each item, in order, with at most `ahead` results waiting.

    An exception of `load` is raised at its item's place; what was queued behind it is dropped.
    """
    source = iter(items)
    with ThreadPoolExecutor(workers, thread_name_prefix="cvad-load") as pool:
        waiting: deque[Future[Loaded]] = deque(pool.submit(load, item) for item in islice(source, ahead))
        try:
            while waiting:
                loaded = waiting.popleft().result()
                waiting.extend(pool.submit(load, item) for item in islice(source, 1))
                yield loaded
        finally:
            for future in waiting:
                future.cancel()


def batched(items: Iterable[Item], count: int) -> Iterator[list[Item]]:
    """Cut an iterable into lists of `count`, the last one shorter. `itertools.batched` arrives with Python 3.12."""
    source = iter(items)
    while batch := list(islice(source, count)):
        yield batch
