"""`qdrant.api_key` lands nowhere: no manifest, no metrics, no message, no repr, no traceback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from cvad_cli.config.load import load_config, to_plain
from cvad_cli.config.schema import BadSettingError, QdrantConfig
from cvad_cli.errors import ConfigError

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
