"""scripts/long_checks: short forms of its checks, and what it remembers from one call to the next."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from reliability import command
from reliability.command import Check
from reliability.damaged_images import check_damaged_images
from reliability.folder_swaps import check_folder_swaps
from reliability.models import check_model
from reliability.outcomes import Outcome
from reliability.watching import Usage, check_watch_kills, feed, soak_outcome


class Counted:
    """A check that counts its runs and fails the first so many times."""

    def __init__(self, failures: int = 0) -> None:
        self.counts: list[int] = []
        self._failures = failures

    def __call__(self, count: int, scratch: Path) -> Outcome:
        assert list(scratch.iterdir()) == []
        self.counts.append(count)
        return Outcome({"loops": count}, ["broken"] if len(self.counts) <= self._failures else [])


@pytest.fixture
def swaps() -> Counted:
    return Counted()


@pytest.fixture
def soak() -> Counted:
    return Counted(failures=1)


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch, swaps: Counted, soak: Counted) -> None:
    checks = {"swaps": Check(swaps, 200, "kills"), "soak": Check(soak, 60, "minutes")}
    monkeypatch.setattr(command, "all_checks", lambda _arguments: checks)


def test_what_has_passed_is_not_repeated_and_what_failed_is(tmp_path: Path, swaps: Counted, soak: Counted) -> None:
    state = ("--state", str(tmp_path / "runs" / "state.json"))
    assert [command.main(state) for _ in range(3)] == [1, 0, 0]
    assert (swaps.counts, soak.counts) == ([200], [60, 60])
    assert command.main([*state, "swaps", "--again"]) == 0
    assert command.main([*state, "swaps=5"]) == 0
    assert swaps.counts == [200, 200, 5]


def test_the_tables_hold_what_was_run_and_run_nothing(
    tmp_path: Path, swaps: Counted, capsys: pytest.CaptureFixture[str]
) -> None:
    state = ("--state", str(tmp_path / "state.json"))
    command.main([*state, "swaps=5"])
    capsys.readouterr()
    assert command.main([*state, "--table"]) == 0
    assert swaps.counts == [5]
    head, _, row = capsys.readouterr().out.splitlines()
    assert head == "| command | result | figures | time | date and revision |"
    assert row.startswith("| `scripts/long_checks swaps=5` | passed | loops: 5 | 0 s | ")


def test_an_error_in_a_check_is_its_problem_and_the_others_go_on(
    tmp_path: Path, soak: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(count: int, scratch: Path) -> Outcome:
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr(
        command, "all_checks", lambda _arguments: {"swaps": Check(broken, 1, "x"), "soak": Check(soak, 60, "minutes")}
    )
    assert command.main(["--state", str(tmp_path / "state.json")]) == 1
    stored = json.loads((tmp_path / "state.json").read_text("utf-8"))
    assert "by zero" in stored["swaps"]["outcome"]["problems"][0]
    assert soak.counts == [60]


@pytest.mark.parametrize("name", ["swap", "swaps=many"])
def test_a_wrong_name_or_number_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(SystemExit, match="expected a name of --list"):
        command.main(["--state", str(tmp_path / "state.json"), name])


def test_folders_that_killed_processes_swap_stay_whole(tmp_path: Path) -> None:
    found = check_folder_swaps(4, tmp_path)
    assert found.problems == []
    assert found.figures["kills"] == 4


def test_damaged_images_are_decoded_or_refused(tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    found = check_damaged_images(200, tmp_path / "scratch")
    assert found.problems == []
    assert found.figures["refused"] > 20
    assert found.figures["decoded"] > 20


def test_the_soak_is_fed_a_bounded_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reliability.watching.KEPT", 3)
    (tmp_path / "part.png").write_bytes(b"part")
    (tmp_path / "incoming").mkdir()
    images = feed(tmp_path / "part.png", tmp_path / "incoming")
    assert [next(images) for _ in range(5)] == [1, 2, 3, 4, 5]
    assert len(list((tmp_path / "incoming").iterdir())) == 3


def test_a_soak_fails_where_memory_descriptors_or_images_run_away() -> None:
    names = ["1", "2", "3"]
    steady = [Usage(200.0 + number % 2, 9) for number in range(50)]
    assert soak_outcome(1, steady, 3, names, []).problems == []
    growing = [Usage(200.0 + number, 9 + number // 10) for number in range(50)]
    problems = soak_outcome(1, growing, 4, [*names, "3"], []).problems
    assert len(problems) == 3
    assert problems[0] == "1 images lost, 1 lines repeated"


@pytest.mark.ci
def test_a_watch_killed_twice_loses_nothing(tmp_path: Path) -> None:
    found = check_watch_kills(2, tmp_path)
    assert found.problems == []
    assert found.figures["images"] == 17


@pytest.mark.ci
def test_a_model_that_cannot_be_had_is_an_outcome_and_no_problem(tmp_path: Path) -> None:
    found = check_model("no_such_model", 120, tmp_path)
    assert found.problems == []
    assert found.figures["outcome"] == "train: status 4"
    assert "anomalib has no model" in str(found.figures["message"])
