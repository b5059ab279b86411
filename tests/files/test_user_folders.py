"""The cache folder follows the user's environment; a file's digest is the same however it is read."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from cvad_cli.files.digests import BYTES_AT_ONCE, file_sha256
from cvad_cli.files.user_folders import user_cache_folder


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        pytest.param({"XDG_CACHE_HOME": "/x", "LOCALAPPDATA": "/y"}, Path("/x/cvad"), id="XDG first"),
        pytest.param({"XDG_CACHE_HOME": "", "LOCALAPPDATA": "/y"}, Path("/y/cvad"), id="an empty one is not set"),
        pytest.param({"HOME": "/h"}, Path("/h/.cache/cvad"), id="the home folder"),
    ],
)
def test_the_cache_folder_is_where_the_environment_says(monkeypatch, variables, expected):
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert user_cache_folder() == expected


@pytest.mark.parametrize("size", [0, 1, BYTES_AT_ONCE, BYTES_AT_ONCE + 1])
def test_a_digest_covers_the_whole_file(tmp_path, size):
    content = bytes(range(256)) * (size // 256 + 1)
    (tmp_path / "file").write_bytes(content[:size])
    assert file_sha256(tmp_path / "file") == hashlib.sha256(content[:size]).hexdigest()
