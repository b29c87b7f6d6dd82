"""The demo's server: bytes as a wire counts them, delays, cuts, controls, and a schedule whose rate changes."""

import asyncio
import contextlib
import functools
import itertools
import re
import signal
import time
from typing import Any

import httpx
import pytest

from lab import clients
from lab.clients.answers import Update
from lab.proxies.wire import Wire
from servers import demo
from servers.__main__ import build, main, parser
from servers.background import serve
from servers.demo import Controls, Demo
from servers.feed import Feed
from servers.models import MODELS
from servers.sources import synthetic_edits
from tests.support import (
    PATIENCE,
    VirtualLoop,
    Within,
    closed,
    command,
    ended,
    events,
    http,
    on_a_loop,
    received,
    socket_to,
    until,
    url_of,
)
from tests.support_feed import READERS, client, read_until

EPOCH = "e0e0"
every_model = pytest.mark.parametrize("model", READERS)
FOLLOW = clients.MODELS | {"short-polling": functools.partial(clients.short_polling, interval=0.05)}


def create_app(feed: Feed | None = None, **options: Any) -> Demo:
    """A demo that publishes nothing by itself, unless told."""
    return demo.create_app(feed or Feed(epoch=EPOCH), **{"rate": 0.0} | options)


def counts(app: Demo, model: str) -> dict[str, int]:
    return app.lanes[model].counts()


@every_model
@on_a_loop
async def test_bytes_are_what_a_wire_counts(model: str) -> None:
    """What a lane counts in each direction, framing and handshake included, is what passes a wire before it."""
    app = create_app()
    with serve(app) as server, Wire(server.url) as wire:

        async def publish() -> None:
            for size in (1, 130, 70_000):
                await until(lambda: app.lanes[model].open or model == "short-polling")
                app.feed.publish("é" * size, "added", size=size)
                await asyncio.sleep(0.03)

        publishing = asyncio.create_task(publish())
        await read_until(model, f"{wire.url}/{model}", "0", lambda seen: len(seen) == 3)
        await publishing
        await until(lambda: counts(app, model)["held"] == 0)
        await until(lambda: (counts(app, model)["up"], counts(app, model)["down"]) == tuple(wire.bytes.values()))
        assert list(wire.bytes) == ["up", "down"]
    assert counts(app, model)["delivered"] == 3


@on_a_loop
async def test_a_delay_holds_back_requests_and_answers() -> None:
    """With d one way a poll takes 2d at least, an event d; a smaller delay lets nothing overtake."""
    app = create_app()
    app.change(Controls(delay=0.3))
    with serve(app) as server:
        async with http(server) as client:
            begin = time.perf_counter()
            await client.get("/short-polling/updates")
            assert time.perf_counter() - begin >= 0.6
            assert counts(app, "short-polling")["requests"] == 1
        async with events(server, below="/sse") as stream, socket_to(server, below="/websocket") as connection:
            for _ in ("retry:", "id:"):
                await stream.block()
            await received(connection)
            first = app.feed.publish("first.txt")
            await until(lambda: counts(app, "sse")["delivered"] == counts(app, "websocket")["delivered"] == 1)
            app.change(Controls(delay=0.0))
            app.feed.publish("second.txt")
            assert [(await stream.update())["seq"]] == [1]
            assert time.perf_counter() - first.stamp >= 0.3
            assert [u["seq"] for u in (await received(connection))["updates"]] == [1]
            assert time.perf_counter() - first.stamp >= 0.3
            assert (await stream.update())["seq"] == 2


@every_model
@on_a_loop
async def test_a_cut_heals_and_nothing_is_lost(model: str) -> None:
    """Connections cut again and again, by the course's robust client every update arrives once, in order."""
    app = create_app()
    app.change(Controls(delay=0.01, interval=0.2))
    retry = clients.Retry(base=0.02, cap=0.05)
    with serve(app) as server:

        async def publish_and_cut() -> None:
            async with http(server) as client:
                for _ in range(3):
                    await until(lambda: app.lanes[model].open)
                    for _ in range(5):
                        app.feed.publish("a.txt")
                    answer = (await client.delete("/connections")).json()
                    assert answer["cut"]["lanes"].keys() == FOLLOW.keys()

        cutting = asyncio.create_task(publish_and_cut())
        seen: list[int] = []
        follow: Any = FOLLOW[model]
        async with asyncio.timeout(30):
            async with contextlib.aclosing(follow(f"{server.url}/{model}", f"{EPOCH}-0", retry=retry)) as stream:
                async for news in stream:
                    assert isinstance(news, Update)
                    seen.append(news.seq)
                    if news.seq == 15:
                        break
            await cutting
        assert seen == list(range(1, 16))
        assert app.cut.at > 0


