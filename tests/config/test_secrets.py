"""`qdrant.api_key` lands nowhere: no manifest, no metrics, no message, no repr, no traceback."""

from __future__ import annotations

import importlib.util
import json
import multiprocessing.connection
import multiprocessing.reduction
import os
import shutil
import subprocess
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from cvad_cli.adapters.executors.processes import InProcess, Processes
from cvad_cli.adapters.executors.ray_cluster import ClusterOptions, RayCluster
from cvad_cli.adapters.executors.scheduler import RetryPolicy
from cvad_cli.adapters.machine.subprocess_call import in_fresh_process
from cvad_cli.config.load import load_config, to_plain
from cvad_cli.config.schema import BadSettingError, QdrantConfig, RunConfig
from cvad_cli.errors import ConfigError
from cvad_cli.ports import Executor

KEY = "s3cr3t.KEY_0123456789"


@pytest.fixture
def keyed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    monkeypatch.setenv("QDRANT_API_KEY", KEY)

    def write(section: str = "qdrant: {api_key: '${oc.env:QDRANT_API_KEY,null}'}") -> Path:
        path = tmp_path / "run.yaml"
        path.write_text(f"name: run\n{section}\n", encoding="utf-8")
        return path

    return write


def test_the_key_reaches_the_settings_and_nothing_that_shows_them(keyed: Callable[..., Path]) -> None:
    settings = load_config(keyed())
    assert settings.qdrant.api_key == KEY
    assert KEY not in repr(settings) + str(settings) + repr(settings.qdrant)
    assert to_plain(settings)["qdrant"]["api_key"] == "***"
    assert KEY not in json.dumps(to_plain(settings))
    assert settings.qdrant.api_key == KEY


def test_no_key_is_stored_as_none(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("name: run\n")
    assert to_plain(load_config(tmp_path / "run.yaml"))["qdrant"]["api_key"] is None


def test_a_trained_bundle_and_its_metrics_hold_no_key(
    small_config: Path, cvad: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QDRANT_API_KEY", KEY)
    text = small_config.read_text() + "qdrant: {api_key: '${oc.env:QDRANT_API_KEY}', url: 'http://localhost:1'}\n"
    small_config.write_text(text)
    for command in ("train", "evaluate"):
        result = cvad(command, "--config", small_config)
        assert result.exit_code == 0, result.output
        assert KEY not in result.output
    written = [path for path in (small_config.parent / "runs").rglob("*") if path.is_file()]
    assert any(path.name == "manifest.json" for path in written)
    assert not [path for path in written if KEY.encode() in path.read_bytes()]


def shown(error: BaseException) -> str:
    return "".join(traceback.format_exception(error)) + repr(error)


@pytest.mark.parametrize(
    ("section", "sets"),
    [
        pytest.param(f"qdrant: {{api_key: '{KEY} '}}", [], id="a space in the key"),
        pytest.param(f'qdrant: {{api_key: "{KEY}\\n"}}', [], id="a line end in the key"),
        pytest.param(f"qdrant: {{api_key: [{KEY}]}}", [], id="a list"),
        pytest.param(f"qdrant: {{api_key: {{key: {KEY}}}}}", [], id="a mapping"),
        pytest.param(f"qdrant: {KEY}", [], id="a section that is the key"),
        pytest.param(f"qdrant: [{KEY}]", [], id="a section that is a list"),
        pytest.param(f"qdrant: {{api_kye: {KEY}}}", [], id="a misspelt key"),
        pytest.param(f"qdrant: {{url: 'https://me:{KEY}@host'}}", [], id="a password in the URL"),
        pytest.param(f"qdrant: {{url: 'https://host/?api_key={KEY}'}}", [], id="a key in the URL"),
        pytest.param("", [f"qdrant.api_key={KEY} x"], id="--set with a space"),
        pytest.param("", [f"qdrant.api_key=[{KEY}]"], id="--set with a list"),
        pytest.param("", [f"qdrant.api_key=[{KEY}"], id="--set with broken YAML"),
        pytest.param("", [f"qdrant.api_kye={KEY}"], id="--set misspelt"),
        pytest.param("", [f"api_key={KEY}"], id="--set without its section"),
        pytest.param("", [f"qdrnt.api_key={KEY}"], id="--set with a misspelt section"),
        pytest.param("", [f"qdrant={{api_key: {KEY}, timeout_s: x}}"], id="--set of the section"),
        pytest.param("", [f"qdrant={KEY}"], id="--set of the section to the key"),
        pytest.param("", [f"qdrant.api_key={KEY}", "seed=-1"], id="another setting is wrong"),
    ],
)
def test_no_message_about_settings_shows_a_secret(keyed: Callable[..., Path], section: str, sets: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(keyed(section), sets)
    assert KEY not in shown(caught.value)


def test_a_debug_traceback_of_the_command_shows_no_secret(keyed: Callable[..., Path]) -> None:
    for override in (f"qdrant.api_key=[{KEY}]", f"qdrant.api_key={KEY} x"):
        command = [sys.executable, "-m", "cvad_cli", "train", "--debug", "--config", str(keyed("")), "--set", override]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ})
        assert done.returncode == 2, done.stderr
        assert "Traceback" in done.stderr
        assert KEY not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("url", "host:6333"),
        ("url", "ftp://host"),
        ("collection", "../elsewhere"),
        ("collection", ""),
        ("timeout_s", 0),
        ("retries", -1),
        ("batch_size", 0),
        ("shard_number", 0),
        ("replication_factor", 0),
        ("api_key", ""),
        ("api_key", "schlüssel"),
    ],
)
def test_settings_of_the_index_check_themselves(key: str, value: object) -> None:
    with pytest.raises(BadSettingError, match=rf"{key}: expected"):
        QdrantConfig(**{key: value})


