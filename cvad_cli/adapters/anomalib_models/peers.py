"""anomalib's own ways to judge pictures, run as a user of anomalib would: what our speed is compared with.

Models carry the same weights and memory bank as ours, and anomalib's default pre- and post-processing for them: files
opened by anomalib, shrunk by torchvision, maps and scores normalised. Nothing that costs time for its own sake is left
on: no pictures are drawn, no metrics collected, no progress shown.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, final

import numpy as np

from cvad_cli.adapters.anomalib_models import new_patchcore
from cvad_cli.records import Prediction

if TYPE_CHECKING:
    import torch
    from anomalib.models.components import AnomalibModule
    from torch import nn
    from torch.utils.data import DataLoader

PeerName = Literal["torch_inferencer", "engine", "torch_batches", "openvino"]
OPENVINO_BATCHES: Final = (1, 8)
TORCH_PEERS: Final = ("torch_inferencer", "engine", "torch_batches")
"""Of which the fastest is anomalib's torch path."""


@dataclass(frozen=True, slots=True)
class RunSetting:
    """How files are handed over, where a contender leaves a choice."""

    batch_size: int = 1
    workers: int = 0
    """Processes that read ahead; 0: the one that computes reads as well."""
    shrink_first: bool = True
    """Whether pictures are brought to the network's size before they are batched, or inside the exported model."""


@dataclass(frozen=True, slots=True)
class ScoreRange:
    """What anomalib's post-processor normalises by: found by it on validation images."""

    image_min: float
    image_max: float
    pixel_min: float
    pixel_max: float


@dataclass(frozen=True, slots=True)
class Exports:
    """Files of `Engine.export`."""

    torch_file: Path
    openvino: Mapping[int, Path]
    """Batch size -> a model for just so many pictures at the network's size; empty: it cannot export here."""


def patchcore_peer(
    network: nn.Module, stored: Mapping[str, Any], bank: torch.Tensor, image_size: int
) -> AnomalibModule:
    """anomalib's Patchcore with a bundle's backbone and memory bank; `stored` is `model` of its manifest."""
    from anomalib.models import Patchcore

    module = new_patchcore(network, stored["backbone"], stored["layers"], stored["num_neighbors"])
    module.pre_processor = Patchcore.configure_pre_processor(image_size=(image_size, image_size))
    module.post_processor = Patchcore.configure_post_processor()
    module.model.memory_bank = bank
    return module.eval()


def efficient_ad_peer(network: Any, stored: Mapping[str, Any], image_size: int) -> AnomalibModule:
    """anomalib's EfficientAd around a bundle's torch model; `stored` is `model` of its manifest."""
    from anomalib.models import EfficientAd

    module = EfficientAd(
        teacher_out_channels=stored["teacher_out_channels"],
        model_size=stored["model_size"],
        padding=stored["padding"],
        pad_maps=stored["pad_maps"],
        pre_processor=EfficientAd.configure_pre_processor(image_size=(image_size, image_size)),
        evaluator=False,
        visualizer=False,
    )
    module.model = network
    return module.eval()


def measure_range(module: Any, files: Sequence[Path], image_size: int) -> ScoreRange:
    """Extremes of raw scores and maps over pictures shrunk with antialiasing, as in training, and without, as exported.

    anomalib's data modules validate on the test images by default, with antialiasing alone. What it exports can score
    beyond that range, and would lose the order of those scores by its own cutting: here the range holds them too.
    """
    import torch

    low, high = [np.inf, np.inf], [-np.inf, -np.inf]
    with torch.inference_mode():
        loaders = (_loader(files, image_size, RunSetting(shrink_first=first)) for first in (True, False))
        for batch in itertools.chain.from_iterable(loaders):
            found = module.model(module.pre_processor(batch.image))
            for place, values in enumerate((found.pred_score, found.anomaly_map)):
                low[place] = min(low[place], float(values.min()))
                high[place] = max(high[place], float(values.max()))
    return ScoreRange(low[0], high[0], low[1], high[1])


