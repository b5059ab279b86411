"""`cvad distill-teacher`: train your own patch description network."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from cvad_cli.cli.options import Debug, Device, Json, Quiet
from cvad_cli.cli.run_task import Options, quiet_libraries, show_result

Folders = Annotated[
    list[Path], typer.Option("--images", metavar="DIR", help="A folder of images. May be given several times.")
]
Backbones = Annotated[
    list[str],
    typer.Option(
        "--backbone", metavar="NAME[:LAYERS]", help="A timm backbone to learn from. May be given several times."
    ),
]
WeightFiles = Annotated[
    list[str], typer.Option("--weights", metavar="FILE", help="Weights of each backbone, in the same order.")
]
Resume = Annotated[
    bool, typer.Option("--resume/--restart", help="Continue from the checkpoint beside the output, or start again.")
]


def distill_teacher(  # noqa: PLR0913, PLR0917 - Typer's options are its arguments
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The teacher: NAME.safetensors.")],
    images: Folders = [],  # noqa: B006
    samples: Annotated[bool, typer.Option(help="Also use scikit-image's sample photographs, if installed.")] = True,
    size: Annotated[str, typer.Option(help="small or medium.")] = "small",
    channels: Annotated[
        int, typer.Option(min=0, help="Channels of the teacher; 0: as many as the backbones have.")
    ] = 384,
    backbone: Backbones = ["tf_efficientnet_lite0", "mobilenetv2_100"],  # noqa: B006
    weights: WeightFiles = [],  # noqa: B006
    steps: Annotated[
        int, typer.Option(help="Training steps; may be changed on resuming before the last 30 %.")
    ] = 10_000,
    batch_size: Annotated[int, typer.Option(help="Images per step.")] = 8,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the images and of the initial weights.")] = 42,
    device: Device = "auto",
    checkpoint_every: Annotated[int, typer.Option(help="Steps between checkpoints.")] = 200,
    generated_share: Annotated[float, typer.Option(help="Share of generated images, 0 to 1.")] = 0.5,
    calibration_images: Annotated[int, typer.Option(help="Images over which the targets are standardised.")] = 1024,
    held_out_images: Annotated[int, typer.Option(help="Images on which the loss is reported.")] = 48,
    resume: Resume = True,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Distil a patch description network from pretrained backbones, on your images and generated images."""
    _run_distillation(
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
        resume=resume,
    )


def _run_distillation(options: Options, *, resume: bool, **settings: Any) -> None:
    from cvad_cli.cli.progress import reporter_for
    from cvad_cli.cli.render.distill_teacher import show_distillation

    with quiet_libraries(options):
        from cvad_cli.tasks.distill_teacher import DistillRequest, DistillSettings, distill_teacher

        request = DistillRequest(restart=not resume)
        result = distill_teacher(DistillSettings(**settings), request, reporter_for(options.quiet))
    show_result(result, options, show_distillation)
