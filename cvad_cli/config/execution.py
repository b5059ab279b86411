"""The sections `executor` and `ray`: who does the work."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cvad_cli.config.checks import require


@dataclass(frozen=True)
class ExecutorConfig:
    """Where work on many images, or on many runs, is done.

    `workers` left null: one for `local`, whose libraries use every core already; for `ray` what the CPUs allow.
    `threads` left null: the cores shared out among local workers; one for each of Ray's.
    """

    kind: Literal["local", "ray"] = "local"
    workers: int | None = None
    threads: int | None = None
    retries: int = 3
    shard_images: int = 16

    def __post_init__(self) -> None:
        require(self, "retries", 0 <= self.retries <= 20, "a whole number from 0 to 20")
        for key in ("workers", "threads", "shard_images"):
            value = getattr(self, key)
            require(self, key, value is None or value >= 1, "a whole number from 1")


@dataclass(frozen=True)
class RayConfig:
    """Which Ray cluster, where `executor.kind` is ray. `address` left null: RAY_ADDRESS, else one started here."""

    address: str | None = None
    gpus_per_worker: float = 0.0

    def __post_init__(self) -> None:
        require(self, "gpus_per_worker", self.gpus_per_worker >= 0, "a number from 0, such as 0.25 or 1")
