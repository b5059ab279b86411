"""Loads items in threads ahead of the network, a bounded number at a time, and yields them in order."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from queue import Empty, SimpleQueue
from typing import Final, Generic, TypeVar, final

from cvad_cli.config.processors import usable_processors

Item = TypeVar("Item")
Loaded = TypeVar("Loaded")

WAKE_S: Final = 0.1
"""How often a waiting thread checks whether it should stop."""

SHUTDOWN_WAIT_S: Final = 5.0
"""How long closing waits for a source that is stuck. Its thread is a daemon, so the process can end without it."""


@final
class Prefetch(Generic[Item, Loaded]):
    """An iterator over `load(item)` for each item, in order, with at most `ahead` items started and not yet taken.

    The source runs in its own thread, so that a slow source (a camera, a pipe) does not delay items that are ready. An
    exception of the source or of `load` is raised in its turn, and later items are dropped. Close the iterator, or use
    it as a context manager, to end its threads early; they end by themselves after the last item. Setting `stop` also
    ends it: two iterators that feed each other share one event, since an iterator cannot be closed while another
    thread uses it.
    """

    def __init__(
        self,
        items: Iterable[Item],
        load: Callable[[Item], Loaded],
        *,
        ahead: int = 16,
        workers: int | None = None,
        stop: threading.Event | None = None,
    ) -> None:
        self._load = load
        self._ended = threading.Event()
        self._stop = stop or self._ended
        self._room = threading.Semaphore(ahead)
        self._waiting: SimpleQueue[Future[Loaded] | None] = SimpleQueue()
        self._next: Future[Loaded] | None = None
        self._pool = ThreadPoolExecutor(workers or min(2, usable_processors()), thread_name_prefix="cvad-load")
        self._feeder = threading.Thread(target=self._feed, args=(items,), name="cvad-feed", daemon=True)
        self._feeder.start()

    def __iter__(self) -> Iterator[Loaded]:
        return self

    def __next__(self) -> Loaded:
        if self._next is None:
            self._next = self._take()
        if self._next is None:
            self._shut_down()
            raise StopIteration
        future, self._next = self._next, None
        try:
            loaded = future.result()
        except BaseException:
            self._ended.set()  # not `stop`, which would end the iterator that must receive this error
            self._shut_down()
            raise
        self._room.release()
        return loaded

    def __enter__(self) -> Prefetch[Item, Loaded]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def is_ready(self) -> bool:
        """Whether the next item can be had without waiting."""
        if self._next is None and not self._waiting.empty():
            self._next = self._waiting.get()
            if self._next is None:  # the end: put its mark back for __next__
                self._waiting.put(None)
        return self._next is not None and self._next.done()

    def close(self) -> None:
        """Start no more items, wait for those being loaded, and end the threads. May be called twice."""
        self._ended.set()
        self._stop.set()
        self._shut_down()

    def _shut_down(self) -> None:
        # Only the feeding thread ends the pool. An iterator that nobody closed is closed by the garbage collector, in
        # whichever thread allocates next: perhaps inside `submit`, which holds the pool's locks.
        self._room.release()
        if threading.current_thread() is not self._feeder:
            self._feeder.join(SHUTDOWN_WAIT_S)
        self._waiting.put(None)

    def _take(self) -> Future[Loaded] | None:
        while not self._is_over():
            with contextlib.suppress(Empty):
                return self._waiting.get(timeout=WAKE_S)
        return None

    def _feed(self, items: Iterable[Item]) -> None:
        try:
            source = iter(items)
            while self._may_begin():
                try:
                    item = next(source)
                except StopIteration:
                    break
                if self._is_over():
                    break
                self._waiting.put(self._pool.submit(self._load, item))
        except BaseException as error:  # noqa: BLE001 - raised where the items are taken
            failed: Future[Loaded] = Future()
            failed.set_exception(error)
            self._waiting.put(failed)
        finally:
            if isinstance(items, Generator):
                items.close()
            self._waiting.put(None)
            self._pool.shutdown(wait=True, cancel_futures=self._is_over())

    def _may_begin(self) -> bool:
        while not self._is_over():
            if self._room.acquire(timeout=WAKE_S):
                return not self._is_over()
        return False

    def _is_over(self) -> bool:
        return self._ended.is_set() or self._stop.is_set()


def prefetch(
    items: Iterable[Item], load: Callable[[Item], Loaded], *, ahead: int = 16, workers: int | None = None
) -> Iterator[Loaded]:
    """Yield `load(item)` for each item, in order, at most `ahead` started. Leaving the loop early ends the threads.

    `workers` None: two threads, or one on a single processor.
    """
    with Prefetch(items, load, ahead=ahead, workers=workers) as loaded:
        yield from loaded


def batched(items: Iterable[Item], count: int) -> Iterator[list[Item]]:
    """Divide an iterable into lists of `count` items; the last may be shorter. Python 3.12 has `itertools.batched`."""
    source = iter(items)
    while batch := list(islice(source, count)):
        yield batch


def ready_batches(items: Prefetch[Item, Loaded], count: int, *, patient: bool) -> Iterator[list[Loaded]]:
    """Lists of up to `count` items: full ones if `patient`, otherwise what is ready when the first item arrives."""
    for first in items:
        batch = [first]
        while len(batch) < count and (patient or items.is_ready):
            following = list(islice(items, 1))
            if not following:
                break
            batch += following
        yield batch
