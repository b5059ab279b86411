"""Data sets on disk -> records: the MVTec AD layout, and plain folders with an optional labels.csv.

No image is decoded. Hidden names and files without an image suffix are skipped. What looks like a mistake is an error:
an empty folder, an image in both halves, a link or a path that leaves the data set. Records are sorted by key.
"""

from __future__ import annotations

import difflib
import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Final

from cvad_cli.adapters.datasets.labels import read_labels
from cvad_cli.errors import DataError
from cvad_cli.files.digests import file_sha256
from cvad_cli.records import GOOD, Dataset, ImageRecord

IMAGE_SUFFIXES: Final = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
MVTEC_CATEGORIES: Final = (
    *("bottle", "cable", "capsule", "carpet", "grid", "hazelnut", "leather", "metal_nut"),
    *("pill", "screw", "tile", "toothbrush", "transistor", "wood", "zipper"),
)


@dataclass(frozen=True)
class FolderLayout:
    """The folders of a data set of plain folders; every path is relative to its root."""

    normal_dir: str = "train/good"
    """Good training images. May be absent if `labels` names them."""
    abnormal_dirs: tuple[str, ...] = ()
    """Folders of one defect type, or with one subfolder per type; a subfolder `good` holds good parts."""
    mask_dir: str | None = None
    """Defect masks named as the image's key, type/name or name, with or without `_mask`, in any image format."""
    test_normal_dir: str | None = None
    """Good test images."""
    labels: str | None = None
    """A CSV file of path, label and optionally split and mask, which adds to the folders and overrides them."""


@dataclass(frozen=True, slots=True)
class _Found:
    """An image on its way to a record. `mask_names`: where a mask folder may hold its mask, best first, no suffix."""

    key: str
    kind: str
    split: str
    mask_names: tuple[str, ...] = ()
    mask_path: Path | None = None


def load_mvtec(root: Path, category: str) -> Dataset:
    """List `root/category` in MVTec AD's layout: train/good, test/<type>, ground_truth/<type>/<name>_mask.png.

    `root` may be the category's folder itself, with an empty category or one of the folder's name. Keys are relative
    to the category's folder. Without test/ the test half is empty; a defect without a mask has none. Raises DataError.
    """
    home = _mvtec_home(root, category)
    found = [_Found(key, GOOD, "train") for key in _keys(home, "train/good")]
    for kind in _test_types(home):
        keys = _keys(home, f"test/{kind}")
        found += [_Found(key, _kind(kind), "test", (_stem(key, "test"),)) for key in keys]
    masks = _masks(home, "ground_truth") if _is_folder(home / "ground_truth") else {}
    return _dataset(category or home.resolve().name, home, found, masks)


def load_folders(root: Path, layout: FolderLayout, *, name: str) -> Dataset:
    """List the images of plain folders under `root`, then add or override images by the rows of `layout.labels`.

    Keys are relative to `root`. Raises DataError naming the folder, or the label file and its line.
    """
    _require_folder(root, "set data.root to the folder that holds the images")
    rows = {} if layout.labels is None else read_labels(root / layout.labels)
    found = list(_folder_images(root, layout))
    listed = {p.key: p for p in _labelled(root, rows, {p.key: p for p in found})}
    masks = {} if layout.mask_dir is None else _masks(root, layout.mask_dir)
    dataset = _dataset(name, root, [p for p in found if p.key not in listed] + [*listed.values()], masks)
    defects = [record for record in dataset.test if not record.is_normal]
    if masks and defects and all(record.mask_path is None for record in defects):
        stem, folder = _stem(defects[0].key), f"{root / str(layout.mask_dir)}"
        raise DataError(f"{folder}: none of its {len(masks)} masks fits an image; expected {folder}/{stem}_mask.png")
    return dataset


def fingerprint(records: Iterable[ImageRecord]) -> str:
    """SHA-256 over key, type and content of images and masks, whatever the records' order or the data set's path.

    Hashes contents, not sizes or dates: the 125 MB of grid take about 0.2 s. Raises DataError for an unreadable file.
    """
    whole = hashlib.sha256()
    try:
        for record in sorted(records, key=lambda record: record.key):
            files = [record.path] if record.mask_path is None else [record.path, record.mask_path]
            whole.update(("\0".join((record.key, record.defect_type, *map(file_sha256, files))) + "\n").encode())
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be read ({error.strerror}); check its permissions") from error
    return whole.hexdigest()


