"""The state of a training run in one safetensors file: tensors in its body, everything else as JSON in its header.

The file is replaced in one rename: a run that is killed at any moment leaves the former checkpoint or the new one. No
pickle is read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cvad_cli.adapters.storage.tensor_files import write_tensors
from cvad_cli.config.old_names import OLD_CHECKPOINT_SETTINGS
from cvad_cli.errors import ModelError, require_same_settings
from cvad_cli.files import replacing


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """How far a run has come."""

    step: int
    """Steps that are done."""
    tensors: Mapping[str, Any]
    """torch tensors; NumPy arrays are written as well, and come back as tensors."""
    notes: Mapping[str, Any]
    """JSON-ready values, such as the losses so far."""


def write_checkpoint(path: Path, checkpoint: Checkpoint, settings: Mapping[str, Any]) -> None:
    """Replace the checkpoint at `path`. `settings` (JSON-ready) decide the result: resuming requires the same ones."""
    header = {"step": checkpoint.step, "settings": dict(settings), "notes": dict(checkpoint.notes)}
    with replacing(path) as temporary:
        write_tensors(temporary, checkpoint.tensors, {"cvad_checkpoint": json.dumps(header)})


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
            former = {OLD_CHECKPOINT_SETTINGS.get(name, name): value for name, value in header["settings"].items()}
    except (SafetensorError, OSError, AttributeError, KeyError, ValueError, TypeError) as error:
        raise ModelError(
            f"{path}: is no checkpoint of cvad ({error}); remove it, or begin anew with --restart"
        ) from error
    require_same_settings(path, former, settings, "--restart")
    return checkpoint
