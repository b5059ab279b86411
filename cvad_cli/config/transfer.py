"""Values on their way to another process, here or on another node: as bytes, without secrets."""

from __future__ import annotations

import copyreg
import dataclasses
import functools
import io
import pickle
from collections import ChainMap
from collections.abc import Callable
from typing import Any

from cvad_cli.config.schema import SECRET_SETTINGS, RunConfig


def packed(value: object) -> bytes:
    """The value as bytes for `unpacked`. However deep settings lie in it, their secrets become None; `value` is kept.

    Everything that an executor or a fresh process sends goes through here: no sender has to remember the secrets.
    """
    file = io.BytesIO()
    pickler = pickle.Pickler(file, protocol=pickle.HIGHEST_PROTOCOL)
    pickler.dispatch_table = ChainMap(_reducers(), copyreg.dispatch_table)
    pickler.dump(value)
    return file.getvalue()


def unpacked(data: bytes) -> Any:
    """What `packed` was given. Only for bytes from a process of this command: unpickling can run code."""
    return pickle.loads(data)  # noqa: S301


@functools.cache
def _reducers() -> dict[type, Callable[[Any], Any]]:
    """How each section of the settings that holds secrets is pickled."""
    settings = RunConfig("any")
    names: dict[type, list[str]] = {}
    for secret in SECRET_SETTINGS:
        section, _, name = secret.partition(".")
        names.setdefault(type(getattr(settings, section)), []).append(name)
    return {section: functools.partial(_without, tuple(secrets)) for section, secrets in names.items()}


def _without(secrets: tuple[str, ...], section: Any) -> Any:
    return dataclasses.replace(section, **dict.fromkeys(secrets)).__reduce_ex__(pickle.HIGHEST_PROTOCOL)
