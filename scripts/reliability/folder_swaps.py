"""A process that swaps a folder again and again is killed at a random moment: one whole version is there afterwards."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from itertools import count
from pathlib import Path

from cvad_cli.files import recover, replacing_folder
from cvad_cli.files.durable import exchange_names
from reliability.outcomes import Outcome

FILES = 5
LONGEST_DELAY_S = 0.01
"""A kill comes up to this long after a swap was acknowledged: one swap of five files takes a few milliseconds."""
SWAP_FOREVER = "import sys; from reliability.folder_swaps import swap_forever; swap_forever(*sys.argv[1:])"


def swap_forever(folder: str, way: str, version: str) -> None:
    """Replace `folder` by the next version until killed; print each version that is in place."""
    for number in count(int(version) + 1):
        swap(Path(folder), way, number)
        print(number, flush=True)


def swap(folder: Path, way: str, version: int) -> None:
    """Replace `folder` by files that all hold `version`: by an exchange of names, or by two renames."""
    exchange = _no_exchange if way == "two renames" else exchange_names
    with replacing_folder(folder, exchange=exchange) as staged:
        for number in range(FILES):
            (staged / str(number)).write_text(str(version), encoding="utf-8")


def _no_exchange(one: Path, other: Path) -> bool:  # noqa: ARG001 - as on a file system that cannot exchange names
    return False


def check_folder_swaps(kills: int, scratch: Path) -> Outcome:
    """`kills` killed writers, each way in turn."""
    chance, problems, missing, advanced = random.Random(kills), [], 0, 0
    versions = {"exchange": 0, "two renames": 0}
    for number in range(kills):
        way = ("exchange", "two renames")[number % 2]
        folder = scratch / way / "results"
        folder.parent.mkdir(exist_ok=True)
        acknowledged = kill_writer(folder, way, versions[way], chance)
        missing += not folder.exists()
        recover(folder)
        found = versions_in(folder)
        if found not in ([acknowledged], [acknowledged + 1]):
            problems.append(f"kill {number}, {way}: versions {found} where {acknowledged} was acknowledged")
        advanced += found == [acknowledged + 1]
        versions[way] = acknowledged + 2
        swap(folder, way, versions[way])
        left = sorted(path.name for path in folder.parent.iterdir())
        if left != ["results"]:
            problems.append(f"kill {number}, {way}: {left} stays after the next write")
    figures = {
        "kills": kills,
        "folder missing until recovered": missing,
        "new version in place though not acknowledged": advanced,
        "lost, mixed or littered": len(problems),
    }
    return Outcome(figures, problems)


def kill_writer(folder: Path, way: str, version: int, chance: random.Random) -> int:
    """Let a process swap from `version` on and kill it; the last version that it acknowledged."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", SWAP_FOREVER, str(folder), way, str(version)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        acknowledged = [writer.stdout.readline() for _ in range(chance.randint(1, 5))]
        time.sleep(chance.uniform(0, LONGEST_DELAY_S))
        writer.send_signal(signal.SIGKILL)
        acknowledged += writer.stdout.read().splitlines(keepends=True)
    return max(int(line) for line in acknowledged if line.endswith("\n"))


def versions_in(folder: Path) -> list[int]:
    """The versions of the files in a folder: one where it is whole; none where it is missing or lacks a file."""
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    if [path.name for path in files] != [str(number) for number in range(FILES)]:
        return []
    return sorted({int(path.read_text(encoding="utf-8")) for path in files})
