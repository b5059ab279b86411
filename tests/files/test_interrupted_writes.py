"""Processes killed with SIGKILL while they write, and several that write at once: what is left is whole, and swept."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cvad_cli.adapters.storage.bundles import read_bundle, write_bundle
from cvad_cli.assembly.gates.baseline import open_baseline
from cvad_cli.errors import ConfigError
from cvad_cli.files import recover, replacing, replacing_folder

pytestmark = pytest.mark.skipif(os.name == "nt", reason="needs fork and SIGKILL")

ROOT = Path(__file__).parents[2]

STOPPED_AT_EVERY_STEP = """
import os, shutil, signal, sys
from pathlib import Path
from cvad_cli.files import recover, remove_folder, replacing, replacing_folder

base, action, two_renames, kill = Path(sys.argv[1]), sys.argv[2], sys.argv[3] == "two renames", sys.argv[4] == "kill"
steps = {"open", "os.chmod", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "shutil.rmtree"}
options = {"exchange": lambda one, other: False} if two_renames else {}

def act(target):
    if action == "file":
        with replacing(target) as staged:
            staged.write_text("new")
    elif action == "removal":
        if target.exists():
            remove_folder(target)
    else:
        with replacing_folder(target, **options) as staged:
            for name in "ab":
                (staged / name).write_text("new")

def content(target):
    if not target.exists():
        return None
    return [target.read_text()] if target.is_file() else sorted(f"{e.name} {e.read_text()}" for e in target.iterdir())

def stopped_at(number, target):
    left = [number]
    def hook(event, _):
        if event in steps:
            left[0] -= 1
            if not left[0]:
                if kill:
                    os.kill(os.getpid(), signal.SIGKILL)
                raise KeyboardInterrupt
    sys.addaudithook(hook)
    try:
        act(target)
    except KeyboardInterrupt:
        os._exit(1)
    os._exit(0)

for number in range(1, 1000):
    target = base / str(number) / "target"
    target.parent.mkdir()
    if action == "file":
        target.write_text("old")
    else:
        target.mkdir()
        for name in "abc":
            (target / name).write_text("old")
    before = content(target)
    child = os.fork() or stopped_at(number, target)
    status = os.waitpid(child, 0)[1]
    missing = not target.exists()
    recover(target)
    print(number, "missing" if missing else "there", "before" if content(target) == before else content(target))
    act(target)
    left = sorted(each.name for each in target.parent.iterdir())
    assert left == ([] if action == "removal" else ["target"]), (number, left)
    if status == 0:
        break
"""


def run(script: str, *arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


NEW = "['a new', 'b new']"


def outcomes(*arguments: object) -> list[tuple[str, str]]:
    """For each step at which a process was stopped: "there" or "missing", and what there was once it was recovered."""
    lines = [line.split(" ", 2) for line in run(STOPPED_AT_EVERY_STEP, *arguments).splitlines()]
    assert len(lines) > 5
    return [(state, content) for _, state, content in lines]


@pytest.mark.parametrize("how", ["kill", "interrupt"])
@pytest.mark.parametrize("way", ["exchange", "two renames"])
def test_a_folder_stopped_at_any_step_is_the_former_or_the_new_one(tmp_path: Path, way: str, how: str) -> None:
    found = outcomes(tmp_path, "folder", way, how)
    assert {content for _, content in found} == {"before", NEW}
    gaps = [content for state, content in found if state == "missing"]
    assert gaps == ([NEW] if (way, how) == ("two renames", "kill") else [])


@pytest.mark.parametrize("how", ["kill", "interrupt"])
@pytest.mark.parametrize(("action", "new"), [("file", "['new']"), ("removal", "None")])
def test_a_file_or_a_removal_stopped_at_any_step_is_done_or_not(
    tmp_path: Path, action: str, new: str, how: str
) -> None:
    assert {content for _, content in outcomes(tmp_path, action, "-", how)} == {"before", new}


KILLED_BETWEEN_RENAMES = """
import os, shutil, signal, sys
from pathlib import Path
from cvad_cli.files import replacing_folder

def hook(event, arguments):
    if event == "os.rename" and os.fspath(arguments[0]).endswith(".new"):
        os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(hook)
