"""Chooses the device that torch computes on."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

from cvad_cli.errors import ResourceError

ACCELERATOR_NODES: Final = ("nvidia*", "nvhost*", "nvmap", "dxg", "kfd", "dri/renderD*")
"""Files in /dev that a driver creates: NVIDIA's on a PC and on Jetson, WSL's, AMD's, and those of other GPUs."""


def choose_device(wanted: str) -> str:
    """Resolve 'auto' to the best device here, and check that a named one exists.

    Raises ResourceError naming the available devices. torch takes seconds to import, so it is imported only if the
    answer depends on it.
    """
    if wanted == "cpu" or (wanted == "auto" and not _may_have_accelerator()):
        return "cpu"
    import torch

    present = ["cpu"]
    if torch.backends.mps.is_available():
        present.insert(0, "mps")
    if hasattr(torch, "xpu") and torch.xpu.is_available():
        present[:0] = [f"xpu:{index}" for index in range(torch.xpu.device_count())]
    if torch.cuda.is_available():
        present[:0] = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    if wanted == "auto":
        return present[0]
    if wanted in present or f"{wanted}:0" in present:
        return wanted
    raise ResourceError(f"device: {wanted} is not available here; this machine has {', '.join(present)}")


def _may_have_accelerator() -> bool:
    """False only if Linux shows no driver of one: then torch cannot find it either."""
    return sys.platform != "linux" or any(next(Path("/dev").glob(name), None) for name in ACCELERATOR_NODES)
