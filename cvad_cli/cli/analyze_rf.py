"""`cvad analyze-rf`: the receptive field of a detector."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from cvad_cli.cli.options import Configs, Debug, Device, Json, Overrides, Quiet
from cvad_cli.cli.run_task import Options, Task, run_each


def analyze_rf(  # noqa: PLR0913, PLR0917 - Typer's options are its arguments
    config: Configs,
    set_: Overrides = [],  # noqa: B006
    device: Device = None,
    defect_size: Annotated[
        str | None, typer.Option(metavar="SIZE", help="A defect to judge: 2.5mm (needs data.pixel_size_mm) or 40px.")
    ] = None,
    image: Annotated[
        Path | None, typer.Option(metavar="FILE", help="An image to draw on, whose size counts as the camera's.")
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Show what the detector can see: derives, measures and draws its receptive field, and states it as defect sizes.

    Writes <output.root>/<name>/receptive_field/. Exit status 1: the measured field is not the theoretical one.
    """
    from cvad_cli.cli.render.analyze_rf import show_fields

    def call() -> tuple[Task, Any]:
        from cvad_cli.tasks.analyze_rf import AnalyzeRfRequest, analyze_rf

        return analyze_rf, AnalyzeRfRequest(defect_size=defect_size, image=image)

    options = Options(tuple(set_), device, json, quiet, debug)
    results = run_each(config, options, call, show_fields)
    if not all(result.agrees for result in results):
        raise typer.Exit(1)
