"""How long `cvad --help` takes beside `anomalib train --help`: whole processes, in turn, medians and their ratio."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

BIN = Path(sys.executable).parent


def seconds(command: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    ours, theirs = [str(BIN / "cvad"), "--help"], [str(BIN / "anomalib"), "train", "--help"]
    seconds(ours), seconds(theirs)  # once each, uncounted: files come into the page cache
    pairs = [(seconds(ours), seconds(theirs)) for _ in range(arguments.runs)]
    cvad, anomalib = (statistics.median(side) for side in zip(*pairs, strict=True))
    if arguments.json:
        print(json.dumps({"cvad_s": cvad, "anomalib_s": anomalib, "ratio": anomalib / cvad}, indent=2))
    else:
        print(f"cvad --help {cvad:.2f} s   anomalib train --help {anomalib:.2f} s   ratio {anomalib / cvad:.1f}x")


if __name__ == "__main__":
    main()
