"""Train PatchCore anomalib's own way and ours, in one process, on the same images and weights, and print the ratio.

    python scripts/bench_train.py                       # all images of MVTec AD grid, a 1 % coreset
    python scripts/bench_train.py --images 64 --json    # a part of them

The images are read from CVAD_DATA_ROOT (default: datasets), the weights as `cvad train` finds them. Imports are done
before the clock starts. Each side does all that it does for a user: anomalib fits, then runs its validation images to
set its threshold; cvad fits, calibrates on held-out good images (five refits) and writes its bundle.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

from cvad_cli.config.processors import usable_processors

warnings.simplefilter("ignore")

ROOT = Path(__file__).parents[1]


class StageClock:
    """A reporter that remembers how long each stage took."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, title: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
        """Time the stage; its steps do not matter here."""
        del total
        started = time.perf_counter()
        yield lambda _steps: None
        self.seconds[title] = time.perf_counter() - started

    def note(self, message: str) -> None:
        """Say it beside the figures."""
        print(message, file=sys.stderr)

    warn = note


def copy_of_part(source: Path, images: int, folder: Path) -> Path:
    """An MVTec category with links to the first `images` training images, and all test images."""
    target = folder / source.name
    (target / "train" / "good").mkdir(parents=True)
    for image in sorted((source / "train" / "good").iterdir())[:images]:
        (target / "train" / "good" / image.name).symlink_to(image)
    for part in ("test", "ground_truth"):
        (target / part).symlink_to(source / part, target_is_directory=True)
    return folder


def time_anomalib(settings: Any, root: Path, folder: Path) -> dict[str, float]:
    """anomalib's Engine, MVTecAD data module and Patchcore with its own coreset."""
    from anomalib.data import MVTecAD
    from anomalib.engine import Engine
    from anomalib.models import Patchcore

    from cvad_cli.adapters.backbones import load_backbone
    from cvad_cli.config.schema import PATCHCORE_BACKBONE, PATCHCORE_LAYERS

    name, layers = settings.model.backbone or PATCHCORE_BACKBONE, settings.model.layers or PATCHCORE_LAYERS
    model = Patchcore(
        backbone=name,
        layers=list(layers),
        pre_trained=False,
        coreset_sampling_ratio=settings.model.coreset_ratio,
        num_neighbors=settings.model.num_neighbors,
    )
    backbone = load_backbone(name, layers, settings.model.weights, seed=settings.seed)
    model.model.feature_extractor.feature_extractor = backbone.network
    spent: dict[str, float] = {}
    subsample = model.model.subsample_embedding

    def timed_subsample(*args: Any, **kwargs: Any) -> None:
        started = time.perf_counter()
        subsample(*args, **kwargs)
        spent["coreset"] = time.perf_counter() - started

    model.model.subsample_embedding = timed_subsample
    data = MVTecAD(root=root, category=settings.data.category, train_batch_size=8, eval_batch_size=8, num_workers=2)
    engine = Engine(default_root_dir=folder, accelerator="cpu", enable_progress_bar=False, logger=False)
    started = time.perf_counter()
    engine.fit(model=model, datamodule=data)
    spent["total"] = time.perf_counter() - started
    return spent


def time_cvad(settings: Any, root: Path, folder: Path) -> dict[str, float]:
    """`cvad train`, as the command runs it."""
    from cvad_cli.config.schema import OutputConfig
    from cvad_cli.tasks.train import TrainRequest, train

    clock = StageClock()
    started = time.perf_counter()
    ours = replace(settings, data=replace(settings.data, root=str(root)), output=OutputConfig(str(folder)))
    train(ours, TrainRequest(), clock)
    return {"total": time.perf_counter() - started, "coreset": clock.seconds["Selecting the coreset"], **clock.seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=ROOT / "configs" / "patchcore_grid.yaml")
    parser.add_argument("--images", type=int, default=None, help="use only the first N training images")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON alone")
    arguments = parser.parse_args()
    logging.disable(logging.ERROR)
    os.environ["TQDM_DISABLE"] = "1"

    import anomalib.models

    import cvad_cli.tasks.train  # noqa: F401
    from cvad_cli.config.load import load_config

    del anomalib
    settings = load_config(arguments.config, ["device=cpu"])
    source = Path(settings.data.root) / settings.data.category
    with tempfile.TemporaryDirectory() as scratch, redirect_stdout(sys.stderr):
        root = source.parent
        if arguments.images:
            root = copy_of_part(source.resolve(), arguments.images, Path(scratch) / "data")
        images = len(list((root / settings.data.category / "train" / "good").iterdir()))
        ours = time_cvad(settings, root, Path(scratch) / "cvad")
        theirs = time_anomalib(settings, root, Path(scratch) / "anomalib")
    result = {
        "images": images,
        "coreset_ratio": settings.model.coreset_ratio,
        "processors": usable_processors(),
        "machine": platform.machine(),
        "anomalib": theirs,
        "cvad": ours,
        "ratio": {key: theirs[key] / ours[key] for key in ("total", "coreset")},
    }
    if arguments.json:
        print(json.dumps(result, indent=2))
        return
    print(f"{images} images, {settings.model.coreset_ratio:.0%} coreset, {usable_processors()} processors")
    for key in ("total", "coreset"):
        ratio = result["ratio"][key]  # type: ignore[index]
        print(f"{key:8s} anomalib {theirs[key]:8.1f} s   cvad {ours[key]:8.2f} s   ratio {ratio:6.1f}x")


if __name__ == "__main__":
    main()
