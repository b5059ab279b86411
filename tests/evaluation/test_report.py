"""The page of an evaluation says what metrics.json says, of any test set, and asks no network for anything."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import tracemalloc
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path

import cv2
import numpy as np
import pytest
from generated_report import THRESHOLD, drawn, generated, record, usual

from cvad_cli.adapters.pages import data_uri, measured, percent
from cvad_cli.assembly.evaluation.report import write_report
from cvad_cli.assembly.evaluation.report_charts import histogram, rugs, score_axis
from cvad_cli.records import GOOD, GateResult


class Page(HTMLParser):
    """What the tests ask of a page: its elements, its text, its measured values."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.figures: dict[str, set[tuple[str | None, str]]] = {}
        self._measuring: tuple[str, str | None] | None = None
        self._hidden = ""
        self.feed(self.source)

    def handle_starttag(self, tag, attrs):
        attributes = {name: value or "" for name, value in attrs}
        self.elements.append((tag, attributes))
        if "data-metric" in attributes:
            self._measuring = attributes["data-metric"], attributes.get("value")
        self._hidden = tag if tag in {"style", "script"} else ""

    def handle_data(self, data):
        if self._hidden:
            return
        self.text += data
        if self._measuring:
            name, value = self._measuring
            self.figures.setdefault(name, set()).add((value, data))
            self._measuring = None

    def all(self, tag: str, **wanted: str) -> list[dict[str, str]]:
        found = [attributes for name, attributes in self.elements if name == tag]
        return [one for one in found if all(one.get(key.rstrip("_")) == value for key, value in wanted.items())]


def at(metrics: dict, path: str):
    """The value of metrics.json that a figure of the page names."""
    for suffix, position in (("_low", 0), ("_high", 1)):
        if path.endswith(suffix):
            stem = path.removesuffix(suffix)
            return at(metrics, f"{stem.removesuffix('_rate')}_interval")[position]
    value = metrics
    rest = path.split(".")
    while rest:
        known = next(n for n in range(len(rest), 0, -1) if ".".join(rest[:n]) in value)
        value, rest = value[".".join(rest[:known])], rest[known:]
    return value


