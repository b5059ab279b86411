"""From settings to an executor, and the jobs that it spreads."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from cvad_cli.adapters.executors.processes import InProcess, Processes
from cvad_cli.adapters.executors.ray_cluster import ClusterOptions, RayCluster
from cvad_cli.adapters.executors.spreading import Patience
from cvad_cli.config.schema import ExecutorConfig, RunConfig
from cvad_cli.ports import Executor

Item = TypeVar("Item")


def open_executor(settings: RunConfig, warn: Callable[[str], None]) -> Executor:
    """What the `executor` and `ray` sections name; close it, or use it in a `with`. `warn` is told of lost workers.

    Raises ConfigError where Ray is not installed, ResourceError where its cluster cannot be reached.
    """
    config = settings.executor
    patience = Patience(config.retries, warn)
    if config.kind == "ray":
        options = ClusterOptions(
            settings.ray.address, config.workers, config.threads or 1, settings.ray.gpus_per_worker
        )
        return RayCluster(options, patience)
    workers = config.workers or 1
    if workers == 1:
        return InProcess(threads=config.threads)
    return Processes(workers, threads=config.threads or max(1, (os.cpu_count() or 1) // workers), patience=patience)


def in_shards(items: Sequence[Item], config: ExecutorConfig, *, batch_size: int) -> Iterator[Sequence[Item]]:
    """Cut items into shards of whole batches: whoever does them, the network sees the same pictures together."""
    size = max(1, config.shard_images // batch_size) * batch_size
    for start in range(0, len(items), size):
        yield items[start : start + size]
