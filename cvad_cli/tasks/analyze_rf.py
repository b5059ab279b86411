"""`cvad analyze-rf`: what a detector's cells can see, derived and measured, and which defects it suits."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cvad_cli import __version__
from cvad_cli.adapters.charts.receptive_field import coverage_curves, effective_field_chart, nested_fields
from cvad_cli.adapters.machine.devices import choose_device
from cvad_cli.assembly.execution.executors import keeping_threads
from cvad_cli.assembly.receptive_field.advice import advise, layer_views, parse_defect, require_fitting
from cvad_cli.assembly.receptive_field.analysis import CENTRE, Findings, analyse_network, as_report
from cvad_cli.assembly.receptive_field.images import FieldImages, field_images
from cvad_cli.assembly.receptive_field.networks import AnalysedNetworks, find_networks
from cvad_cli.assembly.receptive_field.report import file_stem, markdown
from cvad_cli.assembly.run_folders import bundle_folder
from cvad_cli.config.schema import RunConfig
from cvad_cli.core.receptive_field.coverage import view_of
from cvad_cli.core.receptive_field.graph import LayerField
from cvad_cli.files import replacing_folder, require_writable
from cvad_cli.ports import Reporter
from cvad_cli.records import FieldSummary


@dataclass(frozen=True, slots=True, kw_only=True)
class AnalyzeRfRequest:
    """What the user asks in addition to the config."""

    defect_size: str | None = None
    """A side on the part, such as '2.5mm' or '40px'."""
    image: Path | None = None
    """An image of the camera: it is drawn on, and its size is the original size."""


@keeping_threads
def analyze_rf(settings: RunConfig, request: AnalyzeRfRequest, reporter: Reporter) -> FieldSummary:
    """Analyse the networks that the config names; write the derivation, figures and JSON.

    Raises a CvadError that names what to change. An earlier run's folder is replaced only when the new one is complete.
    """
    size = (settings.data.image_size, settings.data.image_size)
    pixel = settings.data.pixel_size_mm
    defect = parse_defect(request.defect_size, pixel) if request.defect_size else None
    device = choose_device(settings.device)
    folder = bundle_folder(settings).with_name("receptive_field")
    require_writable(folder.parent)
    images = field_images(settings, request.image, reporter)
    if defect:
        require_fitting(defect, images.original_size)
    with reporter.stage("Building networks", 1) as advance:
        networks = find_networks(settings, device, reporter)
        advance(1)
    findings = _analyse(settings, networks, images, reporter)
    main = findings[0]
    view = view_of(main.found, size, images.original_size, pixel)
    report = _report(settings, images, findings)
    report["advice"] = advise(main, view, layer_views(networks, view), defect)
    with reporter.stage("Drawing", len(findings) + 1) as advance, replacing_folder(folder) as fresh:
        names: list[str] = []
        for found in findings:
            names += _draw(fresh, settings.name, found, images, networks)
            advance(1)
        coverage_curves(fresh / "coverage.png", view, title=f"{settings.name}: what cells see", defect=defect)
        advance(1)
        report["figures"] = [*names, "coverage.png"]
        (fresh / "receptive_field.md").write_text(markdown(report), encoding="utf-8")
        text = json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False)
        (fresh / "receptive_field.json").write_text(text + "\n", encoding="utf-8")
    return FieldSummary(folder, report, bool(report["agrees"]))


def _analyse(
    settings: RunConfig, networks: AnalysedNetworks, images: FieldImages, reporter: Reporter
) -> Sequence[Findings]:
    size = (settings.data.image_size, settings.data.image_size)
    findings = []
    with reporter.stage("Reading and measuring", len(networks.networks)) as advance:
        for at, network in enumerate(networks.networks):
            rng = np.random.default_rng([settings.seed, at])
            findings.append(analyse_network(network, size, images.images, rng=rng))
            advance(1)
    for found in findings:
        if not found.agrees:
            reporter.warn(
                f"{found.network.name}: the measured field is not the theoretical one. Do not rely on these figures; "
                "please report this with the config"
            )
    return findings


def _report(settings: RunConfig, images: FieldImages, findings: Sequence[Findings]) -> dict[str, Any]:
    return {
        "name": settings.name,
        "model": settings.model.name,
        "seed": settings.seed,
        "cvad_version": __version__,
        "image_size": [settings.data.image_size, settings.data.image_size],
        "images": images.source,
        "agrees": all(found.agrees for found in findings),
        "networks": [as_report(found) for found in findings],
    }


def _draw(folder: Path, name: str, found: Findings, images: FieldImages, networks: AnalysedNetworks) -> Iterator[str]:
    """Draw one network's figures and yield their names. A student has the nested fields of its teacher."""
    network, stem = found.network.name, file_stem(found.network.name)
    if network != "student":
        title = f"{name}: what one cell sees, layer by layer ({network})"
        nested_fields(folder / f"fields-{stem}.png", images.images[0], _worth_drawing(found, networks), title=title)
        yield f"fields-{stem}.png"
    for position, effective in found.effective.items():
        suffix = "" if position == CENTRE else "-edge"
        where = "" if position == CENTRE else f", cell at the {position}"
        title = f"{name}: theoretical and effective field ({network}{where})"
        effective_field_chart(folder / f"effective-{stem}{suffix}.png", effective, found.box(position), title=title)
        yield f"effective-{stem}{suffix}.png"


def _worth_drawing(found: Findings, networks: AnalysedNetworks) -> dict[str, LayerField]:
    """All maps of a small network; of a backbone, the first map, its stages and PatchCore's features."""
    layers = {name: field for name, field in found.fields.items() if field.widest is not None}
    stages = {name: found.fields[found.stages[name]] for name in networks.candidate_names if name in found.stages}
    if not stages:
        return layers
    first = next(iter(layers))
    return {first: layers[first], **stages, found.network.name: found.found}
