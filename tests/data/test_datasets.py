from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cvad_cli.adapters.datasets import MVTEC_CATEGORIES, FolderLayout, fingerprint, load_folders, load_mvtec
from cvad_cli.errors import DataError
from cvad_cli.records import GOOD, Dataset, ImageRecord

Plant = Callable[..., Path]
SHARED_DATA = Path(os.environ.get("CVAD_DATA_ROOT") or Path(__file__).parents[3] / "shared" / "data")

MVTEC_FILES = (
    *("grid/train/good/000.png", "grid/train/good/001.png", "grid/test/good/000.png"),
    *("grid/test/bent/000.png", "grid/test/bent/001.png", "grid/test/glue/000.png"),
    *("grid/ground_truth/bent/000_mask.png", "grid/ground_truth/glue/000_mask.png", "grid/readme.txt"),
)


@pytest.fixture
def plant(tmp_path: Path) -> Plant:
    """Write small files below a folder, each of its own content, and return the folder."""

    def write(*names: str, under: str = "data") -> Path:
        root = tmp_path / under
        root.mkdir(exist_ok=True)
        for name in names:
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((2, 2), sum(name.encode()) % 256, np.uint8)).save(path, "PNG")
        return root

    return write


def seen(records: Iterable[ImageRecord], root: Path) -> list[tuple[str, str, str | None]]:
    """(key, type, mask below the root) of each record."""
    return [
        (record.key, record.defect_type, record.mask_path and record.mask_path.relative_to(root).as_posix())
        for record in records
    ]


def keys(records: Iterable[ImageRecord]) -> list[str]:
    return [record.key for record in records]


def folders(root: Path, *, labels: str | None = None, **layout: object) -> Dataset:
    """Load plain folders; `labels` is the content of a labels.csv."""
    if labels is not None:
        (root / "labels.csv").write_text(labels, encoding="utf-8")
        layout["labels"] = "labels.csv"
    return load_folders(root, FolderLayout(**layout), name="plant")


def test_the_mvtec_layout_is_read_with_its_types_and_masks(plant: Plant) -> None:
    root = plant(*MVTEC_FILES)
    data = load_mvtec(root, "grid")
    assert data.name == "grid"
    assert keys(data.train) == ["train/good/000.png", "train/good/001.png"]
    assert all(record.is_normal for record in data.train)
    assert seen(data.test, root / "grid") == [
        ("test/bent/000.png", "bent", "ground_truth/bent/000_mask.png"),
        ("test/bent/001.png", "bent", None),
        ("test/glue/000.png", "glue", "ground_truth/glue/000_mask.png"),
        ("test/good/000.png", GOOD, None),
    ]
    assert data.train[0].path == root / "grid/train/good/000.png"


def test_there_are_fifteen_official_categories() -> None:
    assert len(set(MVTEC_CATEGORIES)) == 15
    assert list(MVTEC_CATEGORIES) == sorted(MVTEC_CATEGORIES)


@pytest.mark.parametrize("category", ["", "grid"])
def test_the_root_may_be_the_category_itself(plant: Plant, category: str) -> None:
    root = plant(*MVTEC_FILES) / "grid"
    data = load_mvtec(root, category)
    assert (data.name, len(data.train), len(data.test)) == ("grid", 2, 4)


def test_any_other_category_counts_whose_folder_exists(plant: Plant) -> None:
    data = load_mvtec(plant("brake pads/train/good/ä.png"), "brake pads")
    assert (data.name, keys(data.train), data.test) == ("brake pads", ["train/good/ä.png"], ())


