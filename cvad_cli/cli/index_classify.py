"""The commands about defect types: `cvad index` and `cvad classify`."""

from __future__ import annotations

import contextlib
import json as json_module
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from cvad_cli.cli.options import (
    ConfigFile,
    Configs,
    Debug,
    Device,
    FailOnDefect,
    Json,
    Jsonl,
    Overrides,
    Quiet,
    refuse_both_forms,
)
from cvad_cli.cli.run_task import Options, Task, run_each

Shots = Annotated[int | None, typer.Option("--shots", min=1, metavar="K", help="Index only K images per type.")]
ShotsSeed = Annotated[int, typer.Option("--seed", min=0, help="Seed of the draw of --shots.")]
LabelledBy = Annotated[
    str, typer.Option("--labelled-by", metavar="NAME", help="Who labelled the images; stored with every region.")
]
Prune = Annotated[
    bool, typer.Option("--prune", help="Also remove regions whose image was removed, changed or relabelled.")
]
Rebuild = Annotated[bool, typer.Option("--rebuild", help="Delete the index first, as is needed after training again.")]
List = Annotated[bool, typer.Option("--list", help="Only list the labelled regions of the index.")]
Stats = Annotated[bool, typer.Option("--stats", help="Only count the regions and images of each type.")]
Export = Annotated[Path | None, typer.Option("--export", metavar="FILE", help="Only write the index to a file.")]
Import = Annotated[
    Path | None, typer.Option("--import", metavar="FILE", help="Only add the regions of a file from --export.")
]
Delete = Annotated[str | None, typer.Option("--delete", metavar="TYPE", help="Only delete all regions of a type.")]


def index(  # noqa: PLR0913, PLR0917 - Typer's options are its arguments
    config: Configs,
    set_: Overrides = [],  # noqa: B006
    shots: Shots = None,
    seed: ShotsSeed = 0,
    labelled_by: LabelledBy = "dataset",
    prune: Prune = False,
    rebuild: Rebuild = False,
    list_: List = False,
    stats: Stats = False,
    export: Export = None,
    import_: Import = None,
    delete: Delete = None,
    device: Device = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Learn defect types from labelled images: describe their regions and store them in the defect index."""
    from cvad_cli.cli.render import index_classify as tables

    options = Options(tuple(set_), device, json, quiet, debug)
    chosen = [list_ or stats, export is not None, import_ is not None, delete is not None]
    if sum(chosen) > 1:
        raise typer.BadParameter("give one of --list, --stats, --export, --import and --delete, not several")

    def call() -> tuple[Task, Any]:
        from cvad_cli.tasks import index as tasks

        if list_ or stats:
            return tasks.index_listing, tasks.ListingRequest(entries=list_)
        if export is not None:
            return tasks.export_index_to, tasks.ExportRequest(path=export)
        if import_ is not None:
            return tasks.import_index_from, tasks.ImportRequest(path=import_)
        if delete is not None:
            return tasks.delete_type, tasks.DeleteTypeRequest(defect_type=delete)
        return tasks.index_defects, tasks.IndexRequest(
            shots=shots, seed=seed, labelled_by=labelled_by, prune=prune, rebuild=rebuild
        )

    show = tables.show_listing if chosen[0] else tables.show_transfer if any(chosen[1:3]) else tables.show_index
    run_each(config, options, call, show)


Table = Annotated[Path | None, typer.Option("--csv", metavar="FILE", help="Write a table with one row per region.")]
Overlays = Annotated[
    Path | None, typer.Option("--overlays", metavar="DIR", help="Write each image with its defects marked.")
]


def classify(  # noqa: PLR0913, PLR0917 - Typer's options are its arguments
    images: Annotated[
        list[str], typer.Argument(metavar="IMAGE|FOLDER|GLOB...", help="Images, folders of images, or patterns.")
    ],
    config: ConfigFile,
    set_: Overrides = [],  # noqa: B006
    csv: Table = None,
    overlays: Overlays = None,
    fail_on_defect: FailOnDefect = False,
    jsonl: Jsonl = False,
    device: Device = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Judge images and classify each defect: its type with confidence and nearest examples, or unknown."""
    from cvad_cli.cli.render.as_json import as_json
    from cvad_cli.cli.render.index_classify import show_classification

    refuse_both_forms(json=json, jsonl=jsonl)
    lines = sys.stdout

    def print_line(verdict: object) -> None:
        if jsonl:
            lines.write(json_module.dumps(as_json(verdict), ensure_ascii=False) + "\n")
            lines.flush()

    def call() -> tuple[Task, Any]:
        from cvad_cli.tasks.classify import ClassifyRequest, classify

        return classify, ClassifyRequest(inputs=tuple(images), csv=csv, overlays=overlays, on_result=print_line)

    def show(summary: Any) -> None:
        if not jsonl:
            show_classification(summary, csv=csv, overlays=overlays)

    with contextlib.redirect_stdout(sys.stderr) if jsonl else contextlib.nullcontext():
        (result,) = run_each([config], Options(tuple(set_), device, json, quiet, debug), call, show)
    if fail_on_defect and result.rejected:
        raise typer.Exit(1)