@on_a_loop
async def test_controls_are_bounded_and_nothing_of_theirs_counts() -> None:
    """A control out of its bounds is refused with one sentence; neither that nor a look is any lane's request."""
    app = create_app()
    refused = {
        '{"rate": 20.5}': "rate: input should be less than or equal to 20",
        '{"rate": NaN}': "rate: input should be a finite number",
        '{"interval": 0.1}': "interval: input should be greater than or equal to 0.2",
        '{"interval": 11}': "interval: input should be less than or equal to 10",
        '{"delay": -1}': "delay: input should be greater than or equal to 0",
        '{"delay": 3}': "delay: input should be less than or equal to 2",
        '{"paused": "maybe"}': "paused: input should be a valid boolean",
        '{"speed": 1}': "speed: extra inputs are not permitted",
        '{"rate": ': "the body is not JSON",
        "faster": "the body is not JSON",
    }
    with serve(app) as server:
        async with http(server, headers={"Content-Type": "application/json"}) as client:
            before = (await client.get("/state")).json()
            for body, sentence in refused.items():
                answer = await client.patch("/controls", content=body)
                assert (answer.status_code, answer.json()) == (400, {"detail": sentence})
            changed = {"rate": 20, "interval": 0.2, "delay": 2, "paused": True}
            state = (await client.patch("/controls", json=changed)).json()
            assert state | changed == state
            assert state["lanes"] == before["lanes"]
            assert all(set(lane.values()) == {0} for lane in state["lanes"].values())
            answer = await client.get("/short-polling/metrics")
            assert counts(app, "short-polling")["up"] == 0
            metrics = (await client.get("/metrics")).text
    assert re.findall(r'^updates_requests_total\{model="(.+)"\} 0\.0$', metrics, re.M) == [
        model.name for model in MODELS
    ]
    assert metrics.count("# TYPE updates_requests_total counter") == 1
    with pytest.raises(ValueError, match="up to 20 updates a second"):
        create_app(rate=21)


@on_a_loop
async def test_the_polling_interval_is_what_the_control_says() -> None:
    """X-Poll-Interval follows the control at once, on 200 and 304."""
    app = create_app()
    with serve(app) as server:
        async with http(server) as client:
            for interval, status in ((0.2, 200), (7.5, 304)):
                app.change(Controls(interval=interval))
                headers = {"If-None-Match": f'"{app.feed.cursor}"'} if status == 304 else {}
                answer = await client.get("/short-polling/updates", headers=headers)
                assert (answer.status_code, answer.headers["X-Poll-Interval"]) == (status, f"{interval:g}")


def test_the_rate_stretches_the_schedule() -> None:
    """At rate r the seeded edits come at 1/r of their times, from a change on; paused, only what is asked for comes."""

    async def play() -> list[int]:
        feed = Feed()
        app = demo.create_app(feed, rate=2, seed=5)
        playing = asyncio.create_task(app.play())
        heads = []
        for change, extra, seconds in (({}, 0, 50), ({"rate": 20}, 0, 10), ({"paused": True}, 3, 1000)):
            app.change(Controls(**change))
            app.extra = extra
            await asyncio.sleep(seconds)
            heads.append(feed.head)
        app.change(Controls(rate=1, paused=False))
        await asyncio.sleep(0.001)
        playing.cancel()
        return heads

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        heads = runner.run(play())
    times = [edit.at for edit in itertools.islice(synthetic_edits(1.0, seed=5), 1000)]
    planned = [sum(at <= unit for at in times) for unit in (100, 300)]
    assert heads == [*planned, planned[-1] + 3]


@on_a_loop
async def test_a_watched_feed_has_no_rate() -> None:
    """With a source of one's own the updates come from there, and what would control a schedule is refused."""
    feed = Feed()

    async def source() -> None:
        feed.publish("mine.txt")

    with serve(create_app(feed, source=source)) as server:
        async with http(server) as client:
            await until(lambda: feed.head == 1)
            assert (await client.get("/state")).json()["rate"] is None
            for answer in (await client.patch("/controls", json={"paused": True}), await client.post("/updates")):
                assert answer.status_code == 400
                assert answer.json()["detail"].startswith("the updates come from elsewhere")
            assert (await client.patch("/controls", json={"delay": 0.1})).json()["delay"] == 0.1
    assert feed.head == 1


FOREIGN = {
    "says whose page it is": {"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"},
    "same site, another origin": {"Sec-Fetch-Site": "same-site", "Origin": "https://evil.example"},
    "an old browser": {"Origin": "https://evil.example"},
    "a page of a file": {"Origin": "null"},
}


@pytest.mark.parametrize("page", FOREIGN)
@on_a_loop
async def test_a_page_from_elsewhere_changes_nothing(page: str) -> None:
    """It publishes nothing, cuts nobody and moves no control, though a browser lets it send a plain POST."""
    app = create_app()
    with serve(app) as server:
        async with http(server, headers=FOREIGN[page] | {"Content-Type": "text/plain"}) as client:
            for method, path in (
                ("POST", "/updates"),
                ("POST", "/leave?viewer=a"),
                ("PATCH", "/controls"),
                ("DELETE", "/connections"),
            ):
                answer = await client.request(method, path)
                refused = {"detail": "a page from elsewhere controls nothing here"}
                assert (answer.status_code, answer.json()) == (403, refused)
            assert (await client.get("/state")).status_code == 200
        assert (app.extra, app.cut.at) == (0, 0)


