"""How many images a second more workers judge: measured here, then simulated for more workers than there are cores.

    python scripts/bench_scaling.py                                # 1 and 2 local workers, 192 generated images
    python scripts/bench_scaling.py --executors local ray --json   # Ray as well

Measured: PatchCore on generated grid images, one thread a worker; workers are started and have opened the bundle
before the clock starts, and the process that collects does with every outcome what `cvad evaluate` does (mask,
histograms). Simulated: the same workers and collector as a queue, with the shard times of one worker drawn at random,
on machines that disturb each other in nothing; the simulation of 1 and 2 workers stands beside the measurement of them.
"""

from __future__ import annotations

import argparse
import heapq
import json
import platform
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cvad_cli.config.processors import usable_processors

AHEAD = 2
"""Shards a worker that may wait for the collector: `cvad_cli.adapters.executors.scheduler.AHEAD`."""

PLANNED_SHARD = 16
PLANNED_SHARD_S = (1.2, 1.6, 2.0)
"""16 images at 10 a second (scripts/plan_scaling.py), a quarter more or less. An assumption."""
PLANNED_COLLECT_S = 0.003
"""Of the collector, an image: mask and histograms at 256 px. An assumption; the measurement prints the real one."""


def simulated_rate(
    workers: int,
    shard_seconds: Sequence[float],
    *,
    shard: int,
    collect_seconds: float,
    shards: int = 400,
    seed: int = 0,
) -> float:
    """Images a second of `workers` that take shards in turn and one collector that takes the outcomes in order.

    A worker begins shard n when it is idle and fewer than AHEAD x workers shards lie between n and the collector's.
    `shard_seconds` are drawn from with replacement; `collect_seconds` are the collector's, an image.
    """
    rng = np.random.default_rng(seed)
    needs = rng.choice(np.asarray(shard_seconds, dtype=np.float64), shards)
    idle = [0.0] * workers
    collected = np.zeros(shards)
    for index in range(shards):
        window = collected[index - AHEAD * workers] if index >= AHEAD * workers else 0.0
        done = max(heapq.heappop(idle), window) + needs[index]
        heapq.heappush(idle, done)
        collected[index] = max(done, collected[index - 1] if index else 0.0) + shard * collect_seconds
    return shards * shard / float(collected[-1])


def planned_table() -> list[str]:
    """The table of docs/scaling.md: the plan's rate of a core, and a collector that takes 3 ms an image."""
    lines = ["| workers | simulated images/s | of linear |", "| ---: | ---: | ---: |"]
    for workers in (1, 2, 4, 8, 16, 32, 64, 128):
        rate = simulated_rate(
            workers, PLANNED_SHARD_S, shard=PLANNED_SHARD, collect_seconds=PLANNED_COLLECT_S, shards=20_000
        )
        lines.append(f"| {workers} | {rate:.0f} | {rate / workers / 10:.0%} |".replace("%", " %"))
    return lines


def measure(executor: Any, job: Any, records: Sequence[Any], shard: int) -> float:
    """Images a second, after the workers have opened the bundle."""
    from cvad_cli.core.pixel_metrics import PixelScores

    warm = records[: shard * executor.workers]
    list(executor.map(job, warm, shard=shard))
    scores = PixelScores()
    started = time.perf_counter()
    for outcome in executor.map(job, records, shard=shard):
        scores.add(*outcome.aligned())
    return len(records) / (time.perf_counter() - started)


