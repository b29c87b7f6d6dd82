"""The fast path of both kinds of polling: no client can tell it from the readable servers, but by what it costs.

What the contract says of an answer is in test_pulls.py, test_short_polling.py and test_long_polling.py, over both.
"""

import asyncio
import contextlib
import functools
import re
import threading
from collections.abc import Callable
from typing import Any

import pytest

from lab.virtual import Link, Net, run_virtual
from lab.virtual import serve as serve_virtually
from servers import long_polling, on_uvicorn, short_polling
from servers.background import Server, ServerError, serve
from servers.fan_out import TURN, polls
from servers.feed import Feed
from servers.service import Service
from tests.support import PATIENCE, Raw, loop_of, on_a_loop, tasks_of, until
from tests.test_fan_out import Alone

EPOCH = "e"
Make = Callable[..., Service]
MAKE: dict[str, Make] = {
    "short": short_polling.create_app,
    "long": functools.partial(long_polling.create_app, jitter=0),
}
both = pytest.mark.parametrize("model", MAKE)


def feed_of(count: int, **bounds: int) -> Feed:
    feed = Feed(epoch=EPOCH, **bounds)
    for number in range(count):
        feed.publish(f"file-{number}.txt")
    return feed


def get(after: str, *fields: str, wait: str = "") -> bytes:
    """A poll as most clients send it."""
    query = f"after={after}" + (f"&wait={wait}" if wait else "")
    return "\r\n".join([f"GET /updates?{query} HTTP/1.1", "Host: x", *fields, "", ""]).encode()


def fast(model: str, feed: Feed, **options: Any) -> tuple[Service, polls.Polls]:
    """The application, and its front."""
    app = MAKE[model](feed, fast=True, **options)
    assert isinstance(app.front, polls.Polls)
    return app, app.front


def undated(answer: bytes) -> bytes:
    """An answer without the second in which it was given."""
    answer, found = re.subn(rb"date: [^\r]+\r\n", b"", answer)
    assert found
    return answer


# --- what it answers, and what it leaves to the application ---

CLOSE = "Connection: close"
USUAL = {
    "the newest": get("e-3", CLOSE, wait="0"),
    "behind": get("e-1", CLOSE, wait="0.5"),
    "tag": get("e-3", 'If-None-Match: "e-3"', CLOSE, wait="0"),
    "tags on two lines": get("e-3", 'if-none-match: "x"', 'If-None-Match:W/"e-3" ', CLOSE, wait="0"),
    "tag that is older": get("e-2", 'If-None-Match: "e-3"', CLOSE),
    "many fields": get("e-1", "Accept: */*", "User-Agent: a (b; c)", "Cookie: d=e", "X-Empty:", CLOSE),
    "pipelined": get("e-1") + get("e-2") + get("e-2", CLOSE),
    "kept": get("e-1", "Connection: keep-alive") + get("e-2", CLOSE),
    "HTTP/1.0": get("e-1").replace(b"1.1", b"1.0"),
    "HTTP/1.0 that wants to be kept": get("e-3", "Connection: keep-alive", wait="0").replace(b"1.1", b"1.0"),
}  # fmt: skip
UNUSUAL = {
    "oldest": get("0", CLOSE),
    "no cursor": b"GET /updates HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    "too old": get("e-0", CLOSE),
    "another epoch": get("f-1", CLOSE),
    "from the future": get("e-4", CLOSE),
    "rubbish": get("rubbish", CLOSE),
    "two cursors": get("e-1&after=e-2", CLOSE),
    "leading zero": get("e-01", CLOSE),
    "not a number": get("e-3", CLOSE, wait="soon"),
    "negative": get("e-3", CLOSE, wait="-1"),
    "HEAD": get("e-1", CLOSE).replace(b"GET", b"HEAD"),
    "POST": get("e-1", CLOSE).replace(b"GET", b"POST"),
    "HTTP/1.0 without Host": get("e-1").replace(b"1.1", b"1.0").replace(b"Host: x\r\n", b""),
    "HTTP/2.0": get("e-1").replace(b"1.1", b"2.0"),
    "no Host": get("e-1", CLOSE).replace(b"Host: x\r\n", b""),
    "two Hosts": get("e-1", "Host: x", CLOSE),
    "two Connections": get("e-1", CLOSE, CLOSE),
    "another Connection": get("e-1", "Connection: close, x"),
    "a Connection of old proxies": get("e-1", "Proxy-Connection: close"),
    "a body": get("e-1", "Content-Length: 1", CLOSE) + b"x",
    "a body in chunks": get("e-1", "Transfer-Encoding: chunked", CLOSE) + b"0\r\n\r\n",
    "a body and another request": get("e-1", "Content-Length: 1") + b"x" + get("e-1", CLOSE),
    "an upgrade": get("e-1", "Upgrade: h2c", "Connection: upgrade") + get("e-1", CLOSE),
    "folded": get("e-1", "X: a", " b", CLOSE),
    "no field": get("e-1", "X", CLOSE),
    "a space before the colon": get("e-1", "X : a", CLOSE),
    "another place": get("e-1", CLOSE).replace(b"/updates", b"/healthz"),
    "an absolute place": get("e-1", CLOSE).replace(b"/updates", b"http://x/updates"),
    "bare line ends": get("e-1", CLOSE).replace(b"\r", b""),
    "a line end before": b"\r\n" + get("e-1", CLOSE),
    "a long head": get("e-1", f"X: {'a' * 5000}", CLOSE),
    "too long a head": get("e-1", f"X: {'a' * 70_000}", CLOSE),
    "a control character": get("e-1", "X: a\x01b", CLOSE),
    "another character": get("e-1", "X: é", CLOSE),
}