@pytest.mark.parametrize("url", ["http://localhost:6333", "https://x.cloud.qdrant.io", "https://host:443/prefix/a"])
def test_urls_of_servers_are_taken(url: str) -> None:
    assert QdrantConfig(url=url).url == url


class TellsKeys:
    """A job that knows settings, and whose items hold settings: it gives back every API key that it can see."""

    bundle = None

    def __init__(self, settings: RunConfig) -> None:
        self._settings = settings

    def at(self, bundle: Path) -> TellsKeys:
        return self

    def __call__(self, items: Iterable[dict[str, Any]]) -> Iterator[list[str | None]]:
        for item in items:
            yield keys_in(self._settings, **item)


def keys_in(settings: RunConfig, *, plain: RunConfig, bound: partial[Any]) -> list[str | None]:
    return [settings.qdrant.api_key, plain.qdrant.api_key, bound.args[0].qdrant.api_key]


PATIENCE = RetryPolicy(retries=0, warn=print)
WITHOUT_RAY = importlib.util.find_spec("ray") is None


def ray_cluster() -> RayCluster:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Ray's own start-up
        return RayCluster(ClusterOptions(None, 1, 1, 0.0), PATIENCE)


@pytest.mark.parametrize(
    "opened",
    [
        pytest.param(lambda: Processes(1, threads=1, retry_policy=PATIENCE), id="processes"),
        pytest.param(
            ray_cluster,
            id="ray",
            marks=[
                pytest.mark.ci,
                pytest.mark.skipif(WITHOUT_RAY, reason="Ray is not installed: pip install 'cvad[ray]'"),
            ],
        ),
    ],
)
def test_no_worker_gets_the_key_however_deep_settings_lie(
    opened: Callable[[], Executor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), *sys.path]))  # for Ray's workers
    settings = RunConfig("run", qdrant=QdrantConfig(url="http://localhost:1", api_key=KEY))
    items = [{"plain": settings, "bound": partial(print, settings)}]
    with opened() as executor:
        assert list(executor.map(TellsKeys(settings), items)) == [[None, None, None]]
    assert settings.qdrant.api_key == KEY, "the command's own settings stay as they are"
    assert items[0]["plain"].qdrant.api_key == KEY


