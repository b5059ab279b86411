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
Device = Annotated[
    str | None, typer.Option("--device", help="auto, cpu, cuda, cuda:N, mps or xpu; overrides the config.")
]
Json = Annotated[bool, typer.Option("--json", help="Print only the result, as JSON, on standard output.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show warnings and errors only.")]
Debug = Annotated[
    bool, typer.Option("--debug", callback=remember_debug, help="Show tracebacks and the messages of libraries.")
]
FailOnDefect = Annotated[bool, typer.Option("--fail-on-defect", help="Exit with status 1 if an image is rejected.")]
Jsonl = Annotated[bool, typer.Option("--jsonl", help="Print one line of JSON per image, as soon as it is judged.")]


def refuse_both_forms(*, json: bool, jsonl: bool) -> None:
    """Raise BadParameter if both one object at the end and one line per image are requested."""
    if json and jsonl:
        raise typer.BadParameter("give --json or --jsonl, not both")