def set_range(module: AnomalibModule, found: ScoreRange) -> None:
    """Let the post-processor normalise by `found`, as it does after anomalib's training.

    Its thresholds are the middles of the ranges, which it takes itself where it knows none. It cuts scores to 0..1
    around its threshold: one far from the middle, as our conformal one may be, makes scores equal and spoils AUROC.
    """
    post: Any = module.post_processor
    for name in ("image_min", "image_max", "pixel_min", "pixel_max"):
        getattr(post, name).fill_(getattr(found, name))
    post._image_threshold.fill_((found.image_min + found.image_max) / 2)  # noqa: SLF001 - they have no other name
    post._pixel_threshold.fill_((found.pixel_min + found.pixel_max) / 2)  # noqa: SLF001


def can_export_openvino() -> bool:
    """Whether what anomalib's OpenVINO export needs is installed: it goes through ONNX."""
    from importlib.util import find_spec

    return all(find_spec(name) is not None for name in ("openvino", "onnx", "onnxscript"))


def export(module: AnomalibModule, folder: Path, image_size: int) -> Exports:
    """Export with anomalib's engine, as its documentation shows it, but for the batch size of the OpenVINO models.

    Left to itself, anomalib 2.7.0 with torch 2.14 writes a PatchCore for batches of two, which refuses one picture.
    """
    from anomalib.deploy import ExportType

    engine = _engine(folder, "cpu")
    torch_file = engine.export(model=module, export_type=ExportType.TORCH, export_root=folder / "torch")
    openvino = {}
    for batch_size in OPENVINO_BATCHES if can_export_openvino() else ():
        openvino[batch_size] = engine.export(
            model=module,
            export_type=ExportType.OPENVINO,
            export_root=folder / f"openvino-{batch_size}",
            input_size=(image_size, image_size),
            onnx_kwargs={"dynamic_shapes": ({0: batch_size},)},
        )
    return Exports(torch_file, openvino)


@final
class TorchInferencerPeer:
    """`TorchInferencer.predict` of a path, the picture shrunk by the model; or of batches that are shrunk first."""

    def __init__(self, exports: Exports, device: str, image_size: int, setting: RunSetting) -> None:
        from anomalib.deploy import TorchInferencer

        os.environ["TRUST_REMOTE_CODE"] = "1"  # the file is a pickle that we have just written ourselves
        self._inferencer = TorchInferencer(exports.torch_file, device=device.partition(":")[0])
        self._image_size, self._setting = image_size, setting

    def one(self, file: Path) -> Prediction:
        """Judge a file."""
        if not self._setting.shrink_first:
            return next(_predictions(self._inferencer.predict(str(file))))
        return next(self._judge(_loader([file], self._image_size, RunSetting())))

    def stream(self, files: Sequence[Path]) -> Iterator[Prediction]:
        """Judge files, in order."""
        if self._setting.shrink_first:
            yield from self._judge(_loader(files, self._image_size, self._setting))
        else:
            yield from map(self.one, files)

    def _judge(self, loader: DataLoader[Any]) -> Iterator[Prediction]:
        for batch in loader:
            yield from _predictions(self._inferencer.predict(batch.image))


