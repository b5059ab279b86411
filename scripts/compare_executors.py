"""A batch on real data with both executors, one of Ray's workers killed on the way: the figures have to be the same.

    CVAD_DATA_ROOT=... CVAD_WEIGHTS_DIR=... python scripts/compare_executors.py --configs grid.yaml leather.yaml
    python scripts/compare_executors.py --configs ... --set model.coreset_ratio=0.005

Trains and evaluates every config twice, in two local processes and with two workers of a Ray cluster started here, one
thread each. Kills one of Ray's workers in the middle of the training and one in the middle of the evaluation. Prints
what differs between the results, and ends with status 1 where something does. Linux alone: workers are found in /proc.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

DISTRIBUTED = ("executor.workers=2", "executor.threads=1")
FIGURES = ("image", "pixel", "decision", "defect_types", "counts")


def ray_workers_at_work(command: int) -> list[int]:
    """Processes of a command's Ray that do a shard or a run just now: Ray writes the method into their title."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            title = (process / "cmdline").read_bytes()
        except OSError:
            continue  # it has just ended
        if title.startswith(b"ray::_Worker.work") and command in ancestors(process.name):
            found.append(int(process.name))
    return found


def ancestors(process: str) -> list[int]:
    """The process's parent, its parent's, and so on: nobody else's workers are killed."""
    found = []
    while process not in {"0", "1"}:
        try:
            text = Path(f"/proc/{process}/stat").read_text(encoding="utf-8")
        except OSError:
            break
        process = text.rpartition(")")[2].split()[1]
        found.append(int(process))
    return found


def run_batch(verb: str, kind: str, options: argparse.Namespace, root: Path, *, kill_after: float | None) -> Any:
    """`cvad train` or `cvad evaluate` in a process of its own; `kill_after` seconds in, a worker is killed."""
    command = [sys.executable, "-m", "cvad_cli", verb, "--json", "--force"]
    for config in options.configs:
        command += ["--config", str(config)]
    for setting in (*options.set, *DISTRIBUTED, f"executor.kind={kind}", f"output.root={root}", "device=cpu"):
        command += ["--set", setting]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        if kill_after is not None:
            kill_a_worker(process, kill_after)
        text, _ = process.communicate()
    if process.returncode != 0:
        raise SystemExit(f"{verb} with {kind} ended with status {process.returncode}")
    return json.loads(text)


def kill_a_worker(process: subprocess.Popen[str], after: float) -> None:
    """Wait until workers are at work, give them `after` seconds, kill the first."""
    while not ray_workers_at_work(process.pid):
        if process.poll() is not None:
            raise SystemExit("no worker of Ray was seen at work")
        time.sleep(0.05)
    time.sleep(after)
    victims = ray_workers_at_work(process.pid)
    if not victims:
        raise SystemExit("Ray's workers were done before one could be killed; lower --kill-after")
    os.kill(victims[0], signal.SIGKILL)
    print(f"killed Ray's worker {victims[0]}, {after:g} s into its work", file=sys.stderr)


def differences(one: Any, other: Any, path: str = "") -> list[str]:
    """Dotted places at which two documents differ."""
    if isinstance(one, dict) and isinstance(other, dict):
        keys = sorted(one.keys() | other.keys())
        return [found for key in keys for found in differences(one.get(key), other.get(key), f"{path}.{key}")]
    return [] if one == other else [f"{path.lstrip('.')}: {one!r} is not {other!r}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configs", type=Path, nargs="+", required=True)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--kill-after", type=float, default=2.0, help="seconds into a worker's work")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        documents = {}
        for kind in ("local", "ray"):
            kill_after = options.kill_after if kind == "ray" else None
            for verb in ("train", "evaluate"):
                started = time.monotonic()
                documents[kind, verb] = run_batch(verb, kind, options, Path(folder, kind), kill_after=kill_after)
                print(f"{verb}, {kind}: {time.monotonic() - started:.1f} s", file=sys.stderr)
        differing = []
        for local, ray in zip(
            documents["local", "evaluate"]["runs"], documents["ray", "evaluate"]["runs"], strict=True
        ):
            auroc = local["result"]["image"]["auroc"], ray["result"]["image"]["auroc"]
            print(f"{local['run']}: image AUROC {auroc[0]} and {auroc[1]}")
            for part in FIGURES:
                differing += differences(local["result"][part], ray["result"][part], f"{local['run']}.{part}")
    print("\n".join(differing) or "both executors give the same figures, to the last bit")
    raise SystemExit(1 if differing else 0)


if __name__ == "__main__":
    main()
