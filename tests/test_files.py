"""Nothing half-written: a block that fails leaves what was there before, and no temporary file."""

from __future__ import annotations

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


def test_a_swap_that_fails_puts_the_former_folder_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "results"
    target.mkdir()
    (target / "old").touch()
    rename = Path.replace

    def fails_for_the_fresh_one(self: Path, to: Path) -> Path:
        if self.suffix == ".tmp":
            raise OSError(5, "Input/output error")
        return rename(self, to)

    monkeypatch.setattr(Path, "replace", fails_for_the_fresh_one)
    with pytest.raises(ResourceError, match="Input/output error"), replacing_folder(target) as staged:
        (staged / "new").touch()
    assert [path.name for path in target.iterdir()] == ["old"]
