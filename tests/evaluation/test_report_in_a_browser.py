"""A person opens report.html: the slider, the gallery and the viewer work, and the page asks nobody for anything."""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from generated_report import generated, usual

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = os.environ.get("CVAD_TEST_CHROMIUM") or shutil.which("chromium")
pytestmark = [
    pytest.mark.ci,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: install it, or set CVAD_TEST_CHROMIUM to its path"),
]

NARROW, WIDE = 390, 1280


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    with playwright.sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture(scope="module", params=["generated", "portable", "real grid"])
def folder(request, tmp_path_factory) -> Path:
    """An evaluation's folder, and the report in it."""
    if request.param == "real grid":
        return request.getfixturevalue("real_grid_evaluation")
    folder = tmp_path_factory.mktemp("report")
    generated(folder, usual(30), portable=request.param == "portable")
    return folder


class Watched:
    """A page and what it did that it should not."""

    def __init__(self, browser, folder: Path, width: int = WIDE, scheme: str = "light") -> None:
        self.complaints: list[str] = []
        self.metrics = json.loads((folder / "metrics.json").read_text("utf-8"))
        self._context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.page = self._context.new_page()
        self.page.on("console", lambda message: self.complaints.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("requestfailed", lambda request: self.complaints.append(f"failed: {request.url[:80]}"))
        self.page.on("request", self._require_local)
        self.page.goto((folder / "report.html").as_uri())

    def _require_local(self, request) -> None:
        if not request.url.startswith(("file:", "data:")):
            self.complaints.append(f"asked for {request.url}")

    def __enter__(self):
        return self

    def __exit__(self, kind, *rest) -> None:
        self._context.close()
        if kind is None:
            assert self.complaints == []

    def text(self, selector: str) -> str:
        return self.page.locator(selector).inner_text().strip()

    def choice(self, name: str):
        return self.page.get_by_role("combobox", name=name, exact=True)

    def cards(self) -> list[dict]:
        """The cards that are shown, in order."""
        return self.page.eval_on_selector_all(
            ".card:not([hidden])",
            "all => all.map(one => ({score: Number(one.dataset.score), type: one.dataset.type, key: one.dataset.key,"
            " defective: one.classList.contains('defective'), outcome: one.querySelector('.tag').textContent}))",
        )


def test_at_first_the_slider_tells_the_figures_of_metrics_json(browser, folder):
    with Watched(browser, folder) as seen:
        decision = seen.metrics["decision"]
        assert float(seen.text("#at")) == pytest.approx(decision["threshold"], abs=1e-4)
        assert seen.text("#state") == "calibrated"
        shown = {name: int(seen.text(f"#{name}")) for name in ("found", "alarms", "missed")}
        assert shown == {
            "found": decision["true_positives"],
            "alarms": decision["false_positives"],
            "missed": decision["false_negatives"],
        }
        assert not seen.page.locator("#warning").is_visible()


def test_moving_the_slider_recounts_and_says_that_it_is_exploring(browser, folder):
    with Watched(browser, folder) as seen:
        seen.page.locator("#slider").focus()
        for _ in range(3):
            seen.page.keyboard.press("PageUp")
        threshold = seen.page.evaluate(
            "() => { const s = document.getElementById('threshold').dataset;"
            " return Number(s.low) + document.getElementById('slider').value / 1000 * (s.high - s.low) }"
        )
        assert threshold > seen.metrics["decision"]["threshold"]
        cards = seen.cards()
        missed = [card for card in cards if card["defective"] and card["score"] <= threshold]
        alarms = [card for card in cards if not card["defective"] and card["score"] > threshold]
        assert seen.text("#state") == "tried"
        assert seen.page.locator("#warning").is_visible()
        assert (int(seen.text("#missed")), int(seen.text("#alarms"))) == (len(missed), len(alarms))
        assert {card["key"] for card in cards if card["outcome"] == "missed"} == {card["key"] for card in missed}
        assert seen.page.locator("#misses button:not(.more)").count() == min(len(missed), 12)
        playwright.expect(seen.page.locator("#announcement")).to_contain_text(f"{len(missed)} missed")
        seen.page.get_by_role("button", name="Back to the calibrated threshold").click()
        assert seen.text("#state") == "calibrated"
        assert int(seen.text("#missed")) == seen.metrics["decision"]["false_negatives"]


def test_the_threshold_can_be_moved_image_by_image(browser, folder):
    with Watched(browser, folder) as seen:

        def rejected() -> int:
            return int(seen.text("#found")) + int(seen.text("#alarms"))

        before = rejected()
        seen.page.get_by_role("button", name="Lower by one image").click()
        assert rejected() == before + 1
        seen.page.get_by_role("button", name="Raise by one image").click()
        assert rejected() == before


def test_the_gallery_is_sorted_and_filtered(browser, folder):
    with Watched(browser, folder) as seen:
        everything = seen.cards()
        assert len(everything) == seen.metrics["counts"]["test"]
        seen.choice("Order").select_option("high")
        scores = [card["score"] for card in seen.cards()]
        assert scores == sorted(scores, reverse=True)
        seen.choice("Order").select_option("name")
        assert [card["key"] for card in seen.cards()] == sorted(card["key"] for card in everything)
        kind = next(iter(seen.metrics["defect_types"]))
        seen.choice("Type").select_option(kind)
        count = seen.metrics["defect_types"][kind]["images"]
        assert [card["type"] for card in seen.cards()] == [kind] * count
        assert seen.text("#count") == f"{count} of {len(everything)} images"
        seen.choice("Type").select_option("good")
        seen.choice("Outcome").select_option("missed")
        assert seen.cards() == []
        assert seen.page.locator("#nothing").is_visible()


def test_a_image_opens_side_by_side_and_the_keyboard_goes_on_from_there(browser, folder):
    with Watched(browser, folder) as seen:
        keys = [card["key"] for card in seen.cards()]
        seen.page.locator(".card .open").first.focus()
        seen.page.keyboard.press("Enter")
        viewer = seen.page.get_by_role("dialog")
        assert viewer.is_visible()
        assert seen.text("#viewer-title") == keys[0]
        decoded = "all => Promise.all(all.map(one => one.decode().then(() => one.naturalWidth)))"
        widths = seen.page.eval_on_selector_all("#views img", decoded)
        assert len(widths) == 4
        assert all(width > 0 for width in widths)
        boxes = [pane.bounding_box() for pane in seen.page.locator(".pane").all()]
        assert len({round(box["y"]) for box in boxes}) == 1
        assert all(box["width"] > 150 for box in boxes)
        seen.page.keyboard.press("ArrowRight")
        assert seen.text("#viewer-title") == keys[1]
        seen.page.keyboard.press("ArrowLeft")
        seen.page.keyboard.press("ArrowLeft")
        assert seen.text("#viewer-title") == keys[0]
        seen.page.keyboard.press("Escape")
        assert not viewer.is_visible()
        focused = seen.page.evaluate("document.activeElement.closest('.card').dataset.key")
        assert focused == keys[0]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_narrow_screen_needs_no_sideways_scrolling(browser, folder, scheme):
    with Watched(browser, folder, width=NARROW, scheme=scheme) as seen:
        assert seen.page.evaluate("document.documentElement.scrollWidth") == NARROW
        seen.page.locator(".card .open").first.click()
        box = seen.page.get_by_role("dialog").bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= NARROW


def test_everything_has_a_name_and_the_headings_are_in_order(browser, folder):
    with Watched(browser, folder) as seen:
        unnamed = seen.page.evaluate(
            "[...document.querySelectorAll('button, select, input, [role=region], nav, dialog')].filter(one => {"
            " const by = one.getAttribute('aria-labelledby');"
            " const label = by ? document.getElementById(by) : one.labels?.[0];"
            " return !(one.getAttribute('aria-label') || label || one.textContent.trim()) }).map(one => one.outerHTML)"
        )
        assert unnamed == []
        levels = seen.page.eval_on_selector_all("h1, h2, h3", "all => all.map(one => Number(one.tagName[1]))")
        assert levels.count(1) == 1
        assert levels[0] == 1
        assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
        seen.page.keyboard.press("Tab")
        assert seen.page.evaluate("document.activeElement.textContent") == "Skip to the content"


def test_it_prints_its_first_forty_images_and_none_of_its_controls(browser, folder):
    with Watched(browser, folder, scheme="dark") as seen:
        seen.page.emulate_media(media="print", color_scheme="dark")
        assert not seen.page.locator("#slider").is_visible()
        assert not seen.page.locator("#order").is_visible()
        shown = seen.page.eval_on_selector_all(".card", "all => all.filter(one => one.offsetHeight > 0).length")
        assert shown == min(seen.metrics["counts"]["test"], 40)
        assert seen.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
