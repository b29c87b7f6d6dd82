"""The live pages in a real Chromium, and the facts about a browser's EventSource that the course states.

The clients under test are the JavaScript of servers/pages.
"""

import re
import time
from collections.abc import Callable

import pytest
from fastapi import WebSocket
from playwright.sync_api import expect
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from lab.figures import STYLES
from servers import long_polling, short_polling, sse, websocket
from servers.feed import Feed
from servers.service import PAGE_POLICY, PAGES, Service
from tests.support_browser import PATIENCE, Tab, browser, tab, until

__all__ = ["browser", "tab"]  # fixtures

EPOCH = "e0e0"
GONE = r"the server responded with a status of 410 \(Gone\)"
UNAVAILABLE = r"the server responded with a status of 503 \(Service Unavailable\)"
SERVER_AWAY = r"net::ERR_CONNECTION_(REFUSED|RESET)"  # it does not listen, or no more: nobody took the connection


def short(feed: Feed) -> Service:
    return short_polling.create_app(feed, poll_interval=0.05)


def long(feed: Feed) -> Service:
    return long_polling.create_app(feed)


def socket(feed: Feed) -> Service:
    return websocket.create_app(feed)


def stream(feed: Feed) -> Service:
    return sse.create_app(feed, retry=50)


Create = Callable[[Feed], Service]
every_model = pytest.mark.parametrize("create_app", [short, long, socket, stream])


def publish(feed: Feed, count: int, path: str = "reports/{}.txt") -> None:
    for _ in range(count):
        feed.publish(path.format(feed.head + 1), "added", size=feed.head)


class Gateway:
    """A server in front of another: it takes a prefix away, as a proxy does, and can refuse streams with a 503."""

    def __init__(self, service: Service, prefix: str = "", *, down: bool = False) -> None:
        self.service, self.prefix, self.down = service, prefix, down
        self.closing = service.closing
        self.seen: list[tuple[str, str | None]] = []  # path and Last-Event-ID of each request

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app: ASGIApp = self.service
        if scope["type"] != "lifespan":
            last_event_id = dict(scope["headers"]).get(b"last-event-id")
            self.seen.append((scope["path"], last_event_id and last_event_id.decode()))
            if not scope["path"].startswith(f"{self.prefix}/"):
                app = Response(status_code=404)
            elif self.down and scope["path"].endswith("/events"):
                app = Response(status_code=503)
            scope = {**scope, "path": scope["path"].removeprefix(self.prefix)}
        await app(scope, receive, send)


@every_model
def test_page_shows_every_update_once_and_in_order(tab: Tab, create_app: Create) -> None:
    """Each model's page shows all that is published after it opened, in order, and counts what the server counts."""
    feed = Feed(epoch=EPOCH)
    app = create_app(feed)
    publish(feed, 3)  # before the page: not news
    server = tab.serve(app)
    tab.open(server)
    for burst in (1, 40, 19):
        publish(feed, burst)
        tab.shows("updates", feed.head - 3)
    feed.publish("reports/4.txt", "deleted")
    tab.shows("updates", 61)
    assert app.traffic.delivered == 61
    assert tab.seqs() == list(range(4, 65))
    cells = tab.page.locator("#list tr").nth(1).locator("td").all_text_contents()
    assert cells[:4] == ["63", "reports/63.txt", "added", "62"]
    cells = tab.page.locator("#list tr").first.locator("td").all_text_contents()
    assert cells[:4] == ["64", "reports/4.txt", "deleted", "\N{EN DASH}"]
    delays = sorted(int(text) for text in tab.column("delay"))
    assert -1 <= delays[0] <= delays[-1] <= 1000 * PATIENCE  # the browser's clock is cut off at a millisecond
    assert tab.number("delay") == delays[30]
    if create_app in (socket, stream):
        assert tab.number("requests") == app.traffic.requests == 1


@pytest.mark.parametrize("create_app", [short, stream])
def test_page_keeps_the_newest_updates_only(tab: Tab, create_app: Create) -> None:
    """A page that is behind reads on, batch by batch, and its list stays bounded."""
    feed = Feed(epoch=EPOCH)
    publish(feed, 1100)
    server = tab.serve(create_app(feed))
    tab.open(server, "/?after=0")
    tab.shows("updates", 1100)
    assert tab.seqs() == list(range(901, 1101))
    assert tab.number("delay") == sorted(int(text) for text in tab.column("delay"))[100]


