"""A trained detector on disk: `manifest.json` and the data files that it names. Data, never code.

The names of data files contain the hash of their content. The manifest is replaced in one rename after all data files
are written, so it is the commit point: a run that is killed at any moment leaves the former bundle or the new one.
When several processes write the same bundle, they commit one after the other, and the last one wins.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from cvad_cli import __version__
from cvad_cli.config.old_names import OLD_FILE_ROLES
from cvad_cli.errors import BundleError, ResourceError
from cvad_cli.files import LockedError, recover, replacing, scratch_folder, sync_file, sync_folder, taking_turns
from cvad_cli.files.digests import file_sha256

SCHEMA_VERSION: Final = 1
MANIFEST_NAME: Final = "manifest.json"
TRACKED_PACKAGES: Final = ("anomalib", "numpy", "scikit-learn", "timm", "torch")

FileWriter = Callable[[Path], None]


@dataclass(frozen=True, slots=True)
class Bundle:
    """A verified bundle: every file that the manifest names is there and unchanged."""

    folder: Path
    manifest: Mapping[str, Any]

    @property
    def fingerprint(self) -> str:
        """Hash over data files, model, preprocessing and calibration: equal for equal detectors."""
        return str(self.manifest["fingerprint"])

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles of the data files, such as 'memory_bank', by their present names."""
        return tuple(self._files)

    def file(self, role: str) -> Path:
        """Path of the data file with this role. Raises BundleError where there is none."""
        files = self._files
        if role not in files:
            raise BundleError(f"{self.folder / MANIFEST_NAME}: names no {role!r} file; it holds {', '.join(files)}")
        return self.folder / str(files[role]["name"])

    @property
    def _files(self) -> dict[str, Any]:
        return {OLD_FILE_ROLES.get(role, role): entry for role, entry in self.manifest["files"].items()}


def write_bundle(
    folder: Path,
    contents: Mapping[str, Any],
    writers: Mapping[str, tuple[str, FileWriter]],
    *,
    timeout_s: float = 60.0,
) -> Bundle:
    """Write the data files and then the manifest; then remove data files that the manifest no longer names.

    `contents` is JSON-ready and must not hold secrets. `writers` maps a role to (file suffix, a function that writes
    the file at a given path). Raises ResourceError where the disk is full, the folder cannot be written, or another
    process does not finish its commit within `timeout_s`.
    """
    try:
        with scratch_folder(folder) as scratch:
            files = {role: _write_file(scratch, role, suffix, write) for role, (suffix, write) in writers.items()}
            manifest = {
                "schema_version": SCHEMA_VERSION,
                "cvad_version": __version__,
                "created": dt.datetime.now(dt.timezone.utc).isoformat(timespec="seconds"),
                "versions": {name: version_of(name) for name in TRACKED_PACKAGES},
                **contents,
                "files": files,
                "fingerprint": _fingerprint(contents, files),
            }
            # One process at a time: none removes a data file that another one's manifest is about to name.
            with taking_turns(folder.with_name(f".{folder.name}.lock"), timeout_s=timeout_s):
                _commit(scratch, folder, manifest)
    except LockedError as error:
        raise ResourceError(f"{folder}: {error}, which writes this bundle; wait for it and try again") from error
    except OSError as error:
        raise ResourceError(
            f"{folder}: the bundle could not be written: {error.strerror or error}. The former bundle, if there was "
            "one, is untouched; free some space or set output.root to another disk."
        ) from error
    return Bundle(folder, manifest)


