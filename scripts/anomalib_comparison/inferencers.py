"""anomalib's inferencers as benchmark targets, each used as a user of anomalib would use it.

The models carry the same weights and memory bank as cvad's, and anomalib's default pre- and post-processing: anomalib
opens the files, torchvision resizes them, maps and scores are normalised. Everything that costs time without changing
the result is off: no images are drawn, no metrics collected, no progress shown.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, final

import numpy as np

from cvad_cli.adapters.anomalib_models import new_patchcore
from cvad_cli.records import Prediction

if TYPE_CHECKING:
    import torch
    from anomalib.models.components import AnomalibModule
    from torch import nn
    from torch.utils.data import DataLoader

OPENVINO_BATCHES: Final = (1, 8)
TORCH_INFERENCERS: Final = ("torch_inferencer", "engine", "torch_batches")
"""The fastest of these counts as anomalib's torch path."""


@dataclass(frozen=True, slots=True)
class LoaderSetting:
    """How a target loads files, where it leaves a choice."""

    batch_size: int = 1
    workers: int = 0
    """Processes that read ahead; 0: the process that computes also reads."""
    shrink_first: bool = True
    """Whether images are resized to the network's input before they are batched, or inside the exported model."""


@dataclass(frozen=True, slots=True)
class ScoreRange:
    """The range by which anomalib's post-processor normalises; it finds this range on validation images."""

    image_min: float
    image_max: float
    pixel_min: float
    pixel_max: float


@dataclass(frozen=True, slots=True)
class ExportedModels:
    """Files of `Engine.export`."""

    torch_file: Path
    openvino: Mapping[int, Path]
    """Batch size -> a model for batches of exactly that size; empty: the export is not possible here."""


def anomalib_patchcore(
    network: nn.Module, stored: Mapping[str, Any], bank: torch.Tensor, image_size: int
) -> AnomalibModule:
    """anomalib's Patchcore with a bundle's backbone and memory bank; `stored` is `model` of its manifest."""
    from anomalib.models import Patchcore

    module = new_patchcore(network, stored["backbone"], stored["layers"], stored["num_neighbors"])
    module.pre_processor = Patchcore.configure_pre_processor(image_size=(image_size, image_size))
    module.post_processor = Patchcore.configure_post_processor()
    module.model.memory_bank = bank
    return module.eval()


def anomalib_efficient_ad(network: Any, stored: Mapping[str, Any], image_size: int) -> AnomalibModule:
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
    """Extremes of raw scores and maps over images resized with antialiasing, as in training, and without, as exported.

    anomalib's data modules validate on the test images by default, with antialiasing alone. What it exports can score
    beyond that range, and would lose the order of those scores by its own cutting: here the range holds them too.
    """
    import torch

    low, high = [np.inf, np.inf], [-np.inf, -np.inf]
    with torch.inference_mode():
        loaders = (_loader(files, image_size, LoaderSetting(shrink_first=first)) for first in (True, False))
        for batch in itertools.chain.from_iterable(loaders):
            found = module.model(module.pre_processor(batch.image))
            for index, values in enumerate((found.pred_score, found.anomaly_map)):
                low[index] = min(low[index], float(values.min()))
                high[index] = max(high[index], float(values.max()))
    return ScoreRange(low[0], high[0], low[1], high[1])


def set_range(module: AnomalibModule, found: ScoreRange) -> None:
    """Let the post-processor normalise by `found`, as it does after anomalib's training.

    The thresholds are the middles of the ranges, which is anomalib's own choice where it knows none. anomalib clips
    scores to 0..1 around its threshold: a threshold far from the middle, as a conformal one may be, clips many scores
    to one value and lowers AUROC.
    """
    post: Any = module.post_processor
    for name in ("image_min", "image_max", "pixel_min", "pixel_max"):
        getattr(post, name).fill_(getattr(found, name))
    post._image_threshold.fill_((found.image_min + found.image_max) / 2)  # noqa: SLF001 - they have no other name
    post._pixel_threshold.fill_((found.pixel_min + found.pixel_max) / 2)  # noqa: SLF001


def can_export_openvino() -> bool:
    """Whether the packages for anomalib's OpenVINO export are installed: it goes through ONNX."""
    from importlib.util import find_spec

    return all(find_spec(name) is not None for name in ("openvino", "onnx", "onnxscript"))


