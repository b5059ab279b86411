"""Executor on a Ray cluster: an existing one, or one that is started on this machine for the duration of the work."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import signal
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Final, final

from cvad_cli import __version__
from cvad_cli.adapters.executors.bundle_transfer import BundleArchive, pack, unpack
from cvad_cli.adapters.executors.scheduler import Lost, RetryPolicy, Watch, in_order
from cvad_cli.adapters.executors.threads import pin_threads, thread_variables
from cvad_cli.config.processors import usable_processors
from cvad_cli.config.transfer import packed, portable_errors, unpacked
from cvad_cli.errors import ConfigError, ResourceError
from cvad_cli.files.user_folders import user_cache_folder
from cvad_cli.ports import Job

BUNDLES: Final = "bundles"
"""Folder with copies of bundles, below the user's cache folder on a node."""

STORE_BYTES: Final = 512 * 2**20
"""Shared memory of a cluster that is started here: room for a bundle and for unread outcomes."""


@dataclass(frozen=True, slots=True)
class ClusterOptions:
    """Which cluster to use, and the resources of each worker."""

    address: str | None
    """None: the cluster that RAY_ADDRESS names, otherwise a new one on this machine."""
    workers: int | None
    """None: as many as the cluster's CPUs allow."""
    threads: int
    """CPUs of each worker, and threads of its libraries."""
    gpus: float


@final
class RayCluster:
    """Workers on a Ray cluster. The job and its bundle are put into the object store once and fetched once per node."""

    def __init__(self, options: ClusterOptions, retry_policy: RetryPolicy) -> None:
        """Connect. Raises ConfigError where Ray is not installed, ResourceError where the cluster cannot be reached."""
        self._retry_policy = retry_policy
        self._ray, self._ours = _connect(options)
        fitting = int(self._ray.cluster_resources().get("CPU", 0)) // options.threads
        self.workers = options.workers or max(1, fitting)
        self._actors = [_Actor(self._ray, options) for _ in range(self.workers)]
        self._tokens = itertools.count()

    def map(
        self,
        job: Job[Any, Any],
        items: Iterable[Any],
        *,
        shard: int = 1,
        watch: Watch = lambda *_: None,
        lost: Lost | None = None,
    ) -> Iterator[Any]:
        """Yield the outcome of each item, in order. A lost worker is replaced and its shard is rescheduled."""
        archive = None if job.bundle is None else self._ray.put(pack(job.bundle))
        order = _Order(next(self._tokens), self._ray.put(packed(job, "the job")), archive, type(job).__name__)
        for actor in self._actors:
            actor.order = order
        yield from in_order(self._actors, items, shard=shard, retry_policy=self._retry_policy, watch=watch, lost=lost)

    def close(self) -> None:
        """End the workers, and the cluster if it was started here."""
        for actor in self._actors:
            actor.end()
        if self._ours:
            self._ray.shutdown()
            self._ours = False

    def __enter__(self) -> RayCluster:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


@dataclass(frozen=True, slots=True)
class _Order:
    """References to a job and its bundle in the object store. A worker fetches them with the job's first shard."""

    token: int
    job: Any
    archive: Any
    name: str


@final
class _Actor:
    """The handle of a worker, in the command's process."""

    def __init__(self, ray: Any, options: ClusterOptions) -> None:
        self.order: _Order | None = None
        self._ray, self._options = ray, options
        self._handle: Any = None

    def submit(self, shard: Sequence[Any]) -> Future[Any]:
        """Start work on a shard, on a new worker where none is running."""
        if self.order is None:
            raise AssertionError("a shard without a job")
        sent = packed(shard, f"items for {self.order.name}")
        self._handle = self._handle or self._started()
        future: Future[Any] = self._handle.work.remote(self.order, sent).future()
        return future

    def outcomes(self, result: Any) -> list[Any]:
        """Unpack the worker's result."""
        found: list[Any] = unpacked(result, f"outcomes of {self.order.name if self.order else 'a job'}")
        return found

    def fault_of(self, error: BaseException) -> BaseException | None:
        """The error that the work raised, unwrapped; None where the worker or its node was lost."""
        if getattr(error, "actor_init_failed", False):
            last = str(error).strip().splitlines()[-1]
            return ResourceError(f"a worker cannot start on the cluster: {last}; is cvad installed on every node?")
        if not isinstance(error, self._ray.exceptions.RayTaskError):
            return None if isinstance(error, self._ray.exceptions.RayError) else error
        cause = getattr(error, "cause", None)
        return cause if isinstance(cause, BaseException) else error

    def end(self) -> None:
        """Kill the worker."""
        if self._handle is not None:
            self._ray.kill(self._handle, no_restart=True)
            self._handle = None

    def _started(self) -> Any:
        options = self._options
        variables = {**thread_variables(options.threads), "CVAD_WEIGHTS_DIR": os.environ.get("CVAD_WEIGHTS_DIR", "")}
        return (
            self._ray.remote(_Worker)
            .options(
                num_cpus=options.threads,
                num_gpus=options.gpus,
                runtime_env={"env_vars": {key: value for key, value in variables.items() if value}},
            )
            .remote(options, __version__, quiet=logging.root.manager.disable >= logging.ERROR)
        )


class _Worker:
    """The worker on the cluster. It keeps the last job open for the next shard."""

    def __init__(self, options: ClusterOptions, version: str, *, quiet: bool) -> None:
        if quiet:
            logging.disable(logging.ERROR)
        if not options.gpus:
            os.environ["CUDA_VISIBLE_DEVICES"] = ""  # so that `device: auto` uses no GPU that was not assigned
        pin_threads(options.threads)
        self._version = version
        self._token = -1
        self._job: Job[Any, Any] | None = None

    def work(self, order: _Order, shard: bytes) -> bytes:
        """Do a shard of a job."""
        if self._version != __version__:
            raise ConfigError(f"this node has cvad {__version__}, the command {self._version}; install one everywhere")
        with portable_errors():
            if self._job is None or self._token != order.token:
                self._job, self._token = self._opened(order), order.token
            outcomes = list(self._job(unpacked(shard, f"items for {order.name}")))
            return packed(outcomes, f"outcomes of {order.name}")

    @staticmethod
    def _opened(order: _Order) -> Job[Any, Any]:
        import ray

        job: Job[Any, Any] = unpacked(ray.get(order.job), f"the job {order.name}")
        if order.archive is None:
            return job
        archive: BundleArchive = ray.get(order.archive)
        return job.at(unpack(archive, user_cache_folder() / BUNDLES))


def _connect(options: ClusterOptions) -> tuple[Any, bool]:
    """Connected Ray, and whether this process started it and must shut it down."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no usage data leaves the plant
    try:
        import ray
    except ImportError as error:
        raise ConfigError("executor.kind: ray is not installed; run `pip install 'cvad[ray]'`") from error
    if ray.is_initialized():
        return ray, False
    wanted: dict[str, Any] = {"address": options.address}
    if options.address is None and not os.environ.get("RAY_ADDRESS"):
        workers = options.workers or max(1, usable_processors() // options.threads)
        wanted = {"num_cpus": workers * options.threads, "object_store_memory": STORE_BYTES}
    former = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(**wanted, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, OSError, RuntimeError, TimeoutError, ValueError) as error:
        where = options.address or os.environ.get("RAY_ADDRESS") or "here"
        raise ResourceError(f"ray.address: no Ray cluster can be used at {where}: {_first_line(error)}") from error
    with contextlib.suppress(
        ValueError
    ):  # Ray replaces the signal handler; outside the main thread it cannot be restored
        signal.signal(signal.SIGTERM, former)
    return ray, True


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