def test_hidden_files_other_files_and_upper_case_suffixes_are_sorted_out(plant: Plant) -> None:
    good = "grid/train/good"
    root = plant(
        *(f"{good}/{name}" for name in ("B.PNG", "a.Jpg", "10.tif", "9.TIFF", "c.bmp", "d.webp", "e.jpeg")),
        *(f"{good}/{name}" for name in (".hidden.png", "._a.png", "Thumbs.db", ".DS_Store", "notes.txt", "f.gif")),
        *(f"{good}/{name}/x.png" for name in (".ipynb_checkpoints", "__MACOSX", "shift 2/camera.png")),
    )
    names = ["10.tif", "9.TIFF", "B.PNG", "a.Jpg", "c.bmp", "d.webp", "e.jpeg", "shift 2/camera.png/x.png"]
    assert keys(load_mvtec(root, "grid").train) == [f"train/good/{name}" for name in names]


def test_a_mask_is_found_by_name_whatever_its_format(plant: Plant) -> None:
    root = plant(
        *(
            "a/train/good/0.png",
            "a/test/cut/x.jpg",
            "a/test/cut/deep/y.png",
            "a/test/cut/z_mask.png",
            "a/test/cut/w.png",
        ),
        *("a/ground_truth/cut/x.BMP", "a/ground_truth/cut/deep/y_mask.tif", "a/ground_truth/cut/z_mask_mask.png"),
        *("a/ground_truth/cut/w.png", "a/ground_truth/cut/w_mask.png"),
    )
    assert [mask for *_, mask in seen(load_mvtec(root, "a").test, root / "a")] == [
        "ground_truth/cut/deep/y_mask.tif",
        "ground_truth/cut/w_mask.png",
        "ground_truth/cut/x.BMP",
        "ground_truth/cut/z_mask_mask.png",
    ]


MVTEC_MISTAKES = [
    pytest.param("gird", r"no category 'gird' in it \(there: grid\); did you mean 'grid'\?", id="misspelt"),
    pytest.param("lether", r"did you mean 'leather'\?", id="an official name misspelt"),
    pytest.param("leather", r"\(there: grid\); datasets/README\.md explains how to get MVTec AD", id="not downloaded"),
    pytest.param("../data/grid", r"data\.category '\.\./data/grid': leads out of the data set", id="leads out"),
    pytest.param("/etc", r"data\.category '/etc': leads out of the data set", id="absolute"),
    pytest.param("C:\\grid", r"leads out of the data set", id="absolute on Windows"),
    pytest.param("x" * 300, r"no category 'x", id="too long"),
    pytest.param("", r"no category '' in it \(there: grid\)", id="none"),
]


