"""A bundle opened for a CPU: networks compiled by OpenVINO, the memory bank searched by faiss, both from a cache.

The first opening on a machine converts the network with torch, builds the search structure and lets both prove
themselves on the bundle's probes; what was made is kept beside the bundle. Later openings import neither torch nor
anomalib.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final, Protocol, final

import numpy as np

from cvad_cli.adapters.bundles import Bundle
from cvad_cli.adapters.runtime_openvino.compiled import NETWORK_FILE, CompiledNetwork, convert, engine_identity
from cvad_cli.adapters.runtime_openvino.detectors import OpenvinoEfficientAd, OpenvinoPatchcore
from cvad_cli.adapters.runtime_openvino.quantising import quantise
from cvad_cli.adapters.serving_cache import CacheEntry, ServingCache
from cvad_cli.adapters.storage.tensor_files import read_arrays
from cvad_cli.assembly.probes import Probes
from cvad_cli.assembly.serving import Plan, Serving, prove
from cvad_cli.assembly.serving_int8 import Int8Pictures
from cvad_cli.assembly.trained_networks import efficient_ad_model, patchcore_network
from cvad_cli.config.schema import RunConfig
from cvad_cli.core.maps import MapScale, interpolated, smoothed
from cvad_cli.core.rounding import Rounding
from cvad_cli.ports import Detector


class _Maker(Protocol):
    """What is particular to a kind of model."""

    def convert(self, folder: Path) -> None:
        """Write the converted network, and what goes with it, into `folder`."""

    def detector(self, folder: Path, precision: str) -> Detector:
        """A detector of one precision from the files in `folder`."""

    def know_peaks(self, pictures: Sequence[np.ndarray], peaks: np.ndarray) -> None:
        """Good pictures that judge nothing, and the largest values (n,) of their maps in float32."""

    def finish(self, folder: Path) -> Mapping[str, Any]:
        """Write what the detectors built beside the network; facts to keep, JSON-ready."""

    def reopen(self, entry: CacheEntry) -> Detector:
        """The detector of a kept entry."""


def serve_with_openvino(
    bundle: Bundle, settings: RunConfig, plan: Plan, probes: Probes | None
) -> tuple[Detector, Serving]:
    """Open a PatchCore or EfficientAD bundle on this CPU.

    Raises ModelError where the precision that the user named does not hold, with the figures; DataError where int8
    finds no good pictures to take its ranges from.
    """
    kind = bundle.manifest["model"]["kind"]
    maker: _Maker = _MAKERS[kind](bundle, settings.runtime.batch_size, probes)
    made: list[Detector] = []

    def build(folder: Path) -> dict[str, Any]:
        judged = probes
        if plan.precisions == ("int8",) and probes is not None:
            judged = _quantised(folder, maker, settings, probes)
        else:
            maker.convert(folder)
        detector, precision, proof, note = prove(plan, judged, lambda wanted: maker.detector(folder, wanted))
        made.append(detector)
        agreement = None if proof is None else asdict(proof)
        return {"precision": precision, "agreement": agreement, "note": note, **maker.finish(folder)}

    cache = ServingCache(bundle.folder, bundle.fingerprint, _identity(plan))
    with cache.opened(build) as entry:
        detector = made[0] if made else maker.reopen(entry)
        facts = entry.facts
        serving = Serving(
            engine="openvino",
            device=plan.device,
            precision=facts["precision"],
            search=facts.get("search"),
            agreement=facts["agreement"],
            cache=entry.folder if entry.kept else None,
            note=facts["note"],
        )
    return detector, serving


@final
class _PatchcoreMaker:
    def __init__(self, bundle: Bundle, most_at_once: int, probes: Probes | None) -> None:
        self._bundle = bundle
        self._most_at_once = most_at_once
        self._good = _good_pictures(probes)
        self._bank = read_arrays(bundle.file("memory_bank"))["features"]
        self._grid = (int(bundle.manifest["model"]["grid"][0]), int(bundle.manifest["model"]["grid"][1]))
        self._side = int(bundle.manifest["preprocessing"]["image_size"])
        self._exact = np.empty((0, 0, self._bank.shape[1]), np.float32)
        self._search: Any = None
        self._rounding = Rounding.none(self._bank.shape[1])

    def convert(self, folder: Path) -> None:
        from cvad_cli.adapters.runtime_torch.networks import PatchEmbedding, answers

        embedding = PatchEmbedding(patchcore_network(self._bundle))
        if self._good:
            self._exact = answers(embedding, self._good)
        convert(embedding, self._side, folder)

    def detector(self, folder: Path, precision: str) -> Detector:
        from cvad_cli.adapters.neighbours import BankSearch

        network = self._network(folder, precision)
        if self._good and precision != "f32":
            self._rounding = Rounding.measured(self._exact, network(self._good))
        else:
            self._rounding = Rounding.none(self._bank.shape[1])
        if self._search is None:
            # Without probes nothing shows the recall of an approximate search: then it is exact.
            patches = self._exact.reshape(-1, self._bank.shape[1])
            self._search = BankSearch.build(self._bank, int(self._bundle.manifest["model"]["num_neighbors"]), patches)
        return self._assembled(network, self._search, self._rounding)

    def know_peaks(self, pictures: Sequence[np.ndarray], peaks: np.ndarray) -> None:
        del pictures, peaks  # what rounding does is taken back from the features themselves

    def finish(self, folder: Path) -> Mapping[str, Any]:
        self._search.save(folder)
        rounding = {"bias": self._rounding.bias.tolist(), "floor": self._rounding.floor}
        return {"search": asdict(self._search.facts), "rounding": rounding}

    def reopen(self, entry: CacheEntry) -> Detector:
        from cvad_cli.adapters.neighbours import BankSearch

        stored = entry.facts["rounding"]
        rounding = Rounding(np.array(stored["bias"], np.float32), stored["floor"])
        search = BankSearch.load(entry.folder, self._bank, entry.facts["search"])
        return self._assembled(self._network(entry.folder, entry.facts["precision"]), search, rounding)

    def _network(self, folder: Path, precision: str) -> CompiledNetwork:
        return CompiledNetwork(folder / NETWORK_FILE, precision, most_at_once=self._most_at_once)

    def _assembled(self, network: CompiledNetwork, search: Any, rounding: Rounding) -> Detector:
        spread = smoothed(self._grid, (self._side, self._side))
        return OpenvinoPatchcore(network, search, grid=self._grid, spread=spread, rounding=rounding)


@final
class _EfficientAdMaker:
    def __init__(self, bundle: Bundle, most_at_once: int, probes: Probes | None) -> None:
        self._bundle = bundle
        self._most_at_once = most_at_once
        self._good = _good_pictures(probes)
        self._side = int(bundle.manifest["preprocessing"]["image_size"])
        self._exact = np.empty(0, np.float32)
        self._maps: dict[str, Any] = {}
        self._scale = MapScale(0.5, 0.5, 0.0)
        self._known: tuple[Sequence[np.ndarray], np.ndarray] | None = None

    def convert(self, folder: Path) -> None:
        from cvad_cli.adapters.runtime_torch.networks import StudentTeacherMaps, answers, border_cells, map_scale

        model = efficient_ad_model(self._bundle)
        maps = StudentTeacherMaps(model)
        self._scale = map_scale(model)
        self._maps = {"grid": list(maps.grid((self._side, self._side))), "border": border_cells(model)}
        if self._good:
            self._exact = answers(maps, self._good)
        convert(maps, self._side, folder)

    def detector(self, folder: Path, precision: str) -> Detector:
        network = self._network(folder, precision)
        scale = self._scale
        if self._good and precision != "f32":
            # Rounding noise adds its square to both maps, everywhere alike: its mean is taken back.
            student, autoencoder = (network(self._good) - self._exact).mean(axis=(0, 2, 3), dtype=np.float64).tolist()
            scale = replace(scale, offset=scale.offset - scale.student * student - scale.autoencoder * autoencoder)
        if self._known is not None and precision != "f32":
            # Where noise is large the largest of many values gains more by it than their mean does.
            pictures, peaks = self._known
            self._maps["scale"] = asdict(scale)
            added = float(np.mean(_peaks(self._assembled(network, self._maps), pictures) - peaks))
            scale = replace(scale, offset=scale.offset - added)
        self._maps["scale"] = asdict(scale)
        return self._assembled(network, self._maps)

    def know_peaks(self, pictures: Sequence[np.ndarray], peaks: np.ndarray) -> None:
        self._known = (pictures, peaks)

    def finish(self, folder: Path) -> Mapping[str, Any]:
        del folder
        return {"maps": self._maps}

    def reopen(self, entry: CacheEntry) -> Detector:
        return self._assembled(self._network(entry.folder, entry.facts["precision"]), entry.facts["maps"])

    def _network(self, folder: Path, precision: str) -> CompiledNetwork:
        return CompiledNetwork(folder / NETWORK_FILE, precision, most_at_once=self._most_at_once)

    def _assembled(self, network: CompiledNetwork, maps: Mapping[str, Any]) -> Detector:
        spread = interpolated((maps["grid"][0], maps["grid"][1]), (self._side, self._side), maps["border"])
        return OpenvinoEfficientAd(network, scale=MapScale(**maps["scale"]), spread=spread)


def _good_pictures(probes: Probes | None) -> list[np.ndarray]:
    return [] if probes is None else list(probes.pictures[probes.good])


_MAKERS: Final[Mapping[str, Callable[[Bundle, int, Probes | None], _Maker]]] = {
    "patchcore": _PatchcoreMaker,
    "efficient_ad": _EfficientAdMaker,
}


def _quantised(folder: Path, maker: _Maker, settings: RunConfig, probes: Probes) -> Probes:
    """Convert and quantise into `folder`; the pictures that the result is to be judged by."""
    pictures = Int8Pictures.of(settings.data, probes, seed=settings.seed)
    exact = folder / "exact"
    exact.mkdir()
    maker.convert(exact)
    detector = maker.detector(exact, "f32")
    judged = pictures.joined(probes, detector.predict)
    maker.know_peaks(pictures.peaks, _peaks(detector, pictures.peaks))
    quantise(exact / NETWORK_FILE, pictures.ranges, folder)
    shutil.rmtree(exact, ignore_errors=True)
    return judged


def _peaks(detector: Detector, pictures: Sequence[np.ndarray]) -> np.ndarray:
    return np.array([found.anomaly_map.max() for found in detector.predict(pictures)])


def _identity(plan: Plan) -> dict[str, Any]:
    from cvad_cli.adapters.neighbours import faiss_version

    return {**engine_identity(), "faiss": faiss_version(), "precision": "+".join(plan.precisions)}
