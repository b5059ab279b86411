"""The tests that are marked `long`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from reliability.outcomes import Outcome
from reliability.small_run import ROOT, environment


def check_long_tests(runs: int, scratch: Path) -> Outcome:  # noqa: ARG001 - pytest makes its own folders
    """`pytest -m long`, `runs` times."""
    problems, last = [], ""
    for number in range(runs):
        command = [sys.executable, "-m", "pytest", "-m", "long", "--durations=0"]
        done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
        last = (done.stdout.strip().splitlines() or [""])[-1]
        if done.returncode != 0:
            problems.append(f"run {number}: {last}")
    return Outcome({"runs": runs, "pytest says": last}, problems)
