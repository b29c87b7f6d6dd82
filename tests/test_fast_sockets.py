"""The WebSocket's fast path: what is its own. The contract is in test_websocket.py, over both paths."""

import asyncio
import contextlib
import json
import re
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from websockets.frames import Frame, Opcode

from lab.virtual import Link, Net, run_virtual
from lab.virtual import serve as serve_virtually
from servers import websocket
from servers.background import ServerError, serve
from servers.fan_out import BACKLOG, WINDOW, FanOut, sockets
from servers.feed import Feed
from servers.service import Service
from tests.support import Raw, closed, frame, on_a_loop, received, socket_to, tasks_of, until
from tests.test_fan_out import Alone

DELAY = 0.01  # s one way


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[sockets.SocketFanOut]:
    """The fan-outs that are made."""
    them = list[sockets.SocketFanOut]()
    init = sockets.SocketFanOut.__init__

    def noted(self: sockets.SocketFanOut, *given: Any) -> None:
        init(self, *given)
        them.append(self)

    monkeypatch.setattr(sockets.SocketFanOut, "__init__", noted)
    return them


class Reader(asyncio.Protocol):
    """A client that reads, and stops reading, when it is told to; what it got is parsed at the end."""

    def __init__(self, after: str) -> None:
        self.after, self.received = after, bytearray()
        self.arrivals: list[float] = []
        self.gone = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.write(Raw.HANDSHAKE.replace(b"/ws", f"/ws?after={self.after}".encode()))

    def data_received(self, data: bytes) -> None:
        self.received += data
        self.arrivals.append(asyncio.get_running_loop().time())

    def connection_lost(self, error: Exception | None) -> None:
        self.gone = True

    def say(self, number: int, *prefixes: str) -> None:
        """Send a filter."""
        self.transport.write(frame(json.dumps({"type": "filter", "id": number, "paths": prefixes}).encode()))

    def frames(self) -> list[tuple[int, bytes]]:
        """Opcode and payload of each whole frame."""
        _, _, rest = bytes(self.received).partition(b"\r\n\r\n")
        found = list[tuple[int, bytes]]()
        while len(rest) >= 2:
            size, at = rest[1], 2
            if size > 125:
                at = 4 if size == 126 else 10
                size = int.from_bytes(rest[2:at])
            if len(rest) < at + size:
                break
            found.append((rest[0] & 15, rest[at : at + size]))
            rest = rest[at + size :]
        return found

    def messages(self) -> list[Any]:
        """The texts, read."""
        return [json.loads(payload) for opcode, payload in self.frames() if opcode == Opcode.TEXT]


def virtually(
    main: Callable[[Net, Service, Feed], Coroutine[Any, Any, None]], *, link: Link | None = None, history: int = 10_000
) -> None:
    """Run `main` beside a server."""

    async def with_server(net: Net) -> None:
        feed = Feed(epoch="e", history=history)
        app = websocket.create_app(feed, fast=True)
        async with serve_virtually(app):
            await main(net, app, feed)

    run_virtual(with_server, link=link or Link(delay=DELAY), wall=110)


async def reader(after: str) -> Reader:
    """One more client."""
    _, found = await asyncio.get_running_loop().create_connection(lambda: Reader(after), "server", 80)
    return found


def test_every_byte_is_that_of_the_readable_server() -> None:
    """From the handshake on, with history, a gap and a filter, both servers write the same."""

    async def main(net: Net) -> list[bytes]:
        both = []
        for fast in (False, True):
            feed = Feed(epoch="e", history=3)
            async with serve_virtually(websocket.create_app(feed, fast=fast)):
                for name in ("a", "b", "c", "d"):
                    feed.publish(name)
                for after in ("0", "e-0", "e-4", "e-9", "f-1"):
                    client = await reader(after)
                    await asyncio.sleep(1)
                    feed.publish("x" * 200)
                    await asyncio.sleep(1)
                    client.say(1, "y")
                    await asyncio.sleep(1)
                    feed.publish("y")
                    await asyncio.sleep(1)
                    both.append(re.sub(rb'"published":[\d.]+|date: [^\r]+', b"", bytes(client.received)))
                    client.transport.abort()
        return both

    bodies = run_virtual(main, link=Link(delay=DELAY))
    assert bodies[:5] == bodies[5:]
    assert all(body.count(b"updates") >= 2 for body in bodies)


