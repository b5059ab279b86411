"""What is cached can be rebuilt: stale, damaged or missing entries are made anew, and nothing half-written is used."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from cvad_cli.adapters.storage.serving_cache import ENTRY_FILE, ServingCache

IDENTITY = {"openvino": "1", "processor": "p", "precision": "bf16"}


class Workshop:
    """Counts how often it had to build."""

    def __init__(self) -> None:
        self.built = 0

    def __call__(self, folder: Path) -> Mapping[str, Any]:
        self.built += 1
        (folder / "network.bin").write_bytes(b"weights" * 100)
        return {"recall": 0.995}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "cvad"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    folder.mkdir()
    return folder


def open_once(bundle: Path, workshop: Workshop, fingerprint: str = "f" * 64, **identity: str) -> Path | None:
    with ServingCache(bundle, fingerprint, {**IDENTITY, **identity}).opened(workshop) as entry:
        assert (entry.folder / "network.bin").read_bytes() == b"weights" * 100
        assert entry.facts == {"recall": 0.995}
        return entry.folder if entry.kept else None


def test_an_entry_is_built_once_and_lies_beside_the_bundle(bundle: Path) -> None:
    workshop = Workshop()
    places = {open_once(bundle, workshop) for _ in range(3)}
    assert workshop.built == 1
    assert {place.parent for place in places} == {bundle / "cache"}


@pytest.mark.parametrize("changed", [{"fingerprint": "e" * 64}, {"openvino": "2"}])
def test_another_bundle_or_another_version_is_built_anew_and_the_stale_entry_goes(
    bundle: Path, changed: dict[str, str]
) -> None:
    workshop = Workshop()
    stale = open_once(bundle, workshop)
    fresh = open_once(bundle, workshop, **changed)
    assert workshop.built == 2
    assert stale != fresh
    assert list((bundle / "cache").iterdir()) == [fresh]


@pytest.mark.parametrize("other", [{"processor": "q"}, {"precision": "f32"}])
def test_another_processor_or_precision_has_an_entry_of_its_own(bundle: Path, other: dict[str, str]) -> None:
    workshop = Workshop()
    for identity in ({}, other, {}, other):
        open_once(bundle, workshop, **identity)
    assert workshop.built == 2


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda entry: (entry / "network.bin").write_bytes(b"weights" * 99), id="a file cut short"),
        pytest.param(lambda entry: (entry / "network.bin").unlink(), id="a file gone"),
        pytest.param(lambda entry: (entry / ENTRY_FILE).write_text("{"), id="an entry cut short"),
        pytest.param(lambda entry: (entry / ENTRY_FILE).write_text("[]"), id="an entry of another shape"),
        pytest.param(lambda entry: (entry / ENTRY_FILE).unlink(), id="no entry"),
    ],
)
def test_a_damaged_entry_is_built_anew(bundle: Path, damage) -> None:
    workshop = Workshop()
    damage(open_once(bundle, workshop))
    open_once(bundle, workshop)
    open_once(bundle, workshop)
    assert workshop.built == 2


def test_an_entry_that_names_files_elsewhere_is_not_followed(bundle: Path, tmp_path: Path) -> None:
    workshop = Workshop()
    place = open_once(bundle, workshop)
    entry = json.loads((place / ENTRY_FILE).read_text())
    (tmp_path / "outside").write_bytes(b"weights" * 100)
    entry["files"] = {"../../../outside": entry["files"]["network.bin"]}
    (place / ENTRY_FILE).write_text(json.dumps(entry))
    open_once(bundle, workshop)
    assert workshop.built == 2


def blocked(folder: Path) -> None:
    """No folder can be made below a file, whoever asks: permissions would not stop root."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.write_text("in the way")


def test_a_bundle_that_cannot_be_written_has_its_entry_in_the_users_cache(bundle: Path, home: Path) -> None:
    blocked(bundle / "cache")
    workshop = Workshop()
    places = {open_once(bundle, workshop) for _ in range(2)}
    assert workshop.built == 1
    assert {place.parent.parent for place in places} == {home}


def test_where_nothing_can_be_written_it_is_built_each_time_and_nothing_is_left(bundle: Path, home: Path) -> None:
    blocked(bundle / "cache")
    blocked(home)
    workshop = Workshop()
    with ServingCache(bundle, "f", IDENTITY).opened(workshop) as entry:
        assert not entry.kept
        folder = entry.folder
    assert not folder.exists()
    assert open_once(bundle, workshop) is None
    assert workshop.built == 2


def test_a_build_that_fails_leaves_nothing(bundle: Path) -> None:
    def fail(folder: Path) -> Mapping[str, Any]:
        (folder / "network.bin").write_bytes(b"half")
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"), ServingCache(bundle, "f", IDENTITY).opened(fail):
        pass
    assert list(bundle.rglob("*")) == []
