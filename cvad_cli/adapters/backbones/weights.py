"""Where the weights of a backbone come from: a file, `CVAD_WEIGHTS_DIR`, the hub's cache or the hub, in that order."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Final

from cvad_cli.errors import ModelError, ResourceError
from cvad_cli.files import replacing
from cvad_cli.files.user_folders import user_cache_folder

WEIGHTS_DIR_VARIABLE: Final = "CVAD_WEIGHTS_DIR"
HUB_FILE: Final = "model.safetensors"
HUB_TIMEOUT_S: Final = 5.0


def find_weights(name: str, weights: str | None) -> tuple[Path, Mapping[str, Any]]:
    """The weight file of backbone `name` and the timm keyword arguments it needs, from the usual locations."""
    path, _ = locate_weights(name, weights)
    return path, header_kwargs(path, name)


def locate_weights(name: str, weights: str | None) -> tuple[Path, str]:
    """The weight file from the first location that has it, and that location as text."""
    if weights is not None:
        path = Path(weights).expanduser()
        if not path.is_file():
            raise ModelError(
                f"model.weights: {path}: no such file. Give a safetensors file, or null for the usual locations."
            )
        return path, f"file {path.name}"
    tried = ["model.weights: not set"]
    found = _in_weights_dir(name, tried) or _in_cache(name, tried) or from_hub(name, tried)
    if found is None:
        steps = "\n".join(f"  {number}. {step}" for number, step in enumerate(tried, 1))
        raise ModelError(
            f"no weights for backbone {name!r}. Tried, in this order:\n{steps}\n"
            f"Remedies: give the file with --set model.weights=FILE.safetensors; or put {name}.safetensors into a "
            f"folder and set {WEIGHTS_DIR_VARIABLE} to it; or run once with internet, which fills the cache."
        )
    return found


def _in_weights_dir(name: str, tried: list[str]) -> tuple[Path, str] | None:
    folder = os.environ.get(WEIGHTS_DIR_VARIABLE)
    if not folder:
        tried.append(f"{WEIGHTS_DIR_VARIABLE}: not set")
        return None
    root = Path(folder).expanduser()
    if not root.is_dir():
        tried.append(f"{WEIGHTS_DIR_VARIABLE}={folder}: no such folder")
        return None
    files = sorted(root.glob("*.safetensors"))
    by_name = [path for path in files if path.name.split(".")[0] == name]
    for path in by_name or [path for path in files if _made_for(path) == name]:
        return path, f"{WEIGHTS_DIR_VARIABLE}, file {path.name}"
    held = ", ".join(path.name for path in files) or "no safetensors file"
    tried.append(f"{WEIGHTS_DIR_VARIABLE}={folder}: none for {name} (it holds {held})")
    return None


def _hub_file(name: str) -> str | None:
    import timm

    config = timm.get_pretrained_cfg(name)
    return config.hf_hub_id if config is not None else None


def _in_cache(name: str, tried: list[str]) -> tuple[Path, str] | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.constants import HF_HUB_CACHE

    repository = _hub_file(name)
    if repository is None:
        tried.append(f"cache: timm knows no hub file for {name}")
        return None
    cached = try_to_load_from_cache(repository, HUB_FILE)
    if isinstance(cached, str):
        return Path(cached), f"hub cache, {repository}"
    own = _own_copy(repository)
    if own.is_file():
        return own, f"cache, {repository}"
    tried.append(f"cache: {repository} is neither in {HF_HUB_CACHE} nor in {own.parent}")
    return None


def from_hub(name: str, tried: list[str], *, endpoint: str | None = None) -> tuple[Path, str] | None:
    """The file of the hub or of a mirror, and where it came from; None where it cannot be fetched, told in `tried`."""
    from urllib.error import HTTPError

    from huggingface_hub import hf_hub_url
    from huggingface_hub.constants import ENDPOINT, HF_HUB_OFFLINE

    repository = _hub_file(name)
    if repository is None or HF_HUB_OFFLINE:
        tried.append("hub: HF_HUB_OFFLINE is set" if HF_HUB_OFFLINE else f"hub: timm knows no hub file for {name}")
        return None
    url = hf_hub_url(repository, HUB_FILE, endpoint=endpoint or ENDPOINT)
    try:
        return _downloaded(repository, url, endpoint), f"hub, {repository}"
    except HTTPError as error:
        tried.append(f"hub: {url} answered {error.code}")
    except (ModelError, ResourceError) as error:
        tried.append(f"hub: {url}: {error}")
    except OSError as error:
        reason = getattr(error, "reason", None) or str(error).splitlines()[0]
        tried.append(f"hub: {url} could not be fetched: {reason}")
    return None


def _downloaded(repository: str, url: str, endpoint: str | None) -> Path:
    """The hub client's copy of the file; one in our cache where the client can make none of what the server says.

    Where there is no network the client tries again for most of a minute, so the file itself is asked for first. It is
    asked for by GET: the client begins with HEAD, which some mirrors do not answer.
    """
    import urllib.request

    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    request = urllib.request.Request(url)  # noqa: S310
    for header, value in build_hf_headers().items():
        request.add_unredirected_header(header, value)  # a token is for this server, not for one that it points to
    with urllib.request.urlopen(request, timeout=HUB_TIMEOUT_S) as response:  # noqa: S310
        try:
            return Path(hf_hub_download(repository, HUB_FILE, endpoint=endpoint))
        except (HfHubHTTPError, LocalEntryNotFoundError):
            return _kept(response, _own_copy(repository))


def _kept(response: IO[bytes], path: Path) -> Path:
    with replacing(path) as staged:
        with staged.open("wb") as file:
            shutil.copyfileobj(response, file, 1 << 20)
        try:
            _header(staged)  # part of a file, or a page to log in, would fail only in the next run
        except ModelError as error:
            raise ModelError("what came is not a readable safetensors file") from error
    return path


def _own_copy(repository: str) -> Path:
    return user_cache_folder() / "weights" / f"{repository.replace('/', '--')}.safetensors"


def _made_for(path: Path) -> str | None:
    """The backbone that a file's header names; None also where another program's file cannot be read."""
    try:
        return _header(path).get("timm_model")
    except ModelError:
        return None


def _header(path: Path) -> dict[str, str]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path}: is not a readable safetensors file: {error}") from error


def header_kwargs(path: Path, name: str) -> dict[str, Any]:
    """The timm keyword arguments that the file's header asks for, after checking that it is for this backbone."""
    header = _header(path)
    made_for = header.get("timm_model", name)
    if made_for != name:
        raise ModelError(f"{path}: holds weights of {made_for!r}, but model.backbone is {name!r}")
    try:
        kwargs = json.loads(header.get("kwargs", "{}"))
    except json.JSONDecodeError as error:
        raise ModelError(f"{path}: `kwargs` in its header is not JSON: {error}") from error
    if not isinstance(kwargs, dict):
        raise ModelError(f"{path}: `kwargs` in its header is {kwargs!r}, expected a JSON object")
    return kwargs
