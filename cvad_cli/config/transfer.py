"""Values on their way to another process, here or on another node: as bytes, without secrets."""

from __future__ import annotations

import contextlib
import copyreg
import dataclasses
import functools
import io
import pickle
from collections.abc import Callable, Iterator
from typing import Any

from cvad_cli.config.schema import SECRET_SETTINGS, RunConfig


class TransferError(Exception):
    """A value that cannot go from one process to another: our bug, which no user can mend."""


def packed(value: object, what: str) -> bytes:
    """The value as bytes for `unpacked`. However deep settings lie in it, their secrets become None; `value` is kept.

    Everything that an executor or a fresh process sends goes through here: no sender has to remember the secrets.
    Raises TransferError, which says `what` and the types in it, where a part cannot be pickled.
    """
    file = io.BytesIO()
    pickler = pickle.Pickler(file, protocol=pickle.HIGHEST_PROTOCOL)
    pickler.dispatch_table = {**copyreg.dispatch_table, **_reducers()}
    try:
        pickler.dump(value)
    except MemoryError:
        raise
    except Exception as error:  # each class fails in its own way
        raise TransferError(f"{what} ({_types(value)}) cannot be sent to another process: {_words(error)}") from error
    return file.getvalue()


def unpacked(data: bytes, what: str) -> Any:
    """What `packed` was given. Only for bytes from a process of this command: unpickling can run code.

    Raises TransferError, which says `what`, where a class or module is not there, or refuses.
    """
    try:
        return pickle.loads(data)  # noqa: S301
    except MemoryError:
        raise
    except Exception as error:
        raise TransferError(f"{what} cannot be opened in another process: {_words(error)}") from error


@contextlib.contextmanager
def portable_errors() -> Iterator[None]:
    """Raise what the block raises; where that error could not be sent, a TransferError with its words instead.

    An error that cannot be opened where it arrives looks there like a process that died.
    """
    try:
        yield
    except Exception as error:
        try:
            unpacked(packed(error, "the error"), "the error")
        except TransferError:
            raise TransferError(_words(error)) from error
        raise


def _types(value: object) -> str:
    return ", ".join(sorted({type(each).__name__ for each in (value if isinstance(value, list) else [value])}))


def _words(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


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
