"""The one door for settings: YAML files, `extends`, the environment and `key=value` overrides become a `RunConfig`.

Nothing else in cvad knows OmegaConf. A mistake is reported with its file, its key, what was expected and the nearest
valid name.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    InterpolationResolutionError,
    MissingMandatoryValue,
    OmegaConfBaseException,
    ValidationError,
)

from cvad_cli.config.checks import BadSettingError
from cvad_cli.config.old_names import OLD_SETTINGS
from cvad_cli.config.schema import HIDDEN, SECRET_SETTINGS, RunConfig
from cvad_cli.errors import ConfigError, did_you_mean


@dataclass(frozen=True)
class _Layer:
    """One source of settings: a file, or one `--set`."""

    label: str
    values: DictConfig

    @property
    def plain(self) -> dict[str, Any]:
        """The values as written: interpolations stay text."""
        container = OmegaConf.to_container(self.values, resolve=False)
        return {str(key): value for key, value in container.items()} if isinstance(container, dict) else {}


def _python_warning(message: str) -> None:
    warnings.warn(message, FutureWarning, stacklevel=4)


def load_config(
    path: Path, overrides: Sequence[str] = (), *, warn: Callable[[str], None] = _python_warning
) -> RunConfig:
    """Read `path`, what it extends, and `key=value` overrides; the last value of a key wins.

    `warn` gets one message for each setting that is given by the name of an earlier release. Raises ConfigError naming
    the file (or `--set`), the key and what was expected.
    """
    layers: list[_Layer] = []
    for given in (*_file_layers(path), *_override_layers(overrides)):
        layers.append(_with_present_names(given, warn))  # noqa: PERF401 - a comprehension may be a frame of its own
    merged = OmegaConf.structured(RunConfig)
    for layer in layers:
        _reject_unknown_keys(layer)
        try:
            merged = OmegaConf.merge(merged, layer.values)
        except (OmegaConfBaseException, ValueError, TypeError) as error:
            secret = _may_hold_secret(getattr(error, "full_key", None) or "")
            raise ConfigError(f"{layer.label}: {_explain(error, layer.values)}") from (None if secret else error)
    try:
        settings = OmegaConf.to_object(merged)
    except BadSettingError as error:
        key = _path_of(error.section, error.key)
        raise ConfigError(f"{_who_set(layers, key)}: {key}: expected {error.expected}, got {error.got!r}") from error
    except (OmegaConfBaseException, ValueError, TypeError) as error:
        key = getattr(error, "full_key", None) or ""
        raise ConfigError(f"{_who_set(layers, key)}: {_explain(error)}") from error
    if not isinstance(settings, RunConfig):
        raise TypeError(f"{path}: OmegaConf gave {type(settings).__name__} instead of RunConfig")
    return settings


def _with_present_names(layer: _Layer, warn: Callable[[str], None]) -> _Layer:
    """The layer with every name of an earlier release replaced by the present one."""
    values, changed = layer.plain, False
    for old, new in OLD_SETTINGS.items():
        (section, _, former), name = old.rpartition("."), new.rpartition(".")[2]
        given = values.get(section)
        if not isinstance(given, dict) or former not in given:
            continue
        if name in given:
            raise ConfigError(f"{layer.label}: {old}: is the earlier name of {new}, which is given too; remove {old}")
        warn(f"{layer.label}: {old} is now {new}; change the name, the next release will not accept the earlier one")
        given[name] = given.pop(former)
        changed = True
    return dataclasses.replace(layer, values=OmegaConf.create(values)) if changed else layer


def to_plain(settings: RunConfig) -> dict[str, Any]:
    """The resolved settings as plain dictionaries and lists, for the manifest and for reports; secrets are hidden."""
    plain = OmegaConf.to_container(OmegaConf.structured(settings), resolve=True, enum_to_str=True)
    listed = {str(key): _listed(value) for key, value in plain.items()} if isinstance(plain, dict) else {}
    for secret in SECRET_SETTINGS:
        section, _, name = secret.partition(".")
        if listed[section][name] is not None:
            listed[section][name] = HIDDEN
    return listed


def _listed(value: Any) -> Any:
    """The value with lists for tuples, as JSON gives them back."""
    if isinstance(value, dict):
        return {str(key): _listed(inner) for key, inner in value.items()}
    return [_listed(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def setting_names() -> tuple[str, ...]:
    """Every key that a file may hold, dotted: 'name', 'data.root', ..."""
    return tuple(_walk_schema(RunConfig, ""))


def _walk_schema(section: type, prefix: str) -> Iterator[str]:
    hints = get_type_hints(section)
    for item in dataclasses.fields(section):
        inner = hints[item.name]
        if dataclasses.is_dataclass(inner) and isinstance(inner, type):
            yield from _walk_schema(inner, f"{prefix}{item.name}.")
        else:
            yield f"{prefix}{item.name}"


def _path_of(section: type, key: str) -> str:
    """Dotted path of `key` of the dataclass `section`; each section stands once in the schema."""
    for name, inner in get_type_hints(RunConfig).items():
        if inner is section:
            return f"{name}.{key}"
    return key


def _file_layers(path: Path, chain: tuple[Path, ...] = ()) -> list[_Layer]:
    """The file and, before it, what it extends."""
    resolved = path.resolve()
    if resolved in chain:
        loop = " -> ".join(step.name for step in (*chain, resolved))
        raise ConfigError(f"{path}: `extends` runs in a circle: {loop}")
    values = read_yaml(path, asked_by=chain[-1] if chain else None)
    parents = values.pop("extends", None) or []
    if isinstance(parents, str):
        parents = [parents]
    if not isinstance(parents, list) or not all(isinstance(parent, str) for parent in parents):
        raise ConfigError(f"{path}: extends: expected a file name or a list of file names, got {parents!r}")
    layers: list[_Layer] = []
    for parent in parents:
        layers += _file_layers(path.parent / parent, (*chain, resolved))
    try:
        own = OmegaConf.create(values)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{path}: {_explain(error)}") from error
    return [*layers, _Layer(str(path), own)]


def read_yaml(path: Path, asked_by: Path | None = None) -> dict[str, Any]:
    """The mapping that a YAML file holds, interpolations left as text. Raises ConfigError naming file and line."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError(_missing_file(path, asked_by)) from error
    except IsADirectoryError as error:
        raise ConfigError(f"{path}: is a folder; give the YAML file inside it") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text (byte {error.start}); is it a YAML file?") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        # OmegaConf's loader refuses duplicate keys, which plain YAML lets the last one win in silence.
        loaded = OmegaConf.to_container(OmegaConf.create(text)) if text.strip() else {}
    except yaml.MarkedYAMLError as error:
        line = f" at line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{path}: is not valid YAML{line}: {error.problem}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: is not valid YAML: {_first_line(error)}") from error
    except OmegaConfBaseException as error:
        raise ConfigError(f"{path}: {_explain(error)}") from error
    if not isinstance(loaded, dict) or (len(loaded) == 1 and text.strip() in loaded):
        raise ConfigError(f"{path}: expected `key: value` lines at the top, got {text.strip().splitlines()[0]!r}")
    return {str(key): value for key, value in loaded.items()}


