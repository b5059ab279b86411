"""Lets `python scripts/reliability` run from any folder; the processes that it starts inherit the module path."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(1, str(Path(__file__).resolve().parents[2]))

from reliability.command import main

if __name__ == "__main__":
    sys.exit(main())
