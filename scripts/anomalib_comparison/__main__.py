"""Lets `python scripts/anomalib_comparison` run from any folder; the measuring processes inherit the module path."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from anomalib_comparison.command import main

if __name__ == "__main__":
    main()
