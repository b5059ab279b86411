"""Executors on this machine: the command's own process, or worker processes."""

from __future__ import annotations

import contextlib
import itertools
import logging
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any, final

from cvad_cli.adapters.executors.scheduler import Lost, RetryPolicy, Watch, in_order
from cvad_cli.adapters.executors.threads import limited_threads, pin_threads
from cvad_cli.config.transfer import packed, portable_errors, unpacked
from cvad_cli.ports import Job


@final
class InProcess:
    """Processes one item after another in this process: the libraries' own threads use the cores already."""

    workers = 1

    def __init__(self, *, threads: int | None) -> None:
        self._threads = threads

    def map(
        self,
        job: Job[Any, Any],
        items: Iterable[Any],
        *,
        shard: int = 1,
        watch: Watch = lambda *_: None,
        lost: Lost | None = None,
    ) -> Iterator[Any]:
        """Yield the outcome of each item, in order, without shards."""
        del shard, lost
        with limited_threads(self._threads):
            for index, outcome in enumerate(job(_begun(items, watch))):
                watch(index, outcome)
                yield outcome

    def close(self) -> None:
        """Nothing was opened."""

    def __enter__(self) -> InProcess:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _begun(items: Iterable[Any], watch: Watch) -> Iterator[Any]:
    for index, item in enumerate(items):
        watch(index, None)
        yield item


@final
class Processes:
    """Worker processes on this machine, started when first needed, with `threads` threads each."""

    def __init__(self, workers: int, *, threads: int, retry_policy: RetryPolicy) -> None:
        self.workers = workers
        self._retry_policy = retry_policy
        self._handles = [_Process(threads) for _ in range(workers)]
        self._tokens = itertools.count()
        self._last: Job[Any, Any] | None = None
        self._order: _Order | None = None

    def map(
        self,
        job: Job[Any, Any],
        items: Iterable[Any],
        *,
        shard: int = 1,
        watch: Watch = lambda *_: None,
        lost: Lost | None = None,
    ) -> Iterator[Any]:
        """Yield the outcome of each item, in order. A killed process is replaced and its shard is rescheduled."""
        if self._order is None or self._last is not job:  # workers keep the last job open under its token
            self._last, self._order = job, _Order(next(self._tokens), packed(job, "the job"), type(job).__name__)
        for handle in self._handles:
            handle.order = self._order
        yield from in_order(self._handles, items, shard=shard, retry_policy=self._retry_policy, watch=watch, lost=lost)

    def close(self) -> None:
        """End the processes."""
        for handle in self._handles:
            handle.end()

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


@dataclass(frozen=True, slots=True)
class _Order:
    """A packed job, as it is sent to a worker."""

    token: int
    job: bytes
    name: str


@final
class _Process:
    """A pool of one process. When it breaks, it is clear which shard was lost, and no other worker is affected."""

    def __init__(self, threads: int) -> None:
        self.order: _Order | None = None
        self._threads = threads
        self._pool: ProcessPoolExecutor | None = None
        self._pid: Future[int]
        self._shard: Future[Any]

    def submit(self, shard: Sequence[Any]) -> Future[Any]:
        """Start work on a shard, in a new process where none is running."""
        if self.order is None:
            raise AssertionError("a shard without a job")
        sent = packed(shard, f"items for {self.order.name}")
        try:
            self._shard = self._running().submit(_work, self.order, sent)
        except BrokenProcessPool:  # the process died between two shards
            self.end()
            self._shard = self._running().submit(_work, self.order, sent)
        return self._shard

    def outcomes(self, result: Any) -> list[Any]:
        """Unpack the result of `_work`."""
        found: list[Any] = unpacked(result, f"outcomes of {self.order.name if self.order else 'a job'}")
        return found

    def fault_of(self, error: BaseException) -> BaseException | None:
        """The error that the work raised; None where the process died or was stopped."""
        return None if isinstance(error, (BrokenProcessPool, SystemExit)) else error

    def end(self) -> None:
        """Stop the process. A running shard is interrupted and removes its temporary files."""
        if self._pool is None:
            return
        if not self._shard.done() and self._pid.done() and self._pid.exception() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid.result(), signal.SIGTERM)
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._pool = None

    def _running(self) -> ProcessPoolExecutor:
        if self._pool is None:
            context = multiprocessing.get_context("spawn")  # a fork would inherit torch's locks and threads
            settled = (self._threads, logging.root.manager.disable >= logging.ERROR)
            self._pool = ProcessPoolExecutor(1, mp_context=context, initializer=_settle, initargs=settled)
            self._pid = self._shard = self._pool.submit(os.getpid)
        return self._pool


_held: dict[int, Job[Any, Any]] = {}
"""In a worker: the open job, by its token, which the next shard uses again."""


def _work(order: _Order, shard: bytes) -> bytes:
    with portable_errors():
        if order.token not in _held:
            _held.clear()
            _held[order.token] = unpacked(order.job, f"the job {order.name}")
        outcomes = list(_held[order.token](unpacked(shard, f"items for {order.name}")))
        return packed(outcomes, f"outcomes of {order.name}")


def _settle(threads: int, quiet: bool) -> None:
    """Set up a new process as a worker: limit its threads, keep its output off the results, end it with its parent."""
    os.dup2(2, 1)
    if quiet:
        warnings.simplefilter("ignore")
        logging.disable(logging.ERROR)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent too, which ends this worker
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # as an exception, so that temporary files are removed
    threading.Thread(target=_follow_parent, daemon=True).start()
    pin_threads(threads)


def _follow_parent() -> None:
    """End this worker when its parent dies. It holds both ends of its queue, so it would otherwise wait forever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)
