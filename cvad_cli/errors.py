"""All errors that the user can fix, in one tree.

    CvadError
    ├── ConfigError        2   a YAML file, a key, a value, a command-line option
    ├── DataError          3   a folder, an image, a mask, a label file
    ├── ModelError         4   an anomalib model, a backbone, its weights
    ├── BundleError        5   a trained bundle: missing, changed, too new
    ├── StoreError         6   the defect index, embedded or on a server
    └── ResourceError      7   disk, memory, device

A message names the object, what was found and the remedy. The class determines the exit status. Other statuses: 1 means
that a gate failed or that --fail-on-defect found a defect, 70 is a bug in cvad and 130 is Ctrl-C.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping
from typing import ClassVar


class CvadError(Exception):
    """An error with a remedy. It is caught once, in the root of the command line."""

    exit_code: ClassVar[int] = 70


class ConfigError(CvadError):
    """The configuration cannot be used: names the file, the key and what was expected."""

    exit_code = 2


class DataError(CvadError):
    """The images, masks or labels cannot be used: names the file."""

    exit_code = 3


class ModelError(CvadError):
    """The model or its weights are not available: says what was tried."""

    exit_code = 4


class BundleError(CvadError):
    """The trained bundle is missing, damaged or from another version."""

    exit_code = 5


class StoreError(CvadError):
    """The defect index cannot be reached or does not fit the model."""

    exit_code = 6


class ResourceError(CvadError):
    """The machine lacks memory, disk space or the requested device."""

    exit_code = 7


def did_you_mean(name: str, known: Iterable[str], *, count: int = 1) -> str:
    """' Did you mean a or b?' with the most similar of the known names; '' if none is similar.

    >>> did_you_mean("coreset_ration", ["seed", "coreset_ratio"])
    " Did you mean 'coreset_ratio'?"
    """
    near = difflib.get_close_matches(name, list(known), n=count, cutoff=0.5)
    return f" Did you mean {' or '.join(map(repr, near))}?" if near else ""


def what_differs(former: Mapping[str, object], now: Mapping[str, object]) -> str:
    """The settings that changed, as text; '' if none did.

    >>> what_differs({"seed": 1, "steps": 5}, {"seed": 2, "steps": 5})
    'seed was 1, is now 2'
    """
    differing = [key for key in sorted(former.keys() | now.keys()) if former.get(key) != now.get(key)]
    return "; ".join(f"{key} was {former.get(key)!r}, is now {now.get(key)!r}" for key in differing)


def require_same_settings(where: object, former: Mapping[str, object], now: Mapping[str, object], restart: str) -> None:
    """Raise ConfigError if the run of the checkpoint `where` had other settings; `restart` is the remedy.

    `now` is JSON-ready; `former` was read from JSON.
    """
    if changed := what_differs(former, json.loads(json.dumps(dict(now)))):
        raise ConfigError(
            f"{where}: this run was begun under other settings: {changed}. Give the former ones to go on, or {restart} "
            "to begin anew."
        )
