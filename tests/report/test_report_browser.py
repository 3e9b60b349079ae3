"""The page in a real browser: it opens from disk, asks for nothing, draws, obeys its controls, stays inert."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from report_example import HOSTILE, VARIANTS

from loratlas.report import build

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs a Chromium on the path to open pages in")

QUIET = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
QUIET += ["--disable-sync", "--no-first-run", "--disable-quic"]


@dataclass
class Opened:
    """A page with everything that it said and asked for while it was open."""

    page: Any
    console: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    dialogs: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield running
        running.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The page of each variant, built once."""
    folder = tmp_path_factory.mktemp("pages")

    def page(variant: str) -> Path:
        path = folder / f"{variant}.html"
        return path if path.exists() else build(VARIANTS[variant](), path)

    return page


@pytest.fixture
def opened(browser: Any, pages: Callable[[str], Path]) -> Iterator[Callable[..., Opened]]:
    contexts = []

    def open_page(variant: str = "example", **context: Any) -> Opened:
        contexts.append(browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **context}))
        found = Opened(page=contexts[-1].new_page())
        found.page.on("console", lambda message: found.console.append(message.text))
        found.page.on("pageerror", lambda error: found.console.append(str(error)))
        found.page.on("request", lambda request: found.requests.append(request.url))
        found.page.on("dialog", lambda dialog: (found.dialogs.append(dialog.message), dialog.dismiss()))
        found.page.goto(pages(variant).as_uri())
        found.page.wait_for_selector("html[data-drawn]")
        found.page.wait_for_selector(".plot .main-svg")
        return found

    yield open_page
    for context in contexts:
        context.close()


def axis_title(page: Any, wanted: str) -> None:
    from playwright.sync_api import expect

    expect(page.locator("#pareto .xtitle")).to_have_text(wanted)


@pytest.mark.parametrize(
    ("variant", "scheme"), [*((name, "light") for name in VARIANTS if name != "hostile"), ("example", "dark")]
)
def test_opens_from_disk_without_a_word_or_a_request(opened, pages, variant: str, scheme: str) -> None:
    found = opened(variant, color_scheme=scheme)
    assert found.console == []
    asked = [url for url in found.requests if not url.startswith(("data:", "blob:"))]
    assert asked == [pages(variant).as_uri()]
    assert found.dialogs == []


def test_every_figure_is_drawn_and_every_part_can_be_found(opened) -> None:
    page = opened().page
    drawn = page.evaluate(
        """() => Object.fromEntries([...document.querySelectorAll("[data-figure]")].map(plot => [
            plot.dataset.figure,
            plot.querySelectorAll(".plot path[d], .plot image[href], .point").length]))"""
    )
    assert set(drawn) == {"pareto.params", "curves", "tuning", "map.0", "map.1", "map.2"}
    assert all(drawn.values()), drawn
    assert page.locator("svg.forest .ci").count() == 2 + 1, "one for each finding, one in the key"
    assert page.locator("h1").count() == 1
    for region in (
        "Findings",
        "Arms",
        "What a lower loss costs",
        "Training",
        "Where the adapters are",
        "Repeat it",
    ):
        assert page.get_by_role("region", name=region).count() == 1, region
    assert page.get_by_role("table", name="The arms of the study").get_by_role("columnheader").count() == 9
    assert page.get_by_role("table", name="The arms of the study").get_by_role("rowheader").count() == 3
    assert page.evaluate(
        "[...document.querySelectorAll('[role=img]')].every(one => one.ariaLabel.length > 20)"
    )
    assert page.evaluate(
        "new Set([...document.querySelectorAll('[id]')].map(one => one.id)).size"
    ) == page.evaluate("document.querySelectorAll('[id]').length")


