"""From a bundle of ours to anomalib's models with the same weights and bank, exported, and opened each in its way."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cvad_cli.adapters.anomalib_models import peers
from cvad_cli.adapters.anomalib_models.peers import OPENVINO_BATCHES, TORCH_PEERS, Exports, RunSetting, ScoreRange
from cvad_cli.adapters.bundles import Bundle, read_bundle
from cvad_cli.assembly.trained_networks import efficient_ad_model, patchcore_network
from cvad_cli.errors import ConfigError
from cvad_cli.records import ImageRecord

__all__ = [
    "OPENVINO",
    "OPENVINO_BATCHES",
    "TORCH_PEERS",
    "PeerFiles",
    "RunSetting",
    "open_peer",
    "peer_names",
    "prepare_peers",
    "require_comparable",
]

OPENVINO: Final = "openvino"
PEERS_OF: Final = ("patchcore", "efficient_ad")
"""Kinds of bundle that have a faster path here than anomalib's own."""


@dataclass(frozen=True, slots=True)
class PeerFiles:
    """What a bundle was turned into for anomalib's ways of judging."""

    bundle: Path
    folder: Path
    exports: Exports
    score_range: ScoreRange


def require_comparable(bundle: Bundle) -> None:
    """Raise ConfigError where the bundle's model runs through anomalib here too: there is nothing to compare."""
    kind = bundle.manifest["model"]["kind"]
    if kind not in PEERS_OF:
        raise ConfigError(
            f"--peers: {bundle.manifest['model']['name']} is judged by anomalib's own code here as well; only "
            f"{' and '.join(PEERS_OF)} have a runtime of ours to compare"
        )


def peer_names() -> tuple[tuple[str, ...], dict[str, str]]:
    """anomalib's ways that can be measured on this machine, and why the others cannot."""
    if peers.can_export_openvino():
        return (*TORCH_PEERS, OPENVINO), {}
    why = "anomalib's OpenVINO export goes through ONNX: pip install onnx onnxscript (cvad's extra `bench`)"
    return TORCH_PEERS, {OPENVINO: why}


def prepare_peers(bundle_folder: Path, records: Sequence[ImageRecord], folder: Path) -> PeerFiles:
    """Export the bundle's model with anomalib's engine into `folder`. Meant for a fresh process: it takes memory."""
    bundle = read_bundle(bundle_folder)
    module, side = _module(bundle), _side(bundle)
    os.chdir(folder)
    found = peers.measure_range(module, [record.path for record in records], side)
    peers.set_range(module, found)
    return PeerFiles(bundle_folder, folder, peers.export(module, folder, side), found)


def open_peer(name: str, files: PeerFiles, device: str, setting: RunSetting) -> Any:
    """One of anomalib's ways, ready to judge files."""
    bundle = read_bundle(files.bundle)
    side = _side(bundle)
    if name == "torch_inferencer":
        return peers.TorchInferencerPeer(files.exports, device, side, setting)
    if name == OPENVINO:
        return peers.OpenVinoPeer(files.exports, side, setting)
    module = _module(bundle)
    peers.set_range(module, files.score_range)
    kind = {"engine": peers.EnginePeer, "torch_batches": peers.TorchBatchesPeer}[name]
    return kind(module, device, side, setting)


def _side(bundle: Bundle) -> int:
    return int(bundle.manifest["preprocessing"]["image_size"])


def _module(bundle: Bundle) -> Any:
    from safetensors.torch import load_file

    stored = bundle.manifest["model"]
    if stored["kind"] == "patchcore":
        bank = load_file(bundle.file("memory_bank"))["features"]
        return peers.patchcore_peer(patchcore_network(bundle), stored, bank, _side(bundle))
    return peers.efficient_ad_peer(efficient_ad_model(bundle), stored, _side(bundle))
