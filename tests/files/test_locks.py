"""One process at a time: who holds a lock is named, and the system lets go of it when its holder dies."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cvad_cli.files import LockedError, ProcessLock, taking_turns

ROOT = Path(__file__).parents[2]

HOLDER = """
import os, sys, time
from pathlib import Path
from cvad_cli.files import ProcessLock

lock = ProcessLock(Path(sys.argv[1]))
forked = os.fork() if sys.argv[2] == "forks" else None
if forked == 0:
    time.sleep(60)
print(forked, flush=True)
sys.stdin.readline()
lock.release()
print("released", flush=True)
sys.stdin.readline()
if forked:
    os.kill(forked, 9)
"""


def start(path: Path, how: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", HOLDER, str(path), how]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, **pipes)


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "deep" / ".lock"


def test_a_lock_is_refused_at_once_and_its_holder_named(path: Path) -> None:
    with start(path, "alone") as holder:
        line(holder)
        for _ in range(2):  # being refused does not disturb what names the holder
            with pytest.raises(LockedError, match=rf"in use by another process \(process {holder.pid}\)"):
                ProcessLock(path)
        holder.communicate("\n\n")
    ProcessLock(path).release()


def test_a_killed_holder_lets_go(path: Path) -> None:
    with start(path, "alone") as holder:
        line(holder)
        holder.kill()
    ProcessLock(path).release()


@pytest.mark.skipif(os.name == "nt", reason="needs fork")
def test_a_lock_that_is_released_is_free_though_a_forked_child_has_the_file_open(path: Path) -> None:
    with start(path, "forks") as holder:
        assert int(line(holder)) > 0
        assert holder.stdin is not None
        print(file=holder.stdin, flush=True)
        assert line(holder) == "released"
        lock = ProcessLock(path)
        lock.release()
        lock.release()
        holder.communicate("\n")


def test_turns_are_waited_for_until_patience_ends(path: Path) -> None:
    with start(path, "alone") as holder:
        line(holder)
        began = time.monotonic()
        with pytest.raises(LockedError, match=rf"process {holder.pid}"), taking_turns(path, timeout_s=0.2):
            pass
        assert time.monotonic() - began >= 0.2
        holder.kill()
        with taking_turns(path, timeout_s=20), pytest.raises(LockedError):
            ProcessLock(path)
    ProcessLock(path).release()
