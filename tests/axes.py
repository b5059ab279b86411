"""Checks the named axes of arrays in `cvad_cli.core` while tests run: imported by conftest.py before any of it is."""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
import sys
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any

from jaxtyping import AbstractArray, jaxtyped

import cvad_cli.core


class WrongAxesError(TypeError):
    """An array has other axes, or holds another kind of number, than its annotation says."""


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, with its array annotations held to; mypy sees to all others.

    Arguments are looked at after the call: what the function refuses by itself, it refuses in its own words.
    """
    signature = inspect.signature(function)

    @functools.cache
    def hints() -> dict[str, Any]:  # on the first call: an annotation may name a class that stands below
        return typing.get_type_hints(function, vars(sys.modules[function.__module__]), include_extras=True)

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        where = f"{function.__module__}.{function.__qualname__}"
        with jaxtyped("context"):
            for name, value in signature.bind(*args, **kwargs).arguments.items():
                several = signature.parameters[name].kind is inspect.Parameter.VAR_POSITIONAL
                for one in value if several else (value,):
                    require(f"{where}: {name}", one, hints().get(name))
            require(f"{where}: the result", result, hints().get("return"))
        return result

    return wrapper


def require(name: str, value: Any, hint: Any) -> None:
    """Raise WrongAxesError where an array in `value` is not as `hint` says."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if isinstance(hint, type) and issubclass(hint, AbstractArray):
        if not isinstance(value, hint):
            found = f"{getattr(value, 'dtype', type(value).__name__)} {tuple(getattr(value, 'shape', ()))}"
            raise WrongAxesError(f"{name}: expected {hint.__name__}, got {found}")
    elif origin in (typing.Union, types.UnionType):
        arrays = [one for one in inner if one is not type(None)]
        if value is not None and len(arrays) == 1:
            require(name, value, arrays[0])
    elif origin is tuple and isinstance(value, tuple):
        parts = inner[:1] * len(value) if inner[-1] is ... else inner
        for number, (one, part) in enumerate(zip(value, parts, strict=True)):
            require(f"{name}[{number}]", one, part)
    elif origin in (list, Sequence) and isinstance(value, (list, tuple)):
        for number, one in enumerate(value):
            require(f"{name}[{number}]", one, inner[0])


def check_core() -> None:
    """Replace every function and method of core/ by its checked self, under each name that core has for it."""
    found = pkgutil.walk_packages(cvad_cli.core.__path__, "cvad_cli.core.")
    modules = [importlib.import_module(module.name) for module in found]
    own = [thing for module in modules for thing in vars(module).values() if _defined_in(thing, module)]
    replaced = {thing: checked(thing) for thing in own if inspect.isfunction(thing)}
    for module in modules:
        for name, thing in list(vars(module).items()):
            if inspect.isfunction(thing) and thing in replaced:
                setattr(module, name, replaced[thing])
    for kind in filter(inspect.isclass, own):
        for name, thing in list(vars(kind).items()):
            if inspect.isfunction(thing) and thing.__module__ == kind.__module__:
                setattr(kind, name, checked(thing))
            elif isinstance(thing, classmethod):
                setattr(kind, name, classmethod(checked(thing.__func__)))


def _defined_in(thing: Any, module: types.ModuleType) -> bool:
    return getattr(thing, "__module__", None) == module.__name__


check_core()
