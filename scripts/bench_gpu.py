"""How fast bundles are judged on a GPU: cvad against the same weights in anomalib's eager torch model, in one run.

    python scripts/bench_gpu.py runs/patchcore_grid/bundle runs/efficientad_grid/bundle \
        --images datasets/mvtec_ad/grid/test --json

Measured for each bundle: the latency of single images and the images/s in batches, from decoded uint8 arrays to
scores and maps in NumPy, and images/s end to end from files (decoded by the same threads for both). Beside the figures
stands how far the scores are from cvad's float32 on the same device and from anomalib's, and, where the images lie in
one folder a defect type with one named good, the AUROC of each.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from cvad_cli.adapters.images import read_image, resize_image
from cvad_cli.adapters.prefetch import batched, prefetch
from cvad_cli.adapters.runtime_torch import IMAGENET_MEAN, IMAGENET_STD
from cvad_cli.adapters.storage.bundles import Bundle, read_bundle
from cvad_cli.assembly.serving.open_bundle import open_detector
from cvad_cli.config.load import load_config
from cvad_cli.config.schema import RunConfig

Judge = Callable[[Sequence[np.ndarray]], Any]
"""Images to (scores, maps) in NumPy."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="+", type=Path, metavar="BUNDLE")
    parser.add_argument("--images", type=Path, required=True, help="folder of PNG images, searched below")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--batches", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--singles", type=int, default=200, help="single images that are timed")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each throughput measurement")
    parser.add_argument("--threads", type=int, default=16, help="that decode, end to end")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    paths = sorted(options.images.rglob("*.png"))
    if not paths:
        parser.error(f"{options.images}: no PNG image below")
    results = [measure_bundle(folder, paths, options) for folder in options.bundles]
    report = {"machine": machine(options.device), "bundles": results}
    print(json.dumps(report, indent=2) if options.json else as_table(report))


def measure_bundle(folder: Path, paths: Sequence[Path], options: argparse.Namespace) -> dict[str, Any]:
    bundle = read_bundle(folder)
    side = bundle.manifest["preprocessing"]["image_size"]

    def read(path: Path) -> np.ndarray:
        return resize_image(read_image(path), (side, side))

    images = list(prefetch(paths, read, workers=options.threads))
    judges: dict[str, Judge] = {}
    started = time.perf_counter()
    for precision in ("auto", "f32"):
        opened = open_detector(settings_of(folder, precision), options.device)
        judges[f"cvad {opened.serving.precision}"] = as_judge(opened.detector)
        print_progress(f"{folder}: cvad {precision}: {opened.serving}")
    opening = time.perf_counter() - started
    judges["anomalib eager"] = peer(bundle, options.device)
    scores = {name: all_scores(judge, images, max(options.batches)) for name, judge in judges.items()}
    labels = np.array([path.parent.name != "good" for path in paths])
    rows = {}
    for name, judge in judges.items():
        rows[name] = {
            "latency_ms": latency(judge, images, options.singles),
            "images_per_s": {str(size): throughput(judge, images, size, options.seconds) for size in options.batches},
            "images_per_s_from_files": end_to_end(judge, paths, read, options),
            "largest_score_difference_to_cvad_f32": float(np.abs(scores[name] - scores["cvad f32"]).max()),
            "largest_score_difference_to_anomalib": float(np.abs(scores[name] - scores["anomalib eager"]).max()),
            "auroc": auroc(labels, scores[name]),
        }
        print_progress(f"{folder}: {name}: {rows[name]}")
    return {
        "bundle": str(folder),
        "model": bundle.manifest["model"]["name"],
        "memory_bank": bundle.manifest["training"].get("memory_bank"),
        "image_size": side,
        "images": len(paths),
        "score_spread": float(scores["cvad f32"].std()),
        "opening_both_s": opening,
        "runs": rows,
    }


def settings_of(folder: Path, precision: str) -> RunConfig:
    """The settings that a bundle was trained with, pointed at where it lies now, served by torch."""
    stored = read_bundle(folder).manifest["settings"]
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "run.yaml"
        path.write_text(yaml.safe_dump(stored), encoding="utf-8")
        here = folder.resolve().parent
        return load_config(
            path,
            [
                f"name={here.name}",
                f"output.root={here.parent}",
                "runtime.engine=torch",
                f"runtime.precision={precision}",
            ],
        )


def as_judge(detector: Any) -> Judge:
    def judge(images: Sequence[np.ndarray]) -> Any:
        found = detector.predict(images)
        return np.array([each.score for each in found]), [each.anomaly_map for each in found]

    return judge