def test_the_cost_axis_can_be_chosen(opened) -> None:
    page = opened().page
    axis_title(page, "Trainable parameters")
    for name, title in (("Step time", "Seconds per step"), ("Memory", "Peak memory, MiB")):
        page.get_by_label(name, exact=True).check()
        axis_title(page, title)
        assert name.split()[-1].lower() in page.get_attribute("#pareto", "aria-label").lower()
    page.focus("input[name=cost]:checked")
    page.keyboard.press("ArrowLeft")
    axis_title(page, "Seconds per step")
    lines = page.evaluate(
        "() => document.getElementById('pareto').data.filter(t => t.mode === 'lines').map(t => [t.x, t.y])"
    )
    arms = {arm["name"]: (arm["step_seconds"], arm["nll"]) for arm in VARIANTS["example"]()["arms"]}
    joined = [[list(point) for point in zip(*line, strict=True)] for line in lines]
    assert joined == [[list(arms["attention"]), list(arms["feedforward"])]]


def test_the_page_follows_the_theme_while_open(opened) -> None:
    from playwright.sync_api import expect

    page = opened(color_scheme="light").page
    expect(page.locator("#pareto .xtitle")).to_have_css("fill", "rgb(91, 100, 114)")
    page.emulate_media(color_scheme="dark")
    expect(page.locator("#pareto .xtitle")).to_have_css("fill", "rgb(163, 171, 184)")
    expect(page.locator("body")).to_have_css("background-color", "rgb(17, 20, 26)")
    page.emulate_media(media="print", color_scheme="dark")
    expect(page.locator("body")).to_have_css("background-color", "rgb(255, 255, 255)")
    assert not page.is_visible("nav")
    assert not page.is_visible("button >> nth=0")


def test_hostile_text_is_shown_and_does_nothing(opened) -> None:
    found = opened("hostile")
    page = found.page
    for width in (1280, 768, 360):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.set_viewport_size({"width": 1280, "height": 900})
    for name in ("Step time", "Memory", "Parameters"):
        page.get_by_label(name, exact=True).check()
    page.hover("#pareto .point >> nth=0", force=True)
    assert (found.dialogs, found.console) == ([], [])
    inside = "main img, main iframe, main a[href*='example'], main script, main [onload], main [onerror]"
    assert page.locator(inside).count() == 0
    names = page.eval_on_selector_all("tbody th .name", "all => all.map(one => one.textContent)")
    assert names[:2] == list(HOSTILE[:2])
    drawn = page.eval_on_selector_all(
        "#pareto .textpoint text", "all => all.map(one => one.textContent.trim())"
    )
    assert any(text.startswith("<img src=x onerror=") for text in drawn), drawn
    assert any(text.startswith("</script><script>") for text in drawn), drawn
    assert any(text.startswith("<b>bold</b> & %{x} $x") for text in drawn), drawn
    roles = page.eval_on_selector_all(
        "[data-figure='map.0'] .xtick text", "all => all.map(one => one.textContent)"
    )
    assert any(text.startswith("<a href=") for text in roles), roles


def test_the_policy_stops_what_escaping_would_let_through(opened) -> None:
    """The second lock: an injected handler or script does not run, and nothing can be fetched."""
    found = opened()
    found.page.evaluate(
        """() => {
            document.body.insertAdjacentHTML("beforeend", "<img src='data:,x' onerror='window.hit = 1'>");
            const script = document.createElement("script");
            script.textContent = "window.hit = 2";
            document.body.append(script);
            fetch("https://example.invalid/").catch(() => {});
        }"""
    )
    found.page.wait_for_timeout(200)
    assert found.page.evaluate("window.hit") is None
    assert sum("Content Security Policy" in text for text in found.console) >= 3


def test_the_spec_and_the_study_can_be_taken_away(opened) -> None:
    from playwright.sync_api import expect

    page = opened(accept_downloads=True).page
    with page.expect_download() as download:
        page.get_by_role("button", name="Save the study as JSON").click()
    saved = json.loads(Path(download.value.path()).read_text(encoding="utf-8"))
    assert saved == VARIANTS["example"]()
    button = page.get_by_role("button", name="Copy the spec")
    button.click()
    expect(page.locator("[data-copy=spec]")).not_to_have_text("Copy")


def test_a_page_without_javascript_still_tells_the_facts(browser, pages) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(pages("example").as_uri())
    assert page.inner_text(".answer").startswith("feedforward is better than full by 0.022")
    assert "The figures need JavaScript" in page.inner_text("#trade-offs")
    assert page.locator("svg.forest .ci").count() == 3
    context.close()
