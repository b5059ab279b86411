"""Reads and writes safetensors files: named arrays or tensors, and a text header. Data, never code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch


def write_tensors(path: Path, tensors: Mapping[str, Any], header: Mapping[str, str] | None = None) -> None:
    """Write NumPy arrays, or torch tensors of any device (and arrays beside them), under their names."""
    if all(isinstance(each, np.ndarray) for each in tensors.values()):
        from safetensors.numpy import save_file as save_arrays

        arrays = {name: np.ascontiguousarray(each) for name, each in tensors.items()}
        save_arrays(arrays, path, metadata=None if header is None else dict(header))
        return
    import torch
    from safetensors.torch import save_file

    plain = {name: torch.as_tensor(each).detach().cpu().contiguous() for name, each in tensors.items()}
    save_file(plain, path, metadata=None if header is None else dict(header))


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """All tensors of a file as NumPy arrays. Raises ValueError where it is no such file."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return dict(load_file(path))
    except SafetensorError as error:
        raise ValueError(f"not a safetensors file: {error}") from error


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a file, on the CPU. Raises ValueError where it is no such file."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except SafetensorError as error:
        raise ValueError(f"not a safetensors file: {error}") from error


def read_header(path: Path) -> dict[str, str]:
    """The text that was written beside the tensors. Raises ValueError where it is no such file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            return dict(file.metadata() or {})
    except SafetensorError as error:
        raise ValueError(f"not a safetensors file: {error}") from error
