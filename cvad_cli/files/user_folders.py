"""Where a user's own files lie on this machine."""

from __future__ import annotations

import os
from pathlib import Path


def user_cache_folder() -> Path:
    """The folder for files that can be rebuilt: `cvad` below XDG_CACHE_HOME, LOCALAPPDATA or ~/.cache."""
    for variable in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
        if found := os.environ.get(variable):
            return Path(found) / "cvad"
    return Path.home() / ".cache" / "cvad"
