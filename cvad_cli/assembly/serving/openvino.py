"""Opens a bundle for a CPU: OpenVINO compiles the networks, faiss searches the memory bank, and a cache keeps both.

The first opening on a machine converts the network with torch, builds the search structure and verifies their agreement
with the trained model on the bundle's agreement samples. The result is kept in the cache beside the bundle, so that
later openings import neither torch nor anomalib.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol, final

import numpy as np

from cvad_cli.adapters.runtime_openvino.compiled import NETWORK_FILE, CompiledNetwork, convert, engine_identity
from cvad_cli.adapters.runtime_openvino.detectors import OpenvinoEfficientAd, OpenvinoPatchcore
from cvad_cli.adapters.runtime_openvino.quantising import quantise
from cvad_cli.adapters.storage.bundles import Bundle
from cvad_cli.adapters.storage.serving_cache import CacheEntry, ServingCache
from cvad_cli.adapters.storage.tensor_files import read_arrays
from cvad_cli.assembly.serving.bundle_networks import efficient_ad_model, patchcore_network
from cvad_cli.assembly.serving.engine_choice import Candidate, EngineChoice, Plan, Serving, choose_engine
from cvad_cli.assembly.serving.int8_images import Int8Images
from cvad_cli.assembly.training.agreement_samples import AgreementSamples
from cvad_cli.config.schema import RunConfig
from cvad_cli.core.maps import MapScale, interpolated, smoothed
from cvad_cli.core.quantization import QuantizationCorrection
from cvad_cli.ports import Detector


@dataclass(frozen=True, slots=True)
class Peaks:
    """Good images that are not used to verify agreement, and the largest values (n,) of their maps in float32."""

    images: Sequence[np.ndarray]
    values: np.ndarray

    @classmethod
    def of(cls, detector: Detector, images: Sequence[np.ndarray]) -> Peaks:
        """The peaks that a detector gives."""
        return cls(images, np.array([found.anomaly_map.max() for found in detector.predict(images)]))


class _Converted(Protocol):
    """A converted network, and its outputs in float32."""

    def candidate(self, folder: Path, precision: str, peaks: Peaks | None = None) -> Candidate:
        """The detector of one precision from the network in `folder`, with its quantization correction."""


class _Model(Protocol):
    """The steps that differ between kinds of models."""

    def convert(self, folder: Path) -> _Converted:
        """Write the converted network into `folder`."""

    def reopen(self, entry: CacheEntry) -> Detector:
        """The detector of a cache entry."""


def serve_with_openvino(
    bundle: Bundle, settings: RunConfig, plan: Plan, samples: AgreementSamples | None
) -> tuple[Detector, Serving]:
    """Open a PatchCore or EfficientAD bundle on this CPU.

    Raises ModelError, with the figures, where the precision that the user named does not agree with the trained model,
    and DataError where int8 finds no good images to set its ranges.
    """
    good = [] if samples is None else list(samples.images[samples.good])
    model = _MODELS[bundle.manifest["model"]["kind"]](bundle, settings.runtime.batch_size, good)
    made: list[Detector] = []

    def build(folder: Path) -> dict[str, Any]:
        choice = _built(folder, model, settings, plan, samples)
        candidate = choice.candidate
        candidate.save(folder)
        made.append(candidate.detector)
        return {
            "precision": choice.precision,
            "agreement": choice.agreement_facts,
            "note": choice.note,
            **candidate.facts,
        }

    cache = ServingCache(bundle.folder, bundle.fingerprint, _identity(plan))
    with cache.opened(build) as entry:
        detector = made[0] if made else model.reopen(entry)
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


def _built(
    folder: Path, model: _Model, settings: RunConfig, plan: Plan, samples: AgreementSamples | None
) -> EngineChoice:
    """Convert the network into `folder`, quantise it there for int8, and choose a precision that agrees."""
    if plan.precisions != ("int8",) or samples is None:
        return choose_engine(plan, samples, partial(model.convert(folder).candidate, folder))
    images = Int8Images.of(settings.data, samples, seed=settings.seed)
    exact = folder / "exact"
    exact.mkdir()
    converted = model.convert(exact)
    reference = converted.candidate(exact, "f32").detector
    judged, peaks = images.joined(samples, reference.predict), Peaks.of(reference, images.peaks)
    quantise(exact / NETWORK_FILE, images.ranges, folder)
    shutil.rmtree(exact, ignore_errors=True)
    return choose_engine(plan, judged, lambda precision: converted.candidate(folder, precision, peaks))


@final
@dataclass(frozen=True, slots=True)
class _Patchcore:
    bundle: Bundle
    max_at_once: int
    good: Sequence[np.ndarray]

    def convert(self, folder: Path) -> _ConvertedPatchcore:
        from cvad_cli.adapters.neighbours import BankSearch
        from cvad_cli.adapters.runtime_torch.networks import PatchEmbedding, answers

        embedding, bank = PatchEmbedding(patchcore_network(self.bundle)), self.bank
        exact = answers(embedding, self.good) if self.good else np.empty((0, 0, bank.shape[1]), np.float32)
        convert(embedding, self.side, folder)
        # Without agreement samples the recall of an approximate search cannot be measured, so the search is exact.
        neighbors = int(self.bundle.manifest["model"]["num_neighbors"])
        return _ConvertedPatchcore(self, exact, BankSearch.build(bank, neighbors, exact.reshape(-1, bank.shape[1])))

    def reopen(self, entry: CacheEntry) -> Detector:
        from cvad_cli.adapters.neighbours import BankSearch

        stored = entry.facts["correction"]
        correction = QuantizationCorrection(np.array(stored["bias"], np.float32), stored["floor"])
        search = BankSearch.load(entry.folder, self.bank, entry.facts["search"])
        return self.assembled(self.network(entry.folder, entry.facts["precision"]), search, correction)

    @property
    def side(self) -> int:
        return int(self.bundle.manifest["preprocessing"]["image_size"])

    @property
    def bank(self) -> np.ndarray:
        features: np.ndarray = read_arrays(self.bundle.file("memory_bank"))["features"]
        return features

    def network(self, folder: Path, precision: str) -> CompiledNetwork:
        return CompiledNetwork(folder / NETWORK_FILE, precision, max_at_once=self.max_at_once)

    def assembled(self, network: CompiledNetwork, search: Any, correction: QuantizationCorrection) -> Detector:
        rows, columns = (int(cells) for cells in self.bundle.manifest["model"]["grid"])
        enlargement = smoothed((rows, columns), (self.side, self.side))
        return OpenvinoPatchcore(network, search, grid=(rows, columns), enlargement=enlargement, correction=correction)


@final
@dataclass(frozen=True, slots=True)
class _ConvertedPatchcore:
    model: _Patchcore
    exact: np.ndarray
    """Patches (n, p, d) of the good agreement samples in float32."""
    search: Any

    def candidate(self, folder: Path, precision: str, peaks: Peaks | None = None) -> Candidate:
        del peaks  # PatchCore is corrected in its features
        network, good = self.model.network(folder, precision), self.model.good
        correction = QuantizationCorrection.none(self.exact.shape[-1])
        if good and precision != "f32":
            correction = QuantizationCorrection.measured(self.exact, network(good))
        return Candidate(
            self.model.assembled(network, self.search, correction),
            {
                "search": asdict(self.search.facts),
                "correction": {"bias": correction.bias.tolist(), "floor": correction.floor},
            },
            self.search.save,
        )


@final
@dataclass(frozen=True, slots=True)
class _EfficientAd:
    bundle: Bundle
    max_at_once: int
    good: Sequence[np.ndarray]

    def convert(self, folder: Path) -> _ConvertedEfficientAd:
        from cvad_cli.adapters.runtime_torch.networks import StudentTeacherMaps, answers, border_cells, map_scale

        network = efficient_ad_model(self.bundle)
        maps = StudentTeacherMaps(network)
        geometry = {"grid": list(maps.grid((self.side, self.side))), "border": border_cells(network)}
        exact = answers(maps, self.good) if self.good else np.empty(0, np.float32)
        convert(maps, self.side, folder)
        return _ConvertedEfficientAd(self, exact, geometry, map_scale(network))

    def reopen(self, entry: CacheEntry) -> Detector:
        return self.assembled(self.network(entry.folder, entry.facts["precision"]), entry.facts["maps"])

    @property
    def side(self) -> int:
        return int(self.bundle.manifest["preprocessing"]["image_size"])

    def network(self, folder: Path, precision: str) -> CompiledNetwork:
        return CompiledNetwork(folder / NETWORK_FILE, precision, max_at_once=self.max_at_once)

    def assembled(self, network: CompiledNetwork, maps: Mapping[str, Any]) -> Detector:
        enlargement = interpolated((maps["grid"][0], maps["grid"][1]), (self.side, self.side), maps["border"])
        return OpenvinoEfficientAd(network, scale=MapScale(**maps["scale"]), enlargement=enlargement)


@final
@dataclass(frozen=True, slots=True)
class _ConvertedEfficientAd:
    model: _EfficientAd
    exact: np.ndarray
    """Both maps (n, 2, h, w) of the good agreement samples in float32."""
    geometry: Mapping[str, Any]
    scale: MapScale

    def candidate(self, folder: Path, precision: str, peaks: Peaks | None = None) -> Candidate:
        network, scale = self.model.network(folder, precision), self.scale
        if self.model.good and precision != "f32":
            # Rounding noise adds its mean square to both maps, about the same everywhere: the mean is subtracted.
            added = (network(self.model.good) - self.exact).mean(axis=(0, 2, 3), dtype=np.float64).tolist()
            scale = replace(scale, offset=scale.offset - scale.student * added[0] - scale.autoencoder * added[1])
        if peaks is not None and precision != "f32":
            # Large noise raises the largest of many values more than their mean: the peaks' mean rise is subtracted.
            found = Peaks.of(self.model.assembled(network, self._maps(scale)), peaks.images)
            scale = replace(scale, offset=scale.offset - float(np.mean(found.values - peaks.values)))
        maps = self._maps(scale)
        return Candidate(self.model.assembled(network, maps), {"maps": maps})

    def _maps(self, scale: MapScale) -> dict[str, Any]:
        return {**self.geometry, "scale": asdict(scale)}


_MODELS: Final[Mapping[str, Callable[[Bundle, int, Sequence[np.ndarray]], _Model]]] = {
    "patchcore": _Patchcore,
    "efficient_ad": _EfficientAd,
}


def _identity(plan: Plan) -> dict[str, Any]:
    from cvad_cli.adapters.neighbours import faiss_version

    return {**engine_identity(), "faiss": faiss_version(), "precision": "+".join(plan.precisions)}
