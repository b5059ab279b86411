"""A trained run on a small generated set, and the command line in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from cvad_cli.adapters.sample_data import write_sample_dataset

ROOT = Path(__file__).resolve().parents[2]
CONFIG = """
name: small
seed: 3
device: cpu
data: {{root: {root}, category: grid, image_size: {size}}}
model: {model}
calibration: {{false_alarm_rate: 0.1, folds: 3}}
evaluation: {{images: 0}}
output: {{root: {output}}}
"""
PATCHCORE = "{backbone: resnet10t, layers: [layer1], weights: random, coreset_ratio: 0.05, num_neighbors: 1}"


def write_config(folder: Path, *, model: str = PATCHCORE, size: int = 64, train: int = 12) -> Path:
    """A config below `folder`, with the generated grid that it names."""
    write_sample_dataset(folder / "data", "grid", size=128, train=train, test_good=4, per_defect=2, seed=11)
    path = folder / "small.yaml"
    text = CONFIG.format(root=folder / "data", output=folder / "runs", model=model, size=size)
    path.write_text(text, encoding="utf-8")
    return path


def command(*arguments: object) -> list[str]:
    """The command line of `cvad`, by this interpreter."""
    return [sys.executable, "-m", "cvad_cli", *map(str, arguments)]


def environment() -> dict[str, str]:
    """Finds this checkout's package, from any folder."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}


def cvad(*arguments: object, limit_s: float = 600) -> subprocess.CompletedProcess[str]:
    """Run `cvad`. Raises subprocess.TimeoutExpired, with its workers ended too, after `limit_s`."""
    with subprocess.Popen(
        command(*arguments),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            stdout, stderr = process.communicate(timeout=limit_s)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def trained_run(folder: Path) -> Path:
    """The config of a PatchCore that is trained now."""
    config = write_config(folder)
    done = cvad("train", "-c", config, "-q")
    if done.returncode != 0:
        raise RuntimeError(f"the small run cannot be trained: {done.stderr}")
    return config
