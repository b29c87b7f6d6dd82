"""Tests of what notebook 08 measures with: crowds, profiles, caches, a browser, compressors, ports, workers."""

import asyncio
import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import httpx
import psutil
import pytest

from lab import clients, proxies
from lab.bench import HTTP
from lab.cost import compression, crowd, ladder, profile, sockets, workers
from lab.cost.capacity import capacity, sensitivity
from lab.cost.processes import ServerProcess
from lab.figures import fleets
from lab.figures.style import Picture
from lab.proxies import browser, nginx
from servers import Feed, file_updates, long_polling, serve, short_polling, sse
from tests.support import on_a_loop, until

NEEDS_NGINX = pytest.mark.skipif(not nginx.installed(), reason="needs nginx: apt-get install nginx")
NEEDS_BROWSER = pytest.mark.skipif(not browser.installed(), reason="needs chromium: apt-get install chromium")
ALL = list(range(12))

# ── a crowd ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@on_a_loop
async def test_a_crowd_hears_everything() -> None:
    """Every stream has every update once, in order; nobody is later than the last client; the server is seen."""
    found = await crowd.by_size("file-updates", [5, 20], rate=20, seconds=2)
    for size, heard in found.items():
        assert heard.lost == heard.duplicated == heard.out_of_order == 0
        assert heard.deliveries >= 5 * size
        assert all(first <= last for first, last in zip(heard.first, heard.last, strict=True))
        assert heard.server_cpu > 0
        assert heard.memory > 2**20


@on_a_loop
async def test_a_crowd_loses_nothing_to_a_server_that_stands_still() -> None:
    """What it is late with goes out at once and whole, though it is about few files."""
    made: list[ServerProcess] = []

    class Noted(ServerProcess):
        def __enter__(self) -> Self:
            made.append(super().__enter__())
            return self

    async def stall() -> None:
        await until(lambda: made)
        with contextlib.suppress(psutil.NoSuchProcess):  # the crowd may have heard enough before
            for _ in range(4):
                await asyncio.sleep(0.3)
                made[0].account.suspend()
                await asyncio.sleep(0.3)
                made[0].account.resume()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(crowd, "ServerProcess", Noted)
        found, _ = await asyncio.gather(crowd.by_size("file-updates", [5], rate=40, seconds=1.5), stall())
    assert found[5].lost == found[5].duplicated == found[5].out_of_order == 0
    assert found[5].deliveries > 0


def test_the_slope_of_a_crowd_is_a_line_through_its_median_delays() -> None:
    """What comes on top with each client is told apart from what the first one waits for."""
    found = {n: crowd.Heard(n, 0, 0, 0, 0, [], [0.0, 0.001 + 2e-4 * n, 9.0], 0.0, 0.0) for n in (5, 20, 50)}
    assert crowd.slope(found) == pytest.approx((0.001, 2e-4))


@on_a_loop
async def test_a_crowd_notices_what_is_wrong() -> None:
    """A number left out, one told twice and one told late are each counted."""
    members = crowd.Crowd("here")
    ear = crowd.Ear(members)
    for seq in (1, 2, 4, 4, 3, 5):
        ear.data_received(b'data: {"seq":%d,"published":1.5}\n\n' % seq)
    assert (members.lost, members.duplicated, members.out_of_order) == (1, 1, 1)
    assert members.published == dict.fromkeys((1, 2, 3, 4, 5), 1.5)


@on_a_loop
async def test_a_crowd_without_a_server_says_so() -> None:
    """Nobody listens there: one line, as an exception."""
    with pytest.raises(RuntimeError, match="the crowd failed"):
        await crowd.listen("http://127.0.0.1:9", [2], 0.1)


@pytest.mark.skipif(sys.platform == "win32", reason="no such limit")
def test_a_crowd_that_does_not_fit_is_refused() -> None:
    """More clients than the system allows open files are refused before the first connects."""
    with pytest.raises(ValueError, match="open files"):
        crowd.room(10**10)


# ── a profile ────────────────────────────────────────────────────────────────────────────────────────────────────────


@on_a_loop
async def test_a_step_of_the_ladder_calls_less() -> None:
    """The tutorial's delivery takes several times the calls of the fast path's, and says whose they are."""
    found = await profile.profiles(("tutorial", "file-updates"), clients=20, rate=50, seconds=1.5)
    assert found["tutorial"].calls > 2.5 * found["file-updates"].calls
    assert "sse-starlette" in found["tutorial"].seconds
    assert "sse-starlette" not in found["file-updates"].seconds
    assert sum(found["tutorial"].shares.values()) == pytest.approx(1)
    assert set(ladder.LADDER) == set(profile.MAKE) - {"talking"}
    assert "tutorial: " in fleets.ladder_calls(found).alt