@pytest.mark.parametrize(("category", "message"), MVTEC_MISTAKES)
def test_a_category_that_is_not_there_is_named(plant: Plant, category: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_mvtec(plant(*MVTEC_FILES), category)


def test_folders_that_are_missing_or_empty_are_named(plant: Plant, tmp_path: Path) -> None:
    root = plant(*MVTEC_FILES, "a/train/readme.txt", "b/test/bent/0.png", "c/train/good/notes.txt")
    cases = {
        (tmp_path / "absent", "grid"): r"absent: no such folder; datasets/README\.md explains",
        (root / "grid" / "readme.txt", "grid"): r"readme\.txt: no such folder",
        (root, "a"): r"a/train/good: no such folder",
        (root, "b"): r"b: has no folder train/good",
        (root, "c"): r"c/train/good: no images in it; looked for \.bmp, \.jpeg",
    }
    for (folder, category), message in cases.items():
        with pytest.raises(DataError, match=message):
            load_mvtec(folder, category)


def test_a_loose_image_in_test_and_an_empty_type_are_named(plant: Plant) -> None:
    root = plant(*MVTEC_FILES)
    (root / "grid/test/cut").mkdir()
    with pytest.raises(DataError, match=r"test/cut: no images in it"):
        load_mvtec(root, "grid")
    plant("grid/test/stray.png")
    with pytest.raises(DataError, match=r"stray\.png: lies in no type's folder; move it to test/good"):
        load_mvtec(root, "grid")


def test_two_masks_of_one_name_are_an_error(plant: Plant) -> None:
    root = plant(*MVTEC_FILES, "grid/ground_truth/bent/000_mask.bmp")
    with pytest.raises(DataError, match=r"000_mask\.png: is a second mask of that name beside .*000_mask\.bmp"):
        load_mvtec(root, "grid")


PLANT_FILES = (
    *("ok/1.png", "ok/2.png", "ok_later/1.png", "scratch/1.png", "scratch/2.png"),
    *("defects/dent/1.png", "defects/stain/deep/1.png", "defects/good/9.png"),
)


def test_plain_folders_give_types_by_folder_or_subfolder(plant: Plant) -> None:
    root = plant(*PLANT_FILES)
    data = folders(root, normal_dir="ok", test_normal_dir="./ok_later/", abnormal_dirs=("scratch", "defects"))
    assert data.name == "plant"
    assert keys(data.train) == ["ok/1.png", "ok/2.png"]
    assert [(key, kind) for key, kind, _ in seen(data.test, root)] == [
        ("defects/dent/1.png", "dent"),
        ("defects/good/9.png", GOOD),
        ("defects/stain/deep/1.png", "stain"),
        ("ok_later/1.png", GOOD),
        ("scratch/1.png", "scratch"),
        ("scratch/2.png", "scratch"),
    ]


@pytest.mark.parametrize(
    "mask",
    ["scratch/1_mask.png", "scratch/1.bmp", "1.TIF", "1_mask.png"],
    ids=["type and name", "another format", "name alone", "name and _mask"],
)
def test_masks_mirror_the_images(plant: Plant, mask: str) -> None:
    root = plant("ok/1.png", "scratch/1.png", f"masks/{mask}")
    data = folders(root, normal_dir="ok", abnormal_dirs=("scratch",), mask_dir="masks")
    assert seen(data.test, root) == [("scratch/1.png", "scratch", f"masks/{mask}")]


def test_masks_may_mirror_the_whole_path(plant: Plant) -> None:
    root = plant("ok/1.png", "line/a/dent/1.png", "masks/line/a/dent/1.png", "masks/dent/1.png")
    data = folders(root, normal_dir="ok", abnormal_dirs=("line/a",), mask_dir="masks")
    assert seen(data.test, root) == [("line/a/dent/1.png", "dent", "masks/line/a/dent/1.png")]


LAYOUT_MISTAKES = [
    pytest.param({"normal_dir": "absent"}, r"absent: no such folder", id="no normal folder"),
    pytest.param({"normal_dir": "../data/ok"}, r"'\.\./data/ok': leads out of the data set", id="leads out"),
    pytest.param({"abnormal_dirs": ("ok_later", "nope")}, r"nope: no such folder", id="no abnormal folder"),
    pytest.param({"mask_dir": "nope"}, r"nope: no such folder", id="no mask folder"),
    pytest.param({"test_normal_dir": "ok"}, r"ok/1\.png: is in both train and test, as ok/1\.png", id="same folder"),
    pytest.param({"abnormal_dirs": (".",)}, r"is in both train and test", id="a folder around the other"),
    pytest.param(
        {"abnormal_dirs": ("scratch", "scratch")}, r"scratch/1\.png: is in two of the folders", id="listed twice"
    ),
    pytest.param({"abnormal_dirs": ("defects/good",)}, r"named 'good'; list it as test_normal_dir", id="good is bad"),
    pytest.param(
        {"abnormal_dirs": ("mixed",)}, r"mixed: holds images and also mixed/dent/1\.png; keep one type", id="mixed"
    ),
    pytest.param(
        {"abnormal_dirs": ("scratch",), "mask_dir": "masks"},
        r"none of its 1 masks fits an image; expected .*masks/scratch/1_mask\.png",
        id="masks of other names",
    ),
    pytest.param(
        {"abnormal_dirs": ("scratch", "defects"), "mask_dir": "one"},
        r"one/1\.png: fits both defects/dent/1\.png and .*; keep masks in one folder per type",
        id="one mask for two",
    ),
]


@pytest.mark.parametrize(("layout", "message"), LAYOUT_MISTAKES)
def test_a_layout_that_does_not_fit_is_named(plant: Plant, layout: dict, message: str) -> None:
    root = plant(*PLANT_FILES, "mixed/1.png", "mixed/dent/1.png", "masks/other.png", "one/1.png")
    with pytest.raises(DataError, match=message):
        folders(root, **{"normal_dir": "ok", **layout})


def test_labels_alone_make_a_data_set(plant: Plant) -> None:
    root = plant(
        "images/a.png", "images/b.png", "images/c, d.png", "images/e.png", "masks/c.png", "images/unlisted.png"
    )
    labels = (
        "Path, LABEL ,split,mask\r\n"
        "images/a.png,good,,\r\n"
        "\r\n"
        "./images/b.png,Good,Test,\r\n"
        '"images/c, d.png",dent,,masks/c.png\r\n'
        "images\\e.png, deep scratch ,test,\r\n"
    )
    data = folders(root, labels="\ufeff" + labels)
    assert seen(data.train, root) == [("images/a.png", GOOD, None)]
    assert seen(data.test, root) == [
        ("images/b.png", GOOD, None),
        ("images/c, d.png", "dent", "masks/c.png"),
        ("images/e.png", "deep scratch", None),
    ]


def test_labels_overrule_the_folders_and_leave_the_rest(plant: Plant) -> None:
    root = plant(*PLANT_FILES, "ok/3.png", "ok/4.png", "elsewhere.png", "masks/dent/3.png", "masks/scratch/2_mask.png")
    labels = "path;label;split\nok/3.png;dent;\nok/4.png;good;test\nscratch/1.png;good;\nelsewhere.png;good;\n"
    layout = {"normal_dir": "ok", "abnormal_dirs": ("scratch",), "mask_dir": "masks"}
    data = folders(root, labels=labels, **layout)
    assert keys(data.train) == ["elsewhere.png", "ok/1.png", "ok/2.png"]
    assert seen(data.test, root) == [
        ("ok/3.png", "dent", "masks/dent/3.png"),
        ("ok/4.png", GOOD, None),
        ("scratch/1.png", GOOD, None),
        ("scratch/2.png", "scratch", "masks/scratch/2_mask.png"),
    ]


LABEL_MISTAKES = [
    pytest.param(
        "file,label\nok/1.png,good\n", r"labels\.csv, line 1: the columns are file, label; expected path", id="c"
    ),
    pytest.param("path,label,splt\n", r"line 1: the columns are path, label, splt; expected", id="a column misspelt"),
    pytest.param("path,label,path\n", r"line 1: the columns are path, label, path", id="a column twice"),
    pytest.param("", r"labels\.csv, line 1: the columns are missing", id="empty"),
    pytest.param(
        "path,label\n\nok/9.png,good\n", r"line 3: no file .*ok/9\.png; paths are relative", id="unknown path"
    ),
    pytest.param("path,label\nok,good\n", r"line 2: no file .*ok; paths", id="a folder"),
    pytest.param(f"path,label\n{'x' * 300},good\n", r"line 2: no file", id="a path too long"),
    pytest.param("path,label\nok/1.png\n", r"line 2: 1 cells in 2 columns; quote", id="a cell missing"),
    pytest.param("path,label\nok/1.png,good,x\n", r"line 2: 3 cells in 2 columns; quote", id="a cell too many"),
    pytest.param("path,label\nok/1.png,\n", r"line 2: the label is empty; write 'good'", id="no label"),
    pytest.param("path,label,split\nok/1.png,good,val\n", r"line 2: split is 'val'; write train or test", id="a split"),
    pytest.param("path,label,split\nok/1.png,dent,train\n", r"line 2: ok/1\.png is 'dent' in split train", id="defect"),
    pytest.param(
        "path,label\nok/1.png,good\n./ok/1.png,dent\n",
        r"line 3: ok/1\.png is listed again, first in .*line 2",
        id="twice",
    ),
    pytest.param("path,label\n../data/ok/1.png,good\n", r"line 2: .*leads out of the data set", id="leads out"),
    pytest.param("path,label\nok\\..\\..\\x.png,good\n", r"line 2: .*leads out of the data set", id="back-slashes"),
    pytest.param("path,label\n/etc/passwd,good\n", r"line 2: '/etc/passwd': leads out", id="absolute"),
    pytest.param("path,label\nC:\\a.png,good\n", r"line 2: .*leads out", id="absolute on Windows"),
    pytest.param("path,label,mask\nok/1.png,dent,../m.png\n", r"line 2: '\.\./m\.png': leads out", id="a mask outside"),
    pytest.param("path,label,mask\nok/1.png,dent,m.png\n", r"line 2: no file .*m\.png", id="an unknown mask"),
    pytest.param('path,label\n"ok/1.png,good\n', r"labels\.csv, line 2: is not CSV", id="an open quote"),
    pytest.param("path,label\nok/1.png,dent\nok/2.png,dent\n", r"no good training images", id="nothing to learn from"),
]


@pytest.mark.parametrize(("labels", "message"), LABEL_MISTAKES)
def test_a_label_file_that_does_not_fit_is_named_with_its_line(plant: Plant, labels: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        folders(plant("ok/1.png", "ok/2.png"), labels=labels, normal_dir="ok")


def test_a_label_file_that_cannot_be_read_is_named(plant: Plant) -> None:
    root = plant("ok/1.png")
    with pytest.raises(DataError, match=r"absent\.csv: cannot be read \(No such file or directory\); data\.labels is"):
        load_folders(root, FolderLayout(labels="absent.csv"), name="plant")
    (root / "latin.csv").write_bytes("path,label\nok/1.png,good\nok/süß.png,good\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"latin\.csv, line 3: is not UTF-8 .*; save it as CSV UTF-8"):
        load_folders(root, FolderLayout(labels="latin.csv"), name="plant")


def test_a_link_inside_the_data_set_is_followed_and_one_that_leads_out_is_not(plant: Plant, tmp_path: Path) -> None:
    root = plant("ok/1.png", "pool/2.png", "bad/1.png")
    outside = plant("secret.png", under="elsewhere") / "secret.png"
    (root / "ok/2.png").symlink_to(root / "pool/2.png")
    assert keys(folders(root, normal_dir="ok").train) == ["ok/1.png", "ok/2.png"]
    targets = {
        "out.png": (outside, "is a link that leads out of"),
        "loop.png": (root / "ok/loop.png", "is a link that leads nowhere"),
        "broken.png": (root / "nothing.png", "is a link that leads nowhere"),
        "sub": (root / "ok", "is a link to a folder, not followed"),
    }
    for name, (target, message) in targets.items():
        (root / "ok" / name).symlink_to(target)
        with pytest.raises(DataError, match=f"ok/{name}: {message}"):
            folders(root, normal_dir="ok")
        (root / "ok" / name).unlink()
    (root / "away").symlink_to(outside.parent)
    with pytest.raises(DataError, match="away: is a link that leads out of"):
        folders(root, normal_dir="ok", abnormal_dirs=("away",))
    with pytest.raises(DataError, match=r"labels\.csv, line 2|away/secret\.png: is a link that leads out of"):
        folders(root, normal_dir="ok", labels="path,label\naway/secret.png,dent\n")


def test_the_whole_data_set_may_be_a_link(plant: Plant, tmp_path: Path) -> None:
    root = plant(*MVTEC_FILES)
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "grid").symlink_to(root / "grid")
    assert len(load_mvtec(tmp_path / "here", "grid").train) == 2


def test_a_image_in_both_halves_is_named_even_under_another_name(plant: Plant) -> None:
    root = plant(*MVTEC_FILES)
    (root / "grid/test/good/zzz.png").symlink_to(root / "grid/train/good/000.png")
    with pytest.raises(
        DataError, match=r"train/good/000\.png: is in both train and test, as test/good/zzz\.png; keep it in one half"
    ):
        load_mvtec(root, "grid")


def test_what_is_no_file_or_has_no_utf8_name_is_refused(plant: Plant) -> None:
    root = plant("ok/1.png")
    os.mkfifo(root / "ok/pipe.png")
    with pytest.raises(DataError, match=r"pipe\.png: is not a regular file"):
        folders(root, normal_dir="ok")
    (root / "ok/pipe.png").unlink()
    Path(os.fsdecode(os.fsencode(root / "ok") + b"/\xff.png")).touch()
    with pytest.raises(DataError, match=r"udcff\.png': its name is not UTF-8; rename the file"):
        folders(root, normal_dir="ok")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may list every folder")
def test_a_folder_that_may_not_be_listed_is_named(plant: Plant) -> None:
    root = plant("ok/1.png", "ok/closed/2.png")
    (root / "ok/closed").chmod(0)
    with pytest.raises(DataError, match=r"closed: cannot be listed"):
        folders(root, normal_dir="ok")
    (root / "ok/closed").chmod(0o755)


def test_the_fingerprint_tells_content_and_labels_but_not_path_or_order(plant: Plant) -> None:
    here, there = (load_mvtec(plant(*MVTEC_FILES, under=name), "grid") for name in ("one", "two"))
    print_of = fingerprint(here.test)
    assert print_of == fingerprint(there.test) == fingerprint(tuple(reversed(here.test)))
    assert len(print_of) == 64
    assert print_of != fingerprint(here.test[1:])
    assert fingerprint(here.train) != print_of
    changed = {print_of}
    for path in (there.test[0].path, there.test[0].mask_path):
        assert path is not None
        path.write_bytes(path.read_bytes() + b"\0")
        changed.add(fingerprint(there.test))
    relabelled = ImageRecord(there.test[0].path, there.test[0].key, "dent", there.test[0].mask_path)
    changed.add(fingerprint((relabelled, *there.test[1:])))
    assert len(changed) == 4


def test_the_fingerprint_names_a_file_that_is_gone(plant: Plant) -> None:
    record = ImageRecord(plant() / "gone.png", "gone.png", GOOD)
    with pytest.raises(DataError, match=r"gone\.png: cannot be read \(No such file or directory\)"):
        fingerprint([record])


@pytest.mark.skipif(
    not (SHARED_DATA / "mvtec_ad/grid").is_dir(), reason=f"no MVTec AD grid in {SHARED_DATA}; set CVAD_DATA_ROOT"
)
def test_the_real_grid_is_counted_right() -> None:
    data = load_mvtec(SHARED_DATA / "mvtec_ad", "grid")
    assert (len(data.train), len(data.test)) == (264, 78)
    counts = {kind: sum(r.defect_type == kind for r in data.test) for kind in {r.defect_type for r in data.test}}
    assert counts == {"good": 21, "bent": 12, "broken": 12, "glue": 11, "metal_contamination": 11, "thread": 11}
    assert sum(record.mask_path is not None for record in data.test) == 57


@pytest.mark.skipif(
    not (SHARED_DATA / "leather_crops").is_dir(), reason=f"no leather_crops in {SHARED_DATA}; set CVAD_DATA_ROOT"
)
def test_the_real_leather_crops_are_counted_right() -> None:
    data = load_mvtec(SHARED_DATA, "leather_crops")
    assert (len(data.train), len(data.test)) == (64, 155)
    assert sum(record.mask_path is not None for record in data.test) == 91
