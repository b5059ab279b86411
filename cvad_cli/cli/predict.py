"""`cvad predict`: judge images, folders, videos, cameras or a watched folder."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer

from cvad_cli.cli.options import (
    ConfigFile,
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

Sources = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[IMAGE|FOLDER|GLOB|VIDEO|camera:N|-]...", help="Images; - reads paths from standard input."
    ),
]
Watch = Annotated[
    Path | None, typer.Option("--watch", metavar="FOLDER", help="Inspect each new file of the folder until stopped.")
]
Results = Annotated[
    Path | None,
    typer.Option(
        "--results",
        metavar="FILE",
        help="With --watch: the JSONL file of results, which also records the finished files.",
    ),
]
Table = Annotated[Path | None, typer.Option("--csv", metavar="FILE", help="Write a table with one row per image.")]
Maps = Annotated[
    Path | None, typer.Option("--maps", metavar="DIR", help="Write each anomaly map as 32-bit float TIFF.")
]
Overlays = Annotated[
    Path | None, typer.Option("--overlays", metavar="DIR", help="Write each image with its regions marked.")
]
Null = Annotated[
    bool, typer.Option("--null", "-0", help="Paths on standard input end with NUL, as find -print0 writes them.")
]


def predict(  # noqa: PLR0913, PLR0917 - Typer's options are its arguments
    config: ConfigFile,
    sources: Sources = None,
    watch: Watch = None,
    results: Results = None,
    set_: Overrides = [],  # noqa: B006
    csv: Table = None,
    maps: Maps = None,
    overlays: Overlays = None,
    fail_on_defect: FailOnDefect = False,
    null: Null = False,
    jsonl: Jsonl = False,
    device: Device = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Judge images with a trained detector: score, verdict and regions of each image."""
    from cvad_cli.cli.render.predict import PredictionLines

    refuse_both_forms(json=json, jsonl=jsonl)
    lines = PredictionLines(jsonl=jsonl, silent=json or quiet, live=not quiet)

    def call() -> tuple[Task, Any]:
        from cvad_cli.assembly.prediction.sources import Listing
        from cvad_cli.tasks.predict import PredictRequest, predict

        request = PredictRequest(
            sources=tuple(sources or ()),
            watch=watch,
            results=results,
            csv=csv,
            maps=maps,
            overlays=overlays,
            listing=Listing(0, b"\0" if null else b"\n"),
            on_result=lines.print_result,
        )
        stop = stack.enter_context(_stop_gently()) if request.is_endless else None
        return predict, replace(request, stop=stop)

    with contextlib.ExitStack() as stack:
        stack.enter_context(lines)
        (result,) = run_each([config], Options(tuple(set_), device, json, quiet, debug), call, lines.show)
    if fail_on_defect and result.rejected:
        raise typer.Exit(1)


@contextlib.contextmanager
def _stop_gently() -> Iterator[threading.Event]:
    """Ctrl-C and SIGTERM set the event, so that started images are finished; a second signal ends the process."""
    enough = threading.Event()
    former: dict[int, Any] = {}

    def stop(_number: int, _frame: FrameType | None) -> None:
        enough.set()
        for number, handler in former.items():
            signal.signal(number, handler)

    with contextlib.suppress(ValueError):  # only the main thread may set handlers
        for number in (int(signal.SIGINT), int(signal.SIGTERM)):
            former[number] = signal.signal(number, stop)
    try:
        yield enough
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
