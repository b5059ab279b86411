"""Seeds the global random state for anomalib and Lightning, which draw from it, and restores it afterwards."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

LIGHTNING_VARIABLES: Final = ("PL_GLOBAL_SEED", "PL_SEED_WORKERS")
"""Environment variables that `seed_everything` sets for the processes that Lightning starts."""

FORKED: Final = ("cuda", "xpu")
"""Accelerators whose generators torch can restore, one per device."""


@contextmanager
def seeded(seed: int, device: str) -> Iterator[None]:
    """Set Python's, NumPy's and torch's global generators to `seed`, and restore them when the block ends.

    anomalib draws initial weights, dropout and recolouring from the global generators and takes no other ones.
    """
    import lightning.pytorch as pl

    with isolated(device):
        pl.seed_everything(seed, verbose=False)
        yield


@contextmanager
def isolated(device: str) -> Iterator[None]:
    """Restore the global random state when the block ends, whatever the block draws or seeds.

    Lightning's `isolate_rng` does not restore it where the block raises.
    """
    import numpy as np
    import torch

    kind = device.partition(":")[0]
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    variables = {name: os.environ.get(name) for name in LIGHTNING_VARIABLES}
    devices = range(getattr(torch, kind).device_count()) if kind in FORKED else []
    try:
        with torch.random.fork_rng(devices, device_type=kind if kind in FORKED else "cuda"):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        for name, value in variables.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
