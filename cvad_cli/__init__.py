"""cvad: industrial visual inspection from YAML configs. The library below the command line."""

from __future__ import annotations

__version__ = "0.1.0"
