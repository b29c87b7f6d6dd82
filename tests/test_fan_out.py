"""The fast path: what sse.py promises holds here too, with and without coalescing, for quick clients and for slow ones.

Most of it runs in virtual time, where a slow reader, a cut and a full buffer are exact.
"""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.types import Message, Receive, Scope, Send

from lab import clients
from lab.clients import Reset, Retry, Update
from lab.clients.event_stream import EventStreamParser
from lab.virtual import Link, Net, run_virtual, serve
from servers import file_updates, sse
from servers.background import ServerError
from servers.background import serve as serve_live
from servers.fan_out import BACKLOG, WINDOW, FanOut
from servers.feed import BATCH, Feed
from servers.file_updates import FileUpdates
from servers.service import Service
from tests.support import Raw, events, on_a_loop, tasks_of, until
from tests.test_faults import (
    HEARTBEAT,
    UPDATES,
    Fault,
    Model,
    any_fault,
    assert_promise,
    live_through,
    same_log,
    scripts,
)

DELAY = 0.01  # s one way


def plain(feed: Feed) -> FileUpdates:
    return file_updates.create_app(feed, heartbeat=HEARTBEAT, retry=300, coalesce=False)


def coalescing(feed: Feed) -> FileUpdates:
    return file_updates.create_app(feed, heartbeat=HEARTBEAT, retry=300)


def follow(url: str, cursor: str, retry: Retry) -> Any:
    return clients.sse(url, cursor, heartbeat=HEARTBEAT, retry=retry)


FAILING = {"run": "round", "catch_up": "tell", "serve_alone": "tell"}


