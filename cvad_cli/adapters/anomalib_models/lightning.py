"""Lightning's trainer from a config; its errors are turned into cvad's errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from cvad_cli.config.schema import TrainerConfig
from cvad_cli.errors import ConfigError, ModelError

BUILD_ERRORS: Final = (AttributeError, ImportError, IndexError, KeyError, OSError, RuntimeError, TypeError, ValueError)
"""Errors that anomalib's models raise for a backbone, a layer or an image size that does not fit them."""


def new_trainer(options: Mapping[str, Any], callbacks: Sequence[Any]) -> Any:
    """A silent Lightning trainer. Raises ConfigError where Lightning refuses the options."""
    import lightning.pytorch as pl
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    try:
        return pl.Trainer(
            **options,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=list(callbacks),
        )
    except (ValueError, TypeError, RuntimeError, MisconfigurationException) as error:
        raise ConfigError(f"trainer: Lightning refuses these settings: {reason(error)}") from error


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and torch's global random states, which anomalib and Lightning draw from."""
    import lightning.pytorch as pl

    pl.seed_everything(seed, verbose=False)


def run_fit(trainer: Any, model: Any, **arguments: Any) -> None:
    """Fit the model. Raises KeyboardInterrupt for Ctrl-C, ModelError for errors of anomalib or Lightning."""
    try:
        trainer.fit(model, **arguments)
    except SystemExit as stop:
        # Lightning turns Ctrl-C into exit(1); turn it back.
        if stop.code == 1:
            raise KeyboardInterrupt from stop
        raise
    except BUILD_ERRORS as error:
        raise ModelError(f"model: anomalib could not fit {type(model).__name__}: {reason(error)}") from error


def where_and_how(trainer: TrainerConfig, device: str) -> dict[str, Any]:
    """Lightning's accelerator, devices, strategy and precision."""
    accelerator, _, index = device.partition(":")
    return {
        "accelerator": {"cuda": "gpu", "xpu": "xpu"}.get(accelerator, accelerator),
        "devices": [int(index)] if index and trainer.devices == "1" else _devices(trainer.devices),
        "strategy": trainer.strategy,
        "precision": "32-true" if trainer.precision == "auto" else trainer.precision,
    }


def reason(error: Exception) -> str:
    """The first line of an error's message, or its class name where it has none."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def _devices(text: str) -> int | str:
    return int(text) if text.lstrip("-").isdigit() else text