def test_short_polling_page_counts_the_servers_requests(tab: Tab) -> None:
    """Each request of the short-polling page is one the server counted; those without news are answered 304."""
    feed = Feed(epoch=EPOCH)
    app = short(feed)
    server = tab.serve(app)
    tab.open(server)
    for seq in (1, 2, 3):
        publish(feed, 1)
        tab.shows("updates", seq)

    def asleep() -> bool:
        before = app.traffic.requests
        state, *counters = tab.page.evaluate("['state', 'requests', 'empty'].map(id => window[id].textContent)")
        if not state.startswith("sleeping") or app.traffic.requests != before:
            return False  # a request was under way
        assert [int(counter) for counter in counters] == [before, before - 3]
        return True

    until(asleep)
    assert [tab.page.wait_for_event("response").status for _ in range(5)] == [304] * 5


def test_long_polling_page_counts_the_servers_requests(tab: Tab) -> None:
    """The long-polling page asks once to begin, once to be held, and once more after each answer with news."""
    feed = Feed(epoch=EPOCH)
    app = long(feed)
    server = tab.serve(app)
    tab.open(server)
    for seq in (1, 2, 3):
        until(lambda: app.traffic.held)
        publish(feed, 1)
        tab.shows("updates", seq)
    tab.shows("requests", 5)
    until(lambda: app.traffic.requests == 5 and app.traffic.held == 1)
    assert tab.number("empty") == 1


def test_long_polling_page_does_not_spin_on_a_server_that_does_not_hold(tab: Tab) -> None:
    """Empty answers that come at once, as from a server that is closing, are a second apart at least."""
    app = long(Feed(epoch=EPOCH))
    server = tab.serve(app)
    tab.open(server)
    until(lambda: app.traffic.held)
    app.closing.close()
    begun = app.traffic.requests
    until(lambda: app.traffic.requests > begun)
    start, before = time.monotonic(), app.traffic.requests
    until(lambda: app.traffic.requests >= before + 3)
    assert time.monotonic() - start > 1.5  # 2, unless the first of them was seen late
    app.closing.open()
    until(lambda: app.traffic.held)
    publish(app.feed, 1)
    tab.shows("updates", 1)


@pytest.mark.parametrize("create_app", [short, long])
def test_a_pulling_page_heeds_retry_after(tab: Tab, create_app: Create) -> None:
    """A page that is told when to come again does not come earlier, whatever the form of the answer."""
    tab.allow(UNAVAILABLE)
    app, asked = create_app(Feed(epoch=EPOCH)), list[float]()

    async def full_at_first(scope: Scope, receive: Receive, send: Send) -> None:
        if scope.get("path") == "/updates":
            asked.append(time.monotonic())
            if len(asked) == 1:
                return await Response("<h1>Full</h1>", 503, {"Retry-After": "3"})(scope, receive, send)
        return await app(scope, receive, send)

    server = tab.serve(full_at_first)
    tab.open(server)
    assert asked[1] - asked[0] > 2.9
    publish(app.feed, 1)
    tab.shows("updates", 1)
    app.closing.close()


@every_model
def test_page_goes_on_after_a_restart_of_the_server(tab: Tab, create_app: Create) -> None:
    """A page whose server stops and comes back with the same log loses nothing and shows nothing twice."""
    tab.allow(SERVER_AWAY)
    feed = Feed(epoch=EPOCH)
    server = tab.serve(create_app(feed))
    tab.open(server)
    publish(feed, 5)
    tab.shows("updates", 5)
    server.stop()
    publish(feed, 3)
    app = create_app(feed)
    tab.serve(app, port=server.port)
    tab.shows("updates", 8)
    publish(feed, 1)
    tab.shows("updates", 9)
    assert app.traffic.delivered == 4
    assert tab.seqs() == list(range(1, 10))
    assert tab.number("resets") == 0


def test_event_source_resumes_with_last_event_id(tab: Tab) -> None:
    """EventSource reconnects by itself and sends the id of the last event it had, even an opening id without event."""
    tab.allow(SERVER_AWAY)
    feed = Feed(epoch=EPOCH)
    publish(feed, 2)
    server = tab.serve(stream(feed))
    tab.open(server)
    for last_event_id in (f"{EPOCH}-2", f"{EPOCH}-3"):
        server.stop()
        gateway = Gateway(stream(feed))
        server = tab.serve(gateway, port=server.port)
        tab.shows("updates", feed.head - 2)
        publish(feed, 1)
        tab.shows("updates", feed.head - 2)
        assert gateway.seen == [("/events", last_event_id)]
    assert tab.seqs() == [3, 4]


