"""The demo's page in a real Chromium: what its lanes show, what its controls do, by keyboard and beside other pages."""

import itertools
import math
import re
import time
from typing import Any

import pytest
from playwright.sync_api import Frame, Page, expect

from servers import demo, models
from servers.background import Server
from servers.demo import Controls, Demo
from servers.feed import Feed
from tests.support_browser import Tab, browser, tab, until
from tests.test_browser import Gateway

__all__ = ["browser", "tab"]  # fixtures

MODELS = tuple(model.slug for model in models.MODELS)
PUSH = MODELS[1:]
CUT = (
    r"net::ERR_(INCOMPLETE_CHUNKED_ENCODING|EMPTY_RESPONSE|CONNECTION_(RESET|CLOSED))|WebSocket connection to .* failed"
)
READ = """() => Object.fromEntries([...document.querySelectorAll('#lanes section')].map(lane => [lane.dataset.model,
    Object.fromEntries([...lane.querySelectorAll('dd')].map(dd => [dd.dataset.is, dd.textContent]))]))"""


def create_app(**options: Any) -> Demo:
    """A demo that polls often and publishes nothing by itself, unless told."""
    return demo.create_app(Feed(epoch="e0e0"), **{"rate": 0.0, "interval": 0.2} | options)


def is_connected(page: Page | Frame) -> None:
    """Wait until nothing that is published from now on comes before the "now" of any client."""
    states = page.locator("#lanes .state")
    patterns = [r"sleeping .*", "waiting for news", "open", r"readyState 1 \(open\)"]
    expect(states).to_have_text([re.compile(pattern) for pattern in patterns])


def watch(tab: Tab, server: Server) -> None:
    tab.page.goto(server.url)
    is_connected(tab.page)


def shown(page: Page | Frame, name: str) -> list[int]:
    """A number of all four lanes."""
    lanes: dict[str, dict[str, str]] = page.evaluate(READ)
    return [int(lanes[model][name].replace(",", "")) for model in MODELS]


def counts(app: Demo) -> dict[str, list[int]]:
    """The server's counts of all four lanes, named as on the page."""
    lanes = [app.lanes[model].counts() for model in MODELS]
    return {
        "requests": [lane["requests"] for lane in lanes],
        "held": [lane["held"] for lane in lanes],
        "bytes": [lane["up"] + lane["down"] for lane in lanes],
    }


def milliseconds(text: str) -> float:
    number, unit = text.split()
    return float(number) * {"ms": 1, "s": 1000}[unit]


def publish(app: Demo, count: int) -> None:
    for _ in range(count):
        app.feed.publish("reports/a.txt")


def test_every_lane_shows_every_update_and_the_servers_counts(tab: Tab) -> None:
    """Every lane receives all that is published, none lost; at rest its counts are the server's, to the byte."""
    app = create_app()
    watch(tab, tab.serve(app))
    for burst in (1, 30, 9):
        publish(app, burst)
        until(lambda: shown(tab.page, "received") == [app.feed.head] * 4)
    assert shown(tab.page, "lost") == [0] * 4
    app.change(Controls(interval=10))

    def agree() -> bool:
        before = counts(app)
        seen = {name: shown(tab.page, name) for name in before}
        return seen == before == counts(app)

    until(agree)
    assert counts(app)["held"] == [0, 1, 1, 1]
    assert counts(app)["requests"][2:] == [1, 1]
    lanes = tab.page.evaluate(READ)
    assert all(0 <= milliseconds(lane[name]) < 20_000 for lane in lanes.values() for name in ("median", "last"))


def test_a_cut_heals_in_every_lane(tab: Tab) -> None:
    """The button cuts all connections; each client connects again by itself, and what came meanwhile is not lost."""
    tab.allow(CUT)
    app = create_app()
    watch(tab, tab.serve(app))
    publish(app, 3)
    until(lambda: shown(tab.page, "received") == [3] * 4)
    until(lambda: [bool(app.lanes[model].open) for model in PUSH] == [True] * 3)
    tab.page.get_by_role("button", name="Cut").click()
    expect(tab.page.locator("#said")).to_have_text(re.compile("^Cut. Each client connects again"))
    assert [app.cut.lanes[model] for model in PUSH] == [1, 1, 1]
    publish(app, 7)
    until(lambda: shown(tab.page, "received") == [10] * 4)
    assert shown(tab.page, "lost") == [0] * 4
    until(lambda: counts(app)["held"][1:] == [1, 1, 1])
    assert counts(app)["requests"][2:] == [2, 2]


