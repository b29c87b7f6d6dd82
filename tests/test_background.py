"""serve(app): starting, stopping, what a stop leaves behind (nothing), and what a notebook's cell may do to it."""

import asyncio
import contextlib
import gc
import json
import logging
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from fastapi import FastAPI, WebSocket, WebSocketDisconnect
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager
from starlette.types import Receive, Scope, Send
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from servers import background, long_polling, short_polling, sse, websocket
from servers.background import Server, ServerError, serve
from servers.feed import Feed
from servers.service import Closing, Service
from servers.sources import watch
from servers.tree import Tree
from tests.support import (
    PATIENCE,
    Raw,
    Within,
    closed,
    events,
    http,
    loop_of,
    on_a_loop,
    received,
    socket_to,
    unsent,
    until,
)

BIG = b"x" * 100_000


class House(FastAPI):
    """Three models on one port, below /long, /socket and /sse."""

    def __init__(self, feed: Feed) -> None:
        super().__init__()
        self.closing = Closing(feed)
        self.rooms = {
            "long": long_polling.create_app(feed),
            "socket": websocket.create_app(feed),
            "sse": sse.create_app(feed),
        }
        for name, room in self.rooms.items():
            room.closing = self.closing  # one signal for the house
            self.mount(f"/{name}", room)

    @property
    def held(self) -> list[int]:
        """Streams and held polls, room by room."""
        return [room.traffic.held for room in self.rooms.values()]


def threads() -> set[threading.Thread]:
    """All threads but the helpers of an event loop in a test."""
    return {thread for thread in threading.enumerate() if not thread.name.startswith("asyncio_")}


def answers(port: int) -> bool:
    """Whether anybody accepts connections at a port of this host."""
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


# --- stopping ---


@contextlib.asynccontextmanager
async def clients_of_all_kinds(app: House, feed: Feed) -> AsyncIterator[Server]:
    """A server with an SSE stream, a held poll and an idle WebSocket; stopped within the block, it ends all cleanly."""
    server = serve(app)
    async with (
        http(server) as client,
        events(server, below="/sse") as stream,
        socket_to(server, below="/socket") as connection,
    ):
        poll = asyncio.create_task(client.get("/long/updates", params={"after": feed.cursor, "wait": 60}))
        await until(lambda: app.held == [1, 1, 1])
        yield server
        answer = await poll
        assert (answer.status_code, answer.json()) == (200, {"updates": [], "cursor": feed.cursor})
        assert await stream.rest() == f"retry: 2000\n\nid: {feed.cursor}\n\n".encode()
        assert await closed(connection) == (1001, "")
    assert app.held == [0, 0, 0]


@on_a_loop
async def test_fifty_starts_and_stops_with_clients_of_all_kinds_connected() -> None:
    """Each stop takes less than a second and ends an SSE stream, a held poll and an idle WebSocket cleanly."""
    feed = Feed()
    app = House(feed)
    before = threads()
    durations = []
    for _ in range(50):
        async with clients_of_all_kinds(app, feed) as server:
            with Within(1) as stop:
                await asyncio.to_thread(server.stop)
            durations.append(stop.duration)
        assert threads() == before
    assert statistics.median(durations) < 0.5


@on_a_loop
async def test_a_stop_leaves_no_thread_no_socket_no_task_and_no_file_open() -> None:
    """After a day's work of a server there is nothing left of it, however often."""
    process = psutil.Process()

    async def work() -> None:
        app = House(Feed())
        with serve(app) as server, Raw(server) as silent:
            loop = loop_of(server)
            silent.send(b"GET /sse/events HTTP/1.1\r\n")  # and never the rest
            async with (
                http(server) as client,
                events(server, below="/sse") as stream,
                socket_to(server, below="/socket") as connection,
            ):
                for path in ("/sse/", "/sse/docs", "/sse/metrics", "/sse/pages/sse.js", "/nothing"):
                    await client.get(path)  # files are read in threads of their own
                await received(connection)
                await stream.block()
                await asyncio.to_thread(server.stop)
            assert loop.is_closed()
            assert asyncio.all_tasks(loop) == set()

    def sockets() -> set[Any]:
        return {connection.laddr for connection in process.net_connections("inet")}

    await work()  # the first time, modules are imported, caches filled, and this loop's helper threads started
    gc.collect()
    threads_before, sockets_before, files_before = threads(), sockets(), process.num_fds()
    for _ in range(3):
        await work()
    gc.collect()
    await until(lambda: threads() <= threads_before)
    await until(lambda: sockets() <= sockets_before)
    await until(lambda: process.num_fds() <= files_before)


