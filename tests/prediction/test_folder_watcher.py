"""`cvad predict --watch`: each file once it is whole, each once, whatever happens in between."""

from __future__ import annotations

import inspect
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image

from cvad_cli.adapters.images import read_image
from cvad_cli.adapters.storage.result_journal import ResultJournal
from cvad_cli.config.load import load_config
from cvad_cli.errors import ResourceError
from cvad_cli.tasks.predict import PredictRequest, PredictSummary, predict

PATIENCE_S = 60
QUICK = ("watch.poll_s=0.05", "watch.settle_s=0.4", "watch.give_up_s=1.2")


def wait_for(condition: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def lines_of(results: Path) -> list[dict]:
    return [json.loads(line) for line in results.read_bytes().splitlines()] if results.exists() else []


def names_of(results: Path) -> list[str]:
    return [line["file"]["name"] for line in lines_of(results)]


class Notes:
    """A reporter that remembers."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.warnings: list[str] = []
        self.note, self.warn = self.notes.append, self.warnings.append


class Watch:
    """A folder under watch, in a thread of this process."""

    def __init__(self, config: Path, folder: Path) -> None:
        self.folder = folder
        self.results = folder.parent / "results.jsonl"
        self.notes = Notes()
        self._config = config

    @contextmanager
    def running(self, *settings: str) -> Iterator[Watch]:
        enough, ended = threading.Event(), []
        request = PredictRequest(watch=self.folder, results=self.results, stop=enough)

        def work() -> None:
            try:
                loaded = load_config(self._config, [*QUICK, *settings])
                ended.append(predict(loaded, request, self.notes))
            except BaseException as error:  # noqa: BLE001 - shown by the test
                ended.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        try:
            yield self
        finally:
            enough.set()
            thread.join(PATIENCE_S)
        assert not thread.is_alive()
        assert isinstance(ended[0], PredictSummary), ended[0]

    def has(self, count: int) -> Callable[[], bool]:
        return lambda: len(names_of_whole(self.results)) >= count


@pytest.fixture
def watch(trained: Path, tmp_path: Path) -> Watch:
    folder = tmp_path / "incoming"
    folder.mkdir()
    return Watch(trained, folder)


@pytest.fixture(scope="module")
def part(sample_data: Path) -> Path:
    return sample_data / "grid" / "test" / "good" / "000.png"


def test_each_file_is_inspected_once_also_after_a_restart(watch: Watch, part: Path) -> None:
    shutil.copy(part, watch.folder / "before.png")
    (watch.folder / "camera 2").mkdir()
    with watch.running():
        shutil.copy(part, watch.folder / "camera 2" / "during.png")
        (watch.folder / "notes.txt").write_text("no image")
        shutil.copy(part, watch.folder / ".unfinished.png")
        wait_for(watch.has(2))
    shutil.copy(part, watch.folder / "between.png")
    with watch.running():
        wait_for(watch.has(3))
        time.sleep(0.3)
        (watch.folder / "before.png").write_bytes(part.read_bytes())  # written anew: another part of the same name
        wait_for(watch.has(4))
    assert sorted(names_of(watch.results)) == ["before.png", "before.png", "between.png", "camera 2/during.png"]
    for line in lines_of(watch.results):
        assert line["image"] == str(watch.folder / line["file"]["name"])
        assert line["score"] > 0


def test_a_png_is_taken_when_it_is_whole_and_not_before(watch: Watch, part: Path) -> None:
    content = part.read_bytes()
    with watch.running("watch.settle_s=30", "watch.give_up_s=60"):
        with (watch.folder / "slow.png").open("wb") as file:
            for start in range(0, len(content), len(content) // 5):
                file.write(content[start : start + len(content) // 5])
                file.flush()
                time.sleep(0.15)
                assert start + len(content) // 5 >= len(content) or not lines_of(watch.results)
        wait_for(watch.has(1))  # long before it would have settled
    (line,) = lines_of(watch.results)
    assert "error" not in line


def test_a_file_without_checksums_must_settle(watch: Watch, part: Path) -> None:
    """A BMP of the right size whose rows are still to come can be decoded, and shows half a part."""
    buffer = watch.folder.parent / "whole.bmp"
    Image.fromarray(read_image(part)).save(buffer)
    content = buffer.read_bytes()
    with watch.running():
        wait_for(watch.results.exists)
        with (watch.folder / "slow.bmp").open("wb") as file:
            file.truncate(len(content))
            for start in range(0, len(content), len(content) // 6):
                file.write(content[start : start + len(content) // 6])
                file.flush()
                time.sleep(0.2)
        wait_for(watch.has(1))
    shutil.copy(buffer, watch.folder / "whole.bmp")
    with watch.running():
        wait_for(watch.has(2))
    slow, whole = lines_of(watch.results)
    assert slow["score"] == pytest.approx(whole["score"], rel=1e-6)


@pytest.mark.skipif(os.name == "nt", reason="a rename leaves no trace in Windows' times")
def test_a_file_that_is_moved_into_the_folder_is_taken_at_once(watch: Watch, part: Path) -> None:
    with watch.running("watch.settle_s=50", "watch.give_up_s=60"):
        Image.fromarray(read_image(part)).save(watch.folder / ".part.tmp", "JPEG")
        time.sleep(0.1)
        (watch.folder / ".part.tmp").rename(watch.folder / "part.jpg")
        started = time.monotonic()
        wait_for(watch.has(1))
        assert time.monotonic() - started < 45


def test_what_never_becomes_a_image_is_reported_once(watch: Watch, part: Path) -> None:
    (watch.folder / "broken.png").write_bytes(part.read_bytes()[:500])
    (watch.folder / "empty.jpg").touch()
    with watch.running():
        shutil.copy(part, watch.folder / "whole.png")
        wait_for(watch.has(3))
        time.sleep(0.5)
    with watch.running():
        time.sleep(2)
    assert sorted(names_of(watch.results)) == ["broken.png", "empty.jpg", "whole.png"]
    errors = {line["file"]["name"]: line.get("error", "") for line in lines_of(watch.results)}
    assert "is cut short" in errors["broken.png"]
    assert "is empty" in errors["empty.jpg"]
    assert len(watch.notes.warnings) == 2


def test_a_file_that_disappears_before_its_turn_is_reported(watch: Watch, part: Path) -> None:
    with watch.running("watch.give_up_s=50"):
        wait_for(watch.results.exists)
        (watch.folder / "gone.png").write_bytes(part.read_bytes()[:500])
        time.sleep(2)
        (watch.folder / "gone.png").unlink()
        wait_for(lambda: watch.notes.notes)
    assert "gone.png: disappeared" in watch.notes.notes[0]
    assert lines_of(watch.results) == []


def test_a_folder_that_vanishes_is_waited_for_and_nothing_is_done_twice(watch: Watch, part: Path) -> None:
    shutil.copy(part, watch.folder / "first.png")
    away = watch.folder.with_name("unmounted")
    with watch.running():
        wait_for(watch.has(1))
        watch.folder.rename(away)
        wait_for(lambda: any("waiting for it to come back" in note for note in watch.notes.notes))
        away.rename(watch.folder)
        shutil.copy(part, watch.folder / "second.png")
        wait_for(watch.has(2))
    assert names_of(watch.results) == ["first.png", "second.png"]


def test_a_torn_last_line_counts_for_nothing_and_is_cut_off(watch: Watch, part: Path) -> None:
    shutil.copy(part, watch.folder / "a.png")
    with watch.running():
        wait_for(watch.has(1))
    whole = watch.results.read_bytes()
    watch.results.write_bytes(whole + whole[:-20])
    with watch.running():
        wait_for(lambda: watch.results.read_bytes() == whole)
    watch.results.write_bytes(whole[:-20])
    with watch.running():
        wait_for(watch.has(1))
    assert names_of(watch.results) == ["a.png"]


STAMPS = [{"name": f"{number}\udce9.png", "size": number, "mtime_ns": number * 10**18} for number in range(3)]


def test_a_file_of_results_cut_anywhere_keeps_its_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    with ResultJournal(path, print) as journal:
        for stamp in STAMPS:
            journal.append({"image": stamp["name"], "score": 1.5, "file": stamp})
    content = path.read_bytes()
    ends = [index + 1 for index, letter in enumerate(content) if letter == ord("\n")]
    for cut in range(len(content) + 1):
        path.write_bytes(content[:cut])
        with ResultJournal(path, pytest.fail) as journal:
            done = [journal.is_done(**stamp) for stamp in STAMPS]
            assert done == [end <= cut for end in ends]
        assert path.read_bytes() == content[: max([0, *(end for end in ends if end <= cut)])]


def test_a_damaged_line_is_named_and_counts_for_no_image(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    with ResultJournal(path, print) as journal:
        journal.append({"file": STAMPS[0]})
    path.write_bytes(b"\0\0\0\n" + path.read_bytes() + b'{"image": "x"}\n')
    warnings: list[str] = []
    with ResultJournal(path, warnings.append) as journal:
        assert journal.is_done(**STAMPS[0])
        assert len(journal) == 1
    assert warnings == [f"{path}: line 1, 3 is no result of cvad and counts for no image"]


def test_what_is_gone_from_the_folder_is_forgotten(tmp_path: Path) -> None:
    with ResultJournal(tmp_path / "results.jsonl", print) as journal:
        for stamp in STAMPS:
            journal.append({"file": stamp})
        journal.forget_others([tuple(STAMPS[1].values())])
        assert [journal.is_done(**stamp) for stamp in STAMPS] == [False, True, False]


def test_a_file_that_is_done_takes_the_memory_that_is_stated(tmp_path: Path) -> None:
    path, files = tmp_path / "results.jsonl", 100_000
    lines = (json.dumps({"file": {"name": f"{n}.png", "size": n, "mtime_ns": n * 10**9}}) for n in range(files))
    path.write_text("\n".join(lines) + "\n")
    tracemalloc.start()
    try:
        with ResultJournal(path, pytest.fail) as journal:
            bytes_a_file = tracemalloc.get_traced_memory()[0] / len(journal)
    finally:
        tracemalloc.stop()
    stated = re.search(r"(\d+) to (\d+) bytes per file", inspect.getdoc(ResultJournal) or "")
    assert stated
    assert int(stated[1]) <= bytes_a_file <= int(stated[2])


def test_two_cannot_watch_with_one_memory(tmp_path: Path) -> None:
    path, holder = tmp_path / "results.jsonl", rf"in use by another process \(process {os.getpid()}\)"
    with ResultJournal(path, print), pytest.raises(ResourceError, match=holder):
        ResultJournal(path, print)
    with ResultJournal(path, print) as journal:
        assert len(journal) == 0


def test_a_memory_that_cannot_be_written_is_named(cvad, trained: Path, tmp_path: Path) -> None:
    (tmp_path / "incoming").mkdir()
    (tmp_path / "file").touch()
    result = cvad(
        "predict", "-c", trained, "--watch", tmp_path / "incoming", "--results", tmp_path / "file" / "r.jsonl"
    )
    assert result.exit_code == 7
    assert "r.jsonl: cannot be written" in result.stderr


def test_a_full_disk_stops_the_watch_and_leaves_whole_lines(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "results.jsonl"
    with ResultJournal(path, print) as journal:
        journal.append({"file": STAMPS[0]})
        with monkeypatch.context() as patched:
            patched.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
            with pytest.raises(ResourceError, match="No space left on device"):
                journal.append({"file": STAMPS[1]})
        assert not journal.is_done(**STAMPS[1])


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
def test_killed_and_started_again_it_loses_nothing_and_repeats_nothing(
    trained: Path, part: Path, tmp_path: Path
) -> None:
    """kill -9 in the middle of the work, then a run that ends on SIGTERM: a line for each file, no more."""
    folder, results = tmp_path / "incoming", tmp_path / "results.jsonl"
    folder.mkdir()
    for number in range(60):
        shutil.copy(part, folder / f"{number:03d}.png")
    overlays = tmp_path / "overlays"
    command = [sys.executable, "-m", "cvad_cli", "predict", "-c", str(trained), "--watch", str(folder), "--jsonl"]
    command += ["--results", str(results), "--overlays", str(overlays), "-q", "--set", "runtime.batch_size=1"]
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    wait_for(lambda: first.poll() is not None or len(names_of_whole(results)) >= 7)
    first.send_signal(signal.SIGKILL)
    assert first.wait(PATIENCE_S) == -signal.SIGKILL
    done_by_first = names_of_whole(results)
    assert 7 <= len(done_by_first) < 60

    second = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    wait_for(lambda: second.poll() is not None or len(names_of_whole(results)) >= 40)
    second.send_signal(signal.SIGTERM)
    stdout, stderr = second.communicate(timeout=PATIENCE_S)
    assert (second.returncode, stderr) == (0, b"")
    after = names_of(results)
    assert len(after) == len(set(after)) >= 40
    assert after[: len(done_by_first)] == done_by_first
    printed = [json.loads(line) for line in stdout.splitlines()]
    assert printed == lines_of(results)[len(done_by_first) :]
    assert {f"{name}" for name in after} <= {path.name for path in overlays.iterdir()}


def names_of_whole(results: Path) -> list[str]:
    """The lines that are there so far; the last one may be on its way."""
    content = results.read_bytes() if results.exists() else b""
    return [json.loads(line)["file"]["name"] for line in content[: content.rfind(b"\n") + 1].splitlines()]
