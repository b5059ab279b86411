"""The SHA-256 of a file, read in pieces. Bundles, caches and indexes identify contents by it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

BYTES_AT_ONCE: Final = 1 << 20


def file_sha256(path: Path) -> str:
    """64 hexadecimal digits. Raises OSError where the file cannot be read."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(BYTES_AT_ONCE):
            digest.update(piece)
    return digest.hexdigest()
