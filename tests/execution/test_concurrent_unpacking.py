"""A bundle that several processes of a node unpack at the same moment."""

from __future__ import annotations

from pathlib import Path

import pytest
from reliability.unpacking import unpack_together


@pytest.mark.parametrize("damaged", [False, True])
def test_processes_that_unpack_one_archive_at_once_all_get_it_whole(tmp_path: Path, damaged: bool) -> None:
    """Eight rounds of six processes; scripts/long_checks makes 240 unpackings of it."""
    assert unpack_together(tmp_path, 8, damaged=damaged) == []
