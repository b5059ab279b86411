"""Any anomalib model: build it by name, fit it with Lightning, store it as a checkpoint, judge images with it.

PatchCore (`new_patchcore`) and EfficientAD (`efficient_ad.py`) have code of their own; `GenericModel` handles every
other anomalib model.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, final

import numpy as np

from cvad_cli.adapters.anomalib_models.lightning import (
    BUILD_ERRORS,
    new_trainer,
    reason,
    run_fit,
    where_and_how,
)
from cvad_cli.adapters.anomalib_models.seeding import isolated, seeded
from cvad_cli.adapters.anomalib_models.substitution import substituted
from cvad_cli.config.schema import ModelConfig, TrainerConfig
from cvad_cli.errors import ModelError, did_you_mean
from cvad_cli.records import Prediction

if TYPE_CHECKING:
    import torch
    from anomalib.models import Patchcore
    from torch import nn

BATCH_IMAGES: Final = 8
FindWeights = Callable[[str], tuple[Path | None, Mapping[str, Any]] | None]
"""Gives the weight file of a timm backbone and the keyword arguments it needs; no file: random initialisation."""


def new_patchcore(network: nn.Module, backbone: str, layers: Sequence[str], num_neighbors: int) -> Patchcore:
    """anomalib's Patchcore around our feature network, without metrics, images or normalisation.

    Given a backbone's name, anomalib builds the backbone twice; given a network, it traces it. So the model is built
    around a single convolution, which is then replaced by our network.
    """
    from anomalib.models import Patchcore
    from torch import nn

    with isolated("cpu"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Attribute 'backbone' is an instance of `nn.Module`")
        model = Patchcore(
            backbone=nn.Sequential(nn.Conv2d(3, 1, 1)),  # type: ignore[arg-type]
            layers=["0"],
            pre_trained=False,
            num_neighbors=num_neighbors,
            post_processor=False,
            evaluator=False,
            visualizer=False,
        )
    model.hparams.update(backbone=backbone, layers=list(layers))
    for part in (model.model, model.model.feature_extractor):
        part.layers = list(layers)
        del part.backbone
        part.backbone = backbone
    model.model.feature_extractor.feature_extractor = network
    return model


def embedding(model: nn.Module, images: torch.Tensor) -> tuple[np.ndarray, tuple[int, int]]:
    """anomalib's own patch features of normalised images (b, 3, h, w): float32 (b, p, d), and the grid."""
    import torch

    network: Any = model.model
    network = network.to(images.device).eval()
    with torch.inference_mode():
        layers = {name: network.feature_pooler(layer) for name, layer in network.feature_extractor(images).items()}
        joined = network.generate_embedding(layers)
        grid = (int(joined.shape[-2]), int(joined.shape[-1]))
        values: np.ndarray = network.reshape_embedding(joined).reshape(len(images), grid[0] * grid[1], -1).cpu().numpy()
    return values, grid


def model_names() -> tuple[str, ...]:
    """Names of anomalib's image models, in snake case, as a config writes them."""
    return tuple(sorted(_model_classes()))


def require_known(name: str) -> None:
    """Raise ModelError with the nearest names where anomalib has no model `name`."""
    if name not in _model_classes():
        hint = did_you_mean(name, model_names(), count=3)
        raise ModelError(f"model.name: anomalib has no model {name!r}.{hint} It has: {', '.join(model_names())}.")


def _model_classes() -> dict[str, type]:
    from anomalib import models
    from anomalib.models.components import AnomalibModule
    from anomalib.utils.path import convert_to_snake_case

    names = {name: getattr(models, name) for name in models.__all__}
    return {
        convert_to_snake_case(name): kind
        for name, kind in names.items()
        if inspect.isclass(kind) and issubclass(kind, AnomalibModule) and ".image." in kind.__module__
    }