def test_a_profile_of_nothing_is_refused(tmp_path: Path) -> None:
    """Without deliveries, or without a file, there is nothing to divide by or to read."""
    with pytest.raises(RuntimeError, match="5 deliveries, and no profile"):
        profile.read("sse", tmp_path / "none", 5)


# ── balancers and caches ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("imitate", [pytest.param(False, marks=NEEDS_NGINX), True])
@on_a_loop
async def test_connections_are_dealt_out_and_streams_pass(imitate: bool) -> None:
    """Each of eight streams goes to the next of four servers, and what is published passes at once."""
    with contextlib.ExitStack() as ends:
        servers = [ends.enter_context(serve(sse.create_app(Feed()))) for _ in range(4)]
        front = ends.enter_context(proxies.balancer([s.url for s in servers], imitate=imitate))
        async with httpx.AsyncClient(base_url=front.url, **HTTP) as http, contextlib.AsyncExitStack() as streams:
            opened = [await streams.enter_async_context(http.stream("GET", "/events")) for _ in range(8)]
            assert [server.app.traffic.held for server in servers] == [2] * 4  # type: ignore[attr-defined]
            servers[0].app.feed.publish("news.txt")  # type: ignore[attr-defined]
            told = [stream for stream in opened if stream.headers["content-type"].startswith("text/event-stream")]
            assert len(told) == 8
            first = asyncio.ensure_future(anext(line async for line in opened[0].aiter_lines() if "news.txt" in line))
            await asyncio.wait_for(first, 20)


async def at_once(url: str, path: str, many: int) -> list[httpx.Response]:
    wide: dict[str, Any] = {**HTTP, "limits": httpx.Limits(max_connections=many)}
    async with httpx.AsyncClient(base_url=url, **wide) as http:
        return list(await asyncio.gather(*(http.get(path) for _ in range(many))))


@NEEDS_NGINX
@on_a_loop
async def test_a_cache_collapses_polls() -> None:
    """Of forty equal polls at once one reaches the server, and all have its answer; another cursor asks anew."""
    feed = Feed()
    feed.publish("a.txt")
    app = short_polling.create_app(feed)
    with serve(app) as server, nginx.cache(server.url, seconds=30) as front:
        answers = await at_once(front.url, "/updates?after=0", 40)
        assert app.traffic.requests == 1
        assert {answer.content for answer in answers} == {answers[0].content}
        assert b"a.txt" in answers[0].content
        await at_once(front.url, f"/updates?after={feed.cursor}", 3)
        assert app.traffic.requests == 2


@NEEDS_NGINX
@on_a_loop
async def test_a_cache_lock_holds_long_polls_back() -> None:
    """One long poll waits at the server for thirty clients, and all are answered when something is published."""
    feed = Feed()
    app = long_polling.create_app(feed)
    with serve(app) as server, nginx.cache(server.url, seconds=30) as front:
        asking = asyncio.create_task(at_once(front.url, f"/updates?after={feed.cursor}&wait=50", 30))
        await until(lambda: app.traffic.held == 1)
        feed.publish("b.txt")
        assert all(b"b.txt" in answer.content for answer in await asking)
        assert app.traffic.requests <= 3  # who comes after the answer, and before it is kept, asks once more


# ── a browser ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def service() -> Iterator[str]:
    with serve(file_updates.create_app(Feed())) as server:
        yield server.url


@NEEDS_BROWSER
@NEEDS_NGINX
def test_the_seventh_stream_waits_over_http_1(service: str) -> None:
    """Of eight streams of a page six open: what notebook 08 shows where there is no browser."""
    with nginx.balancer([service]) as front:
        assert browser.open_streams(front.url, 8) == ("http/1.1", browser.KNOWN["http/1.1"])


@NEEDS_BROWSER
@NEEDS_NGINX
def test_the_101st_stream_opens_over_http_2_and_the_129th_waits(service: str) -> None:
    """The limit is the server's: nginx allows 128 streams of a connection, and the browser takes them all."""
    with nginx.secured(service) as front:
        assert browser.open_streams(front.url, 140) == ("h2", browser.KNOWN["h2"])


def test_without_a_browser_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no Chromium is installed the text says what is missing."""
    monkeypatch.setattr(browser, "installed", lambda: None)
    with pytest.raises(browser.BrowserError, match="no Chromium"):
        browser.open_streams("http://127.0.0.1:9", 1)


# ── compression, TLS ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_is_compressed_is_all_there() -> None:
    """Each way's pieces, put together, are the events again; a piece is whole as soon as it is sent."""
    import zlib

    sent = compression.events(50)
    for compress in (compression.shared(), compression.shared(12, 5)):
        expand = zlib.decompressobj(wbits=-15)
        assert [expand.decompress(compress(event)) for event in sent] == sent
    assert [zlib.decompressobj(wbits=-15).decompress(compression.alone()(event)) for event in sent] == sent