async def told(server: Server, request: bytes) -> bytes:
    """All that comes for it, also before a reset: who hangs up may not have read all that was sent."""
    answer = b""
    with Raw(server) as client:
        with contextlib.suppress(OSError):
            await asyncio.to_thread(client.send, request)
        with contextlib.suppress(ConnectionError):
            while more := await asyncio.to_thread(client.socket.recv, 65536):
                answer += more
    return answer


@both
@on_a_loop
async def test_every_answer_is_that_of_the_readable_server_to_the_byte(model: str) -> None:
    """Usual or not: status, fields, their order, body and end are the same, and so is what is counted."""
    feed = feed_of(3, history=2)
    app, _ = fast(model, feed)
    readable = MAKE[model](feed)
    with serve(app) as ours, serve(readable) as theirs:
        for name, request in (USUAL | UNUSUAL).items():
            expected, answer = await told(theirs, request), await told(ours, request)
            if b"date:" in expected:
                expected, answer = undated(expected), undated(answer)
            assert answer == expected, name
            counted = [(t.requests, t.delivered, t.resets) for t in (app.traffic, readable.traffic)]
            assert counted[0] == counted[1], name


@both
@on_a_loop
async def test_the_usual_is_taken_and_everything_else_is_left_to_the_application(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A usual poll starts no task; what is unusual in any way is the application's."""
    started: list[str] = []
    start_task = on_uvicorn.HttpProtocol._start_asgi_task

    def counted(self: on_uvicorn.HttpProtocol, *given: Any) -> None:
        started.append("")
        start_task(self, *given)

    monkeypatch.setattr(on_uvicorn.HttpProtocol, "_start_asgi_task", counted)
    app, _ = fast(model, feed_of(3, history=2))
    taken: list[bool] = []
    passes = on_uvicorn.HttpProtocol.passes

    def noted(*given: Any) -> bool:
        taken.append(passes(*given))
        return taken[-1]

    monkeypatch.setattr(on_uvicorn.HttpProtocol, "passes", noted)
    with serve(app) as server:
        for name, request in USUAL.items():
            started.clear()
            await told(server, request)
            if model == "long" or b"wait" not in request:  # which is nothing to a short poll: unusual
                assert not started, name
        for name, request in UNUSUAL.items():
            taken.clear()
            await told(server, request)
            assert not any(taken[:1]), name


@both
@on_a_loop
async def test_what_wraps_an_application_hides_its_front(model: str) -> None:
    """Nothing is answered behind the back of who stands before the application, such as one who asks for a token."""
    app, front = fast(model, feed_of(3))
    with serve(Alone(app)) as server:
        assert b'"e-3"' in await told(server, get("e-1", CLOSE))
        assert not front.answers


@both
@on_a_loop
async def test_an_answer_is_made_once_for_all_who_ask_the_same(model: str) -> None:
    """A hundred polls, one encoding; when something is published, or a second is over, it is made anew."""
    feed = feed_of(3)
    app, front = fast(model, feed)
    made: list[int] = []
    make = front.make

    def counted(position: int, tags: list[str]) -> Any:
        made.append(position)
        return make(position, tags)

    front.make = counted
    with serve(app) as server, Raw(server) as client:
        for times in (1, 2):
            answers = list[bytes]()
            for _ in range(100):
                client.send(get("e-1"))
                answers.append(await client.read_until(b"]"))
            seconds = {re.findall(rb"date: ([^\r]+)", answer)[0] for answer in answers}
            assert len(made) <= 2 * len(seconds) + 1
            assert {answer.count(b'"seq"') for answer in answers} == {times + 1}
            made.clear()
            feed.publish("later")
        assert app.traffic.requests == 200
        assert app.traffic.delivered == 100 * 2 + 100 * 3
        dates = list[bytes]()
        for _ in range(2):
            client.send(get("e-1"))
            dates += re.findall(rb"date: ([^\r]+)", await client.read_until(b"]"))
            headers = server._uvicorn.server_state.default_headers
            await until(lambda: server._uvicorn.server_state.default_headers is not headers)  # noqa: B023
        assert len(set(dates)) == 2


def holds(connections: Any, size: int) -> bool:
    """Whether there is one, and it waits for the rest of so much."""
    return [len(each.unread) for each in connections] == [size]


@both
@on_a_loop
async def test_a_head_may_be_cut_anywhere(model: str) -> None:
    """In whatever pieces a usual request arrives, and behind whatever other, its answer is the same."""
    app, _ = fast(model, feed_of(3))
    request, last = get("e-1", "Accept: */*"), get("e-2", CLOSE)
    with serve(app) as server:
        expected = undated(await told(server, request + last))
        connections: Any = server._uvicorn.server_state.connections
        for cut in range(1, len(request)):
            with Raw(server) as client:
                client.send(request[:cut])
                await until(functools.partial(holds, connections, cut))
                client.send(request[cut:] + last)
                assert undated(await client.read_all()) == expected, cut
            await until(lambda: not connections)


@both
@on_a_loop
async def test_another_epoch_of_the_log_is_seen_though_its_head_is_the_same(model: str) -> None:
    """What was understood of a cursor holds for one epoch only."""
    feed = feed_of(3)
    app, _ = fast(model, feed)
    with serve(app) as server:
        for _ in range(3):
            assert b"200 OK" in await told(server, get("e-1", CLOSE))
        feed.epoch = "f"
        assert b"410 Gone" in await told(server, get("e-1", CLOSE))


@both
@on_a_loop
async def test_what_is_kept_of_clients_is_bounded(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many different heads and cursors come, a bounded number is remembered."""
    monkeypatch.setattr(polls, "KEPT", 10)
    app, front = fast(model, feed_of(30))
    with serve(app) as server, Raw(server) as client:
        for number in range(30):
            client.send(get(f"e-{number % 29}", f"X: {number}"))
            assert b"200 OK" in await client.read_until(b"}")
        assert len(front.fields) <= 10
        assert len(front.lines) <= 10
        assert len(front.answers) <= 10


@both
@on_a_loop
async def test_a_clients_fields_are_read_once_however_many_other_clients_there_are(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each with a cookie of its own, more of them than are remembered: a connection knows what its client says."""
    monkeypatch.setattr(polls, "KEPT", 5)
    parse, read = polls.parse_fields, list[bytes]()

    def noted(lines: bytes) -> Any:
        read.append(lines)
        return parse(lines)

    monkeypatch.setattr(polls, "parse_fields", noted)
    app, _ = fast(model, feed_of(3))
    with serve(app) as server, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(Raw(server)) for _ in range(20)]
        for _ in range(3):
            for number, client in enumerate(clients):
                client.send(get("e-1", f"Cookie: session={number}"))
                assert b"200 OK" in await client.read_until(b"]")
        assert len(read) == 20
        clients[0].send(get("e-1", "Cookie: session=new", 'If-None-Match: "e-3"'))
        await clients[0].read_until(b"]")
        assert b"new" in read[20]


# --- holding ---


@on_a_loop
async def test_who_is_held_costs_no_task_and_all_are_told_by_one_answer() -> None:
    """Two hundred held polls are one task; they get the same bytes, and one more poll on the same connection works."""
    feed = feed_of(3)
    app, front = fast("long", feed)
    with serve(app) as server, contextlib.ExitStack() as stack:
        before = tasks_of(server)
        clients = [stack.enter_context(Raw(server)) for _ in range(200)]
        for client in clients:
            client.send(get("e-3", wait="60"))
        await until(lambda: app.traffic.held == 200)
        assert tasks_of(server) == sorted([*before, "HeldPolls.run"])
        for number in (4, 5):
            feed.publish("news")
            answers = {await client.read_until(b"}") for client in clients}
            assert len({undated(answer) for answer in answers}) == 1
            assert len(answers) <= 2, "they may stand in two seconds"
            await until(lambda: app.traffic.held == 0)
            for client in clients:
                client.send(get(f"e-{number}", wait="60"))
            await until(lambda: app.traffic.held == 200)
        assert app.traffic.delivered == 400
        assert app.traffic.requests == 600
        assert isinstance(front, polls.HeldPolls)
        assert len(front.ends) == 200


@on_a_loop
async def test_a_poll_behind_a_held_one_waits_for_its_turn() -> None:
    """Pipelined polls are answered in order, each after the one before it."""
    feed = feed_of(1)
    app, _ = fast("long", feed)
    with serve(app) as server, Raw(server) as client:
        client.send(get("e-1", wait="60") + get("e-2", wait="60") + get("e-0") + get("0", CLOSE))
        await until(lambda: app.traffic.held == 1)
        feed.publish("two")
        assert b'"e-2"' in await client.read_until(b"}]")
        await until(lambda: app.traffic.held == 1)
        feed.publish("three")
        answers = await client.read_all()
        assert re.findall(rb'"cursor":"([^"]+)"', answers) == [b"e-3"] * 3
        assert app.traffic.requests == 4


@on_a_loop
async def test_a_stop_answers_who_is_held_before_it_hangs_up() -> None:
    """At the end of the server a held poll gets the empty answer, and the stop is not held up."""
    feed = feed_of(1)
    app, _ = fast("long", feed)
    for _ in range(2):  # the same application, served again
        server = serve(app)
        with Raw(server) as client, Raw(server) as other:
            for each in (client, other):
                each.send(get("e-1", wait="60"))
            await until(lambda: app.traffic.held == 2)
            async with asyncio.timeout(4):
                await asyncio.to_thread(server.stop)
            assert (await client.read_all()).endswith(b'{"updates":[],"cursor":"e-1"}')
        assert app.traffic.held == 0


@on_a_loop
async def test_holds_that_are_over_at_once_are_answered() -> None:
    """Many at one moment, too short for the loop to have a timer for them: each gets its answer, the log no line."""
    app, _ = fast("long", feed_of(1))
    with serve(app) as server, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(Raw(server)) for _ in range(10)]
        await until(lambda: len(server._uvicorn.server_state.connections) == len(clients))
        all_have_asked = threading.Event()
        loop_of(server).call_soon_threadsafe(all_have_asked.wait, PATIENCE)
        for client in clients:
            client.send(get("e-1", CLOSE, wait="0.000000001"))
        all_have_asked.set()
        for client in clients:
            assert (await client.read_all()).endswith(b'{"updates":[],"cursor":"e-1"}')


