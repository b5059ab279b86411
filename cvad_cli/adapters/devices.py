"""Which processor torch computes on."""

from __future__ import annotations

from cvad_cli.errors import ResourceError


def choose_device(wanted: str) -> str:
    """Resolve 'auto' to the best device here, and check that a named one exists.

    Raises ResourceError naming the devices that there are.
    """
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
