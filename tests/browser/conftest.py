"""The system's chromium, driven by playwright, before the real app with a fake board. No stack."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

from streams.freshness.web import make_app, serve, stream
from streams.freshness.web.serving import Serving
from tests.fakes.board import FakeBoard, FakeReads


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """One for the module: in all tests that come after, playwright's loop would run on.

    Where there is none the rung is skipped and says so; in CI that is a failure.
    """
    path = shutil.which("chromium")
    if path is None:
        reason = "the browser rung did not run: no chromium on this machine (Debian's package `chromium`)"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@dataclass
class Site:
    """The app as it listens, and what a test sets."""

    board: FakeBoard
    reads: FakeReads
    serving: Serving

    def url(self, path: str = "") -> str:
        return self.serving.url + path


@dataclass
class Seen:
    """What a page complained of, and where its requests went."""

    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """Live views look more often than for people, so that tests wait less."""
    monkeypatch.setattr(stream, "EVERY_SECONDS", 0.1)
    monkeypatch.setattr(stream, "BEAT_LOOKS", 10)
    board, reads = FakeBoard(), FakeReads()
    serving = serve(make_app(board, reads, token="", host="127.0.0.1"), "127.0.0.1", 0)
    yield Site(board, reads, serving)
    serving.stop()


Open = Callable[..., Page]


@pytest.fixture
def seen() -> Seen:
    return Seen()


@pytest.fixture
def visit(chromium: Browser, site: Site, seen: Seen) -> Iterator[Open]:
    """A page in a browser of its own: `path`, and what `new_context` takes."""
    contexts: list[BrowserContext] = []

    def open_page(path: str = "", **options: Any) -> Page:
        context = chromium.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.on("console", lambda message: _note(message, seen))
        page.on("pageerror", lambda error: seen.complaints.append(str(error)))
        page.on("request", lambda request: seen.requests.append(request.url))
        page.goto(site.url(path))
        return page

    yield open_page
    for context in contexts:
        context.close()


def _note(message: Any, seen: Seen) -> None:
    """Violations of the content security policy are errors of the console too."""
    if message.type in {"error", "warning"}:
        seen.complaints.append(message.text)