@on_a_loop
async def test_clients_that_leave_and_come_back_leave_nothing() -> None:
    """Hundreds of holds that were given up take no room: neither a slot nor an end that would be waited for."""
    feed = feed_of(1)
    app, front = fast("long", feed)
    assert isinstance(front, polls.HeldPolls)
    with serve(app) as server, Raw(server) as stays:
        stays.send(get("e-1", wait="60"))
        await until(lambda: app.traffic.held == 1)
        for _ in range(2 * TURN):
            with Raw(server) as client:
                client.send(get("e-1", wait="60"))
                await until(lambda: app.traffic.held == 2)
                client.reset()
            await until(lambda: app.traffic.held == 1)
        assert len(front.ends) <= TURN + 5


@on_a_loop
async def test_what_fails_lets_nobody_wait_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """When an answer cannot be made, who is held is hung up on, and the next poll is held as before."""
    feed = feed_of(1)
    app, front = fast("long", feed)
    works, left = front.make, [1]

    def fails_once(*given: Any) -> Any:
        if left and left.pop():
            raise MemoryError("once")
        return works(*given)

    server = serve(app)
    with Raw(server) as client, Raw(server) as other:
        for each in (client, other):
            each.send(get("e-1", wait="60"))
        await until(lambda: app.traffic.held == 2)
        monkeypatch.setattr(front, "make", fails_once)
        feed.publish("a")
        for each in (client, other):
            with contextlib.suppress(ConnectionError):
                assert await each.read_all() == b""
        await until(lambda: app.traffic.held == 0)
    with Raw(server) as client:
        client.send(get("e-2", wait="60"))
        await until(lambda: app.traffic.held == 1)
        feed.publish("b")
        assert b'"e-3"' in await client.read_until(b"}]")
    with pytest.raises(ServerError, match="a stream of events failed: once"):
        await asyncio.to_thread(server.stop)


