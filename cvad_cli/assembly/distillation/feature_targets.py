"""The features that a teacher learns to reproduce: of pretrained backbones, locally pooled, on one grid, standardised.

EfficientAD (arXiv 2303.14535) distils one WideResNet's PatchCore features; here the stages of any timm backbones are
concatenated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from cvad_cli.adapters.backbones import (
    RANDOM_WEIGHTS,
    Backbone,
    BackboneSpec,
    feature_indices,
    layers_with_strides,
    load_backbone,
)
from cvad_cli.adapters.prefetch import batched, prefetch
from cvad_cli.adapters.runtime_openvino.frozen_networks import feature_function
from cvad_cli.assembly.distillation.pretraining_images import IMAGE_SIDE, ImageSource
from cvad_cli.core.feature_targets import AffineTargets, Moments, standardising_targets
from cvad_cli.errors import ConfigError

if TYPE_CHECKING:
    from cvad_cli.adapters.runtime_torch.frozen_features import GridFeatures

GRID: Final = 32
"""Rows and columns of the targets: those of a padded PDN's output for half of `IMAGE_SIDE`."""

IMAGES_AT_ONCE: Final = 8

USUAL_STRIDES: Final = (4, 8, 16)
"""Strides of the stages that are used where none is named. Finer stages hold little information; coarser ones see far
beyond a PDN's 33 pixels."""


@dataclass(frozen=True, slots=True)
class SourceBackbone:
    """A backbone to distil and its layers; without layers, those of `USUAL_STRIDES`."""

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
    """The backbones with their weights: one entry of `weights` each, none for the usual locations, or 'random' for all.

    Raises ModelError where a name, a layer or weights are not found, ConfigError where the counts differ.
    """
    if not sources:
        raise ConfigError("--backbone: name at least one backbone to distil")
    chosen_weights: list[str | None] = [*weights] if weights else [None] * len(sources)
    if list(weights) == [RANDOM_WEIGHTS]:
        chosen_weights = [RANDOM_WEIGHTS] * len(sources)
    if len(chosen_weights) != len(sources):
        raise ConfigError(
            f"--weights: {len(chosen_weights)} given for {len(sources)} backbones; give one for each, in "
            "their order, or none"
        )
    loaded = []
    for source, own_weights in zip(sources, chosen_weights, strict=True):
        feature_indices(BackboneSpec(source.name, ()))  # raises for an unknown name, with the remedy
        layers = source.layers or layers_with_strides(source.name, USUAL_STRIDES)
        loaded.append(load_backbone(source.name, layers, own_weights, seed=seed))
    return tuple(loaded)


def backbone_features(backbones: Sequence[Backbone], device: str) -> GridFeatures:
    """Images to the raw channels of all backbones, side by side on the targets' grid."""
    from cvad_cli.adapters.runtime_torch.frozen_features import GridFeatures

    functions = [feature_function(backbone.network, IMAGE_SIDE, device) for backbone in backbones]
    return GridFeatures(functions, GRID, device)


def estimate_targets(
    features: GridFeatures,
    source: ImageSource,
    *,
    images: int,
    channels: int | None,
    seed: int,
    advance: Callable[[int], None],
) -> AffineTargets:
    """Standardise the features over a sample of `images` images and project them to `channels` (None: as many)."""
    moments: Moments | None = None
    groups = batched(range(images), IMAGES_AT_ONCE)
    for batch in prefetch(groups, lambda steps: [source.image("calibration", step, 0) for step in steps]):
        vectors = features.vectors(batch)
        moments = moments or Moments(vectors.shape[1])
        moments.add(vectors)
        advance(len(batch))
    if moments is None:
        raise ConfigError(f"calibration images: expected a whole number from 1, got {images}")
    mean, covariance = moments.result()
    return standardising_targets(mean, covariance, channels or len(mean), rng=np.random.default_rng([seed, 4]))