def test_controls_move_by_keyboard_and_move_the_server(tab: Tab) -> None:
    """Tab goes through the controls in order, arrows move them, Space pauses; the server obeys and the page says so."""
    tab.allow(CUT)
    app = create_app(interval=10)
    watch(tab, tab.serve(app))
    keys = tab.page.keyboard
    order = []
    for _ in range(7):
        keys.press("Tab")
        order.append(tab.page.evaluate("document.activeElement.id || document.activeElement.textContent"))
    assert order == ["pause", "publish", "cut", "rate", "interval", "delay", "● Short polling"]

    tab.page.get_by_label("Polling interval").focus()
    keys.press("Home")
    begin = time.monotonic()
    until(lambda: app.interval == 0.2 and counts(app)["requests"][0] > 1)
    assert time.monotonic() - begin < 8  # without waiting for the end of the old interval

    rate = tab.page.get_by_label("Updates a second")
    rate.focus()
    for _ in range(3):
        keys.press("ArrowRight")
    until(lambda: app.rate == 1.5)
    keys.press("End")
    until(lambda: app.rate == 20)
    until(lambda: min(shown(tab.page, "received")) > 20)
    keys.press("Space")  # on a slider too
    until(lambda: app.paused)
    expect(tab.page.get_by_role("button", name="Resume")).to_be_visible()
    head = app.feed.head
    until(lambda: shown(tab.page, "received") == [head] * 4)
    tab.page.get_by_role("button", name="Publish one").focus()
    keys.press("Space")  # presses the button, and goes on being paused
    until(lambda: shown(tab.page, "received") == [head + 1] * 4)
    assert app.paused
    tab.page.get_by_label("Added delay, one way").focus()
    for _ in range(4):
        keys.press("ArrowRight")
    until(lambda: app.delay == 0.2)
    until(lambda: not app.lanes["short-polling"].open)
    app.feed.publish("late.txt")
    until(lambda: shown(tab.page, "received") == [head + 2] * 4)
    lanes = tab.page.evaluate(READ)
    assert all(milliseconds(lane["last"]) >= 195 for lane in lanes.values())  # two clocks agree to a few ms
    tab.page.locator("body").press("Space")
    until(lambda: not app.paused)
    assert shown(tab.page, "lost") == [0] * 4


def test_delays_are_right_although_the_clocks_are_not(tab: Tab, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server whose clock is a hundred seconds behind the browser's makes no delay of a hundred seconds."""
    true_time = time.time
    monkeypatch.setattr(time, "time", lambda: true_time() - 100)
    app = create_app()
    watch(tab, tab.serve(app))
    publish(app, 2)
    until(lambda: shown(tab.page, "received") == [2] * 4)
    lanes = tab.page.evaluate(READ)
    assert all(milliseconds(lanes[model]["last"]) < 20_000 for model in MODELS)


def test_two_pages_side_by_side(tab: Tab) -> None:
    """Two pages of one browser receive all; each says that the counts are of both, and shows the other's controls."""
    app = create_app()
    server = tab.serve(app)
    watch(tab, server)
    other = tab.context.new_page()
    other.goto(server.url)
    is_connected(other)
    publish(app, 5)
    pages = (tab.page, other)
    until(lambda: [shown(page, "received") for page in pages] == [[5] * 4] * 2)
    until(lambda: [shown(page, "held")[1:] for page in pages] == [[2] * 3] * 2)
    for page in pages:
        expect(page.locator("#watch")).to_have_text(re.compile("2 pages watch"))
    tab.page.get_by_label("Added delay, one way").press("ArrowRight")
    expect(other.locator("#delay-is")).to_have_text("0.05 s")
    other.goto("about:blank")
    until(lambda: counts(app)["held"][1:] == [1, 1, 1])
    expect(tab.page.locator("#watch")).to_have_text("")


def test_a_page_too_many_says_what_it_waits_for(tab: Tab) -> None:
    """With three pages the browser's six connections are held; whichever waits for one says so, until there is one."""
    app = create_app()
    server = tab.serve(app)
    pages = [tab.page, *(tab.context.new_page() for _ in range(3))]
    for page in pages:
        page.goto(server.url, wait_until="commit")
    until(lambda: any("six to one server" in page.locator("#said").inner_text() for page in pages))
    for page in pages[1:]:
        page.close()
    is_connected(tab.page)
    expect(tab.page.locator("#said")).to_have_text("")


def test_it_works_below_a_prefix_and_asks_for_nothing_else(tab: Tab) -> None:
    """Behind a proxy that takes a prefix away all four lanes work, and nothing outside the prefix is asked for."""
    asked: list[str] = []
    tab.context.on("request", lambda request: asked.append(request.url))
    app = create_app()
    gateway = Gateway(app, "/user/x/proxy/1234")
    base = f"{tab.serve(gateway).url}{gateway.prefix}/"
    tab.page.goto(base)
    is_connected(tab.page)
    publish(app, 2)
    until(lambda: shown(tab.page, "received") == [2] * 4)
    for link in tab.page.locator("#lanes a").all():
        assert tab.page.request.get(link.evaluate("a => a.href")).ok
    assert [url for url in asked if not url.startswith(base)] == []
    assert [path for path, _ in gateway.seen if not path.startswith(gateway.prefix)] == []


def test_reduced_motion_stands_still_between_seconds(tab: Tab) -> None:
    """For those who asked for less motion the time axis moves once a second, not sixty times."""
    tab.page.add_init_script("""window.drawn = [];
        const ask = window.requestAnimationFrame.bind(window);
        window.requestAnimationFrame = draw => ask(time => { window.drawn.push(time); draw(time); });""")
    server = tab.serve(create_app())

    def shortest() -> float:
        moments: list[float] = tab.page.evaluate("window.drawn")
        return min((after - before for before, after in itertools.pairwise(moments)), default=math.inf)

    tab.page.emulate_media(reduced_motion="reduce")
    watch(tab, server)
    until(lambda: shortest() < math.inf)
    assert shortest() > 900  # ms
    tab.page.emulate_media(reduced_motion="no-preference")
    until(lambda: shortest() < 500)
