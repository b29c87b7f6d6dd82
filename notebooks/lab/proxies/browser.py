"""A real browser in front: how many event streams of one page are open at the same time.

    open_streams(url, 8)   a Chromium, without a window ─▶ a page of `url` ─▶ so many EventSources ─▶ how many open

It takes playwright and a Chromium (`apt-get install chromium`, and the extra `test`); without them it raises
BrowserError. It blocks: on an event loop call it by `asyncio.to_thread`.
"""

import shutil
import time

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run"
    " --disable-background-networking --disable-component-update --disable-sync"
)
SETTLED = 1.5  # s without one more that opens, until it is taken for the end
LIMIT = 40.0  # s in all
OPEN = """([count, path]) => {
    window.sources = Array.from({length: count}, () => new EventSource(path));
}"""
STATES = "window.sources.filter(source => source.readyState === 1).length"
PROTOCOL = "performance.getEntriesByType('navigation')[0].nextHopProtocol"
# Measured by tests/test_scaling.py (Chromium 156, nginx 1.22.1): what a notebook shows where there is no browser.
KNOWN = {"http/1.1": 6, "h2": 128}


class BrowserError(RuntimeError):
    """There is no browser, or none that starts; the text says what is missing."""


def installed() -> str | None:
    """The path of a Chromium, or None; None as well where playwright is not there to drive it."""
    try:
        import playwright.sync_api  # noqa: F401  # only looked for
    except ImportError:
        return None
    return next(filter(None, map(shutil.which, NAMES)), None)


def open_streams(url: str, count: int, path: str = "/events") -> tuple[str, int]:
    """The protocol ("http/1.1", "h2") that a page of `url` came by, and how many of its `count` EventSources open.

    Any certificate is trusted. Raises BrowserError.
    """
    executable = installed()
    if executable is None:
        raise BrowserError("there is no Chromium, or no playwright to drive it")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=FLAGS.split())
        try:
            page = browser.new_context(ignore_https_errors=True).new_page()
            page.goto(f"{url}/healthz")
            protocol = str(page.evaluate(PROTOCOL))
            page.evaluate(OPEN, [count, path])
            begin = changed = time.monotonic()
            found = 0
            while time.monotonic() < min(changed + SETTLED, begin + LIMIT) and found < count:
                page.wait_for_timeout(100)
                if (now := int(page.evaluate(STATES))) != found:
                    found, changed = now, time.monotonic()
            return protocol, found
        finally:
            browser.close()
