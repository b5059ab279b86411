"""Options that several commands share, with their help, written once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cvad_cli.cli.root import remember_debug

Configs = Annotated[
    list[Path], typer.Option("--config", "-c", metavar="FILE", help="A YAML config. May be given several times.")
]
ConfigFile = Annotated[Path, typer.Option("--config", "-c", metavar="FILE", help="The YAML config of a trained run.")]
Overrides = Annotated[
    list[str], typer.Option("--set", metavar="KEY=VALUE", help="Override one setting, as in model.coreset_ratio=0.1.")
]
Device = Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda, cuda:N, mps or xpu; over the config.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON, and nothing else, on standard output.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no summary; warnings and errors only.")]
Debug = Annotated[
    bool, typer.Option("--debug", callback=remember_debug, help="Show tracebacks and the libraries' own messages.")
]
FailOnDefect = Annotated[bool, typer.Option("--fail-on-defect", help="Exit with status 1 where an image is rejected.")]
Jsonl = Annotated[bool, typer.Option("--jsonl", help="Print one line of JSON an image, as it is judged.")]


def refuse_both_forms(*, json: bool, jsonl: bool) -> None:
    """One object at the end or a line an image. Raises BadParameter where both are asked for."""
    if json and jsonl:
        raise typer.BadParameter("give --json or --jsonl, not both")