@every_model
def test_page_shows_a_reset_when_its_cursor_expired(tab: Tab, create_app: Create) -> None:
    """A page whose cursor is older than the history says so, and goes on from the head."""
    if create_app in (short, long):
        tab.allow(GONE)
    feed = Feed(epoch=EPOCH, history=3)
    app = create_app(feed)
    tab.open(tab.serve(app))
    publish(feed, 1)
    tab.shows("updates", 1)
    tab.page.get_by_role("button", name="Disconnect").click()
    tab.shows("state", "disconnected")
    until(lambda: app.traffic.held == 0)  # else a held request may still be answered, into the void
    publish(feed, 9)
    tab.page.get_by_role("button", name="Connect").click()
    expect(tab.page.locator("#list .reset")).to_have_text(re.compile(rf"Reset \(expired\).* from {EPOCH}-10\."))
    publish(feed, 1)
    tab.shows("updates", 2)
    assert tab.seqs() == [1, 11]
    assert tab.number("resets") == 1
    assert app.traffic.resets == 1 or create_app is short  # its last poll may have been on its way to the server


@every_model
def test_page_shows_a_reset_when_the_log_is_another(tab: Tab, create_app: Create) -> None:
    """A page whose server comes back with a new log says so, and goes on with that log."""
    tab.allow(SERVER_AWAY, *([GONE] if create_app in (short, long) else []))
    old, new = Feed(epoch="f001"), Feed(epoch="f002")
    publish(new, 2)
    server = tab.serve(create_app(old))
    tab.open(server)
    publish(old, 4)
    tab.shows("updates", 4)
    server.stop()
    tab.serve(create_app(new), port=server.port)
    tab.shows("resets", 1)
    expect(tab.page.locator("#list .reset")).to_have_text(re.compile(r"Reset \(epoch\).* from f002-2\."))
    publish(new, 1)
    tab.shows("updates", 5)
    assert tab.seqs() == [1, 2, 3, 4, 3]


@every_model
def test_hostile_names_are_only_names(tab: Tab, create_app: Create) -> None:
    """A name that looks like markup is shown as the text it is, and control characters are made visible."""
    feed = Feed(epoch=EPOCH)
    names = {
        "<script>alert(1)</script>.txt": "<script>alert(1)</script>.txt",
        "<img src=x onerror=alert(1)>": "<img src=x onerror=alert(1)>",
        "two\nlines.txt": r"two\nlines.txt",
        "event: reset\r\ndata: {}": r"event: reset\r\ndata: {}",
        "  spaces  ": "  spaces  ",
        "日本語/🦜.txt": "日本語/🦜.txt",
    }
    server = tab.serve(create_app(feed))
    tab.open(server)
    for name in names:
        feed.publish(name)
    tab.shows("updates", len(names))
    assert tab.column("path") == list(reversed(names.values()))
    assert tab.page.locator("#list").locator("script, img").count() == 0
    assert tab.number("resets") == 0


@every_model
def test_reader_who_leaves_frees_the_slot_and_loses_nothing(tab: Tab, create_app: Create) -> None:
    """The button, reached by keyboard, frees the server's slot and later resumes; so do leaving the page and return."""
    feed = Feed(epoch=EPOCH)
    app = create_app(feed)
    server = tab.serve(app)
    tab.open(server)
    publish(feed, 2)
    tab.shows("updates", 2)
    for _ in range(5):  # four links, then the button
        tab.page.keyboard.press("Tab")
    expect(tab.page.locator("#connection")).to_be_focused()
    tab.page.keyboard.press("Space")
    tab.shows("state", "disconnected")
    tab.shows("connection", "Connect")
    until(lambda: app.traffic.held == 0)
    publish(feed, 3)
    tab.page.keyboard.press("Space")
    tab.shows("updates", 5)
    tab.shows("connection", "Disconnect")
    assert tab.seqs() == [1, 2, 3, 4, 5]
    assert app.traffic.delivered == 5
    tab.page.goto("about:blank")
    until(lambda: app.traffic.held == 0)
    publish(feed, 1)
    tab.page.go_back(wait_until="commit")  # the page as it was, out of the browser's back/forward cache
    tab.shows("updates", 6)
    assert tab.seqs() == [1, 2, 3, 4, 5, 6]