@pytest.mark.parametrize(
    "headers", [{}, {"Sec-Fetch-Site": "same-origin"}, {"Sec-Fetch-Site": "none"}, "own", "allowed"]
)
@on_a_loop
async def test_its_own_page_and_programs_control_the_demo(headers: dict[str, str] | str) -> None:
    """The page itself, a page that was allowed, and a program, which says nothing of pages, publish at once."""
    app = create_app(allow_origins=["https://hub.example"])
    with serve(app) as server:
        if isinstance(headers, str):
            headers = {"Origin": server.url if headers == "own" else "https://hub.example"}
        async with http(server, headers=headers) as client:
            assert (await client.post("/updates")).status_code == 204
        await until(lambda: app.feed.head == 1)


@on_a_loop
async def test_a_page_that_leaves_says_which_it_is() -> None:
    """Without a name, or with an empty one, nobody's connections are cut: programs have none."""
    with serve(create_app()) as server:
        async with http(server) as client:
            for query in ("", "?viewer="):
                answer = await client.post(f"/leave{query}")
                assert answer.status_code == 400
                assert answer.json()["detail"].startswith("viewer: ")


@on_a_loop
async def test_a_page_that_leaves_takes_only_its_own_connections() -> None:
    """What a page left open, perhaps in a proxy that does not tell, ends when the page says so; other pages stay."""
    app = create_app()
    with serve(app) as server:
        async with (
            events(server, below="/sse", viewer="a") as gone,
            events(server, below="/sse", viewer="b") as stays,
            http(server) as client,
        ):
            for stream in (gone, stays):
                await stream.block()
            for viewer in ("a", "b"):
                await client.get("/state", params={"viewer": viewer})
            await client.post("/leave", params={"viewer": "a"})
            with pytest.raises(httpx.RemoteProtocolError):
                await gone.rest()
            await until(lambda: counts(app, "sse")["held"] == 1)
            assert (await client.get("/state")).json()["viewers"] == 1
            await stays.block()  # the opening
            app.feed.publish("a.txt")
            assert (await stays.update())["seq"] == 1


@on_a_loop
async def test_a_stop_waits_for_no_delay() -> None:
    """With 2 s of delay each way the demo stops within a second, nothing is broken off, and it can be served again."""
    app = create_app()
    for _ in range(2):
        app.change(Controls(delay=0.0))
        server = serve(app)
        async with events(server, below="/sse") as stream, socket_to(server, below="/websocket") as connection:
            await stream.block()
            await received(connection)
            async with http(server) as client:
                app.change(Controls(delay=2.0))
                poll = asyncio.create_task(client.get("/long-polling/updates"))
                await until(lambda: app.lanes["long-polling"].open)
                app.feed.publish("a.txt")
                with Within(1):
                    await asyncio.to_thread(server.stop)
                await stream.rest()
                assert await closed(connection) == (1001, "")
                with contextlib.suppress(httpx.TransportError):
                    await poll
    assert all(lane.counts()["held"] == 0 and not lane.open for lane in app.lanes.values())


@on_a_loop
async def test_ctrl_c_waits_for_no_delay() -> None:
    """As a process with 2 s of delay each way and updates on their way to all four, it ends with status 0, silent."""
    seen = dict.fromkeys(READERS, 0)

    async def read(url: str, model: str) -> None:
        async for updates, _ in READERS[model](f"{url}/{model}", "0"):
            seen[model] += len(updates)

    async with command("servers", "demo", "--port", "0", "--rate", "20") as process, client() as page:
        url = await url_of(process, "demo")
        reading = [asyncio.create_task(read(url, model)) for model in READERS]
        await until(lambda: all(seen.values()))
        head = (await page.patch(f"{url}/controls", json={"delay": 2})).json()["head"]
        async with asyncio.timeout(PATIENCE):
            while (await page.get(f"{url}/state")).json()["head"] < head + 5:
                pass
        process.send_signal(signal.SIGINT)
        async with asyncio.timeout(10):  # 2 s are promised on a machine that has nothing else to do
            assert await ended(process) == (0, "", "")
        *polls, websocket_end, sse_end = await asyncio.gather(*reading, return_exceptions=True)
        assert websocket_end is sse_end is None  # ended, not broken off; a poll was answered, and the next refused
        assert all(isinstance(end, httpx.TransportError) for end in polls)


def test_the_command_line_serves_it(capsys: pytest.CaptureFixture[str]) -> None:
    """`python -m servers demo` takes the options that the demo has, and says which rates it takes."""
    app = build(parser().parse_args(["demo", "--rate", "20", "--poll-interval", "0.5"]))
    assert isinstance(app, Demo)
    assert (app.rate, app.interval, app.synthetic) == (20, 0.5, True)
    with pytest.raises(SystemExit) as stop:
        main(["demo", "--rate", "21"])
    assert stop.value.code == 2
    message = "python -m servers: the demo takes up to 20 updates a second, and an interval from 0.2 to 10 s\n"
    assert capsys.readouterr().err == message
