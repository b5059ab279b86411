"""The `cvad` command: options in, a task called, its record rendered. Thin on purpose."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from cvad_cli import __version__
from cvad_cli.cli.root import RootGroup, remember_debug
from cvad_cli.cli.runs import Options, run_each

EXIT_STATUSES = """
Exit statuses: 0 done · 1 a gate failed, or a defect was found where that was asked for · 2 usage or configuration ·
3 images, masks or labels · 4 model or weights · 5 trained bundle · 6 defect index · 7 disk, memory or device ·
70 a bug in cvad · 130 Ctrl-C.
"""

app = typer.Typer(
    cls=RootGroup,
    help="Industrial visual inspection from YAML configs: train, measure honestly, and name every defect.",
    epilog=EXIT_STATUSES,
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

Configs = Annotated[
    list[Path], typer.Option("--config", "-c", metavar="FILE", help="A YAML config. May be given several times.")
]
Overrides = Annotated[
    list[str], typer.Option("--set", metavar="KEY=VALUE", help="Override one setting, as in model.coreset_ratio=0.1.")
]
Device = Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda, cuda:N, mps or xpu; over the config.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON, and nothing else, on standard output.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no summary; warnings and errors only.")]
Debug = Annotated[
    bool, typer.Option("--debug", callback=remember_debug, help="Show tracebacks and the libraries' own messages.")
]


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"cvad {__version__}")
        raise typer.Exit


@app.callback()
def cvad(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Carry the options that stand before the command's name."""
    del version


@app.command()
def train(
    config: Configs,
    set_: Overrides = [],  # noqa: B006
    device: Device = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Train a detector on good images, calibrate its threshold, write its bundle."""
    from cvad_cli.cli.render import show_training

    def task() -> Callable[..., Any]:
        from cvad_cli.tasks.train import train

        return train

    run_each(config, Options(tuple(set_), device, json, quiet, debug), task, show_training)


@app.command()
def evaluate(
    config: Configs,
    set_: Overrides = [],  # noqa: B006
    device: Device = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Measure a trained detector on labelled test images: AUROC, precision, recall, false alarms, AUPRO."""
    from cvad_cli.cli.render import show_evaluation

    def task() -> Callable[..., Any]:
        from cvad_cli.tasks.evaluate import evaluate

        return evaluate

    run_each(config, Options(tuple(set_), device, json, quiet, debug), task, show_evaluation)


@app.command()
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for images and results.")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(min=0, help="Seed of the generated images and of the training.")] = 42,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Generate a small data set of grid, leather and tile look-alikes, train on it, measure, show where it all is."""
    from cvad_cli.cli.runs import run_demo

    run_demo(output, seed, Options((), None, json, quiet, debug))


def main() -> None:
    """Console entry point."""
    app()