@final
class OpenVinoPeer:
    """`OpenVINOInferencer` on a CPU, with OpenVINO's own choice of precision and threads."""

    def __init__(self, exports: Exports, image_size: int, setting: RunSetting) -> None:
        self._exports, self._image_size, self._setting = exports, image_size, setting
        self._inferencers: dict[int, Any] = {}

    def one(self, file: Path) -> Prediction:
        """Judge a file."""
        return next(self._judge(_loader([file], self._image_size, RunSetting()), 1))

    def stream(self, files: Sequence[Path]) -> Iterator[Prediction]:
        """Judge files, in order."""
        loader = _loader(files, self._image_size, self._setting)
        yield from itertools.islice(self._judge(loader, self._setting.batch_size), len(files))

    def _judge(self, loader: DataLoader[Any], batch_size: int) -> Iterator[Prediction]:
        """The model takes full batches alone: the last one is filled with its last picture again."""
        from anomalib.deploy import OpenVINOInferencer
        from torch import cat

        if batch_size not in self._inferencers:
            self._inferencers[batch_size] = OpenVINOInferencer(self._exports.openvino[batch_size], device="CPU")
        for batch in loader:
            missing = batch_size - len(batch.image)
            full = cat([batch.image, batch.image[-1:].expand(missing, -1, -1, -1)]) if missing else batch.image
            yield from _predictions(self._inferencers[batch_size].predict(full))


@final
class EnginePeer:
    """`Engine.predict` with a data loader, everything in one call."""

    def __init__(self, module: AnomalibModule, device: str, image_size: int, setting: RunSetting) -> None:
        self._module, self._image_size, self._setting = module, image_size, setting
        self._engine = _engine(Path("engine"), device)

    def one(self, file: Path) -> Prediction:
        """Judge a file: a whole prediction run for it, since the engine knows no shorter way."""
        return next(self.stream([file]))

    def stream(self, files: Sequence[Path]) -> Iterator[Prediction]:
        """Judge files, in order; the first comes when all are done."""
        loader = _loader(files, self._image_size, self._setting)
        for batch in self._engine.predict(model=self._module, dataloaders=loader) or []:
            yield from _predictions(batch)


@final
class TorchBatchesPeer:
    """The plain model in a loop of one's own: a data loader, batches, `torch.inference_mode`."""

    def __init__(self, module: AnomalibModule, device: str, image_size: int, setting: RunSetting) -> None:
        self._module, self._device = module.to(device), device
        self._image_size, self._setting = image_size, setting

    def one(self, file: Path) -> Prediction:
        """Judge a file, without a loader."""
        return next(self._judge(_loader([file], self._image_size, RunSetting())))

    def stream(self, files: Sequence[Path]) -> Iterator[Prediction]:
        """Judge files, in order."""
        yield from self._judge(_loader(files, self._image_size, self._setting))

    def _judge(self, loader: DataLoader[Any]) -> Iterator[Prediction]:
        import torch

        with torch.inference_mode():
            for batch in loader:
                yield from _predictions(self._module(batch.image.to(self._device)))


def _engine(folder: Path, device: str) -> Any:
    from anomalib.engine import Engine

    accelerator = "gpu" if device.startswith("cuda") else "cpu"
    return Engine(default_root_dir=folder, accelerator=accelerator, devices=1, logger=False, enable_progress_bar=False)


def _loader(files: Sequence[Path], image_size: int, setting: RunSetting) -> DataLoader[Any]:
    """anomalib's own data set of files to predict; `shrink_first` shrinks in it as its models do, with antialiasing."""
    from anomalib.data import PredictDataset
    from torch.utils.data import DataLoader
    from torchvision.transforms.v2 import Resize

    shrink = Resize((image_size, image_size), antialias=True) if setting.shrink_first else None
    data = PredictDataset(path=files[0], transform=shrink)
    data.image_filenames = list(files)  # its constructor takes a file or a whole folder
    return DataLoader(data, setting.batch_size, num_workers=setting.workers, collate_fn=data.collate_fn)


def _predictions(batch: Any) -> Iterator[Prediction]:
    """One Prediction an image of an anomalib batch, whose arrays are torch's or NumPy's."""
    scores, maps = (np.asarray(_on_cpu(values), np.float32) for values in (batch.pred_score, batch.anomaly_map))
    for score, picture in zip(scores.reshape(-1), maps.reshape(-1, *maps.shape[-2:]), strict=True):
        yield Prediction(float(score), picture)


def _on_cpu(values: Any) -> Any:
    return values if isinstance(values, np.ndarray) else values.detach().cpu().numpy()
