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
    address: str
    console: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    dialogs: list[str] = field(default_factory=list)


# Generous: a page parses 5 MB of script, and the machine may be busy with other tests. Only a hang reaches it.
PATIENCE = 300_000


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=PATIENCE)
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET, timeout=PATIENCE)
        yield running
        running.close()


@pytest.fixture(scope="module")
def opened(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Opened]]:
    """Opens the page of a variant of the example, and listens."""
    folder = tmp_path_factory.mktemp("pages")
    contexts = []

    def open_page(variant: str = "example", **context: Any) -> Opened:
        path = build(VARIANTS[variant](), folder / f"{variant}.html")
        contexts.append(browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **context}))
        contexts[-1].set_default_timeout(PATIENCE)
        result = Opened(page=contexts[-1].new_page(), address=path.as_uri())
        result.page.on("console", lambda message: result.console.append(message.text))
        result.page.on("pageerror", lambda error: result.console.append(str(error)))
        result.page.on("request", lambda request: result.requests.append(request.url))
        result.page.on("dialog", lambda dialog: (result.dialogs.append(dialog.message), dialog.dismiss()))
        result.page.goto(path.as_uri())
        if context.get("java_script_enabled", True):
            result.page.wait_for_selector("html[data-drawn]")
            result.page.wait_for_selector(".plot .main-svg")
        return result

    yield open_page
    for context in contexts:
        context.close()


@pytest.fixture(scope="module")
def example(opened: Callable[..., Opened]) -> Opened:
    """The example's page, opened once for the tests that leave it as usable as they found it."""
    return opened()


def axis_title(page: Any, wanted: str) -> None:
    from playwright.sync_api import expect

    expect(page.locator("#pareto .xtitle")).to_have_text(wanted)


def silent(found: Opened) -> bool:
    asked = [url for url in found.requests if not url.startswith(("data:", "blob:"))]
    return (found.console, asked, found.dialogs) == ([], [found.address], [])


def test_opens_from_disk_without_a_word_or_a_request(example: Opened) -> None:
    assert silent(example), example


@pytest.mark.parametrize(("variant", "scheme"), [("diverged", "dark"), ("incomplete", "light")])
def test_every_kind_of_study_opens(opened, variant: str, scheme: str) -> None:
    page = opened(variant, color_scheme=scheme)
    assert silent(page), page


def test_every_figure_is_drawn_and_every_part_can_be_found(example: Opened) -> None:
    page = example.page
    drawn = page.evaluate(
        """() => Object.fromEntries([...document.querySelectorAll("[data-figure]")].map(plot => [
            plot.dataset.figure,
            plot.querySelectorAll(".plot path[d], .plot image[href], .point").length]))"""
    )
    assert set(drawn) == {"pareto.time", "curves", "tuning", "map.0", "map.1", "map.2"}
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


def test_the_cost_axis_can_be_chosen(example: Opened) -> None:
    page = example.page
    # The parameters were matched: the first view is of a cost that was not.
    axis_title(page, "Seconds per step")
    page.get_by_label("Parameters", exact=True).check()
    axis_title(page, "Trainable parameters")
    for name, title in (("Step time", "Seconds per step"), ("Memory", "Peak memory, MiB")):
        page.get_by_label(name, exact=True).check()
        axis_title(page, title)
        assert name.split()[-1].lower() in page.get_attribute("#pareto", "aria-label").lower()
    page.focus("input[name=cost]:checked")
    page.keyboard.press("ArrowLeft")
    axis_title(page, "Seconds per step")  # arrow keys choose as in any group of radio buttons
    lines = page.evaluate(
        "() => document.getElementById('pareto').data.filter(t => t.mode === 'lines').map(t => [t.x, t.y])"
    )
    arms = {arm["name"]: (arm["step_seconds"], arm["nll"]) for arm in VARIANTS["example"]()["arms"]}
    joined = [[list(point) for point in zip(*line, strict=True)] for line in lines]
    assert joined == [[list(arms["attention"]), list(arms["feedforward"])]]
    page.get_by_label("Parameters", exact=True).check()
    axis_title(page, "Trainable parameters")


