"""Variants of a trained bundle, to measure how time and memory grow. Their scores mean nothing."""

from __future__ import annotations

import dataclasses
import math
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np

from cvad_cli.adapters.storage.bundles import Bundle, FileWriter, write_bundle
from cvad_cli.adapters.storage.tensor_files import read_arrays, write_tensors
from cvad_cli.assembly.data.images import open_dataset, read_image
from cvad_cli.assembly.run_folders import bundle_folder
from cvad_cli.assembly.serving.bundle_networks import patchcore_network
from cvad_cli.assembly.serving.engine_choice import as_reference
from cvad_cli.assembly.serving.open_bundle import open_detector
from cvad_cli.assembly.training.agreement_samples import ROLE as SAMPLES
from cvad_cli.assembly.training.agreement_samples import AgreementSamples, read_agreement_samples, with_spoilt
from cvad_cli.config.load import to_plain
from cvad_cli.config.schema import OutputConfig, RunConfig
from cvad_cli.errors import DataError
from cvad_cli.records import ImageRecord

NOISE: Final = 0.05
"""Standard deviation of the noise on copied rows, as a share of each channel's, so that no two rows are equal."""

IMAGES: Final = 24
"""Minimum number of images whose patches give a bank for another image size, if there are so many."""

CHOICE: Final = 6
"""Patches per row of the bank to choose from: a graph over all patches of a few images misses nearest neighbours."""

BANK: Final = "memory_bank"
"""The role of its file in the bundle."""


def write_variant(settings: RunConfig, bundle: Bundle, root: Path, axis: str, value: int) -> RunConfig:
    """Write a bundle below `root` with another `image_size` or `bank_rows`; return the settings that open it.

    Its agreement samples are judged again, so that the engine is verified as for any other bundle. At another image
    size, agreement samples and memory bank come from training images at that size, as in training; otherwise no search
    graph may reach the recall, and the search is exhaustive. Raises DataError if there are no such images.
    """
    side = value if axis == "image_size" else settings.data.image_size
    changed = dataclasses.replace(
        settings,
        data=dataclasses.replace(settings.data, image_size=side),
        output=OutputConfig(str(root)),
    )
    samples, bank = read_agreement_samples(bundle), None
    if side != settings.data.image_size:
        good = _GoodImages.of(changed, 0 if samples is None else len(samples.keys))
        samples = None if samples is None else good.as_samples(samples)
        if BANK in bundle.manifest["files"]:
            rows = int(bundle.manifest["training"]["memory_bank"][0])
            wanted = max(IMAGES, -(-CHOICE * rows // math.prod(_grid(bundle, side))))
            bank = partial(_write_bank, _coreset_of(patches_of(bundle, good.others(wanted)), rows), rows)
    elif axis == "bank_rows":
        bank = partial(_write_bank, read_arrays(bundle.file(BANK))["features"], value)
    _write(bundle, changed, bank, samples)
    return changed


def _write(bundle: Bundle, settings: RunConfig, bank: FileWriter | None, samples: AgreementSamples | None) -> None:
    manifest, side = bundle.manifest, settings.data.image_size
    model = dict(manifest["model"])
    if "grid" in model:
        model["grid"] = _grid(bundle, side)
    contents = {
        **{key: manifest[key] for key in ("name", "calibration", "data", "training")},
        "model": model,
        "preprocessing": {**manifest["preprocessing"], "image_size": side},
        "settings": to_plain(settings),
    }
    writers: dict[str, tuple[str, FileWriter]] = {
        role: (bundle.file(role).suffix, partial(shutil.copyfile, bundle.file(role))) for role in bundle.roles
    }
    if bank is not None:
        writers[BANK] = (".safetensors", bank)
    if samples is not None:
        del writers[SAMPLES]
        write_bundle(bundle_folder(settings), contents, writers)
        reference = dataclasses.replace(settings, runtime=as_reference(settings.runtime))
        judge = open_detector(reference, "cpu").detector.predict
        found = [judge([image])[0] for image in samples.images]
        writers |= samples.judged(found).writers
    write_bundle(bundle_folder(settings), contents, writers)


def _grid(bundle: Bundle, side: int) -> list[int]:
    """Rows and columns of PatchCore's patches in an image of `side` pixels."""
    own = int(bundle.manifest["preprocessing"]["image_size"])
    return [int(cells) * side // own for cells in bundle.manifest["model"]["grid"]]


@dataclasses.dataclass(frozen=True, slots=True)
class _GoodImages:
    """Good training images at the network's size, in random order; the first of them are for agreement samples."""

    settings: RunConfig
    first: tuple[ImageRecord, ...]
    rest: tuple[ImageRecord, ...]

    @classmethod
    def of(cls, settings: RunConfig, samples: int) -> _GoodImages:
        records = open_dataset(settings.data).train
        if len(records) < 2:
            raise DataError(
                f"{settings.data.root}: other image sizes are measured with two good training images at least, and "
                f"{len(records)} are there; add some, or leave --scaling out"
            )
        order = np.random.default_rng(settings.seed).permutation(len(records))
        shuffled = tuple(records[index] for index in order)
        count = min(samples, len(shuffled) - 1)
        return cls(settings, shuffled[:count], shuffled[count:])

    def as_samples(self, samples: AgreementSamples) -> AgreementSamples:
        """New agreement samples instead of `samples`, not judged yet."""
        rng = np.random.default_rng(self.settings.seed)
        good = [read_image(record.path, self.settings.data) for record in self.first]
        images, unspoilt = with_spoilt(good, rng=rng)
        keys = tuple(record.key for record in self.first)
        return dataclasses.replace(samples, images=images, good=unspoilt, keys=keys)

    def others(self, max_images: int) -> list[np.ndarray]:
        """At most `max_images` of the rest: uint8 (h, w, 3)."""
        return [read_image(record.path, self.settings.data) for record in self.rest[:max_images]]


def patches_of(bundle: Bundle, images: Sequence[np.ndarray]) -> np.ndarray:
    """The patch features (n, d) of uint8 images (h, w, 3)."""
    from cvad_cli.adapters.runtime_torch.networks import PatchEmbedding, answers

    found = answers(PatchEmbedding(patchcore_network(bundle)), images)
    return found.reshape(-1, found.shape[-1])


def _coreset_of(patches: np.ndarray, rows: int) -> np.ndarray:
    """A coreset of at most `rows` of `patches` (n, d), as training chooses one."""
    from cvad_cli.core.coreset import k_center_greedy

    if len(patches) <= rows:
        return patches
    chosen: np.ndarray = patches[k_center_greedy(patches, rows, rng=np.random.default_rng(0)).rows]
    return chosen


def _write_bank(patches: np.ndarray, rows: int, path: Path) -> None:
    """Write `rows` of `patches` (n, d); if there are too few, all of them and noisy copies of random ones."""
    rng = np.random.default_rng(0)
    chosen = patches[rng.permutation(len(patches))[:rows]]
    if rows > len(patches):
        copies = patches[rng.integers(0, len(patches), rows - len(patches))]
        noise = rng.standard_normal(copies.shape, dtype=np.float32) * (NOISE * patches.std(axis=0))
        chosen = np.concatenate([chosen, copies + noise])
    write_tensors(path, {"features": chosen})
