"""The state of a training run in one safetensors file: tensors in its body, all the rest as JSON in its header.

One file and one rename: a run killed at any moment leaves the former checkpoint or the new one, and no pickle is read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cvad_cli.errors import ConfigError, ModelError, what_differs
from cvad_cli.files import replacing

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """How far a run has come."""

    step: int
    """Steps that are done."""
    tensors: Mapping[str, torch.Tensor]
    notes: Mapping[str, Any]
    """JSON-ready values, such as the losses so far."""


def write_checkpoint(path: Path, checkpoint: Checkpoint, settings: Mapping[str, Any]) -> None:
    """Write it, whole or not at all. `settings` (JSON-ready) decide the run's result: resuming wants them unchanged."""
    from safetensors.torch import save_file

    header = {"step": checkpoint.step, "settings": dict(settings), "notes": dict(checkpoint.notes)}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.tensors.items()}
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata={"cvad_checkpoint": json.dumps(header)})


def read_checkpoint(path: Path, settings: Mapping[str, Any]) -> Checkpoint | None:
    """The checkpoint at `path`; None where there is none.

    Raises ConfigError, naming each difference, where it was made under other settings, and ModelError for a file that
    is no checkpoint.
    """
    from safetensors import SafetensorError, safe_open

    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})["cvad_checkpoint"])
            checkpoint = Checkpoint(
                int(header["step"]),
                {name: file.get_tensor(name) for name in file.keys()},  # noqa: SIM118
                header["notes"],
            )
            former = header["settings"]
    except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
        raise ModelError(
            f"{path}: is no checkpoint of cvad ({error}); remove it, or begin anew with --restart"
        ) from error
    _require_same(path, former, json.loads(json.dumps(dict(settings))))
    return checkpoint


def _require_same(path: Path, former: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    told = what_differs(former, wanted)
    if told:
        raise ConfigError(
            f"{path}: this run was begun under other settings: {told}. Give the former ones to go on, or --restart to "
            "begin anew."
        )
