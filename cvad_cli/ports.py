"""The seams: what a task needs from the outside, as Protocols that adapters and the command line fill."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar, runtime_checkable

import numpy as np

from cvad_cli.errors import ResourceError
from cvad_cli.records import DefectMatch, DefectPoint, IndexInfo, Prediction

Item = TypeVar("Item", contravariant=True)  # noqa: PLC0105 - a job takes them, in whatever words
Outcome = TypeVar("Outcome", covariant=True)  # noqa: PLC0105

DETECTOR_STAGES: Final = ("network", "search", "post-processing")
"""Where a detector's time goes: copying in and the forward pass; the memory bank; score, map and smoothing."""

Where = Mapping[str, str | Sequence[str]]
"""Payload field -> the value, or the values of which one must be there. All fields must hold."""


@runtime_checkable
class Array(Protocol):
    """A NumPy array or a torch tensor, on any device: what code over the array API takes and gives."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Length of each axis."""

    @property
    def ndim(self) -> int:
        """How many axes there are."""

    @property
    def dtype(self) -> Any:
        """Of its library."""

    def __getitem__(self, key: Any, /) -> Any: ...
    def __mul__(self, other: Any, /) -> Any: ...
    def __sub__(self, other: Any, /) -> Any: ...
    def __matmul__(self, other: Any, /) -> Any: ...


class Reporter(Protocol):
    """Where a task says how far it is. The command line draws it; a test records it."""

    def stage(self, title: str, total: int | None = None) -> AbstractContextManager[Callable[[int], None]]:
        """A stretch of work of `total` steps (None: unknown). Yields `advance(steps)`."""

    def note(self, message: str) -> None:
        """One line that a user would want to read once."""

    def warn(self, message: str) -> None:
        """Something the user should act on, though the work goes on."""


class Detector(Protocol):
    """A trained model that judges images. Opened from a bundle; never fitted."""

    @property
    def image_size(self) -> tuple[int, int]:
        """Rows and columns that `predict` takes."""

    def predict(self, images: Sequence[np.ndarray]) -> list[Prediction]:
        """Score images of shape (h, w, 3), uint8 RGB, already at `image_size`. Maps come back at `image_size`."""


@runtime_checkable
class TimedDetector(Detector, Protocol):
    """A detector that also says where its time went. A detector need not be one."""

    @property
    def last_split(self) -> Mapping[str, float]:
        """Seconds of the last `predict` by stage, some of `DETECTOR_STAGES`: together at most the whole call."""


class DefectStore(Protocol):
    """The index of labelled defects: one collection, embedded or on a server. A context manager that closes it.

    Every method but `info` and `create` raises StoreError where there is no such collection.
    """

    def info(self) -> IndexInfo | None:
        """Size and metadata; None where there is no such collection."""

    def create(self, dimension: int, metadata: Mapping[str, Any]) -> None:
        """Make the empty collection. Raises StoreError where it is there already."""

    def set_metadata(self, metadata: Mapping[str, Any]) -> None:
        """Replace the metadata."""

    def upsert(self, points: Iterable[DefectPoint]) -> int:
        """Add points, or replace those of the same id, in batches; every point counted is durable."""

    def search(self, vector: np.ndarray, *, limit: int, where: Where | None = None) -> list[DefectMatch]:
        """The nearest points to `vector` (d,), best first."""

    def scroll(self, *, where: Where | None = None) -> Iterator[DefectPoint]:
        """Every point with its vector at unit length, ordered by id."""

    def count(self, *, where: Where | None = None) -> int:
        """How many points there are, exactly."""

    def delete(self, *, ids: Sequence[str] | None = None, where: Where | None = None) -> int:
        """Remove the points that both arguments allow, and say how many. To empty a collection, `drop` it."""

    def drop(self) -> None:
        """Remove the collection with all its points; nothing happens where there is none."""

    def close(self) -> None:
        """Let go of files and connections. Closing twice does no harm."""

    def __enter__(self) -> DefectStore: ...

    def __exit__(self, *exception: object) -> None: ...


class Job(Protocol[Item, Outcome]):
    """Work on items, wherever an executor puts it.

    A job travels to each worker by pickle, once; what it opens there stays open from one call to the next. Executors
    send jobs and items without the settings' secrets.
    """

    @property
    def bundle(self) -> Path | None:
        """The folder that has to be on the worker's disk, if any."""

    def at(self, bundle: Path) -> Job[Item, Outcome]:
        """The same work, with the bundle in another place."""

    def __call__(self, items: Iterable[Item]) -> Iterator[Outcome]:
        """One outcome an item, in order. The same items give the same outcomes, so that they can be done again."""


class Executor(Protocol):
    """Where a job is done: here, in processes, on a cluster. A context manager that lets the workers go."""

    @property
    def workers(self) -> int:
        """How many shards are done at a time."""

    def map(
        self,
        job: Job[Any, Any],
        items: Iterable[Any],
        *,
        shard: int = 1,
        watch: Callable[[int, Any], None] = ...,
        lost: Callable[[Any, ResourceError], Any] | None = None,
    ) -> Iterator[Any]:
        """Yield each item's outcome, in order; workers get `shard` items at a time.

        What a worker had that died is done again by another. `watch` gets an item's place and None when it is begun,
        its place and outcome when it is done, in whatever order. Raises what the job raises. An item that no worker
        survives gets the outcome that `lost` makes of it; without `lost`, ResourceError is raised.
        """

    def close(self) -> None:
        """End the workers. Closing twice does no harm."""

    def __enter__(self) -> Executor: ...

    def __exit__(self, *exception: object) -> None: ...
