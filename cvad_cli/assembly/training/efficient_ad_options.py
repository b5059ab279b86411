"""EfficientAD's options: presets for the length of training, and `model.options` with anomalib's names."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from cvad_cli.adapters.pdn import PdnSize
from cvad_cli.assembly.training.pdn_teachers import ChosenTeacher, choose_teacher
from cvad_cli.config.schema import RunConfig
from cvad_cli.errors import ConfigError, did_you_mean


@dataclass(frozen=True, slots=True)
class Preset:
    """How long to train, and how often to check the held-out images."""

    steps: int
    checkpoint_every: int
    check_every: int
    patience: int | None
    min_improvement: float = 1e-3


PRESETS: Final[Mapping[str, Preset]] = {
    "full": Preset(steps=70_000, checkpoint_every=1_000, check_every=2_500, patience=6),
    "quick": Preset(steps=600, checkpoint_every=200, check_every=300, patience=None),
}
"""full: the paper's length, anomalib's optimiser. quick: minutes on a CPU, Muon with an annealed tail."""


@dataclass(frozen=True)
class EfficientAdOptions:
    """What `model.options` may hold. All names except whitening are anomalib's."""

    model_size: str = "small"
    teacher_out_channels: int | None = None
    """None: as many as the teacher has."""
    padding: bool = False
    pad_maps: bool = True
    lr: float = 1e-4
    weight_decay: float = 1e-5
    whitening: float = 1.0
    """0: the paper's standardisation per channel; 1: the teacher's features vary equally in all directions."""

    @classmethod
    def of(cls, settings: RunConfig) -> EfficientAdOptions:
        """Read and check. Raises ConfigError naming the key."""
        known = {field.name: type(field.default) for field in dataclasses.fields(cls)}
        for key, value in settings.model.options.items():
            if key not in known:
                hint = did_you_mean(key, known)
                raise ConfigError(
                    f"model.options.{key}: efficient_ad has no such option.{hint} It takes: {', '.join(known)}."
                )
            kinds: tuple[type, ...] = {float: (int, float), type(None): (int,)}.get(known[key], (known[key],))
            if isinstance(value, bool) != (known[key] is bool) or not isinstance(value, kinds):
                raise ConfigError(f"model.options.{key}: expected {known[key].__name__}, got {value!r}")
        options = cls(**settings.model.options)
        if options.model_size not in ("small", "medium"):
            raise ConfigError(f"model.options.model_size: expected small or medium, got {options.model_size!r}")
        if not 0 <= options.whitening <= 1:
            raise ConfigError(f"model.options.whitening: expected a number from 0 to 1, got {options.whitening!r}")
        return options

    @property
    def size(self) -> PdnSize:
        """The PDN's size."""
        return "medium" if self.model_size == "medium" else "small"

    def teacher(self, settings: RunConfig) -> ChosenTeacher:
        """The teacher that `model.weights` names, fit for these options. Raises ModelError where there is none."""
        channels, weights = self.teacher_out_channels, settings.model.weights
        return choose_teacher(self.size, weights, channels, padding=self.padding, seed=settings.seed)
