"""The `cvad` command: registers every subcommand."""

from __future__ import annotations

from typing import Annotated

import typer

from cvad_cli import __version__
from cvad_cli.cli import analyze_rf, bench, demo, distill_teacher, index_classify, predict, train_evaluate
from cvad_cli.cli.root import RootGroup

EXIT_STATUSES = """
Exit statuses: 0 success · 1 a gate failed, or --fail-on-defect found a defect · 2 usage or configuration ·
3 images, masks or labels · 4 model or weights · 5 trained bundle · 6 defect index · 7 disk, memory or device ·
70 a bug in cvad · 130 Ctrl-C.
"""

app = typer.Typer(
    cls=RootGroup,
    help="Industrial visual inspection from YAML configs: train a detector, measure it, classify every defect.",
    epilog=EXIT_STATUSES,
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"cvad {__version__}")
        raise typer.Exit


@app.callback()
def cvad(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Take the options before the name of the subcommand."""
    del version


app.command()(train_evaluate.train)
app.command()(train_evaluate.evaluate)
app.command()(analyze_rf.analyze_rf)
app.command()(demo.demo)
app.command()(distill_teacher.distill_teacher)
app.command()(bench.bench)
app.command()(predict.predict)
app.command()(index_classify.index)
app.command()(index_classify.classify)


def main() -> None:
    """Console entry point."""
    app()
