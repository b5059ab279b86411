"""Names of images below what they have in common, whether their paths are relative or absolute."""

from __future__ import annotations

from pathlib import Path

import pytest

from cvad_cli.assembly.data.path_arguments import common_folder, distinct_names, name_below, shown_names


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize(
    ("paths", "folder", "names"),
    [
        pytest.param(["a/1.png", "a/b/2.png"], "a", ["1.png", "b/2.png"], id="relative"),
        pytest.param(["a/1.png", "b/2.png"], None, ["a/1.png", "b/2.png"], id="relative, below here"),
        pytest.param(["a/1.png", "{here}/b/2.png"], "{here}", ["a/1.png", "b/2.png"], id="mixed, below here"),
        pytest.param(["a/1.png", "{here}/../2.png"], "{here}/..", ["here/a/1.png", "2.png"], id="mixed, above here"),
        pytest.param(["../a/1.png", "b/2.png"], "{here}/..", ["a/1.png", "here/b/2.png"], id="relative, above here"),
        pytest.param(["a/1.png", "/x/2.png"], None, ["a/1.png", "/x/2.png"], id="nothing in common"),
        pytest.param(["/{here}/1.png", "{here}/2.png"], "{here}", ["1.png", "2.png"], id="two leading slashes"),
        pytest.param([], None, [], id="none"),
    ],
)
def test_names_are_shown_below_what_paths_have_in_common(
    paths: list[str], folder: str | None, names: list[str], here: Path
) -> None:
    common, shown = shown_names([path.format(here=here) for path in paths])
    assert shown == names
    assert (common is None) == (folder is None)
    assert folder is None or (here / str(common)) == Path(folder.format(here=here)).resolve() or common == Path(folder)


@pytest.mark.parametrize("other", ["/x/2.png", "../2.png", "{here}/2.png", "/{here}/2.png"])
def test_names_for_files_never_lead_outside_their_folder(other: str, here: Path) -> None:
    names = distinct_names([Path("a/1.png"), Path(other.format(here=here))])
    assert len(set(names)) == 2
    assert not any(Path(name).is_absolute() or ".." in Path(name).parts for name in names)


def test_without_a_common_folder_a_name_is_the_whole_path_below_the_root(here: Path) -> None:
    assert common_folder([]) is None
    assert name_below(Path("1.png"), None) == f"{here}/1.png".lstrip("/")
