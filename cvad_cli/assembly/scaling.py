"""How time and memory grow: the same bundle at other image sizes, with other memory banks, over more images."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from cvad_cli.adapters.bundles import Bundle, FileWriter, write_bundle
from cvad_cli.adapters.fresh_process import in_fresh_process
from cvad_cli.adapters.images import resize_image
from cvad_cli.assembly.contenders import Job, measure, memory_over, started_now
from cvad_cli.assembly.detectors import bundle_folder, open_bundle, open_detector
from cvad_cli.assembly.peer_models import RunSetting
from cvad_cli.assembly.probes import ROLE as PROBES
from cvad_cli.assembly.probes import Probes, read_probes
from cvad_cli.assembly.serving import as_reference
from cvad_cli.config.load import to_plain
from cvad_cli.config.schema import OutputConfig, RunConfig
from cvad_cli.ports import Detector, Reporter

IMAGE_SIZES: Final = {"patchcore": (128, 256, 512), "efficient_ad": (256, 384, 512)}
"""EfficientAD's autoencoder takes no less than 256 pixels."""
BANK_FACTORS: Final = (1 / 16, 1 / 4, 1, 4)
IMAGE_COUNTS: Final = (1, 4, 16)
"""Images of the longest run over those of the shortest."""
NOISE: Final = 0.05
"""Standard deviation of what is added to copied rows, as a share of each channel's: a larger bank has no twins."""


def grow(job: Job, setting: RunSetting, *, reporter: Reporter) -> dict[str, list[dict[str, float]]]:
    """Axis -> a row a size: `value`, `ms_per_image` (end to end, in batches) and `memory_mb`; JSON-ready.

    Every size of image or bank is a bundle of its own in a temporary folder, opened and measured in a fresh process.
    Banks larger than the bundle's hold its rows again with a little noise. Scores of such bundles mean nothing.
    """
    bundle = open_bundle(job.settings)
    kind = bundle.manifest["model"]["kind"]
    sizes = IMAGE_SIZES.get(kind, ())
    rows = _bank_sizes(bundle)
    found: dict[str, list[dict[str, float]]] = {}
    with reporter.stage("Measuring growth", len(sizes) + len(rows) + 1) as advance:
        for axis, values in (("image_size", sizes), ("bank_rows", rows)):
            if values:
                found[axis] = [_at(job, setting, bundle, axis, value, advance) for value in values]
        counts = [len(job.records) * factor for factor in IMAGE_COUNTS]
        found["images"] = [
            {
                "value": row["value"],
                "ms_per_image": row["seconds"] * 1e3 / row["value"],
                "memory_mb": row["memory"] / 1e6,
            }
            for row in in_fresh_process(memory_over, job, setting, counts)
        ]
        advance(1)
    return found


def _at(
    job: Job, setting: RunSetting, bundle: Bundle, axis: str, value: int, advance: Callable[[int], None]
) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="cvad-bench-") as scratch:
        settings = in_fresh_process(write_variant, job.settings, bundle, Path(scratch), axis, value)
        changed = dataclasses.replace(job, settings=settings)
        measured = in_fresh_process(measure, started_now(changed), setting, False)
    advance(1)
    return {
        "value": value,
        "ms_per_image": 1e3 / measured.images_per_s,
        "memory_mb": measured.peak_memory / 1e6,
    }


def write_variant(settings: RunConfig, bundle: Bundle, root: Path, axis: str, value: int) -> RunConfig:
    """Write a bundle below `root` with another `image_size` or `bank_rows`; return the settings that open it.

    Its probes are judged anew, so that the engine which serves it proves itself as it does on any other bundle.
    """
    side = value if axis == "image_size" else settings.data.image_size
    changed = dataclasses.replace(
        settings,
        data=dataclasses.replace(settings.data, image_size=side),
        output=OutputConfig(str(root)),
    )
    manifest = bundle.manifest
    model = dict(manifest["model"])
    if "grid" in model:
        model["grid"] = [cells * side // settings.data.image_size for cells in model["grid"]]
    contents = {
        **{key: manifest[key] for key in ("name", "calibration", "data", "training")},
        "model": model,
        "preprocessing": {**manifest["preprocessing"], "image_size": side},
        "settings": to_plain(changed),
    }
    writers: dict[str, tuple[str, FileWriter]] = {
        role: (bundle.file(role).suffix, partial(shutil.copyfile, bundle.file(role))) for role in manifest["files"]
    }
    if axis == "bank_rows":
        writers["memory_bank"] = (".safetensors", partial(_write_bank, bundle.file("memory_bank"), value))
    probes = read_probes(bundle)
    if probes is not None:
        del writers[PROBES]
        write_bundle(bundle_folder(changed), contents, writers)
        reference = dataclasses.replace(changed, runtime=as_reference(changed.runtime))
        writers[PROBES] = (".safetensors", _judged_anew(probes, open_detector(reference, "cpu").detector).save)
    write_bundle(bundle_folder(changed), contents, writers)
    return changed


def _judged_anew(probes: Probes, detector: Detector) -> Probes:
    pictures = np.stack([resize_image(picture, detector.image_size) for picture in probes.pictures])
    found = [detector.predict([picture])[0] for picture in pictures]
    scores = np.array([prediction.score for prediction in found], np.float32)
    peaks = np.array([prediction.anomaly_map.max() for prediction in found], np.float32)
    return dataclasses.replace(probes, pictures=pictures, scores=scores, peaks=peaks)


def _write_bank(source: Path, rows: int, path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    bank = load_file(source)["features"]
    rng = np.random.default_rng(0)
    chosen = bank[rng.permutation(len(bank))[:rows]]
    if rows > len(bank):
        copies = bank[rng.integers(0, len(bank), rows - len(bank))]
        noise = rng.standard_normal(copies.shape, dtype=np.float32) * (NOISE * bank.std(axis=0))
        chosen = np.concatenate([chosen, copies + noise])
    save_file({"features": np.ascontiguousarray(chosen)}, path)


def _bank_sizes(bundle: Bundle) -> Sequence[int]:
    if bundle.manifest["model"]["kind"] != "patchcore":
        return ()
    own: list[Any] = bundle.manifest["training"]["memory_bank"]
    return [max(1, round(own[0] * factor)) for factor in BANK_FACTORS]