def export(module: AnomalibModule, folder: Path, image_size: int) -> ExportedModels:
    """Export with anomalib's engine, as its documentation shows it, except for the batch size of the OpenVINO models.

    By default anomalib 2.7.0 with torch 2.14 exports a PatchCore for batches of two, which refuses a single image.
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
    return ExportedModels(torch_file, openvino)


@final
class TorchInferencerTarget:
    """`TorchInferencer.predict` of a path, which the model resizes; or of batches that are resized first."""

    serving: ClassVar[None] = None

    def __init__(self, exports: ExportedModels, device: str, image_size: int, setting: LoaderSetting) -> None:
        from anomalib.deploy import TorchInferencer

        os.environ["TRUST_REMOTE_CODE"] = "1"  # the file is a pickle that we have just written ourselves
        self._inferencer = TorchInferencer(exports.torch_file, device=device.partition(":")[0])
        self._image_size, self._setting = image_size, setting

    def one(self, file: Path) -> Prediction:
        """Judge a file."""
        if not self._setting.shrink_first:
            return next(_predictions(self._inferencer.predict(str(file))))
        return next(self._judge(_loader([file], self._image_size, LoaderSetting())))

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
class OpenVinoInferencerTarget:
    """`OpenVINOInferencer` on a CPU, with OpenVINO's own choice of precision and threads."""

    serving: ClassVar[None] = None

    def __init__(self, exports: ExportedModels, image_size: int, setting: LoaderSetting) -> None:
        self._exports, self._image_size, self._setting = exports, image_size, setting
        self._inferencers: dict[int, Any] = {}

    def one(self, file: Path) -> Prediction:
        """Judge a file."""
        return next(self._judge(_loader([file], self._image_size, LoaderSetting()), 1))

    def stream(self, files: Sequence[Path]) -> Iterator[Prediction]:
        """Judge files, in order."""
        loader = _loader(files, self._image_size, self._setting)
        yield from itertools.islice(self._judge(loader, self._setting.batch_size), len(files))

    def _judge(self, loader: DataLoader[Any], batch_size: int) -> Iterator[Prediction]:
        """The model takes full batches only: the last batch is filled with copies of its last image."""
        from anomalib.deploy import OpenVINOInferencer
        from torch import cat

        if batch_size not in self._inferencers:
            self._inferencers[batch_size] = OpenVINOInferencer(self._exports.openvino[batch_size], device="CPU")
        for batch in loader:
            missing = batch_size - len(batch.image)
            full = cat([batch.image, batch.image[-1:].expand(missing, -1, -1, -1)]) if missing else batch.image
            yield from _predictions(self._inferencers[batch_size].predict(full))


@final
class EngineTarget:
    """`Engine.predict` with a data loader, everything in one call."""

    serving: ClassVar[None] = None

    def __init__(self, module: AnomalibModule, device: str, image_size: int, setting: LoaderSetting) -> None:
        self._module, self._image_size, self._setting = module, image_size, setting
        self._engine = _engine(Path("engine"), device)

    def one(self, file: Path) -> Prediction:
        """Judge a file in a whole prediction run: the engine offers nothing shorter."""
        return next(self.stream([file]))

    def stream(self, files: Sequence[Path]) -> Iterator[Prediction]:
        """Judge files, in order; the first result arrives when all are done."""
        loader = _loader(files, self._image_size, self._setting)
        for batch in self._engine.predict(model=self._module, dataloaders=loader) or []:
            yield from _predictions(batch)


@final
class TorchBatchesTarget:
    """The plain model in a loop that a user would write: a data loader, batches, `torch.inference_mode`."""

    serving: ClassVar[None] = None

    def __init__(self, module: AnomalibModule, device: str, image_size: int, setting: LoaderSetting) -> None:
        self._module, self._device = module.to(device), device
        self._image_size, self._setting = image_size, setting

    def one(self, file: Path) -> Prediction:
        """Judge a file, without a loader."""
        return next(self._judge(_loader([file], self._image_size, LoaderSetting())))

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


def _loader(files: Sequence[Path], image_size: int, setting: LoaderSetting) -> DataLoader[Any]:
    """anomalib's own data set of files to predict; with `shrink_first` it resizes as anomalib's training does."""
    from anomalib.data import PredictDataset
    from torch.utils.data import DataLoader
    from torchvision.transforms.v2 import Resize

    shrink = Resize((image_size, image_size), antialias=True) if setting.shrink_first else None
    data = PredictDataset(path=files[0], transform=shrink)
    data.image_filenames = list(files)  # its constructor takes a file or a whole folder
    return DataLoader(data, setting.batch_size, num_workers=setting.workers, collate_fn=data.collate_fn)


def _predictions(batch: Any) -> Iterator[Prediction]:
    """One Prediction per image of an anomalib batch, whose arrays are torch's or NumPy's."""
    scores, maps = (np.asarray(_on_cpu(values), np.float32) for values in (batch.pred_score, batch.anomaly_map))
    for score, anomaly_map in zip(scores.reshape(-1), maps.reshape(-1, *maps.shape[-2:]), strict=True):
        yield Prediction(float(score), anomaly_map)


def _on_cpu(values: Any) -> Any:
    return values if isinstance(values, np.ndarray) else values.detach().cpu().numpy()
