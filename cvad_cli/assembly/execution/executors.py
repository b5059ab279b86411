"""From settings to an executor, and to what it may be given."""

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
    """What the `executor` and `ray` sections name; close it, or use it in a `with`. `warn` is told of lost workers.

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
    """The outcomes of a job's items, in order, by whoever the settings name. Close it to end the work early."""
    with open_executor(settings, warn) as executor:
        yield from executor.map(job, items, shard=shard_size(settings))


def is_distributed(settings: RunConfig) -> bool:
    """Whether work is done elsewhere than in the command's own process."""
    return settings.executor.kind == "ray" or (settings.executor.workers or 1) > 1


def keeping_threads(task: Callable[Given, Made]) -> Callable[Given, Made]:
    """The task, during which its own process keeps to `executor.threads` where it does the work itself.

    One of the task's arguments is its settings. Where they name no number, or others do the work, the
    limit is the number of processors. What a task opens takes its threads when it is opened, so the limit holds from
    its beginning.
    """

    @wraps(task)
    def kept(*arguments: Given.args, **named: Given.kwargs) -> Made:
        (settings,) = (given for given in (*arguments, *named.values()) if isinstance(given, RunConfig))
        with limited_threads(None if is_distributed(settings) else settings.executor.threads):
            return task(*arguments, **named)

    return kept


def shard_size(settings: RunConfig) -> int:
    """`executor.shard_images` in whole batches: whoever does them, the network sees the same images together."""
    return max(1, settings.executor.shard_images // settings.runtime.batch_size) * settings.runtime.batch_size


def run_here(settings: RunConfig) -> RunConfig:
    """The settings of a run that a worker does by itself, with the threads that it was given."""
    return replace(settings, executor=ExecutorConfig(threads=settings.executor.threads), ray=RayConfig())
