"""One Chromium for the tests of pages, and a tab in it that listens for complaints.

A test opens a page, publishes, and reads what a person would read there. The console must stay empty: a network error
that a test makes on purpose is named in that test. A test file imports both fixtures, `browser` and `tab`.
"""

import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field

import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, expect, sync_playwright
from starlette.types import ASGIApp

from servers.background import Server, serve

PATIENCE = 20.0  # seconds until a condition that should hold at once is given up; long, because the machine may be busy
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run"
    " --disable-background-networking --disable-component-update --disable-sync"
)
AUTOMATION = ["--disable-back-forward-cache"]  # playwright's own flag: a person's browser has this cache


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One Chromium for all tests; it starts with an empty profile of its own. Without one: skipped, on CI failed."""
    names = ("chromium", "chromium-browser", "google-chrome")
    executable = next(filter(None, map(shutil.which, names)), None)
    if executable is None:
        reason = f"needs a browser: none of {', '.join(names)} is installed"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    expect.set_options(timeout=1000 * PATIENCE)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=executable, args=FLAGS.split(), ignore_default_args=AUTOMATION
        )
        yield browser
        browser.close()


@dataclass
class Tab:
    """A page of a fresh browser context. `complaints` is what its console and its scripts said, as it comes."""

    context: BrowserContext
    page: Page
    servers: ExitStack
    allowed: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def serve(self, app: ASGIApp, *, port: int = 0) -> Server:
        """Start a server that outlives this tab, unless the test stops it: a page whose server goes complains."""
        return self.servers.enter_context(serve(app, port=port))

    def hears(self, message: ConsoleMessage) -> None:
        """Keep a line of the console; every page of ours has an icon, but for the others a browser asks by itself."""
        if not message.location["url"].endswith("/favicon.ico"):
            self.complaints.append(f"{message.type}: {message.text}")

    def allow(self, *patterns: str) -> None:
        """Regular expressions of the complaints that this test makes on purpose."""
        self.allowed += patterns

    def text(self, name: str) -> str:
        """The text of the element with this id."""
        return self.page.locator(f"#{name}").inner_text()

    def number(self, name: str) -> int:
        """The number in the element with this id."""
        return int(self.text(name))

    def shows(self, name: str, text: str | int | re.Pattern[str]) -> None:
        """Wait until the element with this id has this text."""
        expected = text if isinstance(text, re.Pattern) else str(text)
        expect(self.page.locator(f"#{name}")).to_have_text(expected)

    def seqs(self) -> list[int]:
        """The sequence numbers on the page, oldest first."""
        return [int(text) for text in reversed(self.column("seq"))]

    def column(self, name: str) -> list[str]:
        """The cells of one column, newest first, exactly as they are in the document."""
        return [text or "" for text in self.page.locator(f"#list .{name}").all_text_contents()]

    def open(self, server: Server, path: str = "/") -> None:
        """Open a live page and wait until its client knows where "now" is."""
        self.page.goto(server.url + path)
        self.is_connected()

    def is_connected(self) -> None:
        """Wait until nothing published from now on can be before this client's "now"."""
        self.shows("state", re.compile(r"sleeping .*|waiting for news|open|readyState 1 \(open\)"))


@pytest.fixture
def tab(browser: Browser) -> Iterator[Tab]:
    with ExitStack() as servers, browser.new_context() as context:
        context.set_default_timeout(1000 * PATIENCE)
        tab = Tab(context, context.new_page(), servers)
        context.on("console", tab.hears)
        context.on("weberror", lambda error: tab.complaints.append(f"uncaught: {error.error}"))
        yield tab
    assert [text for text in tab.complaints if not any(re.search(pattern, text) for pattern in tab.allowed)] == []


def until(condition: Callable[[], object], patience: float = PATIENCE) -> None:
    """Return once the condition holds, which another thread or process brings about; fail after `patience` seconds."""
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline, "the condition does not come true"
        time.sleep(0.005)
