"""Batches of pretraining pictures ahead of the network: in two threads beside a CPU, in processes beside a GPU.

A GPU takes hundreds of pictures a second, more than threads of one interpreter make.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path
from typing import Any, Final, final

import numpy as np

from cvad_cli.adapters.prefetch import prefetch
from cvad_cli.assembly.pretraining_pictures import PictureSource

BATCHES_AHEAD: Final = 6
MOST_PROCESSES: Final = 16


def training_batches(
    source: PictureSource, steps: range, batch_size: int, *, processes: int | None
) -> Generator[np.ndarray]:
    """The training pictures of each step, uint8 RGB (b, s, s, 3), the same whatever makes them.

    `processes`: 0 for threads, None for a process a core, up to `MOST_PROCESSES`. Raises DataError where hardly a
    picture can be read. Close it after use: left to the garbage collector, each process takes five seconds to end.
    """
    count = min(os.cpu_count() or 1, MOST_PROCESSES) if processes is None else processes
    if count == 0:
        yield from prefetch(
            steps, lambda step: source.batch("training", step, batch_size), ahead=BATCHES_AHEAD, workers=2
        )
        return
    from torch.utils.data import DataLoader

    loader: Any = DataLoader(
        _Batches(source, steps, batch_size),  # type: ignore[arg-type]  # a Dataset by its methods
        batch_size=None,
        num_workers=count,
        collate_fn=_as_they_are,
        worker_init_fn=_keep_to_one_core,
        multiprocessing_context="spawn",
        prefetch_factor=BATCHES_AHEAD,
    )
    for pictures, unreadable in loader:
        source.note_unreadable(unreadable)
        yield pictures


@final
class _Batches:
    """What torch's loader asks for: one batch a step, and what could not be read up to then."""

    def __init__(self, source: PictureSource, steps: range, batch_size: int) -> None:
        self._source, self._steps, self._batch_size = source, steps, batch_size

    def __len__(self) -> int:
        return len(self._steps)

    def __getitem__(self, place: int) -> tuple[np.ndarray, dict[Path, str]]:
        pictures = self._source.batch("training", self._steps[place], self._batch_size)
        return pictures, self._source.unreadable


def _as_they_are(item: Any) -> Any:
    return item


def _keep_to_one_core(worker: int) -> None:
    import cv2

    del worker
    cv2.setNumThreads(1)
