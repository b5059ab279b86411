"""Fits PatchCore on good images: a memory bank and held-out scores, within a bound on memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from cvad_cli.adapters.anomalib_models import embedding, new_patchcore
from cvad_cli.adapters.backbones import Backbone
from cvad_cli.adapters.pdn import fold_linear
from cvad_cli.adapters.prefetch import batched
from cvad_cli.adapters.runtime_torch import TorchPatchcore, on_device, to_tensor
from cvad_cli.adapters.storage.tensor_files import write_tensors
from cvad_cli.assembly.data.images import ImageStream
from cvad_cli.assembly.run_folders import bundle_folder
from cvad_cli.assembly.training.agreement_samples import Judge
from cvad_cli.assembly.training.calibration import CalibrationPlan, plan_calibration
from cvad_cli.assembly.training.fitted_model import FittedModel
from cvad_cli.assembly.training.pdn_teachers import PDN_BACKBONES, patchcore_backbone
from cvad_cli.config.schema import RunConfig
from cvad_cli.core.coreset import ChunkedCoreset, k_center_greedy
from cvad_cli.core.feature_targets import Moments
from cvad_cli.core.maps import anomaly_map
from cvad_cli.core.scoring import MemoryBank
from cvad_cli.core.whitening import whitening
from cvad_cli.errors import ConfigError, DataError, ResourceError
from cvad_cli.files import scratch_folder
from cvad_cli.ports import Reporter
from cvad_cli.records import ImageRecord

if TYPE_CHECKING:
    from cvad_cli.adapters.runtime_torch.types import Network

WORKING_COPIES: Final = 2.2
"""Memory needed besides the gathered features, as a multiple of them: a fold's copy and the coreset's working set."""


def fit_patchcore(settings: RunConfig, records: Sequence[ImageRecord], device: str, reporter: Reporter) -> FittedModel:
    """Fit anomalib's Patchcore with cvad's coreset on good images, and score the held-out images."""
    config, budget = settings.model, CoresetBudget.of(settings)
    if config.options:
        raise ConfigError(f"model.options: patchcore takes none; remove {', '.join(config.options)}")
    backbone = patchcore_backbone(config, seed=settings.seed)
    model = new_patchcore(backbone.network, backbone.spec.name, backbone.spec.layers, config.num_neighbors)
    stream = ImageStream(records, settings.data)
    spool = bundle_folder(settings).parent
    gathering = gather_features(
        model, stream, device=device, max_bytes=budget.max_bytes, spool=spool, reporter=reporter
    )
    with gathering as features:
        plan = plan_calibration(settings.calibration, len(features.values), seed=settings.seed)
        if backbone.spec.name in PDN_BACKBONES:
            _whiten(features, plan.final, backbone)
        bank, held_out = _fit_and_hold_out(features, plan, settings, device, reporter)
        patches, grid = int(np.prod(features.values.shape[:2])), features.grid
    readable = stream.readable
    unseen = np.setdiff1d(np.arange(len(readable)), plan.final)
    description = {
        "name": "patchcore",
        "backbone": backbone.spec.name,
        "layers": list(backbone.spec.layers),
        "backbone_kwargs": dict(backbone.spec.kwargs),
        "num_neighbors": config.num_neighbors,
        "grid": list(grid),
    }
    return FittedModel(
        kind="patchcore",
        description=description,
        writers=_writers(backbone, bank.features),
        weights=backbone.weights,
        held_out=tuple(held_out),
        used=len(readable),
        skipped=tuple(stream.skipped),
        details={
            "memory_bank": list(bank.features.shape),
            "patches": patches,
            "covering_radius": bank.radius,
            "coreset": bank.how,
        },
        unseen=tuple(readable[image].key for image in unseen),
        judge=_judge(backbone, bank.features, settings, device),
    )


def _whiten(features: PatchFeatures, images: np.ndarray, backbone: Backbone) -> None:
    """Whiten the features in place on those of `images`, and the patch description network that gives them.

    Distilled features vary most where the pretraining images did: without whitening, a change of colour on leather is
    hardly detected (docs/benchmarks.md). In cross-conformal calibration a fold's held-out images contribute to this
    matrix, although not to the fold's memory bank.
    """
    moments = Moments(features.values.shape[-1])
    for image in images:
        moments.add(np.asarray(features.values[image], np.float64))
    matrix = whitening(moments.result()[1])
    for patches in features.values:
        patches[:] = patches @ matrix.astype(np.float32)
    fold_linear(backbone.network, matrix)


def _judge(backbone: Backbone, bank: np.ndarray, settings: RunConfig, device: str) -> Judge:
    detector = TorchPatchcore(
        backbone.network,
        bank,
        num_neighbors=settings.model.num_neighbors,
        image_size=settings.data.image_size,
        device=device,
    )
    return detector.predict


def _fit_and_hold_out(
    features: PatchFeatures, plan: CalibrationPlan, settings: RunConfig, device: str, reporter: Reporter
) -> tuple[Bank, list[tuple[np.ndarray, np.ndarray]]]:
    """The final bank, and for each fold the scores of its held-out images."""
    budget, side = CoresetBudget.of(settings), settings.data.image_size
    rng = np.random.default_rng([settings.seed, 1])
    patches = features.values.shape[1]
    with reporter.stage("Selecting the coreset", bank_rows(len(plan.final) * patches, budget.ratio)) as advance:
        bank = build_bank(features, plan.final, budget, rng=rng, device=device, advance=advance)
    held_out = []
    with reporter.stage("Calibrating the threshold", sum(len(held) for _, held in plan.folds)) as advance:
        for kept, held in plan.folds:
            fold_bank = bank
            if kept is not plan.final:
                fold_bank = build_bank(features, kept, budget, rng=rng, device=device, advance=lambda _steps: None)
            judge = HeldOutJudge(fold_bank.features, budget.num_neighbors, (side, side), device)
            held_out.append(judge.score(features, held, advance))
    return bank, held_out


def _writers(backbone: Backbone, bank: np.ndarray) -> dict[str, tuple[str, Callable[[Path], None]]]:
    state = backbone.network.state_dict()
    return {
        "backbone": (".safetensors", lambda path: write_tensors(path, state)),
        "memory_bank": (".safetensors", lambda path: write_tensors(path, {"features": bank})),
    }


@dataclass(frozen=True, slots=True)
class PatchFeatures:
    """The patch features of a set of good images."""

    values: np.ndarray
    """float32 (n, p, d): images, patches row by row over the grid, channels."""
    grid: tuple[int, int]
    in_memory: bool
    """False: `values` is mapped from a temporary file, because it is larger than `train.max_memory` allows."""


@dataclass(frozen=True, slots=True)
class Bank:
    """A memory bank, and how well it covers the patches."""

    features: np.ndarray
    """float32 (m, d)."""
    radius: float
    """The largest distance of a patch to its nearest member: exact, or an upper bound where the coreset was merged."""
    how: str


@dataclass(frozen=True, slots=True)
class CoresetBudget:
    """The share of features that is kept, and the memory that may be used."""

    ratio: float
    num_neighbors: int
    max_bytes: int

    @classmethod
    def of(cls, settings: RunConfig) -> CoresetBudget:
        """The budget that a config sets."""
        return cls(settings.model.coreset_ratio, settings.model.num_neighbors, settings.train.max_memory_bytes)


@contextmanager
def gather_features(
    model: Network, stream: ImageStream, *, device: str, max_bytes: int, spool: Path, reporter: Reporter
) -> Iterator[PatchFeatures]:
    """Run anomalib's Patchcore over the images and collect its embeddings in one preallocated array.

    The array lies in memory, or in a temporary file below `spool` where it does not fit into `max_bytes`.
    Raises DataError where fewer than two images can be read, ResourceError where the disk is too full for the file.
    """
    from cvad_cli.adapters.runtime_torch.frozen_features import normalised

    with ExitStack() as stack:
        values: np.ndarray | None = None
        grid, filled, in_memory = (0, 0), 0, True
        with reporter.stage("Extracting features", len(stream.records)) as advance:
            for batch in batched((image for _, image in stream), 8):
                patches, grid = embedding(model, normalised(to_tensor(batch, device)))
                if values is None:
                    shape = (len(stream.records), *patches.shape[1:])
                    in_memory = int(np.prod(shape)) * 4 * WORKING_COPIES <= max_bytes
                    values = np.empty(shape, np.float32) if in_memory else _spooled(spool, shape, stack)
                values[filled : filled + len(batch)] = patches
                filled += len(batch)
                advance(len(batch))
        if values is None or filled < 2:
            raise DataError(f"training needs at least 2 good images, {filled} of {len(stream.records)} can be read")
        yield PatchFeatures(values[:filled], grid, in_memory)


def build_bank(
    features: PatchFeatures,
    images: np.ndarray,
    budget: CoresetBudget,
    *,
    rng: np.random.Generator,
    device: str,
    advance: Callable[[int], None],
) -> Bank:
    """The coreset of the patches of `images` (indices).

    In memory the greedy choice is exact; beyond `train.max_memory` the coreset is built in chunks and merged.
    """
    patches, channels = features.values.shape[1:]
    keep = bank_rows(len(images) * patches, budget.ratio)
    if features.in_memory:
        everything = len(images) == len(features.values)
        flat = (features.values if everything else features.values[images]).reshape(-1, channels)
        coreset = k_center_greedy(on_device(flat, device), keep, rng=rng, advance=advance)
        return Bank(flat[coreset.rows], coreset.radius, "exact greedy")
    rows_at_once = max(2 * keep, int(budget.max_bytes / (WORKING_COPIES * channels * 4)))
    step = max(1, rows_at_once // patches)
    chunked = ChunkedCoreset(keep, rows_at_once, rng=rng)
    for start in range(0, len(images), step):
        chunked.add(np.ascontiguousarray(features.values[images[start : start + step]]).reshape(-1, channels))
    merged = chunked.result()
    advance(keep)
    return Bank(np.asarray(merged.features), merged.radius_bound, f"greedy in chunks, {merged.merges} merges")


def bank_rows(patches: int, ratio: float) -> int:
    """How many of `patches` a coreset of `ratio` keeps: anomalib's rounding, and at least one."""
    return max(1, int(patches * ratio))


