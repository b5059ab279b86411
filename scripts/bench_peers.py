"""The former name of `python scripts/anomalib_comparison`: the same command with the same options.

python scripts/bench_peers.py --images 20 --repeats 1
"""

from __future__ import annotations

from pathlib import Path

from anomalib_comparison.command import main

if __name__ == "__main__":
    main(output=Path("runs/bench_peers"))
