"""Schedules shards on idle workers, yields results in order, reschedules the shards of crashed workers."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final, Protocol

from cvad_cli.errors import ResourceError

AHEAD: Final = 2
"""Shards per worker that may be running or waiting to be yielded. It bounds the memory of the collecting process."""

Watch = Callable[[int, Any], None]
"""Called with an item's index and None when a worker starts it, and with its index and outcome when it is done."""

Lost = Callable[[Any, ResourceError], Any]
"""Makes the outcome of an item whose shard crashes every worker."""


class WorkerHandle(Protocol):
    """One worker, which works on one shard at a time."""

    def submit(self, shard: Sequence[Any]) -> Future[Any]:
        """Start work on a shard, on a new worker where none is running."""

    def outcomes(self, result: Any) -> list[Any]:
        """The outcomes of a shard, from the result of its future."""

    def fault_of(self, error: BaseException) -> BaseException | None:
        """The error that the work itself raised; None where the worker was lost, so that another can do the shard."""

    def end(self) -> None:
        """Stop the worker: it is lost, or its shard is no longer needed."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """What happens when a shard loses its worker."""

    retries: int
    """How often the shard is rescheduled."""
    warn: Callable[[str], None]
    """Called with a message each time."""


def in_order(
    handles: Sequence[WorkerHandle],
    items: Iterable[Any],
    *,
    shard: int,
    retry_policy: RetryPolicy,
    watch: Watch,
    lost: Lost | None,
) -> Iterator[Any]:
    """Yield the outcome of each item, in order, as soon as it is ready. Each worker gets `shard` items at a time.

    An error of the work is raised at once, and running shards are stopped. A shard that has lost its worker more than
    `retry_policy.retries` times probably crashes them: `lost` makes the outcomes of its items; where `lost` is None,
    ResourceError is raised.
    """

    def seen(index: int, mine: Sequence[Any], outcomes: Sequence[Any] | None) -> None:
        for within in range(len(mine)):
            watch(index * shard + within, None if outcomes is None else outcomes[within])

    schedule = _Schedule(deque(handles), enumerate(_cut(items, shard)), retry_policy, seen, lost)
    turn = 0
    try:
        while schedule.hand_out(before=turn + AHEAD * len(handles)):
            schedule.collect()
            while turn in schedule.finished:
                yield from schedule.finished.pop(turn)
                turn += 1
    finally:
        schedule.drop()


def _cut(items: Iterable[Any], count: int) -> Iterator[list[Any]]:
    source = iter(items)
    while shard := list(islice(source, count)):
        yield shard


class _Schedule:
    """Which shards are running, on which workers, and which are finished."""

    def __init__(
        self,
        idle: deque[WorkerHandle],
        source: Iterator[tuple[int, Sequence[Any]]],
        retry_policy: RetryPolicy,
        seen: Callable[[int, Sequence[Any], Sequence[Any] | None], None],
        lost: Lost | None,
    ) -> None:
        self.finished: dict[int, list[Any]] = {}
        self._idle, self._source, self._retry_policy, self._seen, self._lost = idle, source, retry_policy, seen, lost
        self._running: dict[Future[Any], tuple[int, Sequence[Any], WorkerHandle]] = {}
        self._again: deque[tuple[int, Sequence[Any]]] = deque()
        self._losses: Counter[int] = Counter()
        self._next = next(source, None)

    def hand_out(self, *, before: int) -> bool:
        """Start shards with an index below `before` on the idle workers. False once no shard is running."""
        while self._idle and (self._again or (self._next is not None and self._next[0] < before)):
            index, shard = self._again.popleft() if self._again else self._take()
            handle = self._idle.popleft()
            self._seen(index, shard, None)
            self._running[handle.submit(shard)] = (index, shard, handle)
        return bool(self._running)

    def collect(self) -> None:
        """Wait until a shard finishes or fails, and record it."""
        done, _ = wait(self._running, return_when=FIRST_COMPLETED)
        for future in done:
            index, shard, handle = self._running.pop(future)
            error = future.exception()
            if error is None:
                self._finish(index, shard, handle.outcomes(future.result()))
            else:
                self._again_or_lost(index, shard, handle, error)
            self._idle.append(handle)

    def drop(self) -> None:
        """Stop the shards that are still running."""
        for _, _, handle in self._running.values():
            handle.end()
        self._running.clear()

    def _take(self) -> tuple[int, Sequence[Any]]:
        taken, self._next = self._next, next(self._source, None)
        if taken is None:
            raise AssertionError("asked for a shard beyond the last")
        return taken

    def _finish(self, index: int, shard: Sequence[Any], outcomes: list[Any]) -> None:
        self.finished[index] = outcomes
        self._seen(index, shard, outcomes)

    def _again_or_lost(self, index: int, shard: Sequence[Any], handle: WorkerHandle, error: BaseException) -> None:
        fault = handle.fault_of(error)
        if fault is not None:
            raise fault
        handle.end()
        self._losses[index] += 1
        if self._losses[index] <= self._retry_policy.retries:
            self._again.append((index, shard))
            self._retry_policy.warn(f"a worker died; its work (number {index + 1}) is done again by a new one")
            return
        reason = ResourceError(
            f"a worker died {self._losses[index]} times on the same work (number {index + 1}); did it run out "
            "of memory? Lower executor.workers or runtime.batch_size, or raise executor.retries"
        )
        if self._lost is None:
            raise reason from error
        self._finish(index, shard, [self._lost(item, reason) for item in shard])
