"""Opens the executor that the settings name, and decides shard size and threads."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from dataclasses import replace
from functools import wraps
from typing import ParamSpec, TypeVar

from cvad_cli.adapters.executors.processes import InProcess, Processes
from cvad_cli.adapters.executors.ray_cluster import ClusterOptions, RayCluster
from cvad_cli.adapters.executors.scheduler import RetryPolicy
from cvad_cli.adapters.executors.threads import limited_threads
from cvad_cli.config.execution import ExecutorConfig, RayConfig
from cvad_cli.config.processors import usable_processors
from cvad_cli.config.schema import RunConfig
from cvad_cli.ports import Executor, Job

Given = ParamSpec("Given")
Made = TypeVar("Made")
Work = TypeVar("Work")


def open_executor(settings: RunConfig, warn: Callable[[str], None]) -> Executor:
    """The executor that the `executor` and `ray` sections name. Close it, or use it in a `with`.

    `warn` is called when a worker is lost.

    Raises ConfigError where Ray is not installed, ResourceError where its cluster cannot be reached.
    """
    config = settings.executor
    retry_policy = RetryPolicy(config.retries, warn)
    if config.kind == "ray":
        options = ClusterOptions(
            settings.ray.address, config.workers, config.threads or 1, settings.ray.gpus_per_worker
        )
        return RayCluster(options, retry_policy)
    workers = config.workers or 1
    if workers == 1:
        return InProcess(threads=config.threads)
    return Processes(
        workers, threads=config.threads or max(1, usable_processors() // workers), retry_policy=retry_policy
    )


def run_job(
    settings: RunConfig, job: Job[Work, Made], items: Iterable[Work], warn: Callable[[str], None]
) -> Generator[Made, None, None]:
    """The outcomes of a job's items, in order, from the executor that the settings name. Close it to stop early."""
    with open_executor(settings, warn) as executor:
        yield from executor.map(job, items, shard=shard_size(settings))


def is_distributed(settings: RunConfig) -> bool:
    """Whether workers do the work, instead of the command's own process."""
    return settings.executor.kind == "ray" or (settings.executor.workers or 1) > 1


def keeping_threads(task: Callable[Given, Made]) -> Callable[Given, Made]:
    """The task with its process limited to `executor.threads` threads, where the process does the work itself.

    One of the task's arguments is its settings. Where they name no number, or workers do the work, the limit is the
    number of processors. Libraries take their number of threads when they are opened, so the limit holds from the
    beginning of the task.
    """

    @wraps(task)
    def kept(*arguments: Given.args, **named: Given.kwargs) -> Made:
        (settings,) = (given for given in (*arguments, *named.values()) if isinstance(given, RunConfig))
        with limited_threads(None if is_distributed(settings) else settings.executor.threads):
            return task(*arguments, **named)

    return kept


def shard_size(settings: RunConfig) -> int:
    """`executor.shard_images` in whole batches, so that the network sees the same batches on every executor."""
    return max(1, settings.executor.shard_images // settings.runtime.batch_size) * settings.runtime.batch_size


def run_here(settings: RunConfig) -> RunConfig:
    """The settings for a run that one worker does alone, with its own number of threads."""
    return replace(settings, executor=ExecutorConfig(threads=settings.executor.threads), ray=RayConfig())