@every_model
def test_a_cursor_that_is_none_is_reported(tab: Tab, create_app: Create) -> None:
    """A malformed cursor in the page's own address is refused, and the page says what it knows of it."""
    tab.allow("status of 400", "WebSocket connection to .* failed", "a cursor looks like")
    server = tab.serve(create_app(Feed()))
    tab.page.goto(f"{server.url}/?after=nonsense")
    pull = 'stopped: a cursor looks like "<epoch>-<number>", and only a server hands it out'
    push = re.compile(r"(closed with 1006|readyState 2 \(closed\): EventSource has given up); trying again in .* s")
    tab.shows("state", pull if create_app in (short, long) else push)


def test_filter_is_acknowledged_obeyed_and_sent_again_after_a_restart(tab: Tab) -> None:
    """The WebSocket page's filter holds from its acknowledgement on, over reconnects too, until another replaces it."""
    tab.allow(SERVER_AWAY)
    feed = Feed(epoch=EPOCH)
    server = tab.serve(socket(feed))
    tab.open(server)
    publish(feed, 1, "images/{}.png")
    tab.shows("updates", 1)
    tab.page.get_by_label("Only paths that begin with").fill("reports/")
    tab.page.keyboard.press("Enter")
    tab.shows("filtered", f"filter 1 obeyed after {EPOCH}-1")
    publish(feed, 2, "images/{}.png")
    publish(feed, 1)
    tab.shows("updates", 2)
    server.stop()
    tab.serve(socket(feed), port=server.port)
    tab.shows("filtered", f"filter 1 obeyed after {EPOCH}-4")
    publish(feed, 2, "images/{}.png")
    publish(feed, 1)
    tab.shows("updates", 3)
    assert tab.seqs() == [1, 4, 7]
    tab.page.get_by_label("Only paths that begin with").fill("")
    tab.page.get_by_role("button", name="Filter").click()
    tab.shows("filtered", f"filter 2 obeyed after {EPOCH}-7")
    publish(feed, 1, "images/{}.png")
    tab.shows("updates", 4)


@every_model
def test_page_works_below_any_prefix_and_needs_nothing_from_elsewhere(tab: Tab, create_app: Create) -> None:
    """Behind a proxy that takes a prefix away, a page streams as ever, and asks for nothing outside that prefix.

    Its policy forbids inline code and foreign hosts: the console, which must stay empty, would name a breach.
    """
    asked: list[str] = []
    tab.context.on("request", lambda request: asked.append(request.url))
    feed = Feed(epoch=EPOCH)
    gateway = Gateway(create_app(feed), "/user/x/proxy/1234")
    base = f"{tab.serve(gateway).url}{gateway.prefix}/"
    answer = tab.page.goto(base)
    assert answer is not None
    assert answer.headers["content-security-policy"] == PAGE_POLICY
    tab.is_connected()
    for seq in (1, 2):  # the second comes while the first answer is still open
        publish(feed, 1)
        tab.shows("updates", seq)
    for link in tab.page.locator("nav a").all():
        target = tab.page.request.get(link.evaluate("a => a.href"))
        assert target.ok, target.url
        asked.append(target.url)
    assert [url for url in asked if not url.startswith(base)] == []
    assert [path for path, _ in gateway.seen if not path.startswith(gateway.prefix)] == []


def test_pages_have_the_colours_of_the_figures() -> None:
    """A model has one colour in the whole course: on its live page, on light ground, that of the figures."""
    css = (PAGES / "live.css").read_text()
    colors = dict(re.findall(r'\[data-model="([\w-]+)"\] { --model: light-dark\((#\w{6}), #\w{6}\); }', css))
    assert colors == {model.lower().replace(" ", "-"): style.color for model, style in STYLES.items()}


def test_docs_work_without_a_network(tab: Tab) -> None:
    """/docs shows the routes from the server's own files, and tries them where they are, below a prefix too."""
    asked: list[str] = []
    tab.context.on("request", lambda request: asked.append(request.url))
    gateway = Gateway(short(Feed(epoch=EPOCH)), "/proxy/1234")
    server = tab.serve(gateway)
    tab.page.goto(f"{server.url}{gateway.prefix}/docs")
    tab.page.locator("#operations-default-health_healthz_get").click()
    tab.page.get_by_role("button", name="Try it out").click()
    tab.page.get_by_role("button", name="Execute").click()
    expect(tab.page.locator(".live-responses-table")).to_contain_text(f'"cursor": "{EPOCH}-0"')
    assert all(url.startswith(f"{server.url}{gateway.prefix}/") for url in asked)