def _missing_file(path: Path, asked_by: Path | None) -> str:
    hint = did_you_mean(str(path), map(str, path.parent.glob("*.y*ml")))
    if asked_by is not None:
        return f"{asked_by}: extends: {path} does not exist; the name is read from the folder of this file.{hint}"
    return f"{path}: no such file.{hint}"


def _override_layers(overrides: Sequence[str]) -> list[_Layer]:
    layers = []
    for text in overrides:
        key, equals, _ = text.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--set {text}: expected key=value, for example --set model.coreset_ratio=0.1")
        hidden = _may_hold_secret(key.strip())
        label = f"--set {key}={HIDDEN}" if hidden else f"--set {text}"
        try:
            values = OmegaConf.from_dotlist([text])
        except (OmegaConfBaseException, yaml.YAMLError, ValueError) as error:
            reason = "the value is not valid YAML" if hidden else _first_line(error)
            raise ConfigError(f"{label}: {reason}") from (None if hidden else error)
        layers.append(_Layer(label, values))
    return layers


def _may_hold_secret(key: str) -> bool:
    """True for a secret's key, for a section that holds one, and for what is probably a misspelling of one."""
    if key in setting_names():
        return key in SECRET_SETTINGS
    sections = {secret.rpartition(".")[0] for secret in SECRET_SETTINGS}
    return any(key == section or key.startswith(f"{section}.") or "api_key" in key for section in sections)