def test_an_update_is_one_frame_and_one_write_for_each_client(
    made: list[sockets.SocketFanOut], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twenty clients at the head get the frame at the same moment; it is made once, and no task runs for any."""
    encoded: list[bytes] = []
    serialize = Frame.serialize

    def counted(self: Frame, **options: Any) -> bytes:
        if self.opcode == Opcode.TEXT and b'"updates"' in bytes(self.data):
            encoded.append(bytes(self.data))
        return serialize(self, **options)

    monkeypatch.setattr(Frame, "serialize", counted)

    async def main(net: Net, app: Service, feed: Feed) -> None:
        readers = [await reader(feed.cursor) for _ in range(20)]
        await asyncio.sleep(0.1)
        assert len(made[0].fast) == 20
        for each in readers:
            each.arrivals.clear()
        now = asyncio.get_running_loop().time()
        feed.publish("a")
        await asyncio.sleep(1)
        assert [each.arrivals for each in readers] == 20 * [[pytest.approx(now + DELAY)]]
        assert (app.traffic.delivered, app.traffic.held, app.traffic.requests) == (20, 20, 20)
        assert len(encoded) == 1

    virtually(main)


@pytest.mark.parametrize("moment", [0, WINDOW / 2, WINDOW, 2 * WINDOW])
def test_a_filter_that_comes_during_a_round_holds_from_its_cursor_on(
    moment: float, made: list[sockets.SocketFanOut], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever in a round of many turns it comes: all before its cursor, nothing twice, and then what it wants."""
    monkeypatch.setattr("servers.fan_out.TURN", 1)

    async def main(net: Net, app: Service, feed: Feed) -> None:
        readers = [await reader(feed.cursor) for _ in range(12)]
        await asyncio.sleep(1)
        for number, each in enumerate(readers):
            each.say(number, "a")
        await asyncio.sleep(DELAY - moment)
        for number in range(60):
            feed.publish("ab"[number % 2] + f"{number}")
            await asyncio.sleep(WINDOW / 3)
        await asyncio.sleep(1)
        assert not made[0].fast
        for number, each in enumerate(readers):
            hello, *messages = each.messages()
            assert hello["type"] == "hello"
            acknowledged = next(m for m in messages if m["type"] == "filtered")
            assert acknowledged["id"] == number
            start = int(acknowledged["cursor"].split("-")[1])
            got = [update["seq"] for m in messages if m["type"] == "updates" for update in m["updates"]]
            assert got == [n for n in range(1, 61) if n <= start or n % 2]

    virtually(main)


def test_slow_clients_leave_the_fast_path_and_come_back_without_hole_or_duplicate(
    made: list[sockets.SocketFanOut],
) -> None:
    """Who reads nothing for a while is kept no more than a backlog for, and gets everything in order when it reads on;
    one that sends a filter meanwhile obeys the same rule, and the others never wait."""

    async def main(net: Net, app: Service, feed: Feed) -> None:
        slow, choosy, quick = [await reader(feed.cursor) for _ in range(3)]
        await asyncio.sleep(0.1)
        slow.transport.pause_reading()
        choosy.transport.pause_reading()
        for number in range(2000):
            feed.publish(f"{number}/{'x' * 100}")
            await asyncio.sleep(0.002)
            if number == 1500:
                choosy.say(1, "19")
            unsent = [end.get_write_buffer_size() for c in net.connections for end in c.ends]
            assert max(unsent) < 3 * BACKLOG
        assert len(made[0].fast) == 1
        assert quick.messages()[-1]["cursor"] > "e-1990"
        for each in (slow, choosy):
            each.transport.resume_reading()
        await asyncio.sleep(2)
        assert len(made[0].fast) == 2
        for each in (slow, quick):
            seqs = [update["seq"] for m in each.messages()[1:] for update in m["updates"]]
            assert seqs == list(range(1, 2001))
        start = next(int(m["cursor"][2:]) for m in choosy.messages() if m["type"] == "filtered")
        seqs = [update["seq"] for m in choosy.messages() if m["type"] == "updates" for update in m["updates"]]
        assert seqs == [n for n in range(1, 2001) if n <= start or f"{n - 1}".startswith("19")]
        assert app.traffic.resets == 0

    virtually(main, link=Link(delay=DELAY, window=16_384))


def test_a_burst_beyond_the_history_resets_everybody() -> None:
    """When more is published at once than the history holds, each client gets one reset, and goes on from there."""

    async def main(net: Net, app: Service, feed: Feed) -> None:
        readers = [await reader(feed.cursor) for _ in range(3)]
        await asyncio.sleep(0.1)
        for _ in range(8):
            feed.publish("a")
        await asyncio.sleep(0.1)
        feed.publish("b")
        await asyncio.sleep(0.1)
        for each in readers:
            assert [(m["type"], m["cursor"]) for m in each.messages()[1:]] == [("reset", "e-8"), ("updates", "e-9")]
        assert app.traffic.resets == 3

    virtually(main, history=5)


def test_a_stop_says_1001_behind_all_messages_also_to_who_is_behind() -> None:
    """Each client is told that the server goes, by one write where nothing waits; nothing comes after it."""

    async def main(net: Net) -> None:
        feed = Feed(epoch="e")
        async with serve_virtually(websocket.create_app(feed, fast=True)):
            readers = [await reader(feed.cursor) for _ in range(3)]
            await asyncio.sleep(0.1)
            readers[0].transport.pause_reading()
            for number in range(1000):
                feed.publish(f"{number}/{'x' * 100}")
            await asyncio.sleep(0.2)
            readers[0].transport.resume_reading()
        for each in readers:
            assert each.frames()[-1] == (Opcode.CLOSE, (1001).to_bytes(2))
        assert [u["seq"] for m in readers[1].messages()[1:] for u in m["updates"]] == list(range(1, 1001))

    run_virtual(main, link=Link(delay=0.001))


@on_a_loop
async def test_a_client_costs_one_task_and_a_stop_is_quick() -> None:
    """Fifty silent clients are fifty tasks and one; a stop ends them all within its 2 s, 1001 for each."""
    app = websocket.create_app(Feed(), fast=True)
    with serve(app) as server:
        before = tasks_of(server)
        async with contextlib.AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(socket_to(server)) for _ in range(50)]
            for client in clients:
                await received(client)
            await until(lambda: len(tasks_of(server)) == len(before) + 51)
            async with asyncio.timeout(4):
                await asyncio.to_thread(server.stop)
            assert [await closed(client) for client in clients] == 50 * [(1001, "")]
    assert app.traffic.held == 0


