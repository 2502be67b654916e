"""The page in a browser, on a wide screen and on a phone."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from made_up import report, summary, users
from wares.report.html import as_html
from wares.report.summary import Model

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on this machine")

ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-quic",
]
BOXES = """selector => [...document.querySelectorAll(selector)].map(found => {
    const box = found.getBoundingClientRect();
    return [box.left, box.top, box.right, box.bottom, found.textContent.trim()];
}).filter(([left, top, right, bottom]) => right > left && bottom > top)"""
"""Where the elements are that can be seen, with their texts."""
CONTRASTS = """selector => [...document.querySelectorAll(selector)].map(found => {
    const parts = colour => colour.match(/[\\d.]+/g).map(Number);
    const shine = ([red, green, blue]) => [red, green, blue].map(part => part / 255)
        .map(part => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)
        .reduce((sum, part, place) => sum + part * [0.2126, 0.7152, 0.0722][place], 0);
    let behind = found;
    while ((parts(getComputedStyle(behind).backgroundColor)[3] ?? 1) === 0) behind = behind.parentElement;
    const [text, ground] = [getComputedStyle(found).color, getComputedStyle(behind).backgroundColor].map(parts).map(shine);
    return (Math.max(text, ground) + 0.05) / (Math.min(text, ground) + 0.05);
})"""
"""How much the texts stand out from what is behind them, as WCAG counts it."""
WIDTHS = (1280, 375)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with all that there can be: users, warnings, two currencies."""
    file = tmp_path_factory.mktemp("page") / "report.html"
    made = summary(shows_users=True, users=users(), models=(Model("shop", 3, report(ease_on_new=0.07)),))
    file.write_text(as_html(made), encoding="utf-8")
    return file


@pytest.fixture(scope="module", params=[(width, scheme) for width in WIDTHS for scheme in ("light", "dark")], ids=str)
def shown(request: pytest.FixtureRequest, browser: Any, page_file: Path) -> Iterator[Any]:
    """The page, which must ask for nothing and complain of nothing."""
    width, scheme = request.param
    page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    asked: list[str] = []
    said: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(page_file.as_uri())
    yield page
    page.wait_for_load_state("networkidle")
    assert [url for url in asked if not url.startswith("data:")] == [page_file.as_uri()]
    assert said == []
    page.close()


def test_nothing_is_wider_than_the_screen(shown: Any) -> None:
    assert shown.evaluate("document.documentElement.scrollWidth <= innerWidth")
    width = shown.evaluate("innerWidth")
    for left, _, right, _, text in shown.evaluate(BOXES, ".card, .tile, .callout, .axis span, .dot, .bar, .layers td, h1, nav a"):
        assert left >= 0, text
        assert right <= width, text


def test_every_chart_can_be_seen(shown: Any) -> None:
    for selector, least in ((".line svg", 2), (".dots", 3), (".stack", 10), (".bar .track", 15)):
        boxes = shown.evaluate(BOXES, selector)
        assert len(boxes) >= least, selector
        assert all(right - left > 100 for left, _, right, _, _ in boxes), selector
    for left, top, right, bottom, _ in shown.evaluate(BOXES, ".line svg"):
        assert right - left > 200
        assert bottom - top > 150


@pytest.mark.parametrize("texts", [".line .up span, .axis span", ".dot .name, .dot .value", ".layers .name, .layers td"])
def test_texts_of_charts_do_not_overlap(shown: Any, texts: str) -> None:
    boxes = shown.evaluate(BOXES, texts)
    assert len(boxes) > 10
    for place, (left, top, right, bottom, text) in enumerate(boxes):
        for other_left, other_top, other_right, other_bottom, other in boxes[place + 1 :]:
            apart = right <= other_left or other_right <= left or bottom <= other_top or other_bottom <= top
            assert apart, (text, other)


def test_labels_are_large_enough_to_read(shown: Any) -> None:
    sizes = shown.evaluate("[...document.querySelectorAll('body *')].map(found => parseFloat(getComputedStyle(found).fontSize))")
    assert min(sizes) >= 12


def test_every_text_stands_out(shown: Any) -> None:
    texts = "h1, h2, h3, p, a, dt, dd, th, td, small, code, figcaption, summary, .name, .value, .note, .pill, .callout *, span"
    assert min(shown.evaluate(CONTRASTS, texts)) >= 4.5


def test_it_is_dark_where_the_reader_wants_it(shown: Any, request: pytest.FixtureRequest) -> None:
    ground = shown.evaluate("getComputedStyle(document.body).backgroundColor")
    red = int(ground.removeprefix("rgb(").split(",")[0])
    assert (red < 64) == (request.node.callspec.params["shown"][1] == "dark")


def test_the_shops_markup_is_shown_as_text(shown: Any) -> None:
    assert shown.evaluate("document.scripts.length") == 0
    assert shown.get_by_text("<script>alert('milk')</script>").count() > 0