class Client(asyncio.Protocol):
    """Notes when something came, and when the connection ended."""

    def __init__(self) -> None:
        self.came: list[float] = []
        self.ended: float | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.came.append(asyncio.get_running_loop().time())

    def connection_lost(self, error: Exception | None) -> None:
        self.ended = asyncio.get_running_loop().time()


@pytest.mark.parametrize("fast_path", [False, True], ids=["readable", "fast"])
def test_a_hold_and_the_silence_after_it_last_exactly_as_long(fast_path: bool) -> None:
    """A hold of its seconds, news in the midst of another, and 75 s after the last answer the connection is closed."""

    async def main(net: Net) -> None:
        feed, loop = feed_of(1), asyncio.get_running_loop()
        async with serve_virtually(MAKE["long"](feed, fast=fast_path)):
            _, client = await loop.create_connection(Client, "server", 80)
            start = loop.time()
            client.transport.write(get("e-1", wait="40.5"))
            await asyncio.sleep(50)
            assert sorted(set(client.came)) == [pytest.approx(start + 40.5 + 0.02)]
            client.came.clear()
            client.transport.write(get("e-1", wait="60"))
            await asyncio.sleep(10)
            published = loop.time()
            feed.publish("a")
            await asyncio.sleep(1)
            assert sorted(set(client.came)) == [pytest.approx(published + 0.01)]
            await asyncio.sleep(100)
            assert client.ended == pytest.approx(published + 75 + 0.01, abs=0.1)

    run_virtual(main, link=Link(delay=0.01))


