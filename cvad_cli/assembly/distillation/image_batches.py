"""Makes batches of pretraining images ahead of the network: in two threads for a CPU, in processes for a GPU.

A GPU needs hundreds of images per second, more than threads of one interpreter make.
"""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import Final

import numpy as np

from cvad_cli.adapters.images.random_crops import use_one_thread
from cvad_cli.adapters.prefetch import prefetch
from cvad_cli.assembly.distillation.pretraining_images import ImageSource
from cvad_cli.config.processors import usable_processors

BATCHES_AHEAD: Final = 6
MAX_PROCESSES: Final = 16

Made = tuple[np.ndarray, dict[Path, str]]
"""A batch, and the images that its process could not read so far."""


def training_batches(
    source: ImageSource, steps: range, batch_size: int, *, processes: int | None
) -> Generator[np.ndarray]:
    """The training images of each step, uint8 RGB (b, s, s, 3), the same from threads and from processes.

    `processes`: 0 for threads, None for one process per core, up to `MAX_PROCESSES`. Raises DataError where too many
    images cannot be read.
    """
    count = min(usable_processors(), MAX_PROCESSES) if processes is None else processes
    if count == 0:
        yield from prefetch(steps, lambda step: source.batch("training", step, batch_size), ahead=BATCHES_AHEAD)
        return
    # Spawn, since forked processes would inherit the locks of the network's threads.
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(count, mp_context=fresh, initializer=_begin, initargs=(source,)) as pool:
        waiting: deque[Future[Made]] = deque()
        try:
            for step in steps:
                waiting.append(pool.submit(_make, step, batch_size))
                if len(waiting) >= count * BATCHES_AHEAD:
                    yield _taken(waiting, source)
            while waiting:
                yield _taken(waiting, source)
        finally:
            for future in waiting:
                future.cancel()


def _taken(waiting: deque[Future[Made]], source: ImageSource) -> np.ndarray:
    images, unreadable = waiting.popleft().result()
    source.note_unreadable(unreadable)
    return images


_sources: Final[list[ImageSource]] = []
"""The source of a process that makes batches: sent once, not with each step."""


def _begin(source: ImageSource) -> None:
    use_one_thread()
    _sources.append(source)


def _make(step: int, batch_size: int) -> Made:
    return _sources[-1].batch("training", step, batch_size), _sources[-1].unreadable
