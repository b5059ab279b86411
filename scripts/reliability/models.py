"""Every model name of anomalib is trained and evaluated on a tiny set, within a time limit: which work, and why not."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

from reliability.outcomes import Outcome
from reliability.small_run import cvad, write_config

OPTIONS = ("--set", "trainer.max_epochs=1", "--set", "trainer.max_steps=2", "-q")
REFUSALS = range(2, 8)
"""Exit statuses of failures that name their remedy; 70 is a bug, a negative one a signal."""
SHOWN = 160


def check_model(name: str, limit_s: int, scratch: Path) -> Outcome:
    """Train and evaluate one model; a refusal with a documented status is an outcome, a crash is a problem."""
    config = write_config(scratch, model=f"{{name: {name}, weights: random}}", size=256, train=8)
    end = time.monotonic() + limit_s
    for verb in ("train", "evaluate"):
        try:
            done = cvad(verb, "-c", config, *OPTIONS, limit_s=max(1.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            return Outcome({"outcome": f"{verb}: not done in {limit_s} s", "message": ""})
        if done.returncode != 0:
            message = last_line(done.stderr)
            crashed = done.returncode not in REFUSALS
            figures = {"outcome": f"{verb}: status {done.returncode}", "message": message}
            return Outcome(figures, [f"{name}: {verb} ended with {done.returncode}: {message}"] if crashed else [])
    metrics = json.loads((scratch / "runs" / "small" / "evaluation" / "metrics.json").read_text(encoding="utf-8"))
    return Outcome({"outcome": "trained and evaluated", "message": f"image AUROC {metrics['image']['auroc']:.3f}"})


def last_line(text: str) -> str:
    """The last line that says something, shortened and fit for a table."""
    lines = [line.strip() for line in text.splitlines() if line.strip()] or [""]
    line = next((line for line in lines if line.startswith("error:")), lines[-1])
    return line.replace("|", "/")[:SHOWN]