class HeldOutJudge:
    """Scores images, by their patch features, against a bank that was not built from them."""

    def __init__(self, bank: np.ndarray, num_neighbors: int, image_size: tuple[int, int], device: str) -> None:
        self._memory = MemoryBank(on_device(bank, device), num_neighbors=num_neighbors)
        self._image_size = image_size
        self._device = device

    def score(
        self, features: PatchFeatures, images: np.ndarray, advance: Callable[[int], None]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Image scores and map peaks, (k,) each, of the images with these indices."""
        scores, peaks = np.empty(len(images)), np.empty(len(images))
        for index, image in enumerate(images):
            found = self._memory.score(on_device(np.asarray(features.values[image]), self._device))
            scores[index] = found.image_score
            peaks[index] = anomaly_map(found.distances, features.grid, self._image_size).max()
            advance(1)
        return scores, peaks


def _spooled(folder: Path, shape: tuple[int, ...], stack: ExitStack) -> np.ndarray:
    """An array in a file that is removed with `stack`. Its space is reserved now: a full disk would crash us later."""
    size = int(np.prod(shape)) * 4
    try:
        path = stack.enter_context(scratch_folder(folder)) / "features"
        with path.open("wb") as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
        return np.memmap(path, dtype=np.float32, mode="r+" if path.stat().st_size else "w+", shape=shape)
    except OSError as error:
        raise ResourceError(
            f"{folder}: no room for {size / 1e9:.1f} GB of features: {error.strerror}. Set output.root to a larger "
            "disk, or raise train.max_memory so that they stay in memory."
        ) from error