def test_the_page_follows_the_theme_while_open(example: Opened) -> None:
    from playwright.sync_api import expect

    page = example.page
    expect(page.locator("#pareto .xtitle")).to_have_css("fill", "rgb(91, 100, 114)")
    page.emulate_media(color_scheme="dark")
    expect(page.locator("#pareto .xtitle")).to_have_css("fill", "rgb(163, 171, 184)")
    expect(page.locator("body")).to_have_css("background-color", "rgb(17, 20, 26)")
    page.emulate_media(media="print", color_scheme="dark")
    expect(page.locator("body")).to_have_css("background-color", "rgb(255, 255, 255)")
    assert not page.is_visible("nav")
    assert not page.is_visible("button >> nth=0")
    page.emulate_media(media="screen", color_scheme="light")


def test_hostile_text_is_shown_and_does_nothing(opened) -> None:
    result = opened("hostile")
    page = result.page
    for width in (1280, 768, 360):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.set_viewport_size({"width": 1280, "height": 900})
    for name in ("Step time", "Memory", "Parameters"):
        page.get_by_label(name, exact=True).check()
    page.hover("#pareto .point >> nth=0", force=True)
    assert (result.dialogs, result.console) == ([], [])
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
    page = opened()
    page.page.evaluate(
        """() => {
            document.body.insertAdjacentHTML("beforeend", "<img src='data:,x' onerror='window.hit = 1'>");
            const script = document.createElement("script");
            script.textContent = "window.hit = 2";
            document.body.append(script);
            fetch("https://example.invalid/").catch(() => {});
        }"""
    )
    page.page.wait_for_timeout(200)
    assert page.page.evaluate("window.hit") is None
    assert sum("Content Security Policy" in text for text in page.console) >= 3


def test_the_spec_and_the_study_can_be_taken_away(example: Opened) -> None:
    from playwright.sync_api import expect

    page = example.page
    with page.expect_download() as download:
        page.get_by_role("button", name="Save the study as JSON").click()
    saved = json.loads(Path(download.value.path()).read_text(encoding="utf-8"))
    assert saved == VARIANTS["example"]()
    button = page.get_by_role("button", name="Copy the spec")
    button.click()
    expect(page.locator("[data-copy=spec]")).not_to_have_text("Copy")


def test_a_page_without_javascript_still_tells_the_facts(opened) -> None:
    page = opened(java_script_enabled=False).page
    assert page.inner_text(".answer").startswith("feedforward is better than full by 0.022")
    assert "The figures need JavaScript" in page.inner_text("#trade-offs")
    assert page.locator("svg.forest .ci").count() == 3


def until(page: Any, condition: str) -> None:
    """Wait for a condition; `wait_for_function` would poll by ``eval``, which the page's policy forbids."""
    for _ in range(PATIENCE // 100):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(100)
    raise AssertionError(condition)


INSIDE = """() => [...document.querySelectorAll(".plot")].flatMap(plot => {
    const box = plot.closest(".card").getBoundingClientRect();
    const marks = plot.querySelectorAll(".main-svg, .point, .js-line, .hm image, .xtick text, .ytick text");
    return [...marks].filter(one => {
        const mark = one.getBoundingClientRect();
        return mark.right > box.right + 1 || mark.left < box.left - 1 || mark.bottom > box.bottom + 1;
    }).map(one => plot.dataset.figure + ": " + one.getAttribute("class"));
})"""


@pytest.mark.parametrize("variant", ["example", "measured"])
def test_nothing_is_cut_off_on_paper(opened, variant: str) -> None:
    """A window of 1280 pixels, then paper of A4 with the page's own margins: 184 mm are 695 pixels."""
    page = opened(variant).page
    assert page.evaluate(INSIDE) == []
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 695, "height": 900})
    until(page, "[...document.querySelectorAll('.main-svg')].every(one => one.clientWidth <= 640)")
    assert page.evaluate(INSIDE) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= 695
    tables = "[...document.querySelectorAll('main > section .card > table')]"
    assert page.evaluate(f"{tables}.every(one => one.scrollWidth <= one.parentElement.clientWidth)"), (
        "a table is wider than the paper"
    )
    page.emulate_media(media="screen")
    page.set_viewport_size({"width": 1280, "height": 900})
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    until(page, "document.querySelector('#pareto .main-svg').clientWidth > 800")


