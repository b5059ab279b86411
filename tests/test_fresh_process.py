"""A function in a process of its own: what it gives, what it raises, and that it leaves with us."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cvad_cli.adapters.fresh_process import in_fresh_process
from cvad_cli.adapters.machine import memory_bytes, peak_memory_bytes
from cvad_cli.errors import BundleError, ResourceError


def where_and_how_much() -> tuple[int, int, int]:
    return os.getpid(), memory_bytes(), peak_memory_bytes()


def fail_with_a_remedy(folder: Path) -> None:
    raise BundleError(f"{folder}: no trained bundle here")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def give_what_cannot_travel() -> object:
    return lambda: None


def test_it_is_another_process_and_our_memory_is_not_counted_in_its_peak() -> None:
    ballast = bytearray(400_000_000)
    ballast[::4096] = b"x" * len(ballast[::4096])
    process, now, peak = in_fresh_process(where_and_how_much)
    assert process != os.getpid()
    assert peak_memory_bytes() > len(ballast)
    assert 1_000_000 < now <= peak < len(ballast)


def test_an_error_comes_back_as_what_it_is() -> None:
    with pytest.raises(BundleError, match="/nowhere: no trained bundle here"):
        in_fresh_process(fail_with_a_remedy, Path("/nowhere"))


def test_a_process_that_is_killed_is_told() -> None:
    with pytest.raises(ResourceError, match="die ended with status -9 and no answer"):
        in_fresh_process(die)


def test_an_answer_that_cannot_travel_is_an_error_not_a_hang() -> None:
    with pytest.raises(RuntimeError, match="pickle"):
        in_fresh_process(give_what_cannot_travel)


def test_interrupting_the_parent_ends_the_child(tmp_path: Path) -> None:
    note = tmp_path / "child"
    script = tmp_path / "parent.py"
    script.write_text(
        "import os, sys, time\n"
        "from pathlib import Path\n"
        "from cvad_cli.adapters.fresh_process import in_fresh_process\n"
        "def sleep(note):\n"
        "    Path(note).write_text(str(os.getpid()))\n"
        "    time.sleep(600)\n"
        "if __name__ == '__main__':\n"
        "    in_fresh_process(sleep, sys.argv[1])\n",
        encoding="utf-8",
    )
    found_here = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    parent = subprocess.Popen([sys.executable, script, note], stderr=subprocess.DEVNULL, env=found_here)
    deadline = time.monotonic() + 60
    while not (note.exists() and note.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    child = int(note.read_text())
    parent.send_signal(signal.SIGINT)
    assert parent.wait(timeout=60) != 0
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)
