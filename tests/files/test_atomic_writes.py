"""Nothing half-written: a block that fails leaves what was there before, and no temporary file."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cvad_cli.errors import ResourceError
from cvad_cli.files import replacing, replacing_folder


def test_a_file_appears_whole_and_alone(tmp_path: Path) -> None:
    with replacing(tmp_path / "deep" / "a.txt") as staged:
        staged.write_text("new")
        assert not (tmp_path / "deep" / "a.txt").exists()
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["a.txt"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_file_leaves_the_former_one(tmp_path: Path, error: type[BaseException]) -> None:
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(error), replacing(tmp_path / "a.txt") as staged:
        staged.write_text("half")
        raise error
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a.txt", "old")]


def test_a_folder_is_replaced_with_all_that_was_in_it(tmp_path: Path) -> None:
    target = tmp_path / "results"
    for content in ("first", "second"):
        with replacing_folder(target) as staged:
            (staged / content).write_text(content)
    assert [path.name for path in target.iterdir()] == ["second"]
    assert [path.name for path in tmp_path.iterdir()] == ["results"]


def test_an_interrupted_folder_leaves_the_former_one(tmp_path: Path) -> None:
    target = tmp_path / "results"
    target.mkdir()
    (target / "old").touch()
    with pytest.raises(KeyboardInterrupt), replacing_folder(target) as staged:
        (staged / "half").touch()
        raise KeyboardInterrupt
    assert [path.name for path in target.iterdir()] == ["old"]
    assert [path.name for path in tmp_path.iterdir()] == ["results"]


def test_a_full_disk_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match=r"a.txt: cannot be written: No space left"), replacing(tmp_path / "a.txt"):
        raise OSError(28, "No space left on device")


def test_a_parent_that_is_a_file_names_the_target(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(ResourceError, match=r"results: cannot be written"),
        replacing_folder(tmp_path / "file" / "results"),
    ):
        pass


def test_a_file_in_the_place_of_a_folder_is_replaced_and_gone(tmp_path: Path) -> None:
    (tmp_path / "results").write_text("a file")
    with replacing_folder(tmp_path / "results") as staged:
        (staged / "new").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["results"]
    assert (tmp_path / "results" / "new").exists()


def test_a_swap_that_fails_puts_the_former_folder_back(tmp_path: Path) -> None:
    target = tmp_path / "results"
    target.mkdir()
    (target / "old").touch()

    def spoils_the_new_one(fresh: Path, _: Path) -> bool:
        shutil.rmtree(fresh)
        return False

    with (
        pytest.raises(ResourceError, match="No such file"),
        replacing_folder(target, exchange=spoils_the_new_one) as new,
    ):
        (new / "new").touch()
    assert [path.name for path in target.iterdir()] == ["old"]
    assert [path.name for path in tmp_path.iterdir()] == ["results"]


def test_a_link_to_a_folder_is_replaced_and_what_it_leads_to_stays(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "old").touch()
    (tmp_path / "results").symlink_to("elsewhere")
    with replacing_folder(tmp_path / "results") as staged:
        (staged / "new").touch()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere", "results"]
    assert (tmp_path / "elsewhere" / "old").exists()
    assert (tmp_path / "results" / "new").exists()


@pytest.fixture(params=[0o022, 0o077, 0o002], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    former = os.umask(request.param)
    yield request.param
    os.umask(former)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX modes")
def test_modes_are_those_of_the_umask_whatever_writes(tmp_path: Path, umask: int) -> None:
    def by_writing(path: Path) -> None:
        path.write_text("text")

    def by_a_file_of_its_own(path: Path) -> None:
        handle, name = tempfile.mkstemp(dir=path.parent)
        os.close(handle)
        Path(name).replace(path)

    for number, write in enumerate((by_writing, by_a_file_of_its_own)):
        with replacing(tmp_path / "deep" / f"{number}.txt") as staged:
            write(staged)
        assert mode(tmp_path / "deep" / f"{number}.txt") == 0o666 & ~umask
        with replacing_folder(tmp_path / f"{number}") as folder:
            write(folder / "a")
            folder.chmod(0o700)  # as shutil.copytree does
        assert mode(tmp_path / f"{number}") == 0o777 & ~umask
    assert mode(tmp_path / "deep") == 0o777 & ~umask


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX modes")
def test_what_is_replaced_keeps_its_mode(tmp_path: Path) -> None:
    (tmp_path / "a.txt").touch(0o600)
    (tmp_path / "results").mkdir(0o700)
    with replacing(tmp_path / "a.txt") as staged, replacing_folder(tmp_path / "results"):
        staged.write_text("new")
    assert (mode(tmp_path / "a.txt"), mode(tmp_path / "results")) == (0o600, 0o700)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs Linux's /proc")
def test_content_is_forced_to_the_disk_before_the_rename_and_the_name_after_it(tmp_path: Path, monkeypatch) -> None:
    synced: list[str] = []
    fsync = os.fsync

    def recording(descriptor: int) -> None:
        synced.append(f"{Path(f'/proc/self/fd/{descriptor}').readlink().name}, a.txt: {(tmp_path / 'a.txt').exists()}")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", recording)
    with replacing(tmp_path / "a.txt") as staged:
        staged.write_text("new")
    assert synced == [".new.txt, a.txt: False", f"{tmp_path.name}, a.txt: True"]
    synced.clear()
    with replacing_folder(tmp_path / "made" / "results") as folder:
        (folder / "sub").mkdir()
        with replacing(folder / "sub" / "chart.png") as staged:
            staged.write_bytes(b"png")
        (folder / "table.csv").touch()
        assert [line.split(",")[0] for line in synced] == [tmp_path.name]  # `made` has a name on the disk
    names = [line.split(",")[0] for line in synced]
    assert sorted(names[1:3]) == ["chart.png", "table.csv"]
    assert sorted(names[3:5]) == [".new", "sub"]
    assert names[5:] == ["made"]


def test_a_name_as_long_as_names_can_be(tmp_path: Path) -> None:
    name = "x" * 251 + ".txt"
    with replacing(tmp_path / name) as staged:
        staged.write_text("new")
    assert [path.name for path in tmp_path.iterdir()] == [name]
