"""From a cvad bundle to anomalib's models with the same weights and memory bank: exported, and opened in each way."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from anomalib_comparison import inferencers
from anomalib_comparison.inferencers import TORCH_INFERENCERS, ExportedModels, LoaderSetting, ScoreRange
from cvad_cli.adapters.storage.bundles import Bundle, read_bundle
from cvad_cli.assembly.benchmark.measurement import BenchmarkTarget
from cvad_cli.assembly.serving.bundle_networks import efficient_ad_model, patchcore_network
from cvad_cli.errors import ConfigError
from cvad_cli.records import ImageRecord

OPENVINO: Final = "openvino"
COMPARABLE_KINDS: Final = ("patchcore", "efficient_ad")
"""Kinds of bundle for which cvad has a runtime of its own."""


@dataclass(frozen=True, slots=True)
class InferencerFiles:
    """What a bundle was exported to for anomalib's inferencers."""

    bundle: Path
    folder: Path
    exports: ExportedModels
    score_range: ScoreRange


def require_comparable(bundle: Bundle) -> None:
    """Raise ConfigError where cvad serves the bundle's model through anomalib: there is nothing to compare."""
    kind = bundle.manifest["model"]["kind"]
    if kind not in COMPARABLE_KINDS:
        raise ConfigError(
            f"{bundle.folder}: cvad serves {bundle.manifest['model']['name']} through anomalib's own code; only "
            f"{' and '.join(COMPARABLE_KINDS)} have a runtime of cvad's to compare"
        )


def available_inferencers() -> tuple[tuple[str, ...], dict[str, str]]:
    """The anomalib inferencers that can be measured on this machine, and why the others cannot."""
    if inferencers.can_export_openvino():
        return (*TORCH_INFERENCERS, OPENVINO), {}
    why = "anomalib's OpenVINO export goes through ONNX: pip install onnx onnxscript (cvad's extra `bench`)"
    return TORCH_INFERENCERS, {OPENVINO: why}


def export_for_inferencers(bundle_folder: Path, records: Sequence[ImageRecord], folder: Path) -> InferencerFiles:
    """Export the bundle's model with anomalib's engine into `folder`. Run it in a fresh process: it takes memory."""
    bundle = read_bundle(bundle_folder)
    module, side = _module(bundle), _side(bundle)
    os.chdir(folder)
    found = inferencers.measure_range(module, [record.path for record in records], side)
    inferencers.set_range(module, found)
    return InferencerFiles(bundle_folder, folder, inferencers.export(module, folder, side), found)


def open_inferencer(name: str, files: InferencerFiles, device: str, setting: LoaderSetting) -> BenchmarkTarget:
    """One of anomalib's inferencers, ready to judge files."""
    bundle = read_bundle(files.bundle)
    side = _side(bundle)
    if name == "torch_inferencer":
        return inferencers.TorchInferencerTarget(files.exports, device, side, setting)
    if name == OPENVINO:
        return inferencers.OpenVinoInferencerTarget(files.exports, side, setting)
    module = _module(bundle)
    inferencers.set_range(module, files.score_range)
    if name == "engine":
        return inferencers.EngineTarget(module, device, side, setting)
    return inferencers.TorchBatchesTarget(module, device, side, setting)


def _side(bundle: Bundle) -> int:
    return int(bundle.manifest["preprocessing"]["image_size"])


def _module(bundle: Bundle) -> Any:
    from safetensors.torch import load_file

    stored = bundle.manifest["model"]
    if stored["kind"] == "patchcore":
        bank = load_file(bundle.file("memory_bank"))["features"]
        return inferencers.anomalib_patchcore(patchcore_network(bundle), stored, bank, _side(bundle))
    return inferencers.anomalib_efficient_ad(efficient_ad_model(bundle), stored, _side(bundle))
