"""cvad against anomalib's own inferencers, on the same weights, memory bank and files, in one run.

    python scripts/anomalib_comparison                       # trains both bundles on MVTec AD grid, then compares
    python scripts/anomalib_comparison --bundle runs/efficientad_grid/bundle --images 32 --repeats 1 --json
    python scripts/anomalib_comparison --keep bench_bundles  # keeps the bundles it trains and uses them the next time

cvad serves EfficientAD in int8 where NNCF is installed and the network's agreement in int8 is verified. It serves
PatchCore, whose distances int8 does not preserve, as `runtime.precision: auto` decides; `--set runtime.precision=...`
names another precision.

PatchCore: tf_efficientnet_lite0, blocks.2 and blocks.4, a 10 % coreset of 270,336 patches. EfficientAD-S: `--steps`
steps of the quick preset; its AUROC is that of a barely trained network unless `--bundle` names a better one.
How everything is measured: docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

from anomalib_comparison.comparison import ComparisonPlan
from anomalib_comparison.tables import comparison_tables
from cvad_cli.cli.progress import reporter_for
from cvad_cli.cli.render.bench import show_tables
from cvad_cli.cli.run_task import Options, quiet_libraries
from cvad_cli.config.load import load_config
from cvad_cli.config.schema import RunConfig
from cvad_cli.errors import ConfigError, CvadError, ModelError
from cvad_cli.ports import Reporter
from cvad_cli.records import BenchSummary

ROOT = Path(__file__).resolve().parents[2]
RUNS = {
    "patchcore": ("patchcore_grid.yaml", ("model.coreset_ratio=0.1", "calibration.folds=2")),
    "efficientad": ("efficientad_grid.yaml", ("trainer.preset=quick",)),
}
"""Two folds are the cheapest calibration, and leave the memory bank as it is; the threshold is not measured here."""


def trained(model: str, root: Path, overrides: list[str], steps: int) -> RunConfig:
    """Settings of a bundle below `root`, trained now if it is not there."""
    from cvad_cli.assembly.run_folders import bundle_folder
    from cvad_cli.tasks.train import TrainRequest, train

    name, own = RUNS[model]
    more = [f"trainer.max_steps={steps}"] if model == "efficientad" else []
    settings = load_config(ROOT / "configs" / name, [*own, *more, *overrides, f"output.root={root}", "device=cpu"])
    if not (bundle_folder(settings) / "manifest.json").is_file():
        train(settings, TrainRequest(describe=False), reporter_for(quiet=False))
    return settings


def of_bundle(bundle: Path, overrides: list[str], scratch: Path) -> RunConfig:
    """The settings that a bundle was trained with, from its manifest, pointed at the folder where it is now."""
    from cvad_cli.adapters.storage.bundles import read_bundle

    folder = bundle.resolve()
    if folder.name != "bundle":
        raise ConfigError(f"{bundle}: expected a folder that `cvad train` wrote: <output.root>/<name>/bundle")
    stored = dict(read_bundle(folder).manifest["settings"])
    del stored["qdrant"]  # its key is hidden there, and nothing here asks the index
    file = scratch / f"{folder.parent.name}.yaml"
    file.write_text(json.dumps(stored), encoding="utf-8")  # JSON is YAML
    here = [f"name={folder.parent.name}", f"output.root={folder.parents[1]}", "device=cpu"]
    return load_config(file, [*overrides, *here])


def main(output: Path = Path("runs/anomalib_comparison")) -> None:
    """Read the options, compare, print; `output` is the default of --output."""
    arguments = _parser(output).parse_args()
    warnings.simplefilter("ignore")
    with (
        _error_status(),
        tempfile.TemporaryDirectory(prefix="cvad-bench-") as scratch,
        quiet_libraries(Options((), None, arguments.json, quiet=False, debug=False)),
    ):
        summary = run(arguments, Path(scratch))
    if arguments.json:
        print(json.dumps(summary.report, indent=2))
    else:
        show_tables(comparison_tables(summary.report), summary.folder)


@contextlib.contextmanager
def _error_status() -> Iterator[None]:
    """Turns a CvadError into its message and exit status, as the `cvad` command does."""
    try:
        yield
    except CvadError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None


def _parser(output: Path) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=[*RUNS, "both"], default="both", help="which to train, without --bundle")
    parser.add_argument("--bundle", type=Path, action="append", default=[], help="a trained bundle; repeatable")
    parser.add_argument("--images", type=int, help="judge N test images only, of each type in turn")
    parser.add_argument("--repeats", type=int, default=3, help="measurements of each target, in turn")
    parser.add_argument("--steps", type=int, default=60, help="EfficientAD's training, where it is trained here")
    parser.add_argument("--keep", type=Path, help="folder for the bundles that are trained here")
    parser.add_argument("--output", type=Path, default=output, help="folder for table and chart")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of every config")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON alone")
    return parser


def run(arguments: argparse.Namespace, scratch: Path) -> BenchSummary:
    """Train or find the bundles, compare them, write the folder of results."""
    from anomalib_comparison.report import compare_bundles

    models = list(RUNS) if arguments.model == "both" else [arguments.model]
    configs = [of_bundle(bundle, arguments.set, scratch) for bundle in arguments.bundle]
    if not configs:
        root = arguments.keep or scratch / "runs"
        configs = [trained(model, root, arguments.set, arguments.steps) for model in models]
    reporter = reporter_for(quiet=False)
    configs = [in_int8(settings, reporter) for settings in configs]
    return compare_bundles(configs, arguments.output, ComparisonPlan(arguments.images, arguments.repeats), reporter)


def in_int8(settings: RunConfig, reporter: Reporter) -> RunConfig:
    """The settings with int8 where that holds; as they are where it does not, or where they name a precision."""
    from cvad_cli.assembly.serving.open_bundle import open_detector

    if settings.model.name != "efficient_ad" or settings.runtime.precision != "auto":
        return settings
    quantised = dataclasses.replace(settings, runtime=dataclasses.replace(settings.runtime, precision="int8"))
    try:
        with reporter.stage("Quantising EfficientAD to int8", 1) as advance:
            open_detector(quantised, "cpu")
            advance(1)
    except (ConfigError, ModelError) as error:
        reporter.warn(f"{settings.name} is not served in int8: {error}")
        return settings
    return quantised
