"""From configs, categories and models to runs: each combination gets its own config, name and folders."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from cvad_cli.config.schema import ModelConfig, RunConfig
from cvad_cli.errors import ConfigError, DataError

ALL: Final = "all"
"""Every category below data.root."""

MODEL_ALIASES: Final = {"efficientad": "efficient_ad"}
"""Common name of a model -> the name in anomalib."""


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """One run of a batch."""

    settings: RunConfig
    variant: str
    """The run's name without its category: `patchcore_wrn50` of `patchcore_wrn50_grid`."""
    category: str


def plan_batch(
    configs: Sequence[RunConfig], *, categories: Sequence[str] = (), models: Sequence[str] = ()
) -> list[PlannedRun]:
    """Each config with each category and each model, in that order; without these options, the configs themselves.

    The name of a derived run is that of its config, with category and model replaced if the name has them, and appended
    otherwise. Another model than that of the config starts from its defaults. Raises ConfigError if two runs have the
    same name, and DataError if `all` finds no category.
    """
    runs = [
        _with_category(_with_model(config, model), category)
        for config in configs
        for model in (models or (config.model.name,))
        for category in _categories(config, categories)
    ]
    counts = Counter((run.settings.output.root, run.settings.name) for run in runs)
    for (root, name), count in counts.items():
        if count > 1:
            raise ConfigError(
                f"{count} runs of the batch are called {name} and would share {Path(root) / name}; give each config a "
                "name of its own"
            )
    return runs


def _categories(config: RunConfig, asked: Sequence[str]) -> Sequence[str | None]:
    if not asked:
        return [None]
    if config.data.format != "mvtec":
        raise ConfigError(
            f"--categories: {config.name} has data.format {config.data.format}, which has no categories; give a config "
            "for each data set"
        )
    return _below(Path(config.data.root).expanduser()) if list(asked) == [ALL] else asked


def _below(root: Path) -> list[str]:
    found = sorted(path.parent.parent.name for path in root.glob("*/train/good") if path.is_dir())
    if not found:
        raise DataError(f"{root}: --categories all finds no folder with train/good in it; set data.root")
    return found


def _with_model(config: RunConfig, asked: str) -> RunConfig:
    name = MODEL_ALIASES.get(asked, asked)
    if name == config.model.name:
        return config
    former = config.model.name
    renamed = _renamed(config.name, (former, former.replace("_", "")), name.replace("_", ""))
    return replace(config, name=renamed, model=ModelConfig(name=name))


def _with_category(config: RunConfig, category: str | None) -> PlannedRun:
    former = config.data.category or Path(config.data.root).name
    if category is None or category == config.data.category:
        return PlannedRun(config, _without(config.name, former) or config.model.name, former)
    settings = replace(
        config, name=_renamed(config.name, (former,), category), data=replace(config.data, category=category)
    )
    return PlannedRun(settings, _without(settings.name, category) or config.model.name, category)


def _renamed(name: str, formers: Sequence[str], now: str) -> str:
    """The name with a part of it replaced, or with `now` appended where it holds none of the former parts.

    >>> _renamed("patchcore_grid", ["grid"], "tile"), _renamed("line7", ["grid"], "tile")
    ('patchcore_tile', 'line7_tile')
    """
    for former in formers:
        changed, count = re.subn(_part(former), lambda found: found[1] + now, name, count=1)
        if count:
            return changed
    return f"{name}_{now}"


def _without(name: str, part: str) -> str:
    """The name without a part of it.

    >>> _without("patchcore_grid", "grid"), _without("grid", "grid"), _without("line7", "grid")
    ('patchcore', '', 'line7')
    """
    return re.sub(_part(part), "", name, count=1).strip("._-")


def _part(word: str) -> str:
    """A pattern of a word between separators, which `_` is and letters are not."""
    return rf"(^|[._-]){re.escape(word)}(?=$|[._-])"
