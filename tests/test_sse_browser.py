"""What notebook 04 says of a browser's EventSource on its way to the server, in a real Chromium.

What it does with the server's answers is in tests/test_browser.py.
"""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page

from lab.proxies import nginx
from lab.proxies.wire import Wire
from servers.background import serve
from servers.feed import Feed
from servers.sse import create_app
from tests.support_browser import browser, until

__all__ = ["browser"]  # a fixture

EPOCH = "e0e0"
OPEN = """count => {
    window.sources = Array.from({length: count}, () => {
        const source = new EventSource('/events');
        source.seen = [];
        source.addEventListener('update', event => source.seen.push(event.lastEventId));
        return source;
    });
}"""
STATES = "window.sources.map(source => source.readyState)"
SEEN = "window.sources.map(source => source.seen)"


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page that takes any certificate."""
    with browser.new_context(ignore_https_errors=True) as context:
        yield context.new_page()


def received(page: Page, count: int) -> None:
    """Wait until the page's one stream has brought the first `count` updates, each once, in order."""
    until(lambda: page.evaluate(SEEN) == [[f"{EPOCH}-{number}" for number in range(1, count + 1)]])


@pytest.mark.skipif(not nginx.installed(), reason="needs nginx: apt-get install nginx")
def test_over_http_2_all_streams_of_a_page_receive(page: Page) -> None:
    """Eight EventSources share one connection to an nginx with HTTP/2; all open, and a fetch is answered."""
    app = create_app(Feed(epoch=EPOCH))
    with (
        serve(app) as server,
        nginx.Nginx(
            f"ssl_certificate cert.pem; ssl_certificate_key key.pem; location / {{ proxy_pass {server.url}; }}",
            options="ssl http2",
            files=nginx.certificate(),
        ) as proxy,
    ):
        page.goto(f"{proxy.url}/healthz")
        assert page.evaluate("performance.getEntriesByType('navigation')[0].nextHopProtocol") == "h2"
        page.evaluate(OPEN, 8)
        until(lambda: page.evaluate(STATES) == [1] * 8)
        assert app.traffic.held == 8
        app.feed.publish("notes/list.txt")
        until(lambda: page.evaluate(SEEN) == [[f"{EPOCH}-1"]] * 8)
        assert page.evaluate("fetch('/healthz').then(answer => answer.status)") == 200
        page.close()


def test_a_reset_connection_is_opened_again_from_the_last_id(page: Page) -> None:
    """When the network fails, EventSource does reconnect by itself, and nothing is lost or comes twice."""
    app = create_app(Feed(epoch=EPOCH), retry=50)
    with serve(app) as server, Wire(server.url) as wire:
        page.goto(f"{wire.url}/healthz")
        page.evaluate(OPEN, 1)
        until(lambda: page.evaluate(STATES) == [1])
        for number in range(1, 4):
            app.feed.publish("notes/list.txt")
            received(page, number)
            wire.cut()
        app.feed.publish("notes/list.txt")
        received(page, 4)
        until(lambda: app.traffic.requests == 4)
        page.close()


def test_a_dead_link_is_never_noticed(page: Page) -> None:
    """EventSource has no timeout: while nothing arrives, not even heartbeats, it takes its stream for open."""
    app = create_app(Feed(epoch=EPOCH), heartbeat=0.05)
    with serve(app) as server, Wire(server.url) as wire:
        page.goto(f"{wire.url}/healthz")
        page.evaluate(OPEN, 1)
        until(lambda: page.evaluate(STATES) == [1])
        wire.blackhole("down")
        app.feed.publish("notes/list.txt")
        page.wait_for_timeout(1000)  # twenty heartbeats; a client that minds them gives up after two and a half
        assert page.evaluate(STATES) == [1]
        assert page.evaluate(SEEN) == [[]]
        assert app.traffic.requests == 1
        page.close()
