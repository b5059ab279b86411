"""`cvad predict --watch` killed again and again, and left running for long."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from statistics import median

from reliability.outcomes import Outcome
from reliability.small_run import command, environment, trained_run

PATIENCE_S = 120
IMAGES_PER_KILL = 8
FEED_S = 0.25
"""During the soak, an image comes this often."""
KEPT = 200
"""During the soak, so many images lie in the folder; an older one is removed, as by a line that archives them."""
SAMPLE_S = 2.0
MAX_GROWTH_MB = 16.0
MAX_MORE_DESCRIPTORS = 2


def watch(config: Path, folder: Path, results: Path) -> subprocess.Popen[str]:
    """Start to watch `folder`."""
    options = ("--results", results, "-q", "--set", "watch.poll_s=0.05", "--set", "runtime.batch_size=1")
    arguments = command("predict", "-c", config, "--watch", folder, *options)
    return subprocess.Popen(arguments, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def names_in(results: Path) -> list[str]:
    """The images of all whole lines."""
    content = results.read_bytes() if results.exists() else b""
    return [json.loads(line)["file"]["name"] for line in content[: content.rfind(b"\n") + 1].splitlines()]


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> bool:
    """Whether the condition came true while the process ran."""
    end = time.monotonic() + PATIENCE_S
    while not condition() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


def ended(process: subprocess.Popen[str]) -> list[str]:
    """Ask a process to end; what is wrong with how it ended."""
    process.send_signal(signal.SIGTERM)
    try:
        _, stderr = process.communicate(timeout=PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        return [f"did not end within {PATIENCE_S} s of SIGTERM"]
    return [] if process.returncode == 0 else [f"ended with {process.returncode}: {stderr[-300:]}"]


def check_watch_kills(kills: int, scratch: Path) -> Outcome:
    """Kill the watching process `kills` times amid its work, then let it finish: one line per image, no more."""
    config, chance, problems = trained_run(scratch), random.Random(kills), []
    folder, results = scratch / "incoming", scratch / "results.jsonl"
    folder.mkdir()
    part = scratch / "data" / "grid" / "test" / "good" / "000.png"
    wanted = []
    for number in range(kills):
        for each in range(IMAGES_PER_KILL):
            wanted.append(f"{number:04d}_{each}.png")
            shutil.copy(part, folder / wanted[-1])
        done = len(names_in(results))
        goal = done + chance.randint(1, IMAGES_PER_KILL - 1)
        process = watch(config, folder, results)
        if not wait_for(lambda goal=goal: len(names_in(results)) >= goal, process):  # type: ignore[misc]
            problems.append(f"start {number}: no result within {PATIENCE_S} s")
        time.sleep(chance.uniform(0, 0.05))
        process.kill()
        process.communicate()
    wanted.append("last.png")  # its line shows that the last process watches, and so is ready for SIGTERM
    shutil.copy(part, folder / wanted[-1])
    process = watch(config, folder, results)
    wait_for(lambda: len(names_in(results)) >= len(wanted), process)
    problems += ended(process)
    found = Counter(names_in(results))
    lost, repeated = len(set(wanted) - set(found)), sum(number - 1 for number in found.values())
    problems += [f"{lost} images lost, {repeated} lines repeated"] if lost or repeated else []
    return Outcome({"kills": kills, "images": len(wanted), "lost": lost, "repeated": repeated}, problems)


@dataclass(frozen=True, slots=True)
class Usage:
    """What a process holds at one moment."""

    memory_mb: float
    descriptors: int


def usage_of(pid: int) -> Usage:
    """Resident memory and open descriptors, by Linux's /proc."""
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    return Usage(pages * os.sysconf("SC_PAGE_SIZE") / 1e6, len(list(Path(f"/proc/{pid}/fd").iterdir())))


def check_soak(minutes: int, scratch: Path) -> Outcome:
    """Feed a watched folder for `minutes`; memory and descriptors stay what they are after the first fifth."""
    config, samples = trained_run(scratch), []
    folder, results = scratch / "incoming", scratch / "results.jsonl"
    folder.mkdir()
    process = watch(config, folder, results)
    images = feed(scratch / "data" / "grid" / "test" / "good" / "000.png", folder)
    next(images)
    problems = [] if wait_for(lambda: bool(names_in(results)), process) else ["no first result"]
    fed, end, next_sample = 1, time.monotonic() + 60 * minutes, 0.0
    while time.monotonic() < end and process.poll() is None:
        fed = next(images)
        time.sleep(FEED_S)
        if time.monotonic() >= next_sample:
            samples.append(usage_of(process.pid))
            next_sample = time.monotonic() + SAMPLE_S
    wait_for(lambda: len(names_in(results)) >= fed, process)
    problems += ended(process)
    return soak_outcome(minutes, samples, fed, names_in(results), problems)


def feed(part: Path, folder: Path) -> Iterator[int]:
    """Put a new image into the folder each time; yields how many there have been."""
    for number in count(1):
        staged = folder / ".part.tmp"
        shutil.copy(part, staged)
        staged.rename(folder / f"{number:07d}.png")
        (folder / f"{number - KEPT:07d}.png").unlink(missing_ok=True)
        yield number


def soak_outcome(minutes: int, samples: list[Usage], fed: int, names: list[str], problems: list[str]) -> Outcome:
    """The figures of a soak, and what is wrong with them."""
    fifth = max(1, len(samples) // 5)
    early, late = samples[fifth : 2 * fifth] or samples, samples[-fifth:]
    before, after = (median(each.memory_mb for each in part) for part in (early, late))
    opened, held = (max(each.descriptors for each in part) for part in (early, late))
    lost, repeated = fed - len(set(names)), len(names) - len(set(names))
    problems = problems + ([f"{lost} images lost, {repeated} lines repeated"] if lost or repeated else [])
    problems += [f"memory grew by {after - before:.1f} MB"] if after - before > MAX_GROWTH_MB else []
    problems += [f"descriptors grew from {opened} to {held}"] if held - opened > MAX_MORE_DESCRIPTORS else []
    figures = {
        "minutes": minutes,
        "images": fed,
        "lost": lost,
        "repeated": repeated,
        "MB after a fifth": round(before, 1),
        "MB at the end": round(after, 1),
        "descriptors after a fifth": opened,
        "descriptors at the end": held,
    }
    return Outcome(figures, problems)