@on_a_loop
async def test_what_hides_the_connection_is_served_readably(made: list[sockets.SocketFanOut]) -> None:
    """Behind something that wraps `send` every client has its own task and gets the same."""
    feed = Feed(epoch="e")
    with serve(Alone(websocket.create_app(feed, fast=True))) as server:
        async with socket_to(server, "after=0") as client:
            assert (await received(client))["type"] == "hello"
            feed.publish("a")
            assert (await received(client))["updates"][0]["path"] == "a"
            assert not made[0].fast


@on_a_loop
async def test_what_fails_is_broken_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """No socket stays open and silent when a round fails: its client sees the end, and comes back."""
    feed = Feed(epoch="e")
    works, left = FanOut.round, [1]

    async def fails_once(self: FanOut) -> None:
        if left and left.pop():
            raise MemoryError("once")
        await works(self)

    monkeypatch.setattr(FanOut, "round", fails_once)
    server = serve(websocket.create_app(feed, fast=True))
    with Raw(server) as client:
        client.send(Raw.HANDSHAKE)
        await client.read_until(b"hello")
        feed.publish("a")
        with contextlib.suppress(ConnectionError):
            assert b"updates" not in await client.read_all()
    async with socket_to(server, "after=e-0") as again:
        await received(again)
        assert (await received(again))["updates"][0]["path"] == "a"
    with pytest.raises(ServerError, match="a stream of events failed: once"):
        await asyncio.to_thread(server.stop)