@on_a_loop
async def test_of_two_servers_on_one_feed_one_stops_and_the_other_is_unharmed() -> None:
    """A stop ends the streams of its own server, not the feed, whichever of the two it is."""
    for first_goes in (True, False):
        feed = Feed()
        servers = [serve(sse.create_app(feed)), serve(sse.create_app(feed))]
        async with events(servers[0]) as one, events(servers[1]) as two:
            for stream in one, two:
                await stream.block(), await stream.block()
            feed.publish("for both")
            assert (await one.update()) == (await two.update())
            goes, stays = (0, 1) if first_goes else (1, 0)
            await asyncio.to_thread(servers[goes].stop)
            assert await (one, two)[goes].rest() == b""
            feed.publish("for one")
            assert (await (one, two)[stays].update())["path"] == "for one"
            await asyncio.to_thread(servers[stays].stop)
            assert await (one, two)[stays].rest() == b""


@on_a_loop
async def test_servers_start_and_stop_in_any_order_again_and_again() -> None:
    """Five servers of four models, on one feed, overlapping in time: all serve, and all stop."""
    feed = Feed()
    makers: list[Callable[[Feed], Service]] = [
        short_polling.create_app,
        long_polling.create_app,
        websocket.create_app,
        sse.create_app,
    ]
    running: list[Server] = []
    for number in range(12):
        server = serve(makers[number % 4](feed))
        running.append(server)
        async with http(server) as client:
            assert (await client.get("/healthz")).json()["cursor"] == feed.cursor
        if len(running) == 5:
            for index in (3, 0, 1):
                stopped = running.pop(index)
                await asyncio.to_thread(stopped.stop)
                assert not answers(stopped.port)
            assert all(answers(server.port) for server in running)
        feed.publish("more")
    for server in running:
        server.stop()


def test_stop_is_idempotent_and_the_server_says_what_it_is() -> None:
    """A second call does nothing, from any thread, also at the same time."""
    server = serve(short_polling.create_app(Feed()))
    assert repr(server) == f"<server at http://127.0.0.1:{server.port}, running>"
    together = [threading.Thread(target=server.stop) for _ in range(3)]
    for thread in together:
        thread.start()
    for thread in together:
        thread.join()
    server.stop()
    assert repr(server) == f"<server at http://127.0.0.1:{server.port}, stopped>"
    assert not answers(server.port)


def test_a_block_stops_its_server_and_an_error_in_the_block_is_the_one_seen() -> None:
    """As a context manager a server stops at the end, and its own errors never hide the block's."""
    with serve(short_polling.create_app(Feed())) as server:
        assert answers(server.port)
    assert not answers(server.port)

    def fail_in_a_block(error: Exception | None) -> None:
        with serve(failing()) as server:
            ports.append(server.port)
            assert httpx.get(f"{server.url}/fail").status_code == 500
            if error:
                raise error

    ports: list[int] = []
    with pytest.raises(KeyError, match="of the block"):
        fail_in_a_block(KeyError("of the block"))
    with pytest.raises(ServerError, match="boom"):
        fail_in_a_block(None)
    assert not any(answers(port) for port in ports)


@on_a_loop
async def test_an_application_can_be_served_again_after_a_stop() -> None:
    """Its closing signal is open again: a poll is held, not answered at once with nothing."""
    feed = Feed()
    app = long_polling.create_app(feed)
    for _ in range(3):
        with serve(app) as server:
            async with http(server) as client:
                poll = asyncio.create_task(client.get("/updates", params={"after": feed.cursor, "wait": 60}))
                await until(lambda: app.traffic.held)
                feed.publish("news")
                assert len((await poll).json()["updates"]) == 1


def test_an_application_that_is_being_served_is_refused() -> None:
    """One application has one closing signal: two servers of it could not be stopped one by one."""
    app = short_polling.create_app(Feed())
    with serve(app) as server:
        with pytest.raises(ServerError, match=f"already served at {server.url}"):
            serve(app)
        assert answers(server.port)
    with serve(app):
        pass