with replacing_folder(Path(sys.argv[1]), exchange=lambda one, other: False) as staged:
    shutil.copytree(sys.argv[1], staged, dirs_exist_ok=True)
"""


def kill_between_renames(folder: Path) -> None:
    """Let a process rewrite a folder with what it holds, and kill it where the folder is not there."""
    command = [sys.executable, "-c", KILLED_BETWEEN_RENAMES, str(folder)]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False)
    assert done.returncode == -signal.SIGKILL
    assert not folder.exists()


def test_who_opens_a_bundle_finds_it(tmp_path: Path) -> None:
    files = {"memory_bank": (".safetensors", lambda path: path.write_bytes(b"bank"))}
    bundle = write_bundle(tmp_path / "bundle", {"model": {"kind": "patchcore"}}, files)
    kill_between_renames(bundle.folder)
    assert read_bundle(bundle.folder).fingerprint == bundle.fingerprint


@pytest.mark.parametrize("named", ["runs", "runs/line7", "runs/line7/evaluation", "runs/line7/evaluation/metrics.json"])
def test_who_opens_a_baseline_finds_it(tmp_path: Path, named: str) -> None:
    folder = tmp_path / "runs" / "line7" / "evaluation"
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text("{}")
    kill_between_renames(folder)
    with pytest.raises(ConfigError, match="line7/evaluation/"):  # what is missing in this file, not that it is missing
        open_baseline(tmp_path / named, "line7")
    assert (folder / "metrics.json").read_text() == "{}"


HOLDER = """
import sys, time
from pathlib import Path
from cvad_cli.files import replacing, replacing_folder

folder = Path(sys.argv[1])
with replacing(folder / "file.txt") as file, replacing_folder(folder / "results") as results:
    file.write_text("whole")
    (results / "one").write_text("whole")
    print("writing", flush=True)
    sys.stdin.readline()
    (results / "two").write_text("whole")
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process in the middle of writing a file and a folder."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        yield process
        process.kill()


def write_both(folder: Path) -> None:
    with replacing(folder / "file.txt") as file:
        file.write_text("other")
    with replacing_folder(folder / "results") as results:
        (results / "other").write_text("other")


def test_what_a_living_process_writes_is_left_alone(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    write_both(tmp_path)
    recover(tmp_path / "missing")
    assert (tmp_path / "file.txt").read_text() == "other"
    holder.communicate("go on\n")
    assert holder.returncode == 0
    assert (tmp_path / "file.txt").read_text() == "whole"
    assert {path.name: path.read_text() for path in (tmp_path / "results").iterdir()} == {
        "one": "whole",
        "two": "whole",
    }
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file.txt", "results"]


def test_what_a_killed_process_left_goes_at_the_next_write(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    assert len(list(tmp_path.rglob("*"))) > 0
    write_both(tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file.txt", "other", "results"]


RIVAL = """
import sys
from pathlib import Path
from cvad_cli.files import replacing, replacing_folder

folder, mine, options = Path(sys.argv[1]), sys.argv[2], {}
if sys.argv[3] == "two renames":
    options = {"exchange": lambda one, other: False}
for _ in range(15):
    with replacing_folder(folder / "results", **options) as staged:
        for number in range(3):
            (staged / str(number)).write_text(mine)
    with replacing(folder / "file.txt") as staged:
        staged.write_text(mine)
"""


@pytest.mark.parametrize("way", ["exchange", "two renames"])
def test_several_writers_of_one_target_leave_one_whole_result(tmp_path: Path, way: str) -> None:
    write_both(tmp_path)
    command = [sys.executable, "-c", RIVAL, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    rivals = [subprocess.Popen([*command, name, way], cwd=ROOT, env=environment) for name in "xyz"]
    seen = 0
    while any(rival.poll() is None for rival in rivals):
        assert way == "two renames" or (tmp_path / "results").is_dir()
        assert (tmp_path / "file.txt").read_text() in {"other", "x", "y", "z"}
        seen += 1
    assert seen > 10
    assert [rival.returncode for rival in rivals] == [0, 0, 0]
    assert len({path.read_text() for path in (tmp_path / "results").iterdir()}) == 1
    assert sorted(path.name for path in (tmp_path / "results").iterdir()) == ["0", "1", "2"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file.txt", "results"]
