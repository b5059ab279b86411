"""How many threads the numerical libraries use. With another number of threads, sums may differ in their last bit."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from cvad_cli.config.processors import computing_threads

_VARIABLES: Final = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OPENCV_FOR_THREADS_NUM")


def thread_variables(threads: int) -> dict[str, str]:
    """Environment variables for a process that has not loaded its libraries yet."""
    return dict.fromkeys(_VARIABLES, str(threads))


def pin_threads(threads: int) -> None:
    """Limit torch, BLAS, OpenMP, OpenCV and OpenVINO to `threads` threads in this process for good, loaded or not."""
    import threadpoolctl

    os.environ.update(thread_variables(threads))
    threadpoolctl.threadpool_limits(threads)
    _set_loaded(threads, threads)


@contextmanager
def limited_threads(threads: int | None) -> Iterator[None]:
    """Limit this process to `threads` threads while the block runs; None: to the number of its processors.

    None only lowers the number: a library that uses fewer threads, such as one per physical core, keeps them.
    """
    import threadpoolctl
    import torch

    limit = threads or computing_threads()
    former = torch.get_num_threads(), _opencv_threads()
    pools = [pool["num_threads"] for pool in threadpoolctl.threadpool_info()]
    if threads is None and max(*former, *pools) <= limit:
        yield
        return
    variables = {name: os.environ.get(name) for name in _VARIABLES}
    _set_loaded(limit, limit)
    os.environ.update(thread_variables(limit))
    try:
        with threadpoolctl.threadpool_limits(limit):
            yield
    finally:
        _set_loaded(*former)
        for name, value in variables.items():
            os.environ.pop(name, None)
            os.environ.update({} if value is None else {name: value})


def _set_loaded(torch_threads: int, opencv_threads: int) -> None:
    """Set the threads of loaded libraries. A library that is not loaded yet will read its environment variable."""
    if "torch" in sys.modules:  # importing it takes seconds
        sys.modules["torch"].set_num_threads(torch_threads)
    if "cv2" in sys.modules and opencv_threads:
        sys.modules["cv2"].setNumThreads(opencv_threads)


def _opencv_threads() -> int:
    """OpenCV's number of threads; 0 where OpenCV is not loaded."""
    return int(sys.modules["cv2"].getNumThreads()) if "cv2" in sys.modules else 0