def _mvtec_home(root: Path, category: str) -> Path:
    """The folder that holds train/ and test/. Raises a DataError with a remedy if there is none."""
    if category and _is_folder(root / _relative(category, f"data.category {category!r}") / "train"):
        return root / category
    if category in {"", root.resolve().name} and _is_folder(root / "train"):
        return root
    known = category in MVTEC_CATEGORIES
    remedy = "datasets/README.md explains how to get MVTec AD" if known else "set data.root and data.category"
    _require_folder(root, remedy)
    if category and _is_folder(root / category):
        raise DataError(f"{root / category}: has no folder train/good, where the good training images belong")
    there = [entry.name for entry in _entries(root) if _is_folder(entry / "train")]
    near = difflib.get_close_matches(category, [*there, *MVTEC_CATEGORIES], n=1)
    guess = f"; did you mean {near[0]!r}?" if near and near[0] != category else ""
    raise DataError(f"{root}: no category {category!r} in it (there: {', '.join(there) or 'none'}){guess}; {remedy}")


def _test_types(home: Path) -> list[str]:
    """The defect types, and good, that have a folder in test/."""
    entries = _entries(home / "test") if _is_folder(home / "test") else []
    for entry in entries:
        if _is_image_name(entry.name) and not _is_folder(entry):
            raise DataError(f"{entry}: lies in no type's folder; move it to test/good or to a folder of its defect")
    return [entry.name for entry in entries if _is_folder(entry) and not _is_hidden(entry.name)]


def _folder_images(root: Path, layout: FolderLayout) -> Iterator[_Found]:
    """The images of the folders, without the label file."""
    if layout.labels is None or _is_folder(root / layout.normal_dir):
        yield from (_Found(key, GOOD, "train") for key in _keys(root, layout.normal_dir))
    if layout.test_normal_dir is not None:
        yield from (_Found(key, GOOD, "test") for key in _keys(root, layout.test_normal_dir))
    for folder in layout.abnormal_dirs:
        yield from _abnormal_images(root, folder)


def _abnormal_images(root: Path, folder: str) -> Iterator[_Found]:
    """One folder of `abnormal_dirs`: the type is its own name, or that of each subfolder."""
    kind = PurePosixPath(folder).name
    keys = _keys(root, folder)
    nested = [key for key in keys if "/" in _stem(key, folder)]
    if nested and len(nested) < len(keys):
        raise DataError(f"{root / folder}: holds images and also {nested[0]}; keep one type, or a subfolder for each")
    if _kind(kind) == GOOD and not nested:
        raise DataError(f"{root / folder}: is listed in abnormal_dirs but named {GOOD!r}; list it as test_normal_dir")
    for key in keys:
        typed = _stem(key, folder) if nested else f"{kind}/{_stem(key, folder)}"
        subfolder, name = typed.split("/", 1)
        yield _Found(key, _kind(subfolder), "test", (_stem(key), typed, name))


def _labelled(root: Path, rows: Mapping[str, dict[str, str]], known: Mapping[str, _Found]) -> Iterator[_Found]:
    """The images that the rows of the label file name, as the rows say."""
    locations: dict[str, str] = {}
    for location, row in rows.items():
        key = _listed_file(root, row["path"], location)
        if key in locations:
            raise DataError(f"{location}: {key} is listed again, first in {locations[key]}; remove one of the two rows")
        locations[key] = location
        yield _from_row(root, key, row, known.get(key), location)


def _from_row(root: Path, key: str, row: Mapping[str, str], known: _Found | None, location: str) -> _Found:
    kind = _kind(row["label"])
    split = row["split"].lower()
    if not kind:
        raise DataError(f"{location}: the label is empty; write {GOOD!r} or the name of the defect type")
    if split not in {"", "train", "test"}:
        raise DataError(f"{location}: split is {row['split']!r}; write train or test, or leave it empty")
    if kind != GOOD and split == "train":
        raise DataError(f"{location}: {key} is {kind!r} in split train; training takes {GOOD!r} images only")
    if not split:
        split = "test" if kind != GOOD else known.split if known else "train"
    name = PurePosixPath(key).stem
    names = (*(known.mask_names if known else ()), _stem(key), f"{kind}/{name}", name)
    mask = root / _listed_file(root, row["mask"], location) if row["mask"] else None
    return _Found(key, kind, split, names, mask)


def _listed_file(root: Path, text: str, location: str) -> str:
    """The key of a file that a row names."""
    key = _relative(text.replace("\\", "/"), f"{location}: {text!r}")
    if not os.path.isfile(root / key):  # noqa: PTH113  Path.is_file raises for a name that is too long
        raise DataError(f"{location}: no file {root / key}; paths are relative to {root}")
    _require_inside(root, root / key)
    return key


