"""How many threads the numerical libraries of a process use. Sums may differ in their last bit with another number."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

_VARIABLES: Final = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def thread_variables(threads: int) -> dict[str, str]:
    """Environment of a process whose libraries are not loaded yet."""
    return dict.fromkeys(_VARIABLES, str(threads))


def pin_threads(threads: int) -> None:
    """Keep this process, for good, to `threads` threads in torch, BLAS, OpenMP and OpenVINO, loaded or yet to be."""
    import threadpoolctl

    os.environ.update(thread_variables(threads))
    threadpoolctl.threadpool_limits(threads)
    if "torch" in sys.modules:  # to load it takes seconds, and it reads the environment when it is
        sys.modules["torch"].set_num_threads(threads)


@contextmanager
def limited_threads(threads: int | None) -> Iterator[None]:
    """Keep this process to `threads` threads while the block runs; None leaves it as it is."""
    if threads is None:
        yield
        return
    import threadpoolctl
    import torch

    former, variables = torch.get_num_threads(), {name: os.environ.get(name) for name in _VARIABLES}
    torch.set_num_threads(threads)
    os.environ.update(thread_variables(threads))
    try:
        with threadpoolctl.threadpool_limits(threads):
            yield
    finally:
        torch.set_num_threads(former)
        for name, value in variables.items():
            os.environ.pop(name, None)
            os.environ.update({} if value is None else {name: value})
