"""Work ahead of the network: items are loaded in threads, a bounded number ahead, and come out in order."""

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
"""How often something that waits looks whether it should go on waiting."""

SHUTDOWN_WAIT_S: Final = 5.0
"""How long the end waits for a source that is stuck: its thread is a daemon, so the process can end without it."""


@final
class Prefetch(Generic[Item, Loaded]):
    """An iterator over `load(item)` for each item, in order, with at most `ahead` of them begun and not yet taken.

    The source runs in a thread of its own, so that a slow one (a camera, a pipe) holds back nothing that is ready. An
    exception of the source or of `load` is raised at its place; what was queued behind it is dropped. Close it, or use
    it as a context, to be rid of its threads early; at its end they go by themselves. Setting `stop` ends it too: two
    that feed one another share one, since an iterator cannot be closed while another thread is in it.
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
            self._ended.set()  # not `stop`, which would end the one that must hear of this error
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
            if self._next is None:  # the end: leave its mark for __next__
                self._waiting.put(None)
        return self._next is not None and self._next.done()

    def close(self) -> None:
        """Begin nothing more, wait for what is being loaded, and let the threads go. Twice does no harm."""
        self._ended.set()
        self._stop.set()
        self._shut_down()

    def _shut_down(self) -> None:
        self._room.release()
        if threading.current_thread() is not self._feeder:
            self._feeder.join(SHUTDOWN_WAIT_S)
        self._pool.shutdown(wait=True, cancel_futures=True)
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
            self._pool.shutdown(wait=False, cancel_futures=self._is_over())
            self._waiting.put(None)

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
    """Yield `load(item)` for each item, in order, at most `ahead` begun. Leaving the loop early ends its threads.

    `workers` left None: two threads, or one where there is one processor.
    """
    with Prefetch(items, load, ahead=ahead, workers=workers) as loaded:
        yield from loaded


def batched(items: Iterable[Item], count: int) -> Iterator[list[Item]]:
    """Cut an iterable into lists of `count`, the last one shorter. `itertools.batched` arrives with Python 3.12."""
    source = iter(items)
    while batch := list(islice(source, count)):
        yield batch


def ready_batches(items: Prefetch[Item, Loaded], count: int, *, patient: bool) -> Iterator[list[Loaded]]:
    """Lists of up to `count`: full ones where `patient`, else what is there when the first has come."""
    for first in items:
        batch = [first]
        while len(batch) < count and (patient or items.is_ready):
            following = list(islice(items, 1))
            if not following:
                break
            batch += following
        yield batch
