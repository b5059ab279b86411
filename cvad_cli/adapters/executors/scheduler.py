"""Shards handed to whichever worker is free, outcomes given back in order, what a dead worker had done again."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final, Protocol

from cvad_cli.errors import ResourceError

AHEAD: Final = 2
"""Shards a worker that may be under way or wait for their turn: what bounds the memory of the process that collects."""

Watch = Callable[[int, Any], None]
"""Gets an item's place and None when a worker takes it, its place and outcome when it is done."""

Lost = Callable[[Any, ResourceError], Any]
"""Makes the outcome of an item that no worker survives."""


class WorkerHandle(Protocol):
    """One worker: takes a shard at a time."""

    def submit(self, shard: Sequence[Any]) -> Future[Any]:
        """Begin work on a shard, by a fresh worker where there is none."""

    def outcomes(self, result: Any) -> list[Any]:
        """The outcomes of a shard, from what its future holds."""

    def fault_of(self, error: BaseException) -> BaseException | None:
        """What the work itself raised; None where the worker is gone, so that another can do the shard."""

    def end(self) -> None:
        """Let go of a worker that is gone, or whose shard nobody wants any more."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often a shard may lose its worker, and who is told."""

    retries: int
    warn: Callable[[str], None]


def in_order(
    handles: Sequence[WorkerHandle],
    items: Iterable[Any],
    *,
    shard: int,
    retry_policy: RetryPolicy,
    watch: Watch,
    lost: Lost | None,
) -> Iterator[Any]:
    """Yield the outcome of each item, in order, as soon as those before it are there; lanes get `shard` at a time.

    What the work raises is raised at once, and shards under way are dropped. A shard that has lost its worker more
    than `retry_policy.retries` times most likely kills them: `lost` makes the outcomes of its items, or, where that is
    None, ResourceError is raised.
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
    """Which worker has which shard."""

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
        """Give each idle worker a shard whose place is below `before`; False once nothing is under way."""
        while self._idle and (self._again or (self._next is not None and self._next[0] < before)):
            index, shard = self._again.popleft() if self._again else self._take()
            handle = self._idle.popleft()
            self._seen(index, shard, None)
            self._running[handle.submit(shard)] = (index, shard, handle)
        return bool(self._running)

    def collect(self) -> None:
        """Wait for some shard to end, one way or another."""
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
        """Stop what is still under way."""
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
            self._retry_policy.warn(f"a worker died; its work (number {index + 1}) is done again by a fresh one")
            return
        reason = ResourceError(
            f"a worker died {self._losses[index]} times on the same work (number {index + 1}); was it killed for want "
            "of memory? Lower executor.workers or runtime.batch_size, or raise executor.retries"
        )
        if self._lost is None:
            raise reason from error
        self._finish(index, shard, [self._lost(item, reason) for item in shard])
