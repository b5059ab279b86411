"""`cvad bench`: speed, memory and their growth."""

from __future__ import annotations

from typing import Annotated, Any, Final

import typer

from cvad_cli.cli.options import Configs, Debug, Device, Json, Overrides, Quiet
from cvad_cli.cli.run_task import Options, Task, run_each

Images = Annotated[
    int | None, typer.Option("--images", min=1, metavar="N", help="Number of test images to judge; default: all.")
]
Repeats = Annotated[
    int, typer.Option("--repeats", min=1, metavar="R", help="Number of measurements, each in a new process.")
]
Scaling = Annotated[
    bool,
    typer.Option(
        "--scaling", help="Also measure how time and memory grow with image size, memory bank and number of images."
    ),
]
ComparisonOption = Annotated[bool, typer.Option("--peers", hidden=True)]
COMPARISON_MOVED: Final = (
    "--peers was moved out of cvad: the comparison with anomalib's inferencers is a tool of cvad's repository; run "
    "it there with `python scripts/anomalib_comparison --bundle <output.root>/<name>/bundle`"
)


def bench(  # noqa: PLR0913, PLR0917 - Typer's options are its arguments
    config: Configs,
    set_: Overrides = [],  # noqa: B006
    images: Images = None,
    repeats: Repeats = 3,
    scaling: Scaling = False,
    comparison: ComparisonOption = False,
    device: Device = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Measure a trained detector on this machine: images per second, latency by stage, memory, time to open.

    Writes <output.root>/<name>/bench/: bench.json, bench.md and charts.
    """
    if comparison:
        raise typer.BadParameter(COMPARISON_MOVED)
    from cvad_cli.cli.render.bench import show_bench

    def call() -> tuple[Task, Any]:
        from cvad_cli.tasks.bench import BenchRequest, bench

        return bench, BenchRequest(images=images, repeats=repeats, scaling=scaling)

    run_each(config, Options(tuple(set_), device, json, quiet, debug), call, show_bench)
