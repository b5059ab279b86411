"""A bundle is verified when it is opened, and replaced as a whole or not at all."""

from __future__ import annotations

import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cvad_cli.adapters.storage.bundles import MANIFEST_NAME, SCHEMA_VERSION, Bundle, read_bundle, write_bundle
from cvad_cli.errors import BundleError, ResourceError
from cvad_cli.files import ProcessLock

CONTENTS = {"model": {"kind": "patchcore"}, "preprocessing": {"image_size": 64}}


def writer(content: bytes):
    return (".safetensors", lambda path: path.write_bytes(content))


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return write_bundle(tmp_path / "bundle", CONTENTS, {"memory_bank": writer(b"bank"), "backbone": writer(b"net")})


def edit_manifest(bundle: Bundle, **changes: object) -> None:
    path = bundle.folder / MANIFEST_NAME
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **changes}), encoding="utf-8")


def test_what_is_written_is_read_back(bundle: Bundle) -> None:
    again = read_bundle(bundle.folder)
    assert again.manifest == bundle.manifest
    assert again.file("memory_bank").read_bytes() == b"bank"
    assert again.manifest["versions"]["torch"]


def test_rewriting_leaves_no_file_of_the_former_bundle(bundle: Bundle) -> None:
    stale = bundle.folder / "memory_bank-0123456789ab.safetensors"
    stale.write_bytes(b"left by a run that was killed before it wrote the manifest")
    mine = bundle.folder / "notes.txt"
    mine.write_text("kept")
    write_bundle(bundle.folder, CONTENTS, {"memory_bank": writer(b"other")})
    names = {path.name for path in bundle.folder.iterdir()}
    assert len(names) == 3
    assert {MANIFEST_NAME, "notes.txt"} < names
    assert mine.read_text() == "kept"


def test_a_write_that_fails_leaves_the_former_bundle_whole(bundle: Bundle) -> None:
    def disk_full(path: Path) -> None:
        path.write_bytes(b"ha")
        raise OSError(28, "No space left on device")

    with pytest.raises(ResourceError, match="No space left on device"):
        write_bundle(bundle.folder, CONTENTS, {"memory_bank": writer(b"new"), "backbone": (".x", disk_full)})
    assert read_bundle(bundle.folder).file("memory_bank").read_bytes() == b"bank"


def test_a_bundle_that_another_process_is_writing_is_left_alone(bundle: Bundle) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def slow(path: Path) -> None:
        path.write_bytes(b"slow")
        begun.set()
        assert go_on.wait(30)

    with ThreadPoolExecutor() as threads:
        other = threads.submit(write_bundle, bundle.folder, CONTENTS, {"memory_bank": (".safetensors", slow)})
        assert begun.wait(30)
        write_bundle(bundle.folder, CONTENTS, {"memory_bank": writer(b"quick")})
        assert read_bundle(bundle.folder).file("memory_bank").read_bytes() == b"quick"
        go_on.set()
        assert other.result().file("memory_bank").read_bytes() == b"slow"
    assert len(list(bundle.folder.iterdir())) == 2


def test_several_writers_of_one_bundle_leave_one_whole_bundle(tmp_path: Path) -> None:
    def write(number: int) -> None:
        files = {role: writer(f"{role} {number % 3}".encode()) for role in ("memory_bank", "backbone")}
        write_bundle(tmp_path / "bundle", CONTENTS, files)

    with ThreadPoolExecutor(6) as threads:
        list(threads.map(write, range(30)))
    bundle = read_bundle(tmp_path / "bundle")
    (number,) = {bundle.file(role).read_bytes()[-1:] for role in ("memory_bank", "backbone")}
    assert number in b"012"
    assert len(list(bundle.folder.iterdir())) == 3


def test_a_bundle_that_cannot_be_committed_names_who_writes_it(bundle: Bundle) -> None:
    lock = ProcessLock(bundle.folder.with_name(".bundle.lock"))
    try:
        with pytest.raises(ResourceError, match=rf"in use by another process \(process {os.getpid()}\)"):
            write_bundle(bundle.folder, CONTENTS, {"memory_bank": writer(b"new")}, timeout_s=0.1)
    finally:
        lock.release()
    assert read_bundle(bundle.folder).file("memory_bank").read_bytes() == b"bank"


def test_equal_detectors_have_equal_fingerprints_whatever_their_names(tmp_path: Path, bundle: Bundle) -> None:
    files = {"memory_bank": writer(b"bank"), "backbone": writer(b"net")}
    twin = write_bundle(tmp_path / "twin", {**CONTENTS, "name": "twin"}, files)
    other = write_bundle(tmp_path / "other", CONTENTS, {**files, "backbone": writer(b"NET")})
    assert twin.fingerprint == bundle.fingerprint
    assert other.fingerprint != bundle.fingerprint


def test_a_folder_without_a_bundle_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no trained bundle here; run `cvad train`"):
        read_bundle(tmp_path)


def test_a_newer_schema_is_refused(bundle: Bundle) -> None:
    edit_manifest(bundle, schema_version=SCHEMA_VERSION + 1)
    with pytest.raises(BundleError, match=rf"schema version {SCHEMA_VERSION + 1}.*upgrade cvad"):
        read_bundle(bundle.folder)


def test_a_changed_file_is_refused(bundle: Bundle) -> None:
    bundle.file("backbone").write_bytes(b"nut")
    with pytest.raises(BundleError, match=r"backbone-\w+\.safetensors: has changed since it was trained"):
        read_bundle(bundle.folder)


def test_a_missing_file_is_refused(bundle: Bundle) -> None:
    bundle.file("backbone").unlink()
    with pytest.raises(BundleError, match=r"backbone-\w+\.safetensors is missing"):
        read_bundle(bundle.folder)


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "sub/file", ""])
def test_a_file_name_that_leaves_the_folder_is_refused(bundle: Bundle, name: str) -> None:
    edit_manifest(bundle, files={"memory_bank": {"name": name, "sha256": "0"}})
    with pytest.raises(BundleError, match="is not the name of a file in this folder"):
        read_bundle(bundle.folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "cannot be read as JSON"), ("[]", "has no schema_version"), ('{"schema_version": 1}', "names no files")],
)
def test_a_damaged_manifest_is_refused(bundle: Bundle, text: str, message: str) -> None:
    (bundle.folder / MANIFEST_NAME).write_text(text)
    with pytest.raises(BundleError, match=message):
        read_bundle(bundle.folder)


def test_an_unknown_role_names_those_there_are(bundle: Bundle) -> None:
    with pytest.raises(BundleError, match="names no 'index' file; it holds memory_bank, backbone"):
        bundle.file("index")


def test_an_edited_threshold_is_refused(tmp_path: Path) -> None:
    contents = {**CONTENTS, "calibration": {"threshold": 2.0}}
    bundle = write_bundle(tmp_path / "bundle", contents, {"memory_bank": writer(b"bank")})
    edit_manifest(bundle, calibration={"threshold": -1e9})
    with pytest.raises(BundleError, match="has been edited"):
        read_bundle(bundle.folder)


@pytest.mark.parametrize("error", [RuntimeError, "safetensors"])
def test_a_full_disk_inside_a_library_is_a_full_disk(tmp_path: Path, error) -> None:
    from safetensors import SafetensorError

    kind = SafetensorError if error == "safetensors" else error

    def disk_full(_path: Path) -> None:
        raise kind("No space left on device")

    with pytest.raises(ResourceError, match="No space left on device"):
        write_bundle(tmp_path / "bundle", CONTENTS, {"memory_bank": (".x", disk_full)})