def peer(bundle: Bundle, device: str) -> Judge:
    """anomalib's torch model of the same weights as its users run it: float32, whole batches, its own normalisation."""
    import torch

    model = patchcore_peer(bundle) if bundle.manifest["model"]["kind"] == "patchcore" else efficient_ad_peer(bundle)
    model = model.to(device).eval()
    normalise = bundle.manifest["model"]["kind"] == "patchcore"
    mean, std = (torch.tensor(values, device=device).view(1, 3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))

    def judge(images: Sequence[np.ndarray]) -> Any:
        with torch.inference_mode():
            batch = torch.from_numpy(np.stack(images)).to(device).permute(0, 3, 1, 2).float() / 255
            found = model((batch - mean) / std if normalise else batch)
            return found.pred_score.flatten().cpu().numpy(), found.anomaly_map[:, 0].cpu().numpy()

    return judge


def patchcore_peer(bundle: Bundle) -> Any:
    from safetensors.torch import load_file

    from cvad_cli.adapters.anomalib_models import new_patchcore
    from cvad_cli.adapters.backbones import BackboneSpec
    from cvad_cli.assembly.training.pdn_teachers import build_backbone

    stored = bundle.manifest["model"]
    spec = BackboneSpec(stored["backbone"], tuple(stored["layers"]), stored["backbone_kwargs"])
    network = build_backbone(spec)
    network.load_state_dict(load_file(bundle.file("backbone")))
    model = new_patchcore(network, spec.name, spec.layers, stored["num_neighbors"]).eval().model
    model.memory_bank = load_file(bundle.file("memory_bank"))["features"]
    return model


def efficient_ad_peer(bundle: Bundle) -> Any:
    from safetensors.torch import load_file

    from cvad_cli.adapters.anomalib_models.efficient_ad import new_model

    stored = bundle.manifest["model"]
    model = new_model(
        stored["model_size"], stored["teacher_out_channels"], padding=stored["padding"], pad_maps=stored["pad_maps"]
    )
    model.load_state_dict(load_file(bundle.file("network")))
    return model


def all_scores(judge: Judge, images: Sequence[np.ndarray], size: int) -> np.ndarray:
    return np.concatenate([judge(batch)[0] for batch in batched(images, size)])


def latency(judge: Judge, images: Sequence[np.ndarray], count: int) -> dict[str, float]:
    for image in images[:10]:
        judge([image])
    taken = []
    for index in range(count):
        started = time.perf_counter()
        judge([images[index % len(images)]])
        taken.append(1e3 * (time.perf_counter() - started))
    return {name: float(np.percentile(taken, share)) for name, share in (("p50", 50), ("p95", 95), ("p99", 99))}


def throughput(judge: Judge, images: Sequence[np.ndarray], size: int, seconds: float) -> float:
    """Median images/s over batches of `size`, after two to warm up."""
    batch = [images[index % len(images)] for index in range(size)]
    rates = []
    for _ in range(2):
        judge(batch)
    until = time.perf_counter() + seconds
    while time.perf_counter() < until or len(rates) < 3:
        started = time.perf_counter()
        judge(batch)
        rates.append(size / (time.perf_counter() - started))
    return statistics.median(rates)


def end_to_end(
    judge: Judge, paths: Sequence[Path], read: Callable[[Path], np.ndarray], options: argparse.Namespace
) -> float:
    """Images/s from files: threads decode and resize ahead, the network takes the largest batch."""
    size = max(options.batches)
    wanted = [paths[index % len(paths)] for index in range(max(len(paths), 8 * size))]
    started = time.perf_counter()
    for batch in batched(prefetch(wanted, read, ahead=4 * size, workers=options.threads), size):
        judge(batch)
    return len(wanted) / (time.perf_counter() - started)


def auroc(labels: np.ndarray, scores: np.ndarray) -> float | None:
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(labels, scores)) if 0 < labels.sum() < len(labels) else None


def machine(device: str) -> dict[str, Any]:
    import torch

    gpu = torch.cuda.get_device_name() if device.startswith("cuda") else None
    return {
        "gpu": gpu,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "processor": platform.processor(),
    }


def as_table(report: dict[str, Any]) -> str:
    lines = [f"{report['machine']}"]
    for bundle in report["bundles"]:
        lines.append(f"\n{bundle['model']}, bank {bundle['memory_bank']}, {bundle['image_size']} px")
        for name, row in bundle["runs"].items():
            rates = ", ".join(f"batch {size}: {rate:.0f}/s" for size, rate in row["images_per_s"].items())
            single = f"p50 {row['latency_ms']['p50']:.2f} ms, p95 {row['latency_ms']['p95']:.2f} ms"
            lines.append(f"  {name:16s} {single}; {rates}; from files {row['images_per_s_from_files']:.0f}/s")
    return "\n".join(lines)


def print_progress(text: str) -> None:
    import sys

    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
