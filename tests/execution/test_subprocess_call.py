"""A function in a process of its own: what it gives, what it raises, and that it leaves with us."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cvad_cli.adapters.machine.subprocess_call import in_fresh_process
from cvad_cli.adapters.machine.system_info import memory_bytes, peak_memory_bytes
from cvad_cli.config.transfer import TransferError
from cvad_cli.errors import BundleError, ResourceError


def where_and_how_much() -> tuple[int, int, int]:
    return os.getpid(), memory_bytes(), peak_memory_bytes()


def fail_with_a_remedy(folder: Path) -> None:
    raise BundleError(f"{folder}: no trained bundle here")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def give_what_cannot_travel() -> object:
    return lambda: None


class Unpackable:
    """Pickled without complaint; where it arrives, opening it fails."""

    def __reduce__(self) -> tuple[object, ...]:
        return refuse, ()


def refuse() -> None:
    raise ValueError("cannot be opened here")


def give_what_cannot_be_opened() -> object:
    return Unpackable()


def give_another_of_the_same_name() -> object:
    return type("Unpackable", (), {"__module__": __name__})()


class OddError(Exception):
    """Pickled without complaint; to open it takes an argument more than is sent."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(f"{one} and {two}")


def fail_oddly() -> None:
    raise OddError("this", "that")


def run_out_of_memory() -> None:
    raise MemoryError("of 3 TB")


def end_with_status_three() -> None:
    os._exit(3)


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
    with pytest.raises(ResourceError, match=r"the process for die was ended by SIGKILL .*out of memory"):
        in_fresh_process(die)


def test_memory_that_runs_out_is_told_as_such() -> None:
    with pytest.raises(MemoryError, match="of 3 TB"):
        in_fresh_process(run_out_of_memory)


def test_a_process_that_ends_by_itself_is_not_told_as_want_of_memory() -> None:
    with pytest.raises(RuntimeError, match=r"end_with_status_three ended with status 3 and no answer$"):
        in_fresh_process(end_with_status_three)


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        (print, [lambda: None], r"the arguments of print \(.*function\) cannot be sent .*pickle.*lambda"),
        (print, [Unpackable()], r"the arguments of print cannot be opened .*ValueError: cannot be opened here"),
        (give_what_cannot_travel, [], r"the answer of give_what_cannot_travel \(function\) cannot be sent .*lambda"),
        (give_another_of_the_same_name, [], r"the answer of .* \(Unpackable\) cannot be sent .*not the same object"),
        (give_what_cannot_be_opened, [], r"the answer of give_what_cannot_be_opened cannot be opened .*ValueError"),
        (fail_oddly, [], r"OddError: this and that"),
    ],
)
def test_what_cannot_travel_is_told_by_name_as_a_bug(
    function: Callable[..., object], arguments: list[object], message: str
) -> None:
    with pytest.raises(TransferError, match=message):
        in_fresh_process(function, *arguments)


def test_interrupting_the_parent_ends_the_child(tmp_path: Path) -> None:
    note = tmp_path / "child"
    script = tmp_path / "parent.py"
    script.write_text(
        "import os, sys, time\n"
        "from pathlib import Path\n"
        "from cvad_cli.adapters.machine.subprocess_call import in_fresh_process\n"
        "def sleep(note):\n"
        "    Path(note).write_text(str(os.getpid()))\n"
        "    time.sleep(600)\n"
        "if __name__ == '__main__':\n"
        "    in_fresh_process(sleep, sys.argv[1])\n",
        encoding="utf-8",
    )
    found_here = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    parent = subprocess.Popen([sys.executable, script, note], stderr=subprocess.DEVNULL, env=found_here)
    deadline = time.monotonic() + 60
    while not (note.exists() and note.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    child = int(note.read_text())
    parent.send_signal(signal.SIGINT)
    assert parent.wait(timeout=60) != 0
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)