def _reject_unknown_keys(layer: _Layer) -> None:
    known = setting_names()
    for key in _leaves(layer.plain):
        # What is below model.options belongs to the model's constructor, which checks it later.
        if key in known or key.startswith("model.options."):
            continue
        if _is_section(key):
            raise ConfigError(f"{layer.label}: {key}: expected a section of `key: value` lines, got a single value")
        raise ConfigError(f"{layer.label}: {_unknown_key(key, known)}")


def _unknown_key(key: str, known: Sequence[str]) -> str:
    """The message for the first part of `key` that no setting has, with the nearest valid name."""
    section = ""
    for part in key.split("."):
        siblings = list(dict.fromkeys(name[len(section) :].split(".")[0] for name in known if name.startswith(section)))
        if part not in siblings:
            elsewhere = [name for name in known if name.rpartition(".")[2] == part]
            hint = did_you_mean(part, siblings) or did_you_mean(f"{section}{part}", elsewhere)
            remedy = hint.strip() or f"Valid names here: {', '.join(siblings)}."
            return (
                f"{section}{part}: there is no such setting. {remedy}"
                if siblings
                else (f"{key}: {section.rstrip('.')} is a single value and has nothing below it")
            )
        section += f"{part}."
    return f"{key}: there is no such setting"


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Dotted keys of everything that is not a mapping with something in it; a model's options count as one value."""
    for name, value in values.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict) and key != "model.options":
            yield from _leaves(value, f"{key}.")
        elif value is not None or key in setting_names() or not _is_section(key):
            yield key


def _is_section(key: str) -> bool:
    return any(name.startswith(f"{key}.") for name in setting_names())


def _who_set(layers: Sequence[_Layer], key: str) -> str:
    """Label of the last source that holds `key`; the file that was asked for where none does (a missing key)."""
    for layer in reversed(layers):
        if any(leaf == key or leaf.startswith(f"{key}.") for leaf in _leaves(layer.plain)):
            return layer.label
    return next((layer.label for layer in reversed(layers) if not layer.label.startswith("--set")), "configuration")


def _explain(error: Exception, values: DictConfig | None = None) -> str:
    """One line of what OmegaConf found, in the words of the schema where it is about a setting's type."""
    key = getattr(error, "full_key", None) or ""
    if _may_hold_secret(key) and not isinstance(error, InterpolationResolutionError):
        return f"{key}: expected {_expected(key) or 'another value'}, got {HIDDEN}"
    if isinstance(error, MissingMandatoryValue):
        return f"{key}: is missing; every run needs it"
    if isinstance(error, InterpolationResolutionError):
        reason = _first_line(error).partition("interpolation: ")[2].strip('"') or _first_line(error)
        return f"{key}: cannot be resolved: {reason}"
    expected = _expected(key)
    if isinstance(error, ValidationError) and expected and values is not None:
        return f"{key}: expected {expected}, got {OmegaConf.select(values, key)!r}"
    return f"{key}: {_first_line(error)}" if key else _first_line(error)


def _expected(key: str) -> str:
    """What a setting takes, in words, from its type in the schema; '' for a name that is no setting."""
    hint: Any = RunConfig
    for part in key.split("."):
        hints = get_type_hints(hint) if dataclasses.is_dataclass(hint) and isinstance(hint, type) else {}
        if part not in hints:
            return ""
        hint = hints[part]
    if dataclasses.is_dataclass(hint):
        return "a section of `key: value` lines"
    choices = [choice for choice in get_args(hint) if choice is not type(None)] or [hint]
    optional = ", or null" if type(None) in get_args(hint) else ""
    if get_origin(hint) is Literal:
        return f"one of {', '.join(map(str, choices))}"
    if tuple in (get_origin(hint), get_origin(choices[0])):
        return "a list such as [first, second]"
    words = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    return words.get(choices[0], "a mapping of names to values") + optional


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