@pytest.mark.parametrize("part", FAILING)
@on_a_loop
async def test_what_fails_is_broken_off(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No stream stays open and silent: its clients see the end, come back, and are told all of it."""
    feed = Feed(epoch="e")
    app = plain(feed)
    seen: list[list[str]] = [[], []]

    async def read(number: int, cursor: str) -> None:
        retry = Retry(base=0.01, cap=0.05)
        async with contextlib.aclosing(clients.sse(server.url, cursor, retry=retry)) as stream:
            async for news in stream:
                assert isinstance(news, Update)
                seen[number].append(news.path)

    method = FAILING[part]
    works, left = getattr(app.fan_out, method), [1]

    async def fails_once(*given: Any) -> None:
        if left and left.pop():
            raise MemoryError("once")
        await works(*given)

    feed.publish("old")
    server = await asyncio.to_thread(serve_live, Alone(app) if part == "serve_alone" else app)
    if part == "catch_up":
        monkeypatch.setattr(app.fan_out, method, fails_once)
    reading = [asyncio.create_task(read(number, "e-0")) for number in range(2)]
    try:
        await until(lambda: seen == [["old"]] * 2)
        monkeypatch.setattr(app.fan_out, method, fails_once)
        for name in ("a", "b", "c"):
            feed.publish(name)
            await until(lambda: all(len(paths) == feed.head for paths in seen))
    finally:
        for task in reading:
            task.cancel()
        await asyncio.wait(reading)
    assert seen == [["old", "a", "b", "c"]] * 2
    with pytest.raises(ServerError, match="a stream of events failed: once"):
        await asyncio.to_thread(server.stop)


both = pytest.mark.parametrize("make", [plain, coalescing])


class Alone:
    """The application behind something that hides the transport, as another server would."""

    def __init__(self, app: Service) -> None:
        self.app, self.closing = app, app.closing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def sent(message: Message) -> None:
            await send(message)

        await self.app(scope, receive, sent)


# --- whatever the network and the server do ---

way = pytest.mark.parametrize("make", [plain, lambda feed: Alone(coalescing(feed))], ids=["fast", "alone"])


@way
@settings(max_examples=12, deadline=None)
@given(faults=scripts(same_log))
def test_with_enough_history_every_update_arrives_once_in_order(
    make: Callable[[Feed], Any], faults: dict[int, list[Fault]]
) -> None:
    """Through cuts, black holes and restarts, a client that resumes gets every update, once, in order, and no reset."""
    seen, last = live_through(Model(make, follow), faults)
    assert [news.seq for news in seen if isinstance(news, Update)] == list(range(1, UPDATES + 1))
    assert not any(isinstance(news, Reset) for news in seen)
    assert_promise(seen, last)


@way
@settings(max_examples=12, deadline=None)
@given(faults=scripts(any_fault), history=st.integers(min_value=1, max_value=6))
def test_a_hole_is_always_announced(make: Callable[[Feed], Any], faults: dict[int, list[Fault]], history: int) -> None:
    """With little history, or another log, whatever is missing is announced by a reset, and the rest is in order."""
    seen, last = live_through(Model(make, follow), faults, history)
    assert_promise(seen, last)


@both
def test_a_stream_survives_a_cut_at_every_byte(make: Callable[[Feed], FileUpdates]) -> None:
    """Wherever in the response the connection breaks, the client resumes without a gap and without a duplicate.

    Half of the response is history, the other half is written by the fast path.
    """

    async def main(net: Net) -> dict[int, list[int]]:
        feed, results = Feed(epoch="e"), dict[int, list[int]]()
        async with serve(make(feed)) as server:

            async def read() -> list[int]:
                cursor, numbers = feed.cursor, list[int]()
                feed.publish("early")
                stream = clients.sse(server.url, cursor, heartbeat=HEARTBEAT, retry=Retry(base=0))
                asyncio.get_running_loop().call_later(10 * DELAY, feed.publish, "late")
                async with asyncio.timeout(30), contextlib.aclosing(stream):
                    async for news in stream:
                        assert isinstance(news, Update)
                        numbers.append(news.seq - int(cursor.split("-")[1]))
                        if len(numbers) == 2:
                            break
                return numbers

            results[-1] = await read()
            before = net.bytes["down"]
            results[-1] = await read()
            net.transcript = None
            for offset in range(net.bytes["down"] - before + 20):  # the numbers grow by a digit or two
                net.link.cut_after(offset)
                results[offset] = await read()
                net.link.cut()
        return results

    results = run_virtual(main, link=Link(delay=DELAY), wall=110)
    assert len(results) > 300
    assert {offset: numbers for offset, numbers in results.items() if numbers != [1, 2]} == {}


# --- several clients, some of them slow ---


@dataclass
class Reader(asyncio.Protocol):
    """A client that reads, and stops reading, when it is told to; what it got is parsed at the end."""

    cursor: str
    received: bytearray = field(default_factory=bytearray)
    arrivals: list[float] = field(default_factory=list)
    gone: bool = False

    @classmethod
    async def open(cls, net: Net, cursor: str, path: str = "/events") -> "Reader":
        loop = asyncio.get_running_loop()
        _, reader = await loop.create_connection(lambda: cls(cursor), "server", 80)
        return reader

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.write(f"GET /events?after={self.cursor} HTTP/1.1\r\nHost: server\r\n\r\n".encode())

    def data_received(self, data: bytes) -> None:
        self.received += data
        self.arrivals.append(asyncio.get_running_loop().time())

    def connection_lost(self, error: Exception | None) -> None:
        self.gone = True

    def body(self) -> bytes:
        """The body as it came, out of its chunks; all of them must be whole, but for the last."""
        _, _, rest = bytes(self.received).partition(b"\r\n\r\n")
        body = b""
        while rest:
            size, found, rest = rest.partition(b"\r\n")
            if not found or len(rest) < int(size, 16) + 2:
                break
            body += rest[: int(size, 16)]
            assert rest[int(size, 16) : int(size, 16) + 2] == b"\r\n"
            rest = rest[int(size, 16) + 2 :]
        return body

    def news(self) -> list[tuple[str, int]]:
        """The events: type and number of the cursor."""
        events = EventStreamParser().feed(self.body())
        return [(event.type, int(event.last_event_id.split("-")[1])) for event in events]

    @property
    def whole(self) -> bool:
        """Whether the response has come to its end."""
        return self.received.endswith(b"\r\n0\r\n\r\n")


def virtually(
    main: Callable[[Net, FileUpdates, Feed], Coroutine[Any, Any, None]],
    *,
    make: Callable[[Feed], FileUpdates] = plain,
    link: Link | None = None,
    history: int = 10_000,
) -> None:
    """Run `main` beside a server."""

    async def with_server(net: Net) -> None:
        feed = Feed(epoch="e", history=history)
        app = make(feed)
        async with serve(app):
            await main(net, app, feed)

    run_virtual(with_server, link=link or Link(delay=DELAY), wall=110)


def test_the_stream_is_that_of_sse_to_the_byte() -> None:
    """Without coalescing, the body equals the one of sse.py for the same log."""

    async def bodies(net: Net) -> list[bytes]:
        both = []
        for make in (plain, lambda feed: sse.create_app(feed, heartbeat=HEARTBEAT, retry=300)):
            feed = Feed(epoch="e")
            feed.publish("before")
            async with serve(make(feed)):
                reader = await Reader.open(net, "0")
                await asyncio.sleep(1)
                feed.publish("after")
                await asyncio.sleep(0.5)
                both.append(reader.body())
                reader.transport.abort()
        return both

    ours, theirs = (body.replace(b"\r", b"") for body in run_virtual(bodies, link=Link(delay=DELAY)))
    stamp = b'"published":'
    assert [line.partition(stamp)[0] for line in ours.split(b"\n")] == [
        line.partition(stamp)[0] for line in theirs.split(b"\n")
    ]


def test_a_single_update_takes_one_transit_and_one_write_for_each_client() -> None:
    """What comes alone is written at once, in one piece, to everybody; no task runs for a client at the head."""

    async def main(net: Net, app: FileUpdates, feed: Feed) -> None:
        readers = [await Reader.open(net, feed.cursor) for _ in range(20)]
        await asyncio.sleep(0.1)
        assert len(app.fan_out.fast) == 20
        for reader in readers:
            reader.arrivals.clear()
        now = asyncio.get_running_loop().time()
        feed.publish("a")
        await asyncio.sleep(1)
        assert [reader.arrivals for reader in readers] == 20 * [[pytest.approx(now + DELAY)]]
        assert app.traffic.delivered == 20

    virtually(main)


def test_what_comes_within_the_window_is_joined() -> None:
    """At a high rate there is one write each WINDOW, and none of the updates is later than that."""

    async def main(net: Net, app: FileUpdates, feed: Feed) -> None:
        reader = await Reader.open(net, feed.cursor)
        await asyncio.sleep(0.1)
        reader.arrivals.clear()
        for number in range(1000):  # in a second
            feed.publish(f"{number}")
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.1)
        assert [number for _, number in reader.news()] == list(range(1, 1001))
        assert len(reader.arrivals) == pytest.approx(1 / WINDOW, rel=0.05)

    virtually(main)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), files=st.integers(1, 8))
def test_coalescing_keeps_the_last_update_of_each_path_in_the_order_of_the_log(seed: int, files: int) -> None:
    """Whatever is left out of a stream is followed in it by a later update of the same path; ids only grow."""

    async def main(net: Net, app: FileUpdates, feed: Feed) -> None:
        rng = random.Random(seed)
        readers = [await Reader.open(net, feed.cursor)]
        log: dict[int, str] = {}
        for _ in range(40):
            for _ in range(rng.choice((1, 1, 2, 30))):
                update = feed.publish(f"{rng.randrange(files)}")
                log[update.seq] = update.path
            if rng.random() < 0.2:
                readers.append(await Reader.open(net, "e-0"))
            await asyncio.sleep(rng.choice((0, 0.001, 0.02)))
        await asyncio.sleep(0.2)
        final = {path: seq for seq, path in log.items()}
        for reader in readers:
            numbers = [number for kind, number in reader.news() if kind == "update"]
            assert numbers == sorted(set(numbers))
            shown = {log[number]: number for number in numbers}
            assert shown == final  # each path's last update came, and nothing of that path after it
        assert app.coalesced

    virtually(main, make=coalescing)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), history=st.sampled_from([10, 400, 10_000]))
def test_slow_clients_leave_the_fast_path_and_come_back_without_hole_or_duplicate(seed: int, history: int) -> None:
    """Clients that stop reading and go on at any moment get everything once and in order, or a reset where it is gone;
    the server keeps no more for one of them than its backlog, and the others never wait."""

    async def main(net: Net, app: FileUpdates, feed: Feed) -> None:
        rng = random.Random(seed)
        readers = [await Reader.open(net, feed.cursor) for _ in range(4)]
        quick = await Reader.open(net, feed.cursor)
        await asyncio.sleep(0.1)
        for number in range(150):
            for _ in range(rng.choice((1, 5, 40))):
                feed.publish(f"{number}/x{'x' * rng.randrange(200)}")
            reader = rng.choice(readers)
            rng.choice((reader.transport.pause_reading, reader.transport.resume_reading, lambda: None))()
            await asyncio.sleep(rng.choice((0.001, 0.02, 0.1)))
            unsent = [end.get_write_buffer_size() for c in net.connections for end in c.ends]
            assert max(unsent) < 2 * BACKLOG + BATCH * 500
        for reader in readers:
            reader.transport.resume_reading()
        await asyncio.sleep(2)
        assert len(app.fan_out.fast) == 5
        assert all(client.task is None for client in app.fan_out.fast.values())
        for reader in [*readers, quick]:
            position = 0
            for kind, number in reader.news():
                assert number == position + 1 if kind == "update" else number > position, (kind, position, number)
                position = number
            assert position == feed.head
        if history == 10_000:
            assert app.traffic.resets == 0
            assert app.traffic.delivered == 5 * feed.head
        if history > 10:
            assert {kind for kind, _ in quick.news()} == {"update"}

    virtually(main, history=history, link=Link(delay=DELAY, window=16_384))


def test_a_slow_client_is_off_the_fast_path_while_it_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond its backlog a client is served by a task of its own; when it reads on, it comes back at once."""
    left: list[int] = []
    leave = FanOut.leave

    def counted(fan_out: FanOut, transport: asyncio.Transport, position: int) -> None:
        left.append(position)
        leave(fan_out, transport, position)

    monkeypatch.setattr(FanOut, "leave", counted)

    async def main(net: Net, app: FileUpdates, feed: Feed) -> None:
        async def publish(times: int) -> None:
            for _ in range(times):
                feed.publish("x" * 100)
                await asyncio.sleep(0.002)

        slow, quick = [await Reader.open(net, feed.cursor) for _ in range(2)]
        await asyncio.sleep(0.1)
        slow.transport.pause_reading()
        await publish(2000)
        assert len(app.fan_out.fast) == 1
        assert len(quick.news()) > 1990
        slow.transport.resume_reading()
        await publish(500)
        assert len(app.fan_out.fast) == 2
        assert len(left) == 1
        await asyncio.sleep(1)
        assert slow.news() == quick.news() == [("update", number) for number in range(1, 2501)]

    virtually(main)


def test_a_burst_is_coalesced_for_quick_clients_and_for_slow_ones() -> None:
    """Of a hundred updates of three paths, published at once, three go out, however a client comes by them."""

    async def main(net: Net, app: FileUpdates, feed: Feed) -> None:
        quick = await Reader.open(net, feed.cursor)
        await asyncio.sleep(0.1)
        for number in range(100):
            feed.publish(f"{number % 3}")
        late = await Reader.open(net, "e-0")
        await asyncio.sleep(0.1)
        assert quick.news() == late.news() == [("update", number) for number in (98, 99, 100)]
        assert app.traffic.delivered == 6

    virtually(main, make=coalescing)


def test_a_burst_beyond_the_history_resets_everybody() -> None:
    """When more is published at once than the history holds, each client gets one reset, and goes on from there."""

    async def main(net: Net, app: FileUpdates, feed: Feed) -> None:
        readers = [await Reader.open(net, feed.cursor) for _ in range(3)]
        await asyncio.sleep(0.1)
        for _ in range(8):
            feed.publish("a")
        await asyncio.sleep(0.1)
        feed.publish("b")
        await asyncio.sleep(0.1)
        assert [reader.news() for reader in readers] == 3 * [[("reset", 8), ("update", 9)]]
        assert app.traffic.resets == 3

    virtually(main, history=5)


def test_a_client_ahead_of_the_round_gets_nothing_twice() -> None:
    """Who opens with a cursor that the others are only about to be told gets what is later than it, once."""

    async def main(net: Net, app: FileUpdates, feed: Feed) -> None:
        first = await Reader.open(net, feed.cursor)
        await asyncio.sleep(0.1)
        feed.publish("a")
        await asyncio.sleep(0)
        second = Reader("e-3")
        asyncio.get_running_loop().create_task(_connect(second))
        await asyncio.sleep(3 * DELAY - WINDOW / 2)
        for _ in range(2):  # a round now, and the next a window later: the request comes between
            feed.publish("b")
            await asyncio.sleep(0.0001)
        await asyncio.sleep(1)
        feed.publish("c")
        await asyncio.sleep(0.1)
        assert first.news() == [("update", number) for number in range(1, 5)]
        assert second.news() == [("update", 4)]
        assert second.body().count(b"id: ") == 2

    virtually(main)


async def _connect(reader: Reader) -> None:
    await asyncio.get_running_loop().create_connection(lambda: reader, "server", 80)


def test_a_quiet_stream_has_one_heartbeat_for_all() -> None:
    """After a heartbeat without news everybody gets the comment at the same moment; news put it off."""

    async def main(net: Net, app: FileUpdates, feed: Feed) -> None:
        readers = [await Reader.open(net, feed.cursor) for _ in range(3)]
        await asyncio.sleep(0.1)
        for reader in readers:
            reader.arrivals.clear()
        feed.publish("a")
        start = asyncio.get_running_loop().time()
        await asyncio.sleep(2.5 * HEARTBEAT)
        expected = [start + DELAY + n * HEARTBEAT for n in range(3)]
        assert [reader.arrivals for reader in readers] == 3 * [pytest.approx(expected)]
        assert readers[0].body().endswith(b": heartbeat\n\n: heartbeat\n\n")

    virtually(main)


@pytest.mark.parametrize("wrap", [lambda app: app, Alone])
def test_a_stop_ends_every_stream_cleanly(wrap: Callable[[Service], Any]) -> None:
    """At the end of the server the body of each response is complete, also that of a client that was behind."""

    async def main(net: Net) -> None:
        feed = Feed(epoch="e")
        async with serve(wrap(coalescing(feed))):
            readers = [await Reader.open(net, feed.cursor) for _ in range(3)]
            await asyncio.sleep(0.1)
            readers[0].transport.pause_reading()
            for number in range(1000):
                feed.publish(f"{number}/{'x' * 100}")
            await asyncio.sleep(0.2)
            readers[0].transport.resume_reading()
        assert [reader.whole for reader in readers] == [True, True, True]
        numbers = [number for _, number in readers[1].news()]
        assert numbers == list(range(1, 1001))
        assert not readers[1].body().endswith(b"id: e-1000\n\n"), "the end itself is no news"

    run_virtual(main, link=Link(delay=0.001))


def test_who_was_dismissed_meanwhile_does_not_leave_again() -> None:
    """A round that comes to a client that is gone already goes on with the others."""

    async def main(net: Net, app: FileUpdates, feed: Feed) -> None:
        readers = [await Reader.open(net, feed.cursor) for _ in range(2)]
        await asyncio.sleep(1)
        gone, client = next(iter(app.fan_out.fast.items()))
        app.fan_out.dismiss(client)
        app.fan_out.leave(gone, 0)
        assert client.task is None
        feed.publish("a")
        await asyncio.sleep(1)
        assert sorted(len(reader.news()) for reader in readers) == [0, 1]

    virtually(main)


# --- live ---


@contextlib.asynccontextmanager
async def streams(server: Any, number: int) -> AsyncIterator[list[Any]]:
    """That many open streams."""
    async with contextlib.AsyncExitStack() as stack:
        yield [await stack.enter_async_context(events(server)) for _ in range(number)]


@on_a_loop
async def test_live_clients_are_on_the_fast_path_and_free_their_slot_when_they_leave() -> None:
    """With uvicorn as it is, all clients are written to directly; one that leaves is forgotten at once."""
    feed = Feed(epoch="e")
    app = coalescing(feed)
    with serve_live(app) as server:
        async with streams(server, 5) as open_streams:
            for stream in open_streams:
                assert await stream.block() == "retry: 300"
                assert await stream.block() == "id: e-0"
            await until(lambda: len(app.fan_out.fast) == 5)
            feed.publish("a")
            assert [(await stream.update())["seq"] for stream in open_streams] == [1, 1, 1, 1, 1]
            assert sum("catch_up" in name or "serve_alone" in name for name in tasks_of(server)) == 0
            assert app.traffic.held == 5
        await until(lambda: not app.fan_out.fast and app.traffic.held == 0)


@on_a_loop
async def test_a_live_stop_drains() -> None:
    """A stop of the server ends open streams as any response ends, and a new server goes on with the same log."""
    feed = Feed(epoch="e")
    app = coalescing(feed)
    for number in range(2):  # the same application, served again
        server = serve_live(app)
        async with events(server) as stream:
            await stream.block()
            feed.publish(f"{number}")
            await until(lambda: app.traffic.delivered)
            await asyncio.to_thread(server.stop)
            assert b"event: update" in await stream.rest()
        app.traffic.delivered = 0


@on_a_loop
async def test_http_1_0_and_head_take_the_slow_path() -> None:
    """An old client is served all the same, by ordinary sends; a HEAD gets the head, and no stream."""
    feed = Feed(epoch="e")
    app = coalescing(feed)
    with serve_live(app) as server:
        with Raw(server) as raw:
            raw.send(b"GET /events HTTP/1.0\r\nHost: x\r\n\r\n")
            await raw.read_until(b"id: e-0")
            feed.publish("a")
            assert b"event: update" in await raw.read_until(b'"seq":1')
            assert not app.fan_out.fast
        async with httpx.AsyncClient(trust_env=False) as client:
            assert (await client.head(f"{server.url}/events")).status_code == 200


@on_a_loop
async def test_bad_cursors_are_refused() -> None:
    """A malformed cursor and two cursors are 400, before the stream begins."""
    with serve_live(coalescing(Feed())) as server:
        async with httpx.AsyncClient(base_url=server.url, trust_env=False) as client:
            assert (await client.get("/events", params={"after": "x"})).status_code == 400
            assert (await client.get("/events?after=0&after=1")).status_code == 400
            assert (await client.get("/events", params={"after": "x"})).status_code == 400