def test_sse_page_opens_a_new_stream_when_event_source_has_given_up(tab: Tab) -> None:
    """A gateway's 503 ends EventSource for good; the page then opens another from its cursor, and nothing is lost."""
    tab.allow(SERVER_AWAY, UNAVAILABLE)
    feed = Feed(epoch=EPOCH)
    server = tab.serve(stream(feed))
    tab.open(server)
    publish(feed, 2)
    tab.shows("updates", 2)
    server.stop()
    gateway = Gateway(stream(feed), down=True)
    tab.serve(gateway, port=server.port)
    tab.shows("state", re.compile(r"readyState 2 \(closed\): EventSource has given up; .*"))
    publish(feed, 2)
    gateway.down = False
    tab.shows("updates", 4)
    assert tab.seqs() == [1, 2, 3, 4]
    assert gateway.seen[0] == ("/events", f"{EPOCH}-2")
    assert gateway.seen[-1] == ("/events", None)  # a new EventSource: it has the cursor in its query


def test_a_browser_opens_six_connections_to_one_origin(tab: Tab) -> None:
    """Of eight EventSources to one HTTP/1.1 origin six open and two wait for a free connection; a WebSocket opens."""
    feed = Feed(epoch=EPOCH)
    app = stream(feed)

    @app.websocket("/echo")
    async def echo(connection: WebSocket) -> None:
        await connection.accept()
        await connection.send_text(await connection.receive_text())
        await connection.close()

    open_now = "window.sources.filter(source => source.readyState === EventSource.OPEN).length"
    server = tab.serve(app)
    tab.page.goto(f"{server.url}/healthz")
    tab.page.evaluate("""window.sources = Array.from({length: 8}, () => {
        const source = new EventSource('/events');
        source.seen = 0;
        source.addEventListener('update', () => source.seen += 1);
        return source;
    })""")
    until(lambda: tab.page.evaluate(open_now) == 6)
    assert tab.page.evaluate("""new Promise((resolve, reject) => {
        const socket = new WebSocket(new URL('/echo', location.href.replace('http', 'ws')));
        socket.onopen = () => socket.send('hello');
        socket.onmessage = event => resolve(event.data);
        socket.onerror = () => reject(new Error('no WebSocket'));
    })""") == "hello"  # fmt: skip
    publish(feed, 1)
    until(lambda: tab.page.evaluate("window.sources.map(source => source.seen)") == [1] * 6 + [0] * 2)
    assert tab.page.evaluate("window.sources.map(source => source.readyState)") == [1] * 6 + [0] * 2
    assert app.traffic.requests == app.traffic.held == 6

    tab.page.evaluate("window.sources[0].close()")
    until(lambda: app.traffic.requests == 7)
    until(lambda: tab.page.evaluate("window.sources[6].readyState") == 1)
    assert tab.page.evaluate("window.sources[7].readyState") == 0


READY_STATES = """url => new Promise(resolve => {
    const seen = [];
    const source = new EventSource(url);
    source.onopen = () => seen.push('open');
    source.onerror = () => {
        seen.push(source.readyState);
        if (source.readyState === EventSource.CLOSED) resolve(seen);
    };
})"""


def test_event_source_gives_up_on_any_answer_but_an_event_stream(tab: Tab) -> None:
    """EventSource closes for good at once (readyState 2) on a status other than 200, and on another media type."""
    tab.allow(r"status of (400|404|410|500|503) ", "MIME type")
    asked: list[str] = []

    async def events(request: Request) -> Response:
        asked.append(request.url.path)
        return Response(status_code=request.path_params["status"], media_type="text/plain")

    server = tab.serve(Starlette(routes=[Route("/{status:int}", events)]))
    tab.page.goto(f"{server.url}/200")
    statuses = (204, 400, 404, 410, 500, 503, 200)
    for status in statuses:
        assert tab.page.evaluate(READY_STATES, f"/{status}") == [2]
    assert [path for path in asked if path != "/favicon.ico"] == [f"/{status}" for status in (200, *statuses)]


def test_event_source_reconnects_after_an_end_until_204(tab: Tab) -> None:
    """EventSource takes the end of a stream for an accident and asks again, until the server answers 204."""
    asked: list[str | None] = []

    async def events(request: Request) -> Response:
        asked.append(request.headers.get("last-event-id"))
        if len(asked) == 3:
            return Response(status_code=204)
        return Response(f"retry: 10\nid: {len(asked)}\n\n", media_type="text/event-stream")

    server = tab.serve(Starlette(routes=[Route("/events", events), Route("/", lambda _: Response())]))
    tab.page.goto(server.url)
    assert tab.page.evaluate(READY_STATES, "/events") == ["open", 0, "open", 0, 2]
    assert asked == [None, "1", "2"]