def test_work_in_the_same_process_keeps_the_key() -> None:
    settings = RunConfig("run", qdrant=QdrantConfig(api_key=KEY))
    with InProcess(threads=1) as executor:
        found = executor.map(TellsKeys(settings), [{"plain": settings, "bound": partial(print, settings)}])
        assert list(found) == [[KEY, KEY, KEY]]


def test_no_fresh_process_gets_the_key() -> None:
    settings = RunConfig("run", qdrant=QdrantConfig(api_key=KEY))
    assert in_fresh_process(key_of, {"settings": settings}) is None
    assert settings.qdrant.api_key == KEY


def key_of(held: dict[str, RunConfig]) -> str | None:
    return held["settings"].qdrant.api_key


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Every byte that this process sends to processes that it starts: through pipes, and to start them."""
    seen: list[bytes] = []
    send, dump = multiprocessing.connection.Connection._send, multiprocessing.reduction.dump

    def heard(self: Any, data: Any, *arguments: Any) -> None:
        seen.append(bytes(data))
        send(self, data, *arguments)

    def dumped(value: Any, file: Any, protocol: int | None = None) -> None:
        start = file.tell()
        dump(value, file, protocol)
        seen.append(file.getvalue()[start:])

    monkeypatch.setattr(multiprocessing.connection.Connection, "_send", heard)
    monkeypatch.setattr(multiprocessing.reduction, "dump", dumped)
    return seen


NOWHERE = ("--set", "data.root=nowhere")
"""Ends each run of a batch as soon as its worker has begun: what the worker was sent is all that counts here."""


@pytest.fixture(scope="module")
def two_runs(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Configs of two trained runs, and an index beside them that `index` fills and `classify` reads."""
    folder = tmp_path_factory.mktemp("keyed")
    configs = []
    for name in ("small", "again"):
        shutil.copytree(trained.parent / "runs" / "small", folder / "runs" / name)
        text = trained.read_text("utf-8").replace("name: small", f"name: {name}")
        text = text.replace(str(trained.parent / "runs"), str(folder / "runs"))
        configs.append(folder / f"{name}.yaml")
        configs[-1].write_text(f"{text}qdrant: {{path: '{folder / 'index'}'}}\n", encoding="utf-8")
    return configs[0], configs[1]


@pytest.mark.parametrize(
    ("command", "batch", "job"),
    [
        pytest.param(["train", "--force", *NOWHERE], True, "RunJob", id="train, a batch"),
        pytest.param(["evaluate", "--force", *NOWHERE], True, "RunJob", id="evaluate, a batch"),
        pytest.param(["evaluate"], False, "ImageJob", id="evaluate"),
        pytest.param(["predict", "{images}", "--json"], False, "ImageJob", id="predict"),
        pytest.param(["index", "--shots", "1"], False, "ImageJob", id="index"),
        pytest.param(["classify", "{images}"], False, "ImageJob", id="classify, after index"),
    ],
)
def test_no_command_sends_the_key_to_its_workers(  # noqa: PLR0917 - four fixtures
    command: list[str],
    batch: bool,
    job: str,
    two_runs: tuple[Path, Path],
    sample_data: Path,
    sent: list[bytes],
    cvad: Callable[..., Result],
) -> None:
    arguments = [part.format(images=sample_data / "grid" / "test" / "good") for part in command]
    for config in two_runs[: 2 if batch else 1]:
        arguments += ["-c", str(config)]
    result = cvad(*arguments, "--set", f"qdrant.api_key={KEY}", "--set", "executor.workers=2")
    assert result.exit_code == (3 if batch else 0), result.output
    assert any(job.encode() in data for data in sent), "workers did the work, and this test heard what they got"
    assert not [data for data in sent if KEY.encode() in data]