def test_a_hold_ends_in_its_own_time_whatever_was_held_before_it() -> None:
    """On one connection: a short hold after a long one that was cut short by news, and a long one after the short."""

    async def main(net: Net) -> None:
        feed, loop = feed_of(1), asyncio.get_running_loop()
        async with serve_virtually(MAKE["long"](feed, fast=True)):
            _, client = await loop.create_connection(Client, "server", 80)
            for number, wait in enumerate((40, 5, 60, 20, 50), start=1):
                client.transport.write(get(f"e-{number}", wait="40"))
                await asyncio.sleep(3)
                feed.publish("a")
                await asyncio.sleep(1)
                client.came.clear()
                start = loop.time()
                client.transport.write(get(f"e-{number + 1}", wait=str(wait)))
                await asyncio.sleep(70)
                assert sorted(set(client.came)) == [pytest.approx(start + wait + 0.02)], wait

    run_virtual(main, link=Link(delay=0.01))


def test_the_end_of_thousands_of_holds_leaves_others_the_loop() -> None:
    """All who are held for the same time are answered then, in turns."""

    async def main(net: Net) -> None:
        feed, loop = feed_of(1), asyncio.get_running_loop()
        app = MAKE["long"](feed, fast=True)
        async with serve_virtually(app):
            clients = [(await loop.create_connection(Client, "server", 80))[1] for _ in range(3 * TURN)]
            for client in clients:
                client.transport.write(get("e-1", wait="5"))
            await asyncio.sleep(1)
            assert app.traffic.held == len(clients)
            await asyncio.sleep(5)
            assert [len(client.came) for client in clients] == [1] * len(clients)
            assert app.traffic.held == 0

    run_virtual(main, link=Link(delay=0.001))


def test_the_loop_is_the_servers() -> None:
    """The front does its work on the server's loop, and on no other."""
    app, front = fast("long", feed_of(1))
    with serve(app) as server, Raw(server) as client:
        client.send(get("e-1", wait="60"))
        while not app.traffic.held:
            pass
        assert isinstance(front, polls.HeldPolls)
        assert front.task is not None
        assert front.task.get_loop() is loop_of(server)