def shard_times(job: Any, records: Sequence[Any], shard: int) -> tuple[list[float], float]:
    """Seconds of each shard for one thread in this process, and the collector's seconds an image."""
    from cvad_cli.adapters.executors.threads import limited_threads
    from cvad_cli.core.pixel_metrics import PixelScores

    scores, shards, collecting = PixelScores(), [], 0.0
    with limited_threads(1):
        list(job(records[:shard]))
        for start in range(0, len(records) - shard + 1, shard):
            mine = records[start : start + shard]
            started = time.perf_counter()
            outcomes = list(job(mine))
            shards.append(time.perf_counter() - started)
            started = time.perf_counter()
            for outcome in outcomes:
                scores.add(*outcome.aligned())
            collecting += time.perf_counter() - started
    return shards, collecting / (len(shards) * shard)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Generate, train, measure, simulate."""
    from cvad_cli.adapters.sample_data import write_sample_dataset
    from cvad_cli.assembly.data.images import open_dataset
    from cvad_cli.assembly.evaluation.job import EvaluationStep
    from cvad_cli.assembly.execution.executors import open_executor
    from cvad_cli.assembly.prediction.job import ImageJob
    from cvad_cli.assembly.run_folders import bundle_folder
    from cvad_cli.assembly.serving.open_bundle import open_detector
    from cvad_cli.cli.progress import QuietReporter
    from cvad_cli.config.load import load_config
    from cvad_cli.tasks.train import TrainRequest, train

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_sample_dataset(root / "data", "grid", size=options.side, train=24, test_good=8, per_defect=4, seed=1)
        config = root / "scaling.yaml"
        config.write_text(
            "name: scaling\ndevice: cpu\nexecutor: {threads: 1}\nruntime: {workers: '1'}\n"
            "calibration: {false_alarm_rate: 0.1}\n"
            f"data: {{root: {root / 'data'}, category: grid, image_size: {options.side}}}\n"
            f"model: {{weights: {options.weights}}}\noutput: {{root: {root / 'runs'}}}\n",
            encoding="utf-8",
        )
        settings = load_config(config)
        train(settings, TrainRequest(describe=False), QuietReporter())
        test = open_dataset(settings.data).test
        records = [test[index % len(test)] for index in range(options.images)]
        opened = open_detector(settings, "cpu")
        step = EvaluationStep(None, frozenset())
        job = ImageJob(settings, opened.bundle.folder, step, opened)
        times, collecting = shard_times(job, records, options.shard)
        measured: dict[str, dict[int, float]] = {}
        for kind in options.executors:
            for workers in options.workers:
                distributed = load_config(config, [f"executor.kind={kind}", f"executor.workers={workers}"])
                job = ImageJob(distributed, bundle_folder(distributed), step)
                with open_executor(distributed, warnings.warn) as executor:
                    measured.setdefault(kind, {})[workers] = measure(executor, job, records, options.shard)
    return {
        "machine": {
            "cores": usable_processors(),
            "processor": platform.processor(),
            "python": platform.python_version(),
        },
        "images": options.images,
        "side": options.side,
        "shard": options.shard,
        "shard_seconds": {"mean": float(np.mean(times)), "std": float(np.std(times)), "shards": len(times)},
        "collect_seconds_per_image": collecting,
        "measured_images_a_second": measured,
        "simulated_images_a_second": {
            workers: simulated_rate(workers, times, shard=options.shard, collect_seconds=collecting)
            for workers in (1, 2, 4, 8, 16, 32, 64, 128)
        },
    }


def show(found: dict[str, Any]) -> None:
    """Two tables."""
    for kind, rates in found["measured_images_a_second"].items():
        first = rates[min(rates)]
        for workers, rate in rates.items():
            print(f"measured, {kind:5} {workers:4} workers: {rate:8.1f} images/s, {rate / first:6.2f}x")
    simulated = found["simulated_images_a_second"]
    for workers, rate in simulated.items():
        print(f"simulated    {workers:4} workers: {rate:8.1f} images/s, {rate / simulated[1]:6.2f}x")
    print(f"collector: {1000 * found['collect_seconds_per_image']:.2f} ms an image")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=192)
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--shard", type=int, default=16)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--executors", nargs="+", choices=["local", "ray"], default=["local"])
    parser.add_argument("--weights", default="random", help="of the backbone: the time does not depend on them")
    parser.add_argument("--json", action="store_true")
    found = run(options := parser.parse_args())
    if options.json:
        json.dump(found, sys.stdout, indent=2)
        print()
    else:
        show(found)


if __name__ == "__main__":
    main()