@final
class GenericModel:
    """One anomalib model other than Patchcore, from construction to prediction."""

    def __init__(self, model: Any, image_size: int, device: str, backbone_kwargs: Mapping[str, Any]) -> None:
        self._model = model
        self.backbone_kwargs = backbone_kwargs
        self._device = device
        self.image_size = (image_size, image_size)

    @classmethod
    def build(
        cls, config: ModelConfig, image_size: int, device: str, find_weights: FindWeights, *, seed: int = 0
    ) -> GenericModel:
        """Construct the model that the config names. Its timm backbones get their weights through `find_weights`.

        `seed` decides what the constructor draws: initial weights, or which features are kept.
        Raises ModelError naming the wrong option.
        """
        require_known(config.name)
        kind = _model_classes()[config.name]
        arguments = _constructor_arguments(kind, config, image_size)
        try:
            with seeded(seed, device), _weights_from(find_weights) as backbone_kwargs:
                model = kind(**arguments)
        except BUILD_ERRORS as error:
            raise ModelError(f"model: anomalib could not build {config.name}: {reason(error)}") from error
        return cls(model, image_size, device, backbone_kwargs)

    @property
    def network(self) -> nn.Module:
        """anomalib's torch model, without its Lightning module."""
        inner: nn.Module = self._model.model
        return inner

    def fit(
        self, images: Sequence[np.ndarray], trainer: TrainerConfig, *, seed: int, advance: Callable[[int], None]
    ) -> None:
        """Train on good images (RGB uint8, at `image_size`) as anomalib does, through Lightning.

        `advance` is called once per optimisation step.
        """
        from lightning.pytorch.callbacks import LambdaCallback
        from torch.utils.data import DataLoader

        options = {**_trainer_options(trainer, self._device), **self._model.trainer_arguments}
        runner = new_trainer(options, [LambdaCallback(on_train_batch_end=lambda *_: advance(1))])
        loader: Any = DataLoader(
            _GoodImages(images),  # type: ignore[arg-type]
            batch_size=min(trainer.batch_size or BATCH_IMAGES, len(images)),
            shuffle=True,
            collate_fn=_collate,
            drop_last=False,
        )
        with seeded(seed, self._device):
            run_fit(runner, self._model, train_dataloaders=loader)
        self._runner = runner

    @property
    def steps(self) -> int:
        """Optimisation steps that `fit` took."""
        return int(self._runner.global_step)

    def planned_steps(self, images: int, trainer: TrainerConfig) -> int | None:
        """How many batches `fit` will train on; None where the model itself decides when to stop."""
        options = {**_trainer_options(trainer, self._device), **self._model.trainer_arguments}
        epochs, steps = options["max_epochs"], options["max_steps"]
        by_epochs = (
            epochs * -(-images // min(trainer.batch_size or BATCH_IMAGES, images)) if epochs and epochs > 0 else None
        )
        limits = [limit for limit in (by_epochs, steps) if limit is not None and limit > 0]
        return min(limits) if limits else None

    def save(self, path: Path) -> None:
        """Write a Lightning checkpoint of tensors and plain values only, without hyper-parameters that are objects."""
        from importlib.metadata import version

        import torch

        checkpoint = {
            "pytorch-lightning_version": version("lightning"),
            "epoch": self._runner.current_epoch,
            "global_step": self._runner.global_step,
            "state_dict": self._model.state_dict(),
        }
        torch.save(checkpoint, path)

    def load(self, path: Path) -> None:
        """Load a checkpoint's tensors with torch's `weights_only` loader, so that no code in the file can run."""
        import pickle

        import torch

        try:
            state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
            self._model.load_state_dict(state)
        except (pickle.UnpicklingError, RuntimeError, KeyError, TypeError) as error:
            raise ModelError(f"{path}: is not a checkpoint of {type(self._model).__name__}: {reason(error)}") from error

    def predict(self, images: Sequence[np.ndarray]) -> list[Prediction]:
        """Raw scores and maps of RGB uint8 images (h, w, 3) at `image_size`."""
        import torch

        model = self._model.to(self._device).eval()
        try:
            with torch.inference_mode():
                output = model.model(model.pre_processor(_batch_tensor(images).to(self._device)))
        except BUILD_ERRORS as error:
            raise ModelError(f"model: {type(model).__name__} cannot judge these images: {reason(error)}") from error
        return [self._prediction(output, index) for index in range(len(images))]

    def _prediction(self, output: Any, index: int) -> Prediction:
        score, anomaly_map = output.pred_score, output.anomaly_map
        if anomaly_map is None:
            flat = np.full(self.image_size, float(score.reshape(-1)[index]), dtype=np.float32)
            return Prediction(float(score.reshape(-1)[index]), flat)
        image = self._at_input_size(anomaly_map[index]).cpu().numpy()
        peak = float(image.max()) if score is None else float(score.reshape(-1)[index])
        return Prediction(peak, image)

    def _at_input_size(self, anomaly_map: torch.Tensor) -> torch.Tensor:
        """The map at `image_size`. Some models have a fixed input size, and their maps have that size."""
        from torch.nn import functional

        image = anomaly_map.reshape(1, 1, *anomaly_map.shape[-2:]).float()
        if image.shape[-2:] != self.image_size:
            image = functional.interpolate(image, size=self.image_size, mode="bilinear")
        return image[0, 0]


def _constructor_arguments(kind: type, config: ModelConfig, image_size: int) -> dict[str, Any]:
    """The config's backbone, layers and options that the constructor takes. Raises ModelError for unknown options."""
    accepted = inspect.signature(kind).parameters
    for key in config.options:
        if key not in accepted:
            hint = did_you_mean(key, accepted)
            raise ModelError(
                f"model.options.{key}: {config.name} has no such option.{hint} It takes: {', '.join(accepted)}."
            )
    layers = list(config.layers or ())
    ours: dict[str, Any] = {
        **({"backbone": config.backbone} if config.backbone else {}),
        **({"layers": layers, "layer": layers[-1]} if layers else {}),
        "pre_processor": kind.configure_pre_processor(image_size=(image_size, image_size)),  # type: ignore[attr-defined]
        "post_processor": False,
        "evaluator": False,
        "visualizer": False,
    }
    return {**{key: value for key, value in ours.items() if key in accepted}, **config.options}


@contextmanager
def _weights_from(find_weights: FindWeights) -> Iterator[dict[str, Any]]:
    """While anomalib builds a model, timm takes pretrained weights from `find_weights` instead of the hub.

    anomalib's constructors call timm with `pretrained=True` and take no file, so `timm.create_model` is replaced.
    Yields the keyword arguments of each pretrained backbone.
    """
    import timm

    original = timm.create_model
    used: dict[str, Any] = {}

    def create_model(model_name: str, *, pretrained: bool = False, **kwargs: Any) -> Any:
        found = find_weights(model_name) if pretrained else None
        if found is None:
            return original(model_name, **{**kwargs, "pretrained": False})
        path, needed = found
        used[model_name] = dict(needed)
        if path is None:
            return original(model_name, **{**kwargs, **needed, "pretrained": False})
        overlay = {"file": str(path), "custom_load": False}
        return original(model_name, **{**kwargs, **needed, "pretrained": True, "pretrained_cfg_overlay": overlay})

    with substituted(timm, "create_model", create_model):
        yield used


def _trainer_options(trainer: TrainerConfig, device: str) -> dict[str, Any]:
    return {
        **where_and_how(trainer, device),
        "max_epochs": trainer.max_epochs if trainer.max_epochs or trainer.max_steps else 20,
        "max_steps": trainer.max_steps or -1,
    }


class _GoodImages:
    """A torch data set (by protocol) of good images as anomalib's items."""

    def __init__(self, images: Sequence[np.ndarray]) -> None:
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Any:
        import torch
        from anomalib.data import ImageItem

        return ImageItem(image=_batch_tensor([self._images[index]])[0], gt_label=torch.tensor(0))


def _collate(items: Sequence[Any]) -> Any:
    from anomalib.data import ImageBatch

    return ImageBatch.collate(list(items))


def _batch_tensor(images: Sequence[np.ndarray]) -> torch.Tensor:
    import torch

    return torch.from_numpy(np.stack(list(images))).permute(0, 3, 1, 2).contiguous().float().div_(255.0)


def describe(config: ModelConfig, backbone_kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
    """The description in the manifest from which a generic model is built again."""
    return {
        "name": config.name,
        "backbone": config.backbone,
        "layers": list(config.layers or ()),
        "options": config.options,
        "backbone_kwargs": dict(backbone_kwargs),
    }