def _dataset(name: str, root: Path, found: Iterable[_Found], masks: Mapping[str, str]) -> Dataset:
    """Check the two halves against each other, give each defect its mask, and sort by key."""
    halves: dict[str, list[ImageRecord]] = {"train": [], "test": []}
    met: dict[str, _Found] = {}
    served: dict[Path, str] = {}
    for image in sorted(found, key=lambda image: image.key):
        other = met.setdefault(os.path.realpath(root / image.key), image)
        if other.split != image.split:
            raise DataError(f"{root / image.key}: is in both train and test, as {other.key}; keep it in one half")
        if other is not image and other.key == image.key:
            raise DataError(f"{root / image.key}: is in two of the folders that data lists; list each folder once")
        names = (name + ending for name in image.mask_names for ending in ("_mask", ""))
        named = (root / masks[name] for name in names if name in masks)
        mask = None if image.kind == GOOD else image.mask_path or next(named, None)
        if mask is not None and served.setdefault(mask, image.key) != image.key:
            raise DataError(f"{mask}: fits both {served[mask]} and {image.key}; keep masks in one folder per type")
        halves[image.split].append(ImageRecord(root / image.key, image.key, image.kind, mask))
    if not halves["train"]:
        raise DataError(f"{root}: no good training images; set data.normal_dir, or label some good in split train")
    return Dataset(name, tuple(halves["train"]), tuple(halves["test"]))


def _masks(root: Path, folder: str) -> dict[str, str]:
    """Masks below a folder: path relative to it, without suffix -> key."""
    masks: dict[str, str] = {}
    for key in _keys(root, folder):
        other = masks.setdefault(_stem(key, folder), key)
        if other != key:
            raise DataError(f"{root / key}: is a second mask of that name beside {other}; remove one of the two")
    return masks


def _keys(root: Path, folder: str) -> list[str]:
    """Keys of the images below a folder of the data set, sorted. Raises DataError where there is none."""
    top = root / _relative(folder, f"{root}: folder {folder!r}")
    _require_folder(top, "check the data section of the config")
    _require_inside(root, top)
    keys: list[str] = []
    faults: list[OSError] = []
    for here, folders, files in os.walk(top, onerror=faults.append):
        folders[:] = [name for name in folders if not _is_hidden(name)]
        for name in folders:
            if Path(here, name).is_symlink():
                raise DataError(f"{Path(here, name)}: is a link to a folder, not followed; move the folder here")
        keys += [_checked_key(root, Path(here, name)) for name in files if _is_image_name(name)]
    if faults:
        raise _unlistable(faults[0])
    if not keys:
        raise DataError(f"{top}: no images in it; looked for {', '.join(sorted(IMAGE_SUFFIXES))}")
    return sorted(keys)


def _checked_key(root: Path, path: Path) -> str:
    if path.is_symlink():
        _require_inside(root, path)
    if not path.is_file():
        raise DataError(f"{path}: is not a regular file; remove it")
    key = path.relative_to(root).as_posix()
    try:
        key.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{str(path)!a}: its name is not UTF-8; rename the file") from error
    return key


def _unlistable(error: OSError) -> DataError:
    return DataError(f"{error.filename}: cannot be listed ({error.strerror}); check its permissions")


def _kind(label: str) -> str:
    return GOOD if label.casefold() == GOOD else label


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _is_image_name(name: str) -> bool:
    return not _is_hidden(name) and PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES


def _stem(key: str, folder: str = "") -> str:
    """The key below a folder, without its suffix."""
    return PurePosixPath(key).relative_to(folder).with_suffix("").as_posix()


def _is_folder(path: Path) -> bool:
    return os.path.isdir(path)  # noqa: PTH112  Path.is_dir raises for a name that is too long


def _require_folder(folder: Path, remedy: str) -> None:
    if not _is_folder(folder):
        raise DataError(f"{folder}: no such folder; {remedy}")


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise _unlistable(error) from error


def _relative(text: str, location: str) -> str:
    """A path below the data set's root, with forward slashes; a DataError for one that leads out of it."""
    path = PurePosixPath(text)
    if ".." in path.parts or path.is_absolute() or PureWindowsPath(text).anchor:
        raise DataError(f"{location}: leads out of the data set; give a path below data.root, without '..'")
    return path.as_posix()


def _require_inside(root: Path, path: Path) -> None:
    """Follow the links of a path: they must end at something inside the data set's root."""
    try:
        inside = path.resolve(strict=True).is_relative_to(root.resolve())
    except (OSError, RuntimeError) as error:
        raise DataError(f"{path}: is a link that leads nowhere; remove it or repair it") from error
    if not inside:
        raise DataError(f"{path}: is a link that leads out of {root}; copy the file, or set data.root above both")
