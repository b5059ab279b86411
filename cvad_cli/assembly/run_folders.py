"""Where the results of a run lie, below `output.root`."""

from __future__ import annotations

from pathlib import Path

from cvad_cli.config.schema import RunConfig


def bundle_folder(settings: RunConfig) -> Path:
    """Where `cvad train` puts the bundle of this config."""
    return Path(settings.output.root).expanduser() / settings.name / "bundle"


def evaluation_folder(settings: RunConfig) -> Path:
    """Where `cvad evaluate` puts its figures and images."""
    return Path(settings.output.root).expanduser() / settings.name / "evaluation"


def bench_folder(settings: RunConfig) -> Path:
    """Where `cvad bench` puts what it measured."""
    return Path(settings.output.root).expanduser() / settings.name / "bench"
