"""Settings come through one door, and every mistake is named with its file, its key and what was expected."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cvad_cli.config.load import load_config, setting_names, to_plain
from cvad_cli.config.schema import parse_bytes
from cvad_cli.errors import ConfigError

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def write(tmp_path: Path):
    def write(text: str, name: str = "run.yaml") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_a_file_holds_only_what_differs_from_the_defaults(write) -> None:
    settings = load_config(write("name: first\ndata: {category: grid}\n"))
    assert (settings.name, settings.data.category) == ("first", "grid")
    assert settings.data.image_size == 256


def test_an_override_wins_over_the_file_and_a_later_one_over_an_earlier(write) -> None:
    path = write("name: first\nseed: 1\n")
    assert load_config(path, ["seed=2", "seed=3"]).seed == 3


def test_a_file_extends_another_found_from_its_own_folder(write) -> None:
    write("name: base\nseed: 7\nmodel: {coreset_ratio: 0.5, num_neighbors: 3}\n", "common/base.yaml")
    path = write("extends: common/base.yaml\nname: child\nmodel: {coreset_ratio: 0.25}\n")
    settings = load_config(path)
    assert (settings.name, settings.seed) == ("child", 7)
    assert (settings.model.coreset_ratio, settings.model.num_neighbors) == (0.25, 3)


def test_the_last_of_several_parents_wins(write) -> None:
    write("name: a\nseed: 1\n", "a.yaml")
    write("seed: 2\n", "b.yaml")
    assert load_config(write("extends: [a.yaml, b.yaml]\n")).seed == 2


def test_the_environment_is_interpolated(write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LINE", "seven")
    assert load_config(write("name: ${oc.env:LINE}\n")).name == "seven"
    assert load_config(write("name: ${oc.env:NO_SUCH_LINE,spare}\n")).name == "spare"


def test_the_resolved_settings_load_again_to_the_same(write) -> None:
    import yaml

    settings = load_config(write("name: first\nmodel: {layers: [a, b], options: {depth: 3}}\n"))
    again = load_config(write(yaml.safe_dump(to_plain(settings)), "again.yaml"))
    assert again == settings


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: {coreset_ration: 1}", "model.coreset_ration: there is no such setting. Did you mean 'coreset_ratio'?"),
        ("modle: {name: padim}", "modle: there is no such setting. Did you mean 'model'?"),
        ("category: grid", "category: there is no such setting. Did you mean 'data.category'?"),
        ("seed: {a: 1}", "seed.a: seed is a single value and has nothing below it"),
        ("model: 3", "model: expected a section of `key: value` lines, got a single value"),
        ("model: {coreset_ratio: much}", "model.coreset_ratio: expected a number, got 'much'"),
        ("model: {coreset_ratio: 3}", "model.coreset_ratio: expected a share above 0 and at most 1, got 3.0"),
        ("model: {layers: blocks.2}", "model.layers: expected a list such as [first, second], got 'blocks.2'"),
        ("model: {layers: []}", "model.layers: expected one or more layer names, each once, got ()"),
        ("data: {format: coco}", "data.format: expected one of mvtec, folders, got 'coco'"),
        ("data: {image_size: 8}", "data.image_size: expected a side in pixels from 32 to 4096, got 8"),
        ("trainer: {max_steps: 1.5}", "trainer.max_steps: expected a whole number, or null, got 1.5"),
        ("train: {max_memory: lots}", "train.max_memory: expected a size such as 512MB or 4GB, got 'lots'"),
        ("device: gpu", "device: expected auto, cpu, cuda, cuda:N, mps or xpu, got 'gpu'"),
        ("data: {root: '${oc.env:NO_SUCH_ROOT}'}", "data.root: cannot be resolved: Environment variable"),
        ("seed: 1\nseed: 2", "is not valid YAML at line 3: found duplicate key seed"),
        ("data: [", "is not valid YAML at line"),
    ],
)
def test_a_mistake_is_named_with_file_key_and_expectation(write, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        load_config(write(f"name: first\n{text}\n"))
    assert str(caught.value).startswith(str(write("")))
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("coreset", "--set coreset: expected key=value, for example --set model.coreset_ratio=0.1"),
        ("model.ratio=0.1", "--set model.ratio=0.1: model.ratio: there is no such setting. Did you mean"),
        ("seed=-1", "--set seed=-1: seed: expected a whole number from 0 to 4294967295, got -1"),
        ("seed=many", "--set seed=many: seed: expected a whole number, got 'many'"),
    ],
)
def test_a_wrong_override_is_named_as_it_was_typed(write, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_config(write("name: first\n"), [override])


def test_a_missing_name_is_asked_for(write) -> None:
    with pytest.raises(ConfigError, match="name: is missing; every run needs it"):
        load_config(write("seed: 1\n"))


@pytest.mark.parametrize("name", ["../escape", "a/b", "", ".hidden"])
def test_a_name_that_is_no_folder_name_is_refused(write, name: str) -> None:
    with pytest.raises(ConfigError, match="it becomes a folder's name"):
        load_config(write(f"name: {name!r}\n"))


def test_a_missing_file_names_its_nearest_neighbour(write) -> None:
    path = write("name: first\n", "patchcore_grid.yaml")
    with pytest.raises(ConfigError, match=r"no such file. Did you mean '.*patchcore_grid.yaml'\?"):
        load_config(path.with_name("patchcore_gird.yaml"))


def test_a_missing_parent_is_named_with_the_file_that_wants_it(write) -> None:
    with pytest.raises(ConfigError, match=r"run.yaml: extends: .*nowhere.yaml does not exist"):
        load_config(write("extends: nowhere.yaml\nname: first\n"))


def test_a_circle_of_extends_is_found(write) -> None:
    write("extends: b.yaml\nname: a\n", "a.yaml")
    path = write("extends: a.yaml\n", "b.yaml")
    with pytest.raises(ConfigError, match=r"runs in a circle: b.yaml -> a.yaml -> b.yaml"):
        load_config(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"\xff\xfe\x00name", "is not UTF-8 text"), (b"- a\n- b\n", "expected `key: value` lines"), (b"grid", "expected")],
)
def test_a_file_that_is_no_config_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        load_config(path)


def test_a_folder_instead_of_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is a folder; give the YAML file inside it"):
        load_config(tmp_path)


RUNS = sorted(path for path in (REPOSITORY / "configs").glob("*.yaml") if path.name != "gates.yaml")


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_every_config_in_the_repository_loads_under_its_own_name(path: Path) -> None:
    settings = load_config(path)
    assert settings.name == path.stem
    assert settings.data.category in path.stem


def test_every_setting_is_documented() -> None:
    described = (REPOSITORY / "docs" / "configuration.md").read_text(encoding="utf-8")
    missing = [name for name in setting_names() if f"`{name}`" not in described]
    assert not missing


@pytest.mark.parametrize(
    ("text", "expected"),
    [("4GB", 4_000_000_000), ("2 KiB", 2048), ("1.5mb", 1_500_000), ("100", 100), ("0", None), ("four", None)],
)
def test_sizes_are_read_as_people_write_them(text: str, expected: int | None) -> None:
    assert parse_bytes(text) == expected


def test_plain_settings_are_what_json_gives_back(write) -> None:
    import json

    plain = to_plain(load_config(write("name: first\nmodel: {layers: [a, b], options: {sizes: [1, 2]}}\n")))
    assert json.loads(json.dumps(plain)) == plain