def read_bundle(folder: Path) -> Bundle:
    """Open and verify a bundle. Raises BundleError, which says what is wrong with it."""
    recover(folder)
    manifest = _read_manifest(folder)
    for role, entry in manifest["files"].items():
        if not isinstance(entry, dict):
            raise BundleError(f"{folder / MANIFEST_NAME}: {role}: expected a name and a sha256, got {entry!r}")
        name, expected = str(entry.get("name", "")), str(entry.get("sha256", ""))
        if not name or Path(name).name != name:
            raise BundleError(f"{folder / MANIFEST_NAME}: {role}: {name!r} is not the name of a file in this folder")
        path = folder / name
        if not path.is_file():
            raise BundleError(f"{folder}: {name} is missing; copy the whole folder again, or run `cvad train`")
        if file_sha256(path) != expected:
            raise BundleError(f"{path}: has changed since it was trained (sha256 differs); copy it again, or retrain")
    if _fingerprint(manifest, manifest["files"]) != manifest["fingerprint"]:
        raise BundleError(
            f"{folder / MANIFEST_NAME}: has been edited: its model, preprocessing or calibration do not fit its "
            "fingerprint; copy it again, or retrain"
        )
    return Bundle(folder, manifest)


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST_NAME
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise BundleError(f"{folder}: no trained bundle here; run `cvad train` with the same config first") from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise BundleError(f"{path}: cannot be read as JSON: {error}") from error
    found = manifest.get("schema_version") if isinstance(manifest, dict) else None
    if not isinstance(found, int) or found < 1:
        raise BundleError(f"{path}: has no schema_version; it is not a cvad bundle")
    if found > SCHEMA_VERSION:
        raise BundleError(
            f"{path}: has schema version {found}, this cvad {__version__} reads up to {SCHEMA_VERSION}; upgrade cvad"
        )
    if not isinstance(manifest.get("files"), dict) or not manifest.get("fingerprint"):
        raise BundleError(f"{path}: names no files; it is damaged")
    return dict(manifest)


def _write_file(scratch: Path, role: str, suffix: str, write: FileWriter) -> dict[str, Any]:
    """Write `<role>-<hash><suffix>` and force it to the disk."""
    with replacing(scratch / f"{role}{suffix}") as staged:
        _write_staged(staged, write)
    written = scratch / f"{role}{suffix}"
    sync_file(written)
    digest = file_sha256(written)
    name = f"{role}-{digest[:12]}{suffix}"
    written.replace(scratch / name)
    return {"name": name, "bytes": (scratch / name).stat().st_size, "sha256": digest}


def _commit(scratch: Path, folder: Path, manifest: Mapping[str, Any]) -> None:
    """Move the data files into place, then the manifest, then remove what it does not name."""
    files = manifest["files"]
    for entry in files.values():
        (scratch / entry["name"]).replace(folder / entry["name"])
    sync_folder(folder)
    with replacing(folder / MANIFEST_NAME) as staged:
        staged.write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    _remove_unnamed(folder, files)


def _write_staged(staged: Path, write: FileWriter) -> None:
    """Call `write`, and turn the errors that safetensors and torch raise for a full disk into OSError."""
    from safetensors import SafetensorError

    try:
        write(staged)
    except (SafetensorError, RuntimeError) as error:
        raise OSError(f"{str(error).splitlines()[0]} (is the disk full?)") from error


def _remove_unnamed(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> None:
    """Remove data files of former bundles, and of runs that were killed before they wrote the manifest."""
    keep = {str(entry["name"]) for entry in files.values()}
    for path in folder.iterdir():
        if path.is_file() and path.name not in keep and _is_data_file(path.name):
            path.unlink(missing_ok=True)


def _is_data_file(name: str) -> bool:
    stem, _, digest = name.rpartition(".")[0].rpartition("-")
    return bool(stem) and len(digest) == 12 and set(digest) <= set("0123456789abcdef")


def _fingerprint(contents: Mapping[str, Any], files: Mapping[str, Mapping[str, Any]]) -> str:
    what = {
        "model": contents.get("model"),
        "preprocessing": contents.get("preprocessing"),
        "calibration": contents.get("calibration"),
        "files": {role: entry.get("sha256") for role, entry in files.items()},
    }
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


def version_of(package: str) -> str | None:
    """The version of an installed package; None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
