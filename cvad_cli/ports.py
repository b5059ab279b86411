"""The interfaces that tasks need, as Protocols; adapters and the command line implement them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar, runtime_checkable

import numpy as np

from cvad_cli.errors import ResourceError
from cvad_cli.records import DefectMatch, DefectPoint, IndexInfo, Prediction

Item = TypeVar("Item", contravariant=True)  # noqa: PLC0105 - a job takes them
Outcome = TypeVar("Outcome", covariant=True)  # noqa: PLC0105

DETECTOR_STAGES: Final = ("network", "search", "post-processing")
"""The stages of a detector: copying and forward pass; search of the memory bank; score, map and smoothing."""

Where = Mapping[str, str | Sequence[str]]
"""Payload field -> the required value, or several of which one is required. All fields must match."""


@runtime_checkable
class Array(Protocol):
    """A NumPy array or a torch tensor on any device, for code on the array API."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Length of each axis."""

    @property
    def ndim(self) -> int:
        """Number of axes."""

    @property
    def dtype(self) -> Any:
        """A type of its library."""

    def __getitem__(self, key: Any, /) -> Any: ...
    def __mul__(self, other: Any, /) -> Any: ...
    def __sub__(self, other: Any, /) -> Any: ...
    def __matmul__(self, other: Any, /) -> Any: ...


class Reporter(Protocol):
    """Receives the progress of a task. The command line shows it; a test records it."""

    def stage(self, title: str, total: int | None = None) -> AbstractContextManager[Callable[[int], None]]:
        """A stage of `total` steps (None: unknown). Yields `advance(steps)`."""

    def note(self, message: str) -> None:
        """One line of information."""

    def warn(self, message: str) -> None:
        """A problem that the user should act on; the work continues."""


class Detector(Protocol):
    """A trained model that judges images, opened from a bundle."""

    @property
    def image_size(self) -> tuple[int, int]:
        """Rows and columns of the images for `predict`."""

    def predict(self, images: Sequence[np.ndarray]) -> list[Prediction]:
        """Score images, uint8 RGB (h, w, 3), which have `image_size`. The maps have `image_size` too."""


@runtime_checkable
class TimedDetector(Detector, Protocol):
    """A detector that also measures its stages. This is optional."""

    @property
    def last_split(self) -> Mapping[str, float]:
        """Seconds of the last `predict` per stage of `DETECTOR_STAGES`; their sum is at most the whole call."""


class DefectStore(Protocol):
    """The index of labelled defects: one collection, embedded or on a server. A context manager that closes it.

    Every method but `info` and `create` raises StoreError if the collection does not exist.
    """

    def info(self) -> IndexInfo | None:
        """Size and metadata; None if the collection does not exist."""

    def create(self, dimension: int, metadata: Mapping[str, Any]) -> None:
        """Create the empty collection. Raises StoreError if it exists."""

    def set_metadata(self, metadata: Mapping[str, Any]) -> None:
        """Replace the metadata."""

    def upsert(self, points: Iterable[DefectPoint]) -> int:
        """Add points, or replace those of the same id, in batches; return how many are durable: all."""

    def search(self, vector: np.ndarray, *, limit: int, where: Where | None = None) -> list[DefectMatch]:
        """The nearest points to `vector` (d,), best first."""

    def scroll(self, *, where: Where | None = None) -> Iterator[DefectPoint]:
        """Every point with its vector at unit length, ordered by id."""

    def count(self, *, where: Where | None = None) -> int:
        """The exact number of points."""

    def delete(self, *, ids: Sequence[str] | None = None, where: Where | None = None) -> int:
        """Remove the points that match both arguments; return their number. To empty a collection, `drop` it."""

    def drop(self) -> None:
        """Remove the collection with all its points, if it exists."""

    def close(self) -> None:
        """Release files and connections. Closing twice is harmless."""

    def __enter__(self) -> DefectStore: ...

    def __exit__(self, *exception: object) -> None: ...


class Job(Protocol[Item, Outcome]):
    """Work on items, which an executor runs on its workers.

    A job is pickled and sent to each worker once; what it opens there stays open between calls. Executors send jobs and
    items without the secrets of the settings.
    """

    @property
    def bundle(self) -> Path | None:
        """The folder that must be on the worker's disk, if any."""

    def at(self, bundle: Path) -> Job[Item, Outcome]:
        """The same work, with the bundle at another path."""

    def __call__(self, items: Iterable[Item]) -> Iterator[Outcome]:
        """Yield one outcome per item, in order. The same items give the same outcomes, so that they can be repeated."""


class Executor(Protocol):
    """Runs jobs in this process, in several processes or on a cluster. A context manager that ends the workers."""

    @property
    def workers(self) -> int:
        """The number of shards that are done at the same time."""

    def map(
        self,
        job: Job[Any, Any],
        items: Iterable[Any],
        *,
        shard: int = 1,
        watch: Callable[[int, Any], None] = ...,
        lost: Callable[[Any, ResourceError], Any] | None = None,
    ) -> Iterator[Any]:
        """Yield the outcome of each item, in order; workers get `shard` items at a time.

        The shards of crashed workers are rescheduled. `watch` gets the index of an item and None when it begins, its
        index and outcome when it is done, in any order. Raises what the job raises. For an item that crashes every
        worker, `lost` makes the outcome; without `lost`, ResourceError is raised.
        """

    def close(self) -> None:
        """End the workers. Closing twice is harmless."""

    def __enter__(self) -> Executor: ...

    def __exit__(self, *exception: object) -> None: ...
