"""The features that a teacher is to reproduce: pretrained backbones, locally pooled, on one grid, standardised.

EfficientAD (arXiv 2303.14535) distils one WideResNet's PatchCore features; here the stages of any timm backbones are
put side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, final

import numpy as np

from cvad_cli.adapters.backbones import RANDOM_WEIGHTS, Backbone, BackboneSpec, feature_indices, load_backbone
from cvad_cli.adapters.prefetch import batched, prefetch
from cvad_cli.adapters.runtime_openvino.frozen_networks import feature_function, layers_with_strides
from cvad_cli.adapters.runtime_torch import IMAGENET_MEAN, IMAGENET_STD, to_tensor
from cvad_cli.assembly.pretraining_pictures import PICTURE_SIDE, PictureSource
from cvad_cli.core.feature_targets import AffineTargets, Moments, standardising_targets
from cvad_cli.errors import ConfigError

if TYPE_CHECKING:
    import torch

GRID: Final = 32
"""Rows and columns of the targets: what a padded PDN gives for half of `PICTURE_SIDE`."""

PICTURES_AT_ONCE: Final = 8

USUAL_STRIDES: Final = (4, 8, 16)
"""Stages taken where none is named: finer ones know little, coarser ones see far beyond a PDN's 33 pixels."""


@dataclass(frozen=True, slots=True)
class SourceBackbone:
    """A backbone to distil and its layers; none named means those of `USUAL_STRIDES`."""

    name: str
    layers: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> SourceBackbone:
        """Read 'name' or 'name:layer,layer'. Raises ConfigError for anything else."""
        name, colon, listed = text.partition(":")
        layers = tuple(layer.strip() for layer in listed.split(",")) if colon else ()
        if not name.strip() or not all(layers):
            raise ConfigError(f"--backbone: expected NAME or NAME:LAYER,LAYER, got {text!r}")
        return cls(name.strip(), layers)


def load_sources(sources: Sequence[SourceBackbone], weights: Sequence[str], *, seed: int) -> tuple[Backbone, ...]:
    """The backbones with their weights: one entry of `weights` each, none for the usual places, or 'random' for all.

    Raises ModelError where a name, a layer or weights cannot be had, ConfigError where the counts differ.
    """
    if not sources:
        raise ConfigError("--backbone: name at least one backbone to distil")
    places: list[str | None] = [*weights] if weights else [None] * len(sources)
    if list(weights) == [RANDOM_WEIGHTS]:
        places = [RANDOM_WEIGHTS] * len(sources)
    if len(places) != len(sources):
        raise ConfigError(
            f"--weights: {len(places)} given for {len(sources)} backbones; give one for each, in their order, or none"
        )
    loaded = []
    for source, place in zip(sources, places, strict=True):
        feature_indices(BackboneSpec(source.name, ()))  # an unknown name ends here, with its remedy
        layers = source.layers or layers_with_strides(source.name, USUAL_STRIDES)
        loaded.append(load_backbone(source.name, layers, place, seed=seed))
    return tuple(loaded)


@final
class BackboneFeatures:
    """Pictures to the raw channels of all backbones, side by side on the targets' grid."""

    def __init__(self, backbones: Sequence[Backbone], device: str) -> None:
        import torch

        self.device = device
        self._functions = [feature_function(backbone.network, PICTURE_SIDE, device) for backbone in backbones]
        self._mean = torch.tensor(IMAGENET_MEAN, device=device).view(1, 3, 1, 1)
        self._std = torch.tensor(IMAGENET_STD, device=device).view(1, 3, 1, 1)

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """RGB (b, 3, s, s) in 0..1 to (b, n, GRID, GRID): 3x3 means (PatchCore eq. 2), averaged down or drawn up."""
        import torch
        from torch.nn import functional

        on_grid = []
        for function in self._functions:
            for layer in function((images - self._mean) / self._std):
                pooled = functional.avg_pool2d(layer, 3, 1, 1)
                if pooled.shape[-1] > GRID:
                    pooled = functional.adaptive_avg_pool2d(pooled, GRID)
                elif pooled.shape[-1] < GRID:
                    pooled = functional.interpolate(pooled, size=(GRID, GRID), mode="bilinear")
                on_grid.append(pooled)
        return torch.cat(on_grid, dim=1)


def estimate_targets(
    features: BackboneFeatures,
    source: PictureSource,
    *,
    images: int,
    channels: int | None,
    seed: int,
    advance: Callable[[int], None],
) -> AffineTargets:
    """Standardise the features over a sample of `images` pictures and bring them to `channels` (None: as many)."""
    moments: Moments | None = None
    groups = batched(range(images), PICTURES_AT_ONCE)
    for batch in prefetch(groups, lambda steps: [source.picture("calibration", step, 0) for step in steps]):
        found = features(to_tensor(batch, features.device))
        vectors = found.permute(0, 2, 3, 1).reshape(-1, found.shape[1]).cpu().numpy()
        moments = moments or Moments(vectors.shape[1])
        moments.add(vectors)
        advance(len(batch))
    if moments is None:
        raise ConfigError(f"calibration images: expected a whole number from 1, got {images}")
    mean, covariance = moments.result()
    return standardising_targets(mean, covariance, channels or len(mean), rng=np.random.default_rng([seed, 4]))


@final
class Targets:
    """Pictures to what the teacher is to say of them."""

    def __init__(self, features: BackboneFeatures, affine: AffineTargets) -> None:
        import torch

        device, self._features = features.device, features
        self._weight = torch.from_numpy(affine.weight.T.copy()).to(device)[:, :, None, None]
        self._bias = torch.from_numpy(affine.bias).to(device)

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """RGB (b, 3, s, s) in 0..1 to float32 (b, c, GRID, GRID)."""
        from torch.nn import functional

        return functional.conv2d(self._features(images), self._weight, self._bias)
