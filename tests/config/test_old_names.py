"""A setting by the name of an earlier release is read, and a warning says the present name."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from cvad_cli.config.load import load_config, setting_names, to_plain
from cvad_cli.config.old_names import OLD_SETTINGS
from cvad_cli.errors import ConfigError

WARNING = "evaluation.pictures is now evaluation.images"


@pytest.fixture
def write(tmp_path: Path):
    def write(text: str, name: str = "run.yaml") -> Path:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_every_old_name_leads_to_a_setting_and_is_none_itself() -> None:
    assert set(OLD_SETTINGS.values()) <= set(setting_names())
    assert not set(OLD_SETTINGS) & set(setting_names())


@pytest.mark.parametrize("text", ["evaluation: {pictures: 4}", "evaluation:\n  pictures: 4\n  report: none"])
def test_an_old_name_in_a_file_is_read_with_a_warning(write, text: str) -> None:
    heard: list[str] = []
    path = write(f"name: first\n{text}\n")
    settings = load_config(path, warn=heard.append)
    assert settings.evaluation.images == 4
    (message,) = heard
    assert message.startswith(f"{path}: {WARNING}")
    assert load_config(write(yaml.safe_dump(to_plain(settings)), "again.yaml")) == settings  # warnings are errors here


def test_an_old_name_in_a_file_that_is_extended_yields_to_the_new_one_of_the_child(write) -> None:
    heard: list[str] = []
    base = write("name: base\nevaluation: {pictures: 4}\n", "base.yaml")
    assert load_config(write("extends: base.yaml\nname: child\n"), warn=heard.append).evaluation.images == 4
    child = write("extends: base.yaml\nname: child\nevaluation: {images: 5}\n")
    assert load_config(child, warn=heard.append).evaluation.images == 5
    assert [message.partition(": ")[0] for message in heard] == [str(base)] * 2


@pytest.mark.parametrize("override", ["evaluation.pictures=6", "evaluation={pictures: 6}"])
def test_an_old_name_in_an_override_wins_over_the_new_one_in_the_file(write, override: str) -> None:
    heard: list[str] = []
    path = write("name: first\nevaluation: {images: 5}\n")
    assert load_config(path, [override], warn=heard.append).evaluation.images == 6
    assert [message.partition(WARNING)[0] for message in heard] == [f"--set {override}: "]


def test_a_bad_value_is_reported_under_the_present_name(write) -> None:
    path = write("name: first\nevaluation: {pictures: many}\n")
    with pytest.raises(ConfigError, match=r"run\.yaml: evaluation\.images: expected a whole number, got 'many'"):
        load_config(path, warn=lambda message: None)


def test_both_names_in_one_section_are_refused(write) -> None:
    path = write("name: first\nevaluation: {pictures: 4, images: 5}\n")
    with pytest.raises(ConfigError, match=r"remove evaluation\.pictures"):
        load_config(path, warn=lambda message: None)


def test_a_script_that_passes_no_receiver_gets_a_python_warning(write) -> None:
    with pytest.warns(FutureWarning, match=WARNING) as caught:
        load_config(write("name: first\nevaluation: {pictures: 4}\n"))
    assert [warning.filename for warning in caught] == [__file__]


def test_the_command_line_warns_on_standard_error_once_and_keeps_standard_output_clean(cvad, small_config) -> None:
    old = ("--set", "evaluation.pictures=4", "--json", "--quiet")
    result = cvad("evaluate", "-c", small_config, "-c", small_config, *old)
    assert result.exit_code != 0  # nothing is trained
    assert result.stderr.count(WARNING) == 1
    assert WARNING not in result.stdout
