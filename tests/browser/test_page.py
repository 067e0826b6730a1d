"""The page as a person sees it: live, out of date, on a phone, in the dark, by keyboard."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any, Final

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import Open, Seen, Site
from tests.fakes import board as fake

pytestmark = pytest.mark.browser

PHONE: Final = {"width": 360, "height": 740}
PATHS: Final = ("", "collections/content", "collections/content/records?key=1", "login")
KINDS: Final[dict[str, Any]] = {
    "FRESH": fake.live(),
    "STALE": fake.stale(),
    "INCOMPLETE": fake.incomplete(),
    "UNKNOWN": fake.unknown(),
}
#: What is painted of every badge: its words, its border and the contrast of its words, by WCAG's formula.
BADGES: Final = """() => {
  const parts = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  return Array.from(document.querySelectorAll(".badge")).map((badge) => {
    const style = getComputedStyle(badge);
    const [one, other] = [light(parts(style.color)), light(parts(style.backgroundColor))].sort((a, b) => b - a);
    return { state: badge.dataset.state, words: badge.innerText.trim(), border: style.borderTopStyle,
             sign: getComputedStyle(badge, "::before").content, back: parts(style.backgroundColor),
             contrast: (one + 0.05) / (other + 0.05) };
  });
}"""
#: Everything painted whose colour is more green than anything else.
GREEN: Final = """() => Array.from(document.querySelectorAll("body, body *")).filter((each) => {
  const style = getComputedStyle(each);
  return each.checkVisibility() && ["color", "backgroundColor", "borderTopColor", "fill", "stroke"].some((name) => {
    const [r, g, b, a = 1] = (style[name].match(/[\\d.]+/g) || [0, 0, 0]).map(Number);
    return a > 0 && g > r * 1.4 && g > b * 1.15;
  });
}).map((each) => each.outerHTML.slice(0, 80))"""
UNLABELLED: Final = """() => Array.from(document.querySelectorAll("input:not([type=hidden]), select, button, a"))
  .filter((each) => !(each.labels && each.labels.length) && !each.innerText.trim() && !each.getAttribute("aria-label"))
  .map((each) => each.outerHTML)"""


def badges(page: Page) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = page.evaluate(BADGES)
    return found


def badge_of(page: Page, name: str) -> Any:
    return page.locator(f'.collections [data-badge="{name}"]')


def live_view(page: Page) -> None:
    """Until the live view has begun."""
    expect(page.locator("html.waiting")).to_have_count(0)


def test_verdicts_are_seen_and_nothing_complains(visit: Open, seen: Seen, site: Site) -> None:
    for path in PATHS:
        page = visit(path)
        if path in PATHS[:2]:
            live_view(page)
            expect(page.locator("h1 .badge")).to_have_text("FRESH")
    assert seen.complaints == []
    assert seen.requests
    assert [url for url in seen.requests if not url.startswith(site.url())] == []


def test_a_change_arrives_by_itself_and_is_read_aloud(visit: Open, site: Site, seen: Seen) -> None:
    page = visit()
    live_view(page)
    expect(page.locator("[data-calm]")).to_be_visible()
    site.board.said = fake.stale()
    expect(badge_of(page, "content")).to_have_text("STALE")
    expect(page.locator("[data-broken] li").first).to_contain_text("Connect task 0 FAILED")
    expect(page.locator("[data-calm]")).to_be_hidden()
    expect(page.locator("[aria-live=polite]")).to_have_text("content is STALE. customers is STALE.")
    expect(page).to_have_title(re.compile("^STALE · shop"))
    site.board.said = fake.live()
    expect(badge_of(page, "content")).to_have_text("FRESH")
    expect(page.locator("[data-calm]")).to_be_visible()
    assert seen.complaints == []


def test_texts_are_text(visit: Open, site: Site, seen: Seen) -> None:
    page = visit()
    live_view(page)
    site.board.said = fake.live(
        gap="<img src=x onerror=alert(1)>", events=[{"at": fake.AT.isoformat(), "text": "<b>bold</b>"}]
    )
    expect(page.locator("[data-broken] li").first).to_contain_text("<img src=x")
    expect(page.locator('[data-rows="events"]')).to_contain_text("<b>bold</b>")
    assert page.locator("main img, main b").count() == 0
    assert seen.complaints == []


def test_a_server_that_is_gone_leaves_nothing_green(visit: Open, site: Site) -> None:
    pages = [visit(), visit("collections/content")]
    for page in pages:
        live_view(page)
        assert page.evaluate(GREEN), "FRESH is green while it is true, or this test sees nothing"
    site.serving.stop()
    for page in pages:
        expect(page.locator("#outdated")).to_be_visible(timeout=20_000)
        expect(page.locator("#outdated")).to_contain_text("This page is out of date.")
        assert {each["words"].replace("×", "").strip() for each in badges(page)} == {"OUT OF DATE"}
        assert {each["border"] for each in badges(page)} == {"dotted"}
        assert page.evaluate(GREEN) == []
        expect(page.get_by_text("FRESH", exact=True)).to_have_count(0)
        expect(page).to_have_title(re.compile("^OUT OF DATE"))
    expect(pages[0].locator("[data-calm]")).to_be_hidden()
    expect(pages[0].locator("[aria-live=polite]")).to_have_text("This page is out of date.")


def test_an_evaluation_that_grows_old_is_seen_by_the_browser_too(visit: Open, site: Site) -> None:
    """The server answers, and says the same evaluation as ever."""
    page = visit()
    live_view(page)
    site.board.said = fake.live(age_seconds=14.5)
    expect(page.locator("#outdated")).to_be_visible(timeout=20_000)
    expect(page.locator("#outdated")).to_contain_text(re.compile("The last evaluation is 1[5-9] s old."))
    assert {each["state"] for each in badges(page)} == {"OUT OF DATE"}
    site.board.said = fake.live()
    expect(page.locator("#outdated")).to_be_hidden()
    expect(badge_of(page, "content")).to_have_text("FRESH")


def test_before_the_live_view_begins_nothing_is_green(visit: Open, site: Site) -> None:
    """As with a script that never came."""
    page = visit("healthz")
    page.route("**/page.js*", lambda route: route.abort())
    page.goto(site.url())
    expect(page.locator("h1 .badge")).to_have_text("FRESH")
    assert page.evaluate(GREEN) == []


def test_without_scripts_the_page_loads_itself_anew(visit: Open, site: Site) -> None:
    page = visit(java_script_enabled=False)
    expect(page.locator("h1 .badge")).to_have_text("FRESH")
    site.board.said = fake.stale()
    expect(page.locator("h1 .badge")).to_have_text("STALE", timeout=15_000)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_verdicts_differ_by_word_sign_and_border_and_can_be_read(
    visit: Open, site: Site, scheme: str
) -> None:
    signs = set()
    page = visit(color_scheme=scheme)
    live_view(page)
    for state, said in KINDS.items():
        site.board.said = said
        expect(badge_of(page, "content")).to_have_text(state)
        found = next(each for each in badges(page) if each["state"] == state)
        signs.add(found["sign"])
        assert all(each["contrast"] >= 4.5 for each in badges(page)), badges(page)
        assert (found["border"] == "dashed") == (state == "UNKNOWN")
    assert len(signs) == len(KINDS)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_never_scrolls_sideways(visit: Open, site: Site, scheme: str) -> None:
    site.board.said = fake.stale(
        gap="a_very_long_word_without_a_place_to_break_it_" * 4,
        workers=[{"slot": "h" * 60, "host": "h" * 60, "pid": 1, "seen_seconds": 1.0, "problems": ["p" * 90]}],
    )
    for path in PATHS:
        page = visit(path, viewport=PHONE, color_scheme=scheme)
        wide = page.evaluate("() => document.documentElement.scrollWidth")
        assert wide <= PHONE["width"], path
        dark = page.evaluate("() => getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", dark)[:3])) < 150) == (scheme == "dark")


def test_the_keyboard_reaches_everything(visit: Open, site: Site) -> None:
    for path in PATHS[:3]:
        page = visit(path)
        wanted = page.evaluate(
            "() => Array.from(document.querySelectorAll('a, button, input, summary, .scroll'))"
            ".filter((each) => each.checkVisibility()).length"
        )
        page.keyboard.press("Tab")
        assert page.evaluate("() => document.activeElement.className") == "skip"
        assert page.evaluate("() => getComputedStyle(document.activeElement).outlineStyle") == "solid"
        reached = 1
        while reached <= wanted:
            page.keyboard.press("Tab")
            if page.evaluate("() => document.activeElement === document.body"):
                break
            assert page.evaluate("() => getComputedStyle(document.activeElement).outlineStyle") == "solid"
            reached += 1
        assert reached == wanted
    page.locator(".skip").focus()
    page.keyboard.press("Enter")
    assert page.evaluate("() => document.activeElement.id") == "main"


def test_what_a_screen_reader_needs_is_there(visit: Open, site: Site) -> None:
    for path in PATHS:
        page = visit(path)
        for landmark in ("header", "main", "footer", "nav[aria-label]"):
            assert page.locator(landmark).count() >= 1
        assert page.locator("h1").count() == 1
        levels = page.evaluate(
            "() => Array.from(document.querySelectorAll('h1, h2, h3')).map((each) => Number(each.tagName[1]))"
        )
        assert all(after - before <= 1 for before, after in pairwise(levels))
        assert page.evaluate(UNLABELLED) == []
        tables = page.locator("table")
        for index in range(tables.count()):
            assert tables.nth(index).locator("caption").count() == 1
            assert tables.nth(index).locator("th[scope=col]").count() >= 2
        assert page.locator("svg[role=img]").count() == page.locator("svg[role=img] > title").count()
        assert page.locator("html[lang=en]").count() == 1
        assert page.locator("[aria-live]").count() == 1
        ids = page.evaluate("() => Array.from(document.querySelectorAll('[id]')).map((each) => each.id)")
        assert len(ids) == len(set(ids))


def test_a_collection_that_comes_is_shown(visit: Open, site: Site) -> None:
    page = visit()
    live_view(page)
    both = fake.live()
    site.board.said = {
        **both,
        "collections": {**both["collections"], "guides": fake.collection("INCOMPLETE")},
    }
    expect(badge_of(page, "guides")).to_have_text("INCOMPLETE")


def test_a_record_is_found_by_its_key(visit: Open, site: Site) -> None:
    page = visit("collections/content")
    page.get_by_label("Key").fill("order-4711")
    page.keyboard.press("Enter")
    expect(page.locator("h1")).to_contain_text("order-4711")
    expect(page.locator("pre").first).to_have_text("a lantern for <b>winter</b> walks")
    page.locator("summary", has_text="Row as stored").press("Enter")
    expect(page.locator("details pre")).to_be_visible()