def test_tables_are_cards_on_a_phone_and_what_scrolls_can_be_reached(opened) -> None:
    page = opened("measured", viewport={"width": 390, "height": 844}).page
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    narrow = """[...document.querySelectorAll('.orders td, .arms td, .data td')].filter(
        one => one.clientWidth < 250 || one.scrollWidth > one.clientWidth).map(one => one.textContent)"""
    assert page.evaluate(narrow) == []
    unreachable = """[...document.querySelectorAll('*')].filter(one =>
        /auto|scroll/.test(getComputedStyle(one).overflowX + getComputedStyle(one).overflowY)
        && (one.scrollWidth > one.clientWidth || one.scrollHeight > one.clientHeight)
        && one !== document.documentElement && one.tabIndex < 0).map(one => one.className)"""
    for details in page.query_selector_all("summary"):
        details.click()
    assert page.evaluate(unreachable) == []
    page.set_viewport_size({"width": 800, "height": 844})
    assert page.evaluate(unreachable) == []


WINDOWS = [(1280, "light"), (360, "dark")]


@pytest.mark.parametrize(("width", "scheme"), WINDOWS, ids=["window", "phone"])
def test_axe_finds_nothing(opened, width: int, scheme: str) -> None:
    """axe-core's rules, with everything folded out; what it cannot decide about contrast is measured below."""
    from axe_playwright_python.sync_playwright import Axe

    page = opened("measured", viewport={"width": width, "height": 900}, color_scheme=scheme).page
    for details in page.query_selector_all("summary"):
        details.click()
    outcome = Axe().run(page).response
    assert [(rule["id"], rule["impact"], rule["nodes"][0]["html"]) for rule in outcome["violations"]] == []
    assert {rule["id"] for rule in outcome["incomplete"]} <= {"color-contrast"}
    assert len(outcome["passes"]) > 30
    assert page.evaluate(FAINT) == []


FAINT = r"""() => {
    const rgb = (text) => {
        const [r, g, b, a] = text.match(/[\d.]+/g).map(Number);
        return text.startsWith("color(srgb") ? [r * 255, g * 255, b * 255, a ?? 1] : [r, g, b, a ?? 1];
    };
    const over = ([r, g, b, a], [R, G, B]) => [r * a + R * (1 - a), g * a + G * (1 - a), b * a + B * (1 - a), 1];
    const linear = (v) => (v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4);
    const light = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
    const behind = (one) => {
        if (!one) return [255, 255, 255, 1];
        const own = rgb(getComputedStyle(one).backgroundColor);
        return own[3] === 1 ? own : over(own, behind(one.parentElement));
    };
    const faint = [];
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
        const words = walker.currentNode.textContent.trim();
        const one = walker.currentNode.parentElement, style = getComputedStyle(one);
        if (!words || /^(script|style|noscript)$/i.test(one.tagName)) continue;
        if (!one.checkVisibility({ visibilityProperty: true, opacityProperty: true })) continue;
        const drawn = one instanceof SVGElement;
        // Numbers of a heat map stand on its cells, which no style names.
        if (drawn && (style.fill === "none" || one.closest(".heatmap-label"))) continue;
        const back = behind(one), text = over(rgb(drawn ? style.fill : style.color), back);
        const [a, b] = [light(text), light(back)].sort((x, y) => y - x);
        const size = parseFloat(style.fontSize), bold = Number(style.fontWeight) >= 700;
        const least = size >= 24 || (size >= 18.66 && bold) ? 3 : 4.5;
        if ((a + 0.05) / (b + 0.05) < least) faint.push(`${one.tagName} ${words.slice(0, 40)}`);
    }
    return faint;
}"""
"""Texts with less contrast than WCAG's AA, however backgrounds are layered."""


@pytest.mark.parametrize("variant", ["example", "measured"])
def test_nothing_is_cut_off_on_narrow_paper(opened, variant: str) -> None:
    """Printed from a phone: 360 pixels."""
    page = opened(variant, viewport={"width": 360, "height": 780}).page
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.emulate_media(media="print")
    until(page, "[...document.querySelectorAll('.main-svg')].every(one => one.getAttribute('viewBox'))")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert page.evaluate(INSIDE) == []
    outside = """[...document.querySelectorAll('main *')].filter(one => !one.closest('svg')
        && one.getBoundingClientRect().right > 361).map(one => one.tagName + '.' + one.className)"""
    assert page.evaluate(outside) == []
