"""Generated data sets in MVTec AD's layout, written with Pillow, for `cvad demo` and the tests."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from cvad_cli import __version__
from cvad_cli.core.textures import SMALLEST_PX, TEXTURES, defective_texture, normal_texture
from cvad_cli.errors import DataError
from cvad_cli.files import replacing_folder
from cvad_cli.records import GOOD

PLAN_NAME: Final = "sample_data.json"
"""The file that marks a folder as generated and holds its plan."""


@dataclass(frozen=True, slots=True)
class _Plan:
    """Everything that a generated set depends on."""

    category: str
    size: int
    train: int
    test_good: int
    per_defect: int
    seed: int
    cvad_version: str = __version__

    @property
    def problem(self) -> str | None:
        """What makes the plan impossible, if anything does."""
        if self.category not in TEXTURES:
            return f"no look-alike of {self.category!r}; there are {', '.join(TEXTURES)}"
        minimums = {"size": SMALLEST_PX, "train": 1, "test_good": 0, "per_defect": 0, "seed": 0}
        for name, bound in minimums.items():
            value = getattr(self, name)
            if type(value) is not int or value < bound:
                return f"{name}: expected a whole number of at least {bound}, got {value!r}"
        return None

    def images(self) -> Iterator[tuple[str, str, int, np.random.Generator]]:
        """Split, type, number and random stream of each image.

        The stream is the child that the seed sequence (seed, category, group) would spawn as its k-th: it depends on
        no other image.
        """
        groups = [("train", GOOD, self.train), ("test", GOOD, self.test_good)]
        groups += [("test", kind, self.per_defect) for kind in TEXTURES[self.category]]
        for group, (split, kind, count) in enumerate(groups):
            for number in range(count):
                key = (list(TEXTURES).index(self.category), group, number)
                child = np.random.SeedSequence(self.seed, spawn_key=key)
                yield split, kind, number, np.random.default_rng(child)

    def files(self) -> set[str]:
        """Paths inside the folder, with forward slashes."""
        names = {PLAN_NAME}
        for split, kind, number, _ in self.images():
            names.add(f"{split}/{kind}/{number:03d}.png")
            if kind != GOOD:
                names.add(f"ground_truth/{kind}/{number:03d}_mask.png")
        return names


def write_sample_dataset(  # noqa: PLR0913  # the five numbers of a plan, named at every call
    root: Path, category: str, *, size: int = 256, train: int, test_good: int, per_defect: int, seed: int
) -> Path:
    """Generate `root/category` unless the same set is there already; gives that folder.

    `train` and `test_good` count good images of size x size pixels, `per_defect` those of each defect type. An image
    depends on the seed, its split, type and number alone. The folder appears whole or not at all, and one that was
    generated from other numbers is replaced. Raises DataError where the folder holds anything that was not generated
    here, or where the numbers are impossible; ResourceError where it cannot be written.
    """
    plan = _Plan(category, size, train, test_good, per_defect, seed)
    if plan.problem:
        raise DataError(f"sample data: {plan.problem}")
    folder = root / category
    if not _is_there(folder, plan):
        with replacing_folder(folder) as staged:
            _write(staged, plan)
    return folder


def _is_there(folder: Path, plan: _Plan) -> bool:
    """True for the planned set, False for none or another generated set; DataError for anything else."""
    if not folder.exists() and not folder.is_symlink():
        return False
    remedy = f"choose another folder, or move it away if cvad may generate {plan.category!r} here"
    if folder.is_symlink() or not folder.is_dir():
        raise DataError(f"{folder}: expected a folder of generated images, found a link or a file; {remedy}")
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
    if not found:
        return False
    former = _former_plan(folder / PLAN_NAME)
    if former is None:
        raise DataError(f"{folder}: holds files that cvad did not generate ({PLAN_NAME} is not one of ours); {remedy}")
    foreign = sorted(found - former.files())
    if former == plan and found >= plan.files():
        return True
    if foreign:
        raise DataError(f"{folder}: holds {foreign[0]!r} among generated images and would be replaced; {remedy}")
    return False


def _former_plan(path: Path) -> _Plan | None:
    """The plan that a folder was generated from; None if there is no valid one."""
    try:
        values: Any = json.loads(path.read_text(encoding="utf-8"))
        plan = _Plan(**values)
        problem = plan.problem
    except (OSError, ValueError, TypeError):
        return None
    return None if problem else plan


def _write(folder: Path, plan: _Plan) -> None:
    for split, kind, number, rng in plan.images():
        if kind == GOOD:
            image = normal_texture(plan.category, size=plan.size, rng=rng)
        else:
            image, mask = defective_texture(plan.category, kind, size=plan.size, rng=rng)
            _save(mask * np.uint8(255), folder / "ground_truth" / kind / f"{number:03d}_mask.png")
        _save(image, folder / split / kind / f"{number:03d}.png")
    (folder / PLAN_NAME).write_text(json.dumps(asdict(plan), indent=2) + "\n", encoding="utf-8")


def _save(pixels: np.ndarray, path: Path) -> None:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, compress_level=1)