@on_a_loop
async def test_clients_that_neither_read_nor_leave_cannot_keep_a_server_from_stopping() -> None:
    """They are cut off after a moment, which is no error of the server's."""
    feed = Feed()
    app = House(feed)
    with serve(app) as server:
        stream, connection, poll, idle = Raw(server), Raw(server), Raw(server), Raw(server)
        stream.send(b"GET /sse/events HTTP/1.1\r\nHost: x\r\n\r\n")
        connection.send(Raw.HANDSHAKE.replace(b"/ws", b"/socket/ws"))
        await until(lambda: app.held == [0, 1, 1])
        feed.publish("large", content=bytes(8_000_000))  # an answer ends with the update that fills it
        for number in range(120):
            feed.publish(f"{number}", content=BIG)
        poll.send(b"GET /long/updates?after=0 HTTP/1.1\r\nHost: x\r\n\r\n")
        await until(lambda: unsent(server) > 6_000_000)  # an answer that is complete, but not sent
        with Within(1):
            await asyncio.to_thread(server.stop)
        assert app.held == [0, 0, 0]
        for client in stream, connection, poll, idle:
            client.socket.close()


@on_a_loop
async def test_a_stop_breaks_nothing_off_because_the_machine_stood_still(monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams end cleanly also where every limit of a stop is over before they have had a turn."""
    feed = Feed()
    app = House(feed)
    async with clients_of_all_kinds(app, feed) as server:
        loop, close = loop_of(server), app.closing.close
        monkeypatch.setattr(app.closing, "close", lambda: (close(), loop.call_soon(time.sleep, 1.1)))
        await asyncio.to_thread(server.stop)


@on_a_loop
async def test_a_client_that_asks_again_at_once_does_not_keep_a_server_from_stopping() -> None:
    """A long-polling client whose hold ends with the server asks again on the same connection, and is let go."""
    feed = Feed()
    app = long_polling.create_app(feed)
    with serve(app) as server:
        async with http(server) as client:

            async def ask_for_ever() -> None:
                while True:
                    await client.get("/updates", params={"after": feed.cursor, "wait": 60})

            asking = asyncio.create_task(ask_for_ever())
            await until(lambda: app.traffic.held)
            await asyncio.to_thread(server.stop)
            with pytest.raises(httpx.TransportError):
                await asyncio.wait_for(asking, PATIENCE)


# --- errors ---


def failing() -> FastAPI:
    """An application whose endpoint raises."""
    app = FastAPI()

    @app.get("/fail")
    async def fail(word: str = "boom") -> None:
        raise ValueError(word)

    return app


@on_a_loop
async def test_what_the_server_logged_as_errors_is_raised_by_stop_once() -> None:
    """An endpoint that raises is a 500 for its client and an exception, with its cause, for who stops the server."""
    server = serve(failing())
    for path, status in (("/fail", 500), ("/fail?word=bang", 500), ("/openapi.json", 200)):
        async with http(server) as client:  # uvicorn closes a connection on which the application failed
            assert (await client.get(path)).status_code == status
    with pytest.raises(ServerError) as failure:
        server.stop()
    assert str(failure.value) == (
        f"the server at {server.url} logged: Exception in ASGI application: ValueError('boom')\n"
        "Exception in ASGI application: ValueError('bang')"
    )
    assert isinstance(failure.value.__cause__, ValueError)
    server.stop()


@on_a_loop
async def test_a_server_that_ended_by_itself_is_reported_by_stop() -> None:
    """Whatever takes its loop away, nobody is left to think that it still served."""
    server = serve(failing())
    loop = loop_of(server)
    loop.call_soon_threadsafe(server._uvicorn.servers[0].close)  # or the socket is left to the garbage collector
    await until(lambda: not answers(server.port))
    loop.call_soon_threadsafe(sys.exit, 3)
    await until(lambda: "stopped" in repr(server))
    with pytest.raises(ServerError, match=r"the server ended by itself: SystemExit\(3\)"):
        server.stop()
    server.stop()


@on_a_loop
async def test_a_request_that_does_not_end_is_broken_off_and_reported() -> None:
    """An endpoint that waits for nothing in the world is cancelled, and whoever stops the server hears of it."""
    app = FastAPI()
    waiting = threading.Event()

    @app.get("/wait")
    async def wait() -> None:
        waiting.set()
        await asyncio.Event().wait()

    server = serve(app)
    async with http(server) as client:
        request = asyncio.create_task(client.get("/wait"))
        await until(waiting.is_set)
        with pytest.raises(ServerError, match="Cancel 1 running task"):
            await asyncio.to_thread(server.stop)
        with contextlib.suppress(httpx.TransportError):  # cut off, unless its end came first
            assert (await request).status_code == 500


def test_a_shutdown_that_raises_is_reported_by_stop() -> None:
    """What the application's own clean-up could not do is not lost."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        raise OSError("cannot flush")

    server = serve(FastAPI(lifespan=lifespan))
    with pytest.raises(ServerError, match="cannot flush"):
        server.stop()
    server.stop()


# --- starting ---


def test_a_port_in_use_is_named_as_the_cause() -> None:
    """The message has the address and the reason, the cause is the OSError, and nothing is left running."""
    before = threads()
    with serve(short_polling.create_app(Feed())) as server:
        with pytest.raises(ServerError) as failure:
            serve(short_polling.create_app(Feed()), port=server.port)
        assert str(failure.value) == f"no server at 127.0.0.1:{server.port}: the port is in use"
        assert isinstance(failure.value.__cause__, OSError)
        assert answers(server.port)
    assert threads() == before


def test_a_port_is_free_again_as_soon_as_its_server_has_stopped() -> None:
    """A fixed port can be taken again at once, with connections of the last server just closed."""
    with serve(short_polling.create_app(Feed())) as server:
        assert httpx.get(f"{server.url}/healthz").status_code == 200
    with serve(short_polling.create_app(Feed()), port=server.port) as again:
        assert again.url == server.url
        assert httpx.get(f"{again.url}/healthz").status_code == 200


def test_an_address_of_another_host_is_named_as_the_cause() -> None:
    """What the system says about it is in the message."""
    with pytest.raises(ServerError, match=r"no server at 192\.0\.2\.1:0: cannot listen: ") as failure:
        serve(short_polling.create_app(Feed()), host="192.0.2.1")  # TEST-NET-1: nobody's address (RFC 5737)
    assert isinstance(failure.value.__cause__, OSError)


def test_a_startup_that_raises_is_shown_and_chained() -> None:
    """The exception of the application is the cause, and nothing is left running."""
    before = threads()

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        raise LookupError("no such directory")
        yield

    with pytest.raises(ServerError, match=r"no server at .*: LookupError\('no such directory'\)") as failure:
        serve(FastAPI(lifespan=lifespan))
    assert isinstance(failure.value.__cause__, LookupError)
    for thread in threads() - before:
        thread.join(PATIENCE)
    assert threads() == before


def test_a_startup_that_does_not_end_is_given_up_and_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    """After the limit there is an exception, and the startup is not left running behind it."""
    monkeypatch.setattr(background, "START_LIMIT", 0.3)
    before = threads()
    cancelled = threading.Event()

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        yield

    with pytest.raises(ServerError, match=r"not ready within 0\.3 s"):
        serve(FastAPI(lifespan=lifespan))
    assert cancelled.wait(PATIENCE)
    for thread in threads() - before:
        thread.join(PATIENCE)
    assert threads() == before


def test_a_startup_that_blocks_its_loop_is_given_up_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody can cancel it, but nobody waits for it either, and it serves nobody when it wakes up."""
    monkeypatch.setattr(background, "START_LIMIT", 0.1)
    before = threads()
    wake_up = threading.Event()

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        wake_up.wait(PATIENCE)
        yield

    with pytest.raises(ServerError, match=r"not ready within 0\.1 s"):
        serve(FastAPI(lifespan=lifespan))
    wake_up.set()
    for thread in threads() - before:
        thread.join(PATIENCE)
    assert threads() == before


def test_an_application_without_lifespan_or_closing_signal_is_served() -> None:
    """Any ASGI application will do."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http"
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    with serve(app) as server, serve(app) as another:
        assert httpx.get(server.url).status_code == httpx.get(another.url).status_code == 204


@on_a_loop
async def test_a_socket_of_an_application_without_closing_signal_is_told_of_the_restart() -> None:
    """What ends no stream of its own is ended by uvicorn: its WebSockets with 1012."""
    app = FastAPI()

    @app.websocket("/ws")
    async def idle(socket: WebSocket) -> None:
        await socket.accept()
        with contextlib.suppress(WebSocketDisconnect):
            await socket.receive_text()

    server = serve(app)
    async with connect(f"ws{server.url.removeprefix('http')}/ws") as client:
        await asyncio.to_thread(server.stop)
        with pytest.raises(ConnectionClosed):
            await client.recv()
        assert client.close_code == 1012


def test_an_ipv6_address_is_written_in_brackets() -> None:
    """The URL can be used as it is (RFC 3986, section 3.2.2)."""
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            pass
    except OSError:
        pytest.skip("this machine has no IPv6 loopback")
    with serve(short_polling.create_app(Feed()), host="::1") as server:
        assert server.url == f"http://[::1]:{server.port}"
        assert httpx.get(f"{server.url}/healthz").status_code == 200


@on_a_loop
async def test_requests_are_answered_without_waiting_for_a_delayed_acknowledgement() -> None:
    """TCP_NODELAY is on: twenty small requests on one connection take far less than 40 ms each."""
    with serve(short_polling.create_app(Feed())) as server:
        async with http(server) as client:
            durations = []
            for _ in range(20):
                start = time.perf_counter()
                await client.get("/healthz")
                durations.append(time.perf_counter() - start)
    assert min(durations) < 0.02


# --- silence ---


class Heard(logging.Handler):
    """Keeps all records."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep it."""
        self.records.append(record)


@pytest.fixture
def heard() -> Iterator[Heard]:
    """A handler at the root that hears everything, as a notebook's may."""
    root, handler = logging.getLogger(), Heard()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield handler
    root.setLevel(level)
    root.removeHandler(handler)


@on_a_loop
async def everything_that_could_be_logged(directory: Path) -> None:
    """Serve all models, a watched directory among them, to clients good and bad; one endpoint fails."""
    feed, bad_name = Feed(), directory / os.fsdecode(b"not-utf-8-\xff")
    watching = short_polling.create_app(feed, source=lambda: watch(feed, Tree(directory)))
    bad_name.write_text("left out")
    with serve(watching), serve(House(feed)) as server:
        async with (
            http(server) as client,
            events(server, below="/sse") as stream,
            socket_to(server, below="/socket") as connection,
        ):
            await received(connection)
            (directory / "a.txt").write_text("seen")
            await until(lambda: feed.head and feed.skipped)
            assert (await received(connection))["type"] == "updates"
            await stream.block()
            for path in ("/", "/sse/", "/sse/docs", "/nothing", "/long/updates?after=x"):
                await client.get(path)
            await connection.send("rubbish")
            await closed(connection)
        for words in (b"rubbish\r\n\r\n", b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"):
            with Raw(server) as client_:
                client_.send(words)
                await client_.read_until(b"\r\n\r\n")
    broken = serve(failing())
    async with http(broken) as client:
        await client.get("/fail")
    with pytest.raises(ServerError):
        broken.stop()


def test_no_line_from_a_server_reaches_the_log_or_the_screen(
    heard: Heard, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Starts, stops, bad requests, skipped files and errors: what matters comes out of stop(), the rest is silence."""
    everything_that_could_be_logged(tmp_path)
    assert [
        (record.name, record.threadName, record.getMessage())
        for record in heard.records
        if record.threadName != threading.current_thread().name
    ] == []
    assert capfd.readouterr() == ("", "")


def test_other_threads_log_as_before_while_servers_run_and_after(heard: Heard) -> None:
    """The silence is the server thread's own, and nothing of it stays on the loggers."""
    filters = {name: list(logging.getLogger(name).filters) for name in background.LOGGERS}
    with serve(short_polling.create_app(Feed())):
        logging.getLogger("uvicorn.error").error("of this thread")
    assert [record.getMessage() for record in heard.records] == ["of this thread"]
    with pytest.raises(ServerError):
        serve(short_polling.create_app(Feed()), host="192.0.2.1")
    assert {name: logging.getLogger(name).filters for name in background.LOGGERS} == filters


@on_a_loop
async def test_a_server_that_is_not_quiet_logs_its_errors_when_they_happen(heard: Heard) -> None:
    """On the command line an error is a line in the log at once, and stop() says nothing more about it."""

    def errors() -> list[str]:
        return [record.getMessage().strip() for record in heard.records if record.levelno >= logging.ERROR]

    with serve(failing(), quiet=False) as server:
        async with http(server) as client:
            await client.get("/fail")
        await until(errors)  # the client may have its answer before the server has its line
        assert errors() == ["Exception in ASGI application"]


# --- in a notebook: a real kernel, driven as JupyterLab and nbclient drive it ---


class Kernel:
    """A Jupyter kernel that runs cells."""

    def __init__(self, client: BlockingKernelClient) -> None:
        self.client = client

    def run(self, code: str, cell_id: str = "") -> Any:
        """Run a cell, with its id as JupyterLab sends it or without as nbclient; return the JSON that it prints."""
        content = {"code": code, "silent": False, "store_history": True, "user_expressions": {}, "allow_stdin": False}
        content["stop_on_error"] = False
        message = self.client.session.msg("execute_request", content, metadata={"cellId": cell_id} if cell_id else {})
        self.client.shell_channel.send(message)
        printed = ""
        while True:
            reply = self.client.get_iopub_msg(timeout=60)
            if reply["parent_header"].get("msg_id") != message["header"]["msg_id"]:
                continue
            match reply["msg_type"], reply["content"]:
                case "stream", {"name": "stdout", "text": text}:
                    printed += text
                case (("error" | "stream"), content):
                    raise AssertionError("\n".join(content.get("traceback", [content.get("text", "")])))
                case "status", {"execution_state": "idle"}:
                    return json.loads(printed or "null")

    def ports(self) -> list[int]:
        """The ports of the servers that run in the kernel, by its own account and by its threads."""
        ports, names = self.run(
            "import json, threading\n"
            "from servers import background\n"
            "alive = [thread.name for thread in threading.enumerate() if thread.name.startswith('server of')]\n"
            "print(json.dumps([[server.port for server in background._running], alive]))"
        )
        assert len(ports) == len(names)
        return sorted(ports)


@pytest.fixture(scope="module")
def kernel() -> Iterator[Kernel]:
    """A kernel with a feed and the names that the cells use."""
    manager = KernelManager(kernel_name="python3")
    manager.start_kernel()
    client = manager.blocking_client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=60)
        kernel = Kernel(client)
        kernel.run(
            "import json\n"
            "from servers import long_polling, short_polling\n"
            "from servers.background import serve\n"
            "from servers.feed import Feed\n"
            "feed = Feed()\n"
            "app = long_polling.create_app(feed)"
        )
        yield kernel
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


START = "server = serve(short_polling.create_app(feed))\nprint(server.port)"


@pytest.mark.parametrize(("first_id", "second_id"), [("", ""), ("cell-1", "cell-1")])
def test_a_cell_run_twice_stops_the_server_it_started_before(kernel: Kernel, first_id: str, second_id: str) -> None:
    """One server is left, the new one, and the old one's port is closed."""
    first = kernel.run(START, first_id)
    assert answers(first)
    second = kernel.run(START, second_id)
    assert kernel.ports() == [second]
    assert answers(second)
    assert not answers(first)
    kernel.run("server.stop()")
    assert kernel.ports() == []


def test_an_edited_cell_is_still_the_same_cell(kernel: Kernel) -> None:
    """JupyterLab sends the cell's id, so a cell with another text replaces the server of its old text."""
    first = kernel.run(START, "edited")
    second = kernel.run("# now with a comment\n" + START, "edited")
    assert kernel.ports() == [second]
    assert not answers(first)
    kernel.run("server.stop()")


def test_other_cells_leave_each_others_servers_alone(kernel: Kernel) -> None:
    """Two cells, also with the same text, have two servers."""
    first, second = kernel.run(START, "one"), kernel.run("other = server\n" + START, "two")
    assert kernel.ports() == sorted([first, second])
    kernel.run("server.stop(); other.stop()")


def test_two_servers_made_in_one_cell_both_live_and_are_both_replaced(kernel: Kernel) -> None:
    """The execution, not the call, is what replaces: a loop in a cell may start many."""
    cell = "pair = [serve(short_polling.create_app(feed)) for _ in range(2)]\nprint([s.port for s in pair])"
    first = kernel.run(cell)
    assert kernel.ports() == sorted(first)
    second = kernel.run(cell)
    assert kernel.ports() == sorted(second)
    assert not any(answers(port) for port in first)
    kernel.run("for s in pair:\n    s.stop()")


def test_a_cell_that_serves_an_older_cells_application_can_be_run_again(kernel: Kernel) -> None:
    """The same application is served again, and holds its polls again."""
    cell = (
        "import httpx, time\n"
        "server = serve(app)\n"
        "start = time.perf_counter()\n"
        "answer = httpx.get(f'{server.url}/updates', params={'after': feed.cursor, 'wait': 0.2})\n"
        "print(json.dumps([server.port, answer.status_code, time.perf_counter() - start]))"
    )
    ports = []
    for _ in range(2):
        port, status, duration = kernel.run(cell)
        assert status == 200
        assert duration >= 0.18
        ports.append(port)
    assert kernel.ports() == [ports[1]]
    kernel.run("server.stop()")


def test_a_server_with_errors_does_not_keep_its_fellows_of_the_cell_alive(kernel: Kernel) -> None:
    """When a cell runs again, all its servers stop; the error of one is shown, and the next run starts afresh."""
    cell = (
        "from fastapi import FastAPI\n"
        "import httpx\n"
        "broken = FastAPI()\n"
        "@broken.get('/')\n"
        "def fail():\n"
        "    raise ValueError('boom')\n"
        "try:\n"
        "    pair = [serve(broken), serve(short_polling.create_app(feed))]\n"
        "    _ = httpx.get(pair[0].url)\n"
        "    print([s.port for s in pair])\n"
        "except RuntimeError as error:\n"  # a cell that fails costs the kernel seconds to format
        "    print(json.dumps(repr(error)))"
    )
    first = kernel.run(cell)
    assert re.match(r"ServerError\(.*boom", kernel.run(cell))
    assert kernel.ports() == []
    assert not any(answers(port) for port in first)
    second = kernel.run(cell)
    assert kernel.ports() == sorted(second)
    kernel.run("for s in pair:\n    try:\n        s.stop()\n    except RuntimeError:\n        pass")
    assert kernel.ports() == []


def test_outside_a_kernel_no_server_replaces_another() -> None:
    """In a script the same line may start as many servers as it likes."""
    servers = [serve(short_polling.create_app(Feed())) for _ in range(3)]
    assert all(answers(server.port) for server in servers)
    for server in servers:
        server.stop()


STUBBORN = """
import asyncio, sys
from servers import Feed, Service
from servers.background import run

app = Service("SSE", Feed(), path="/events")

@app.get("/events")
async def events():
    print("held", flush=True)
    while True:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            pass

sys.exit(run(app, "stubborn", port=0))
"""


def test_a_command_does_not_wait_for_what_does_not_end() -> None:
    """A command ends with status 0 although a request of its server refuses to: it ends with the process."""
    process = subprocess.Popen(
        [sys.executable, "-c", STUBBORN], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        url = re.search(r"http://\S+", process.stdout.readline())
        assert url is not None
        with socket.create_connection(("127.0.0.1", int(url[0].rpartition(":")[2]))) as connection:
            connection.sendall(b"GET /events HTTP/1.1\r\nHost: x\r\n\r\n")
            assert process.stdout.readline() == "held\n"
            process.send_signal(signal.SIGTERM)
            _, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert (process.returncode, err) == (0, "")


@pytest.mark.parametrize("sign", ["SIGINT", "SIGTERM"])
def test_a_signal_is_heard_at_the_worst_moment(sign: str) -> None:
    """Also while the main thread holds the lock of the event that it is about to wait for."""
    program = (
        "import signal, threading\n"
        "from servers.background import heed_signals\n"
        "enough = threading.Event()\n"
        "heed_signals(enough)\n"
        "for _ in range(2):\n"
        "    with enough._cond:\n"
        f"        signal.raise_signal(signal.{sign})\n"
        "    assert enough.wait(20)\n"
        "    enough.clear()\n"
    )
    assert subprocess.run([sys.executable, "-c", program], timeout=60, check=True).returncode == 0