@pytest.fixture(scope="module")
def usual_report(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("usual")
    named = {
        item.key: {"named": "bent", "confidence": 0.5, "neighbours": []} for item in usual(24) if not item.is_normal
    }
    generated(folder, usual(24), classification=named)
    return folder


def test_every_figure_of_the_page_is_that_of_metrics_json(usual_report):
    page = Page(usual_report / "report.html")
    metrics = json.loads((usual_report / "metrics.json").read_text("utf-8"))
    assert {"image.auroc", "pixel.aupro", "decision.recall", "decision.threshold", "image.auroc_low"} <= set(
        page.figures
    )
    assert {"classification.leave_one_out.accuracy", "classification.leave_one_out.recall.bent"} <= set(page.figures)
    assert {f"defect_types.{name}.recall" for name in ("bent", "glue", "thread")} <= set(page.figures)
    for name, shown in page.figures.items():
        value = at(metrics, name)
        assert {json.loads(exact) for exact, _ in shown} == {value}, name
        assert {text for _, text in shown} == {measured(value)}, name


def test_the_page_of_a_run_has_the_figures_and_images_of_that_run(trained: Path, metrics_of):
    folder = trained.parent / "runs" / "small" / "evaluation"
    page, metrics = Page(folder / "report.html"), metrics_of(trained)
    for name, shown in page.figures.items():
        if "_low" not in name and "_high" not in name:
            assert {json.loads(exact) for exact, _ in shown if exact} <= {at(metrics, name)}, name
    cards = page.all("li", class_="card") + page.all("li", class_="card defective")
    assert len(cards) == metrics["counts"]["test"]
    for address in [image["src"] for image in page.all("img")] + [card["data-map"] for card in cards]:
        assert (folder / address).stat().st_size > 100, address
    rows = (folder / "per_image.csv").read_text("utf-8").splitlines()[1:]
    scores = {row.split(",")[0]: float(row.split(",")[2]) for row in rows}
    assert {card["data-key"]: pytest.approx(float(card["data-score"]), rel=1e-5) for card in cards} == scores


def test_mistakes_come_first_the_worst_before_the_others(usual_report):
    cards = [one for _, one in Page(usual_report / "report.html").elements if one.get("class", "").startswith("card")]
    judged = [(float(card["data-score"]), card["data-type"] != GOOD) for card in cards if "data-score" in card]
    missed = [score for score, defective in judged if defective and score <= THRESHOLD]
    alarms = [score for score, defective in judged if not defective and score > THRESHOLD]
    assert missed
    assert [score for score, _ in judged[: len(missed) + len(alarms)]] == sorted(missed) + sorted(alarms, reverse=True)
    close = [abs(score - THRESHOLD) for score, _ in judged[len(missed) + len(alarms) :]]
    assert close == sorted(close)


def test_nothing_on_the_page_leads_to_a_network_and_its_policy_allows_its_own_scripts_alone(usual_report):
    page = Page(usual_report / "report.html")
    (policy,) = [one["content"] for one in page.all("meta", **{"http-equiv": "Content-Security-Policy"})]
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    for tag in ("style", "script"):
        for text in re.findall(f"<{tag}>(.*?)</{tag}>", page.source, re.DOTALL):
            digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
            assert f"'sha256-{digest}'" in policy
    addresses = [one[name] for _, one in page.elements for name in ("src", "href", "data-map") if name in one]
    assert addresses
    assert all(re.match(r"#|data:|report_images/\d{5}(-map)?\.jpg$", address) for address in addresses)
    assert not [one for _, one in page.elements if "style" in one or any(name.startswith("on") for name in one)]
    assert "http://" not in page.source.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in page.source


def test_a_portable_page_holds_its_images(tmp_path):
    generated(tmp_path, usual(6), portable=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.json", "report.html"]
    page = Page(tmp_path / "report.html")
    images = [image["src"] for image in page.all("img")]
    assert len(images) == 6
    assert all(base64.b64decode(image.removeprefix("data:image/jpeg;base64,"))[:2] == b"\xff\xd8" for image in images)


ODD_NAMES = [
    "test/</script><script>alert(1)</script>/0.png",
    'test/" onerror="alert(1)/1.png',
    "test/{{ 7 * 7 }}/2.png",
    "test/Kratzer größer ☃ 划痕/3.png",
    "test/a&amp;b 'quoted'/4.png",
]


def test_names_from_a_data_set_are_text_and_nothing_else(tmp_path):
    records = [record(number, name.split("/", 1)[1].rsplit("/", 1)[0], name) for number, name in enumerate(ODD_NAMES)]
    classification = {
        item.key: {"named": "<b>bold</b>", "confidence": 0.5, "neighbours": [{"key": ODD_NAMES[1], "similarity": 0.9}]}
        for item in records
    }
    found = generated(tmp_path, [*records, record(9, GOOD)], classification=classification)
    page = Page(tmp_path / "report.html")
    assert {card["data-key"] for _, card in page.elements if "data-key" in card} == {*ODD_NAMES, "test/good/009.png"}
    for name in ODD_NAMES:
        assert name in page.text
    assert len(page.all("script")) == 1
    assert not [one for _, one in page.elements if "onerror" in one]
    shown = [json.loads(card["data-classification"]) for _, card in page.elements if "data-classification" in card]
    assert shown[0]["named"] == "<b>bold</b>"
    assert set(found["defect_types"]) == {item.defect_type for item in records}


@pytest.mark.parametrize(
    ("records", "masks", "present", "absent"),
    [
        pytest.param(
            [record(n, GOOD) for n in range(5)],
            True,
            "No defective part in the test set",
            "Precision and recall",
            id="no defects",
        ),
        pytest.param(
            [record(n, "bent") for n in range(5)],
            True,
            "no good part to raise a false alarm",
            "Precision and recall",
            id="no good",
        ),
        pytest.param(usual(8), False, "no defective image has a mask", "Per-region overlap", id="no masks"),
        pytest.param([record(n, (GOOD, "bent")[n % 2]) for n in range(6)], True, "bent", "thread", id="one type"),
        pytest.param([record(0, GOOD)], True, "1 image", "bent", id="one image"),
    ],
)
def test_a_page_of_what_is_there(tmp_path, records, masks, present, absent):
    generated(tmp_path, records, masks=masks)
    page = Page(tmp_path / "report.html")
    assert present in page.text
    assert absent not in page.text
    assert len([one for _, one in page.elements if "data-key" in one]) == len(records)
    assert "None" not in page.text
    assert "nan" not in page.source.split("</style>")[-1].split("<script>")[0]


def test_gates_are_shown_with_their_reasons(tmp_path):
    gate = GateResult("image.auroc >= 0.99", "image.auroc", ">= 0.99", 0.87, False, "0.87 < 0.99 & so on", "failed")
    generated(tmp_path, usual(6), gates=(gate,))
    page = Page(tmp_path / "report.html")
    assert "1 of 1 gates failed" in page.text
    assert "1 of 1 failed." in page.text
    assert "0.87 < 0.99 & so on" in page.text


def test_forty_of_a_thousand_fine_textures_take_their_share_of_30_megabytes(tmp_path, monkeypatch):
    noise = np.random.default_rng(0)
    monkeypatch.setattr(
        "generated_report.scene",
        lambda weave, item, height, rng: (
            noise.integers(0, 256, (512, 512, 3), dtype=np.uint8),
            cv2.resize(noise.random((32, 32), dtype=np.float32) * 4, (64, 64)),
            noise.random((128, 128)) > 0.5,
        ),
    )
    generated(tmp_path, usual(40), portable=True, images=1000)
    assert (tmp_path / "report.html").stat().st_size < 30e6 * 40 / 1000


def test_a_portable_page_is_never_held_in_memory_as_a_whole(tmp_path):
    found, images = drawn(tmp_path, usual(200), portable=True)
    tracemalloc.start()
    write_report(tmp_path, found, images)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (tmp_path / "report.html").stat().st_size > 6e6
    assert peak < 4e6


def test_few_far_scores_do_not_squeeze_the_axis():
    scores = [*np.linspace(1, 2, 99), 400.0]
    axis = score_axis(scores, threshold=1.8)
    assert axis.high < 3
    assert axis.past_end == 1
    assert score_axis([1.0, 1.0], threshold=1.0).position(1.0) == 50.0
    assert score_axis(np.linspace(1, 2, 50).tolist(), threshold=5.0).position(5.0) < 100


def test_no_bar_straddles_the_threshold_and_each_half_sums_to_its_images():
    rng = np.random.default_rng(3)
    scores, defective = rng.normal(3, 1, 200).tolist(), (rng.random(200) < 0.4).tolist()
    axis = score_axis(scores, THRESHOLD)
    drawn = histogram(axis, scores, defective, THRESHOLD)
    cut = axis.position(THRESHOLD)
    for bars in drawn["bars"].values():
        assert all(bar["x"] + bar["width"] <= cut or bar["x"] >= cut - 1e-6 for bar in bars)
    rows = rugs(axis, scores, ["bent" if bad else GOOD for bad in defective], THRESHOLD)
    assert [row["type"] for row in rows] == [GOOD, "bent"]
    assert sum(row["images"] for row in rows) == 200
    assert sum(row["above"] for row in rows) == sum(score > THRESHOLD for score in scores)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.98830409, "0.9883"),
        (57, "57"),
        (26.386509, "26.3865"),
        (123456.7, "123457"),
        (1.234e-5, "1.234e-05"),
        (0.0, "0.0000"),
    ],
)
def test_measured_values_are_written_to_four_decimals(value, text):
    assert measured(value) == text


def test_shares_are_written_to_a_tenth_of_a_percent():
    assert [percent(share).replace("\u00a0", " ") for share in (0.0476, 1.0, 0.0)] == ["4.8 %", "100 %", "0 %"]
    assert data_uri(b"abc", "text/plain") == "data:text/plain;base64,YWJj"


def contrast(one: str, other: str) -> float:
    """WCAG 2.2, 1.4.3: from 1 to 21."""

    def luminance(colour: str) -> float:
        parts = [int(colour[position : position + 2], 16) / 255 for position in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))

    lighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_text_and_marks_have_the_contrast_that_wcag_aa_asks_for(scheme):
    style = resources.files("cvad_cli").joinpath("templates", "style.css").read_text("utf-8")
    blocks = re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    assert len(blocks) == 2
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", blocks[scheme]))
    for text in ("ink", "muted", "good", "bad"):
        for ground in ("ground", "paper"):
            assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
    for fill in ("good", "bad"):
        assert contrast(colours["on-fill"], colours[fill]) >= 4.5, fill
    for mark in ("edge", "focus"):
        assert contrast(colours[mark], colours["ground"]) >= 3, mark