def test_one_context_saves_what_each_alone_does_not() -> None:
    """Whatever the machine, one context takes less than half, and each event alone more than three quarters."""
    sent = compression.events(500)
    plain, alone, whole, small = (compression.compressed(way, sent).size for way in list(compression.ways())[:4])
    assert whole < 0.5 * plain < 0.75 * plain < alone < plain
    assert small < 1.1 * whole
    assert compression.events(500) == sent


def test_tls_adds_22_bytes_to_a_record() -> None:
    """The head, the type and the tag of TLS 1.3 (RFC 8446, section 5.2); a handshake goes both ways."""
    found = compression.secured(records=50)
    assert (found.version, found.record) == ("TLSv1.3", 22)
    assert found.up > 200
    assert found.down > 1000


# ── ports and descriptors ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.skipif(not sockets.can_narrow(), reason="needs Linux 6.3")
def test_an_address_has_so_many_connections_as_ports() -> None:
    """With 30 ports there are 30 connections at most, and another source address has as many of its own."""
    with sockets.listener() as place:
        before = sockets.descriptors()
        with sockets.connections(place, "127.0.0.1", 30, 40) as first:
            assert 10 < first <= 30  # somebody may listen on one of them
            assert sockets.descriptors() - before in range(first, first + 3)
            with sockets.connections(place, "127.0.0.2", 30, 40) as second:
                assert 10 < second <= 30
        with sockets.connections(place, "127.0.0.3", 30, 5) as few:
            assert few == 5


def test_the_range_of_ports_is_read() -> None:
    """A range has a first and a last port, and an experiment 100 ports at most."""
    first, last = sockets.port_range()
    assert 1024 <= first < last < 65536
    assert sockets.ports() == last - first + 1
    with pytest.raises(ValueError, match="1 to 100 ports"), sockets.connections(("127.0.0.1", 9), "127.0.0.1", 101, 1):
        pass


# ── workers ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("redis", [True, False])
def test_a_group_shares_and_cursors_do_not(redis: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a group each of four workers gets every fourth entry, with a cursor each gets all; in Redis as by a queue."""
    if redis and not workers.has_redis():
        pytest.skip("needs redis-server or valkey-server, and the extra `scale`")
    monkeypatch.setattr(workers, "has_redis", lambda: redis)
    engine, group, cursors = workers.group_and_cursors(4, len(ALL))
    assert engine == ("Redis" if redis else "a queue")
    assert [len(got) for got in group] == [3] * 4
    assert sorted(number for got in group for number in got) == ALL
    assert cursors == [ALL] * 4


@pytest.mark.parametrize("redis", [True, False])
@on_a_loop
async def test_clients_of_every_worker_hear_a_shared_log(redis: bool) -> None:
    """What is published by one worker reaches the clients of all, whose cursors mean the same everywhere."""
    if redis and not workers.has_redis():
        pytest.skip("needs redis-server or valkey-server, and the extra `scale`")
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as ends:
        patch.setattr(workers, "has_redis", lambda: redis)
        logs = ends.enter_context(workers.shared_log(3))
        assert logs.name == ("Redis Streams" if redis else "one feed in memory")
        servers = [ends.enter_context(serve(sse.create_app(feed))) for feed in logs.feeds]
        start = logs.feeds[0].cursor
        for number in ALL:
            logs.feeds[number % 3].publish(str(number))
        for server in servers:
            heard: list[int] = []
            async with asyncio.timeout(20), contextlib.aclosing(clients.sse(server.url, start)) as news:
                async for update in news:
                    assert isinstance(update, clients.Update)
                    heard.append(int(update.path))
                    if len(heard) == len(ALL):
                        break
            assert heard == ALL


# ── figures ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_figures_tell_their_numbers(tmp_path: Path) -> None:
    """Each figure has a text with the numbers that it draws, and can be written."""
    plan = capacity(1_000_000, 1.0, 0.2)
    made: dict[str, Picture] = {
        "11.0 ms at 50": fleets.last_client("t", {"sse": {50: 0.011, 100: 0.02}}, {"sse": (0.001, 2e-4)}, tag="LIVE"),
        "98 % at 0.001/s": fleets.heartbeat_shares(15.0, {0.001: 0.98}),
        "none: 200 bytes": fleets.compressors([compression.Compressed("none", 200, 0, 0),
                                               compression.Compressed("gzip", 90, 1e-5, 1e5)]),
        "clients: 0.50 and": fleets.tornado(plan, sensitivity(plan), "processes", 2.0),
        "SSE: 1 cores for 1,000": fleets.plans({"SSE": [capacity(100, 1.0, 1.0), capacity(1000, 1.0, 1.0)]}, title="t"),
    }  # fmt: skip
    for words, picture in made.items():
        assert words in picture.alt
        picture.save(tmp_path / "figure.png")
