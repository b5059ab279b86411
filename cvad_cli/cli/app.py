"""The `cvad` command: options in, a task called, its record rendered. Thin on purpose."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from cvad_cli import __version__
from cvad_cli.cli import bench, defects, inspection, measuring
from cvad_cli.cli.options import Configs, Debug, Device, Json, Overrides, Quiet
from cvad_cli.cli.root import RootGroup
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

Folders = Annotated[
    list[Path], typer.Option("--images", metavar="DIR", help="A folder of pictures. May be given several times.")
]
Backbones = Annotated[
    list[str],
    typer.Option("--backbone", metavar="NAME[:LAYERS]", help="A timm backbone to learn from. Repeatable."),
]
WeightFiles = Annotated[
    list[str], typer.Option("--weights", metavar="FILE", help="Weights of each backbone, in the same order.")
]
Resume = Annotated[
    bool, typer.Option("--resume/--restart", help="Go on from the checkpoint beside the output, or begin anew.")
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


app.command()(measuring.train)
app.command()(measuring.evaluate)


@app.command()
def analyze_rf(  # noqa: PLR0913, PLR0917 - Typer's options are its arguments
    config: Configs,
    set_: Overrides = [],  # noqa: B006
    device: Device = None,
    defect_size: Annotated[
        str | None, typer.Option(metavar="SIZE", help="A defect to judge: 2.5mm (needs data.pixel_size_mm) or 40px.")
    ] = None,
    image: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A picture to draw on, whose size counts as the camera's.")
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Say what the detector can see: its receptive field derived, measured, drawn, and told as sizes of defects.

    Writes <output.root>/<name>/receptive_field/. Exit status 1: the measured field is not the theoretical one.
    """
    from cvad_cli.cli.field_tables import show_fields

    def task() -> Callable[..., Any]:
        from functools import partial

        from cvad_cli.tasks.analyze_rf import FieldQuestion, analyze_rf

        return partial(analyze_rf, FieldQuestion(defect_size, image))

    options = Options(tuple(set_), device, json, quiet, debug)
    results = run_each(config, options, task, show_fields)
    if not all(result.agrees for result in results):
        raise typer.Exit(1)


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


@app.command()
def distill_teacher(  # noqa: PLR0913, PLR0917 - Typer's options are its arguments
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The teacher: NAME.safetensors.")],
    images: Folders = [],  # noqa: B006
    samples: Annotated[bool, typer.Option(help="Also use scikit-image's sample photographs, if installed.")] = True,
    size: Annotated[str, typer.Option(help="small or medium.")] = "small",
    channels: Annotated[int, typer.Option(min=0, help="Of the teacher; 0: as many as the backbones give.")] = 384,
    backbone: Backbones = ["tf_efficientnet_lite0", "mobilenetv2_100"],  # noqa: B006
    weights: WeightFiles = [],  # noqa: B006
    steps: Annotated[int, typer.Option(help="Training steps; may change on resuming until the last 30 %.")] = 10_000,
    batch_size: Annotated[int, typer.Option(help="Pictures a step.")] = 8,
    seed: Annotated[int, typer.Option(min=0, help="Of the pictures and of the first weights.")] = 42,
    device: Device = "auto",
    checkpoint_every: Annotated[int, typer.Option(help="Steps between checkpoints.")] = 200,
    generated_share: Annotated[float, typer.Option(help="Share of generated pictures, 0 to 1.")] = 0.5,
    calibration_images: Annotated[int, typer.Option(help="Pictures that the targets are standardised over.")] = 1024,
    held_out_images: Annotated[int, typer.Option(help="Pictures that the loss is reported on.")] = 48,
    resume: Resume = True,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Distil a patch description network from pretrained backbones, on your pictures and on generated ones."""
    from cvad_cli.cli.runs import run_distillation

    run_distillation(
        Options((), device, json, quiet, debug),
        output=output,
        images=tuple(images),
        samples=samples,
        size=size,
        channels=channels or None,
        backbones=tuple(backbone),
        weights=tuple(weights),
        steps=steps,
        batch_size=batch_size,
        seed=seed,
        device=device or "auto",
        checkpoint_every=checkpoint_every,
        generated_share=generated_share,
        calibration_images=calibration_images,
        held_out_images=held_out_images,
        restart=not resume,
    )


app.command()(bench.bench)
app.command()(inspection.predict)
app.command()(defects.index)
app.command()(defects.classify)


def main() -> None:
    """Console entry point."""
    app()
