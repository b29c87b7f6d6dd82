"""What the servers lean on inside other packages is there; and what a client sends is bounded before it is believed."""

import ast
import asyncio
import contextlib
import functools
import gc
import importlib
import inspect
import json
import logging
import math
import re
import resource
import socket
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from fastapi import FastAPI, Request, Response, WebSocket
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from lab.virtual import Net, run_virtual
from lab.virtual import serve as serve_virtually
from servers import demo, fan_out, file_updates, long_polling, on_uvicorn, short_polling, sse, websocket
from servers.background import Server, ServerError, serve
from servers.fan_out import polls, sockets
from servers.feed import Feed
from servers.service import Service
from servers.tree import Tree
from tests.support import Raw, command, ended, frame, loop_of, on_a_loop, tasks_of, unsent, until, url_of

# --- what is leaned on ---

# A class of another package, and the names of it that are overridden or reached for.
HTTP, SOCKET, SERVER = (
    "uvicorn.protocols.http.httptools_impl:HttpToolsProtocol",
    "uvicorn.protocols.websockets.websockets_sansio_impl:WebSocketsSansIOProtocol",
    "uvicorn.server:Server",
)
LEANED_ON: dict[str, dict[str, str]] = {
    "servers/on_uvicorn.py": {
        HTTP: "connection_made connection_lost data_received eof_received pause_writing resume_writing"
        " on_response_complete on_message_complete on_headers_complete _start_asgi_task _unset_keepalive_if_required"
        " _should_upgrade handle_websocket_upgrade"
        " timeout_keep_alive_handler timeout_keep_alive_task timeout_keep_alive shutdown server_state"
        " parser flow cycle scope headers url transport loop client server",
        "uvicorn.protocols.http.httptools_impl:RequestResponseCycle": "send receive run_asgi scope transport"
        " disconnected message_event keep_alive response_started response_complete chunked_encoding"
        " expected_content_length",
        "uvicorn.protocols.http.flow_control:FlowControl": "pause_reading resume_reading read_paused write_paused",
        SOCKET: "send data_received pause_writing resume_writing handle_events handle_cont handle_parser_exception"
        " send_receive_event_to_app keepalive_timeout writable disconnected conn transport read_paused close_sent"
        " handshake_initiated handshake_complete curr_msg_data_type frames queue close_timer close_timeout",
        SERVER: "run serve main_loop on_tick startup shutdown should_exit server_state servers started",
        "uvicorn.server:ServerState": "connections tasks default_headers total_requests",
        "uvicorn.protocols.http.httptools_impl:STATUS_LINE": "",
        "uvicorn.config:Config": "get_loop_factory http_protocol_class ws_protocol_class",
        "uvicorn._types:ASGISendEvent": "",
        "uvicorn._types:ASGI3Application": "",
        "httptools:HttpRequestParser": "feed_data get_http_version get_method should_upgrade",
        "websockets.frames:Frame": "serialize",
        "websockets.server:ServerProtocol": "handshake_exc receive_data send_close data_to_send state extensions",
        "websockets.protocol:State": "OPEN",
    },
    "servers/service.py": {
        "fastapi.routing:APIRoute": "matches handle methods app",
        "fastapi.routing:APIRouter": "route_class responses",
        "fastapi:FastAPI": "add_api_websocket_route",
        "starlette.staticfiles:StaticFiles": "file_response get_response",
    },
    "notebooks/lab/virtual/run.py": {SERVER: "main_loop on_tick serve server_state should_exit"},
    "servers/feed.py": {"asyncio:": "_get_running_loop"},
    "servers/websocket.py": {"starlette.websockets:WebSocketDisconnected": ""},
}


@pytest.mark.parametrize(("room", "names"), LEANED_ON.items())
def test_what_a_room_leans_on_inside_other_packages_is_there(room: str, names: dict[str, str]) -> None:
    """Each overridden method and each attribute that is reached for exists; a failure names the room to open."""
    missing = []
    for where, members in names.items():
        module, _, name = where.partition(":")
        found: Any = importlib.import_module(module)
        found = getattr(found, name, None) if name else found
        if found is None:
            missing.append(where)
            continue
        source = "".join(source_of(kind) for kind in inspect.getmro(found)) if inspect.isclass(found) else ""
        for member in members.split():
            if not hasattr(found, member) and not re.search(rf"self\.{member}\b", source):
                missing.append(f"{where}.{member}")
    assert not missing, f"this release has no {', '.join(missing)}: open {room}"


def source_of(kind: type) -> str:
    """The source of a class, where what it assigns to itself can be seen; nothing for one that is not Python."""
    try:
        return inspect.getsource(kind)
    except (OSError, TypeError):
        return ""


def test_every_method_that_overrides_another_packages_still_does() -> None:
    """No class of the room has a method, private by name, that its base has lost: it would never be called."""
    for kind in (
        on_uvicorn.HttpProtocol,
        on_uvicorn.Cycle,
        on_uvicorn.UnframedCycle,
        on_uvicorn.WebSocketProtocol,
        on_uvicorn.GracefulServer,
    ):
        own = {"data_received", "read_on", "end", "parse", "parse_without_upgrade", "arrived", "too_slow", "refuse"}
        own |= {"exit", "sweep", "cut_off", "cut_connections", "plain", "push", "farewell", "passes", "knock"}
        own |= {"unsent", "look_after", "drained", "call", "stop_listening", "leave"}
        for name, method in vars(kind).items():
            if inspect.isfunction(method) and name not in own:
                assert hasattr(kind.__mro__[1], name), f"{kind.__mro__[1]} has no {name}: open servers/on_uvicorn.py"


@pytest.mark.parametrize(
    "module", [demo, fan_out, polls, sockets, file_updates, long_polling, short_polling, sse, websocket]
)
def test_no_other_room_of_the_servers_reaches_into_uvicorn(module: ModuleType) -> None:
    """Whoever needs its insides asks this room for them."""
    imported = {
        name.name if isinstance(node, ast.Import) else f"{node.module}"
        for node in ast.walk(ast.parse(inspect.getsource(module)))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in node.names
    }
    assert not {name for name in imported if name.split(".")[0] in ("uvicorn", "httptools", "websockets")}


# --- what a client sends: size ---

paths = pytest.mark.parametrize("fast", [False, True], ids=["readable", "fast"])

GET = b"GET /updates?after=0 HTTP/1.1\r\nHost: x\r\n\r\n"


def status(answer: bytes) -> int:
    """The status of an answer's first line."""
    return int(answer.split(b" ", 2)[1])


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (b"GET /" + b"a" * 70_000, 431),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 70_000, 431),
        (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X: y\r\n" * 12_000, 431),
        (b"\r\n" * 40_000, 431),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 60_000 + b"\r\n\r\n", 200),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 70000\r\n\r\n", 413),
        (b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\na\r\n" * 70_000, 413),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nHost: x\r\n\r\n", 400),
        (b"GET / HTTP/1.0\r\n\r\n", 200),
        (b"GET http://x HTTP/1.1\r\nHost: x\r\n\r\n", 200),
        (b"GET HTTP://x?y HTTP/1.1\r\nHost: x\r\n\r\n", 200),
        (b"GET http://x:99999/ HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET / HTTP/2.0\r\nHost: x\r\n\r\n", 505),
        (b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n", 501),
        (b"\x16\x03\x01\x02\x00\x01", 400),
        (b"GET / HTTP/1.1\nHost: x\n\n", 400),
        (b"GET /%ff\xff HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    ],
)
def test_a_request_that_breaks_the_rules_is_answered_and_is_no_line_in_the_log(
    head: bytes, expected: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Too large, ambiguous, foreign or no HTTP at all: each gets its status at once, and the log says nothing."""

    @on_a_loop
    async def body() -> None:
        with serve(echoing(), quiet=False) as server:
            with Raw(server) as client:
                try:
                    await asyncio.to_thread(client.send, head)
                except OSError:
                    pass  # it hung up, which is what the rest of it deserves
                assert status(await client.read_until(b"\r\n\r\n")) == expected
            with Raw(server) as client:
                client.send(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                assert status(await client.read_all()) == 200

    body()
    assert [record for record in caplog.records if record.levelno > logging.INFO] == []


def echoing() -> FastAPI:
    """An application that reads a body."""
    app = FastAPI()

    @app.get("/")
    async def hello() -> str:
        return "hello"

    @app.api_route("/echo", methods=["POST", "PATCH"])
    async def echo(request: Request) -> str:
        return (await request.body()).decode()

    return app


@on_a_loop
async def test_a_head_in_single_bytes_is_read_and_costs_no_more_than_its_size() -> None:
    """Wherever TCP cuts a request, it is one request; what is behind it is another."""
    head = (
        b"\r\nPOST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\n\r\n\r\n"
        + b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
    )
    with serve(echoing()) as server, Raw(server) as client:
        client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in head:
            client.send(bytes([byte]))
        answer = await client.read_until(b'"hello"')
        assert re.findall(rb'HTTP/1\.1 (\d+)|("[^"]*")', answer) == [
            (b"200", b""), (b"", b'"\\r\\n\\r\\n"'), (b"200", b""), (b"", b'"hello"'),
        ]  # fmt: skip


@on_a_loop
async def test_requests_in_one_segment_are_answered_one_after_the_other_in_order() -> None:
    """A pipeline, with bodies of a length, in chunks and none, is answered in order (RFC 9112, section 9.3.2)."""
    chunked = b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    requests = [
        b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n1",
        chunked + b"1\r\n2\r\n0\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"PATCH /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 3000\r\n\r\n" + b"3" * 3000,
        b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    ]
    with serve(echoing()) as server, Raw(server) as client:
        client.send(b"".join(requests) * 1)
        answer = await client.read_all()
    assert re.findall(rb'"([^"]*)"', answer) == [b"1", b"2", b"hello", b"3" * 3000, b"hello"]


# --- number ---


@pytest.mark.parametrize(
    "model", ["short-polling", "short-polling-fast", "long-polling", "long-polling-fast", "sse", "file-updates"]
)
def test_who_pipelines_and_reads_nothing_waits_in_its_own_kernel(model: str) -> None:
    """However many requests one connection sends, one is under way and one answer is held; others are served."""
    creators: dict[str, tuple[Any, bytes]] = {
        "short-polling": (short_polling.create_app, b"/updates?after=e-0"),
        "short-polling-fast": (functools.partial(short_polling.create_app, fast=True), b"/updates?after=e-0"),
        "long-polling": (long_polling.create_app, b"/updates?after=e-0"),
        "long-polling-fast": (functools.partial(long_polling.create_app, fast=True), b"/updates?after=e-0"),
        "sse": (sse.create_app, b"/events?after=e-0"),
        "file-updates": (file_updates.create_app, b"/files"),
    }
    create_app, path = creators[model]

    @on_a_loop
    async def body() -> None:
        feed = Feed(epoch="e")
        for number in range(100):
            feed.publish(f"{number}", content=bytes(1000))
        app = create_app(feed)
        with serve(app) as server, Raw(server) as client:
            client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.socket.setblocking(False)
            request = b"GET " + path + b" HTTP/1.1\r\nHost: x\r\n\r\n"
            await stuffed(client.socket, request * 1000)
            (connection,) = server._uvicorn.server_state.connections
            assert len(connection.unread) < 2**21  # type: ignore[union-attr]
            assert not connection.pipeline  # type: ignore[union-attr]
            assert unsent(server) < 2**20
            assert sum("run_asgi" in name for name in tasks_of(server)) <= 1
            with Raw(server) as other:
                other.send(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                assert status(await other.read_all()) == 200

    body()


async def stuffed(client: socket.socket, data: bytes) -> int:
    """Send until nothing more has been taken for a while; how many bytes that were. No more than 64 MiB."""
    loop, sent = asyncio.get_running_loop(), 0
    while sent < 2**26:
        try:
            async with asyncio.timeout(1):
                await loop.sock_sendall(client, data)
        except TimeoutError:
            return sent
        sent += len(data)
    raise AssertionError("it takes everything")


@paths
@on_a_loop
async def test_pings_of_a_client_that_reads_nothing_are_not_answered_into_memory(fast: bool) -> None:
    """The pongs fill a buffer, and then the server reads no more; what it keeps is bounded."""
    app = websocket.create_app(Feed(), fast=fast)
    with serve(app) as server, Raw(server) as client:
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.send(Raw.HANDSHAKE)
        await client.read_until(b"hello")
        client.socket.setblocking(False)
        await stuffed(client.socket, frame(bytes(125), 9) * 500)
        assert unsent(server) < 2**20
    assert app.traffic.held == 0


@on_a_loop
async def test_empty_fragments_are_not_kept() -> None:
    """A message of a hundred thousand empty fragments is a message, and costs nothing until it ends."""
    app = FastAPI()
    heard: list[str] = []

    @app.websocket("/ws")
    async def listen(socket: WebSocket) -> None:
        await socket.accept()
        heard.append(await socket.receive_text())

    with serve(app) as server, Raw(server) as client:
        client.send(Raw.HANDSHAKE)
        await client.read_until(b"\r\n\r\n")
        client.send(b"\x01\x82\0\0\0\0ab" + b"\x00\x80\0\0\0\0" * 100_000)
        await until(lambda: len(server._uvicorn.server_state.connections) == 1)
        (connection,) = server._uvicorn.server_state.connections
        client.send(b"\x80\x81\0\0\0\0c")
        await until(lambda: heard)
        assert heard == ["abc"]
        assert len(connection.frames) <= 3  # type: ignore[union-attr]


@paths
@on_a_loop
async def test_a_client_that_breaks_the_protocol_while_updates_flow_is_no_error_of_the_server(fast: bool) -> None:
    """Frames that are none, at full speed: the close says why, and stop() has nothing to raise."""
    feed = Feed()
    app = websocket.create_app(feed, fast=fast)
    with serve(app) as server:
        for wrong in (b"\xc1\x80\0\0\0\0", b"\x81\x01x", b"\x83\x80\0\0\0\0", frame(b"x" * 70_000), frame(b"\xff")) * 3:
            with Raw(server) as client:
                client.send(Raw.HANDSHAKE)
                await client.read_until(b"hello")
                client.send(wrong)
                for number in range(20):
                    feed.publish(f"{number}")
                    await asyncio.sleep(0)
                with contextlib.suppress(ConnectionError):  # a reset, of what it has sent beyond
                    await client.read_until(b"\x88")
        await until(lambda: app.traffic.held == 0)


# --- time ---


@on_a_loop
async def test_who_does_not_finish_a_request_is_told_and_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a head, half a body, a byte now and then: 408 after the limit; who says nothing is let go silently."""
    monkeypatch.setattr(on_uvicorn, "SLOWEST", 3)  # s; of those who speak, the first word comes much sooner
    half = b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nabc"
    with (
        serve(echoing()) as server,
        Raw(server) as silent,
        Raw(server) as head,
        Raw(server) as body,
        Raw(server) as drip,
    ):
        head.send(half[:20])
        body.send(half)
        drip.send(b"GET /")

        async def dripping() -> None:
            while True:
                try:
                    drip.send(b"a")
                except OSError:
                    return
                await asyncio.sleep(0.05)

        dropping = asyncio.create_task(dripping())
        assert await silent.read_all() == b""
        assert status(await head.read_all()) == status(await body.read_all()) == 408
        assert status(await drip.read_until(b"\r\n\r\n")) == 408
        await until(lambda: not server._uvicorn.server_state.connections)
        dropping.cancel()


@paths
def test_a_request_that_is_answered_slowly_is_not_called_slow(fast: bool) -> None:
    """The limit is for what the client sends: a held poll and a kept connection outlast it. In virtual time."""

    async def main(net: Net) -> None:
        feed = Feed()
        async with serve_virtually(long_polling.create_app(feed, jitter=0, fast=fast)):
            reader, writer = await asyncio.open_connection("server", 80)
            request = f"GET /updates?after={feed.cursor}&wait=60 HTTP/1.1\r\nHost: x\r\n\r\n".encode()
            for size in (len(request), 20):
                writer.write(request[:size])
                await asyncio.sleep(1)  # the clock of what has not arrived whole runs
                writer.write(request[size:])
                assert status(await reader.readuntil(b"}")) == 200
                await asyncio.sleep(2 * on_uvicorn.SLOWEST)
            writer.close()

    run_virtual(main)


@on_a_loop
async def test_a_closed_connection_that_is_not_read_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that reads nothing of its last answer loses it in the end, and the server a descriptor less."""
    monkeypatch.setattr(on_uvicorn, "SLOWEST", 2)
    app = echoing()

    @app.get("/large")
    async def large() -> Response:
        return Response(bytes(2**25))

    with serve(app) as server, Raw(server) as client:
        client.send(b"GET /large HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        await until(lambda: unsent(server))
        await until(lambda: not server._uvicorn.server_state.connections)


@paths
@on_a_loop
async def test_a_client_that_resets_leaves_no_timer(fast: bool) -> None:
    """Hundreds of connections that are reset after an answer leave nothing that the loop would keep for 75 s."""

    def connections() -> set[int]:
        return {id(each) for each in gc.get_objects() if isinstance(each, on_uvicorn.HttpProtocol)}

    gc.collect()
    before = connections()  # what another test's failure or trace still holds
    with serve(short_polling.create_app(Feed(epoch="e"), fast=fast)) as server:
        for _ in range(50):
            with Raw(server) as client:
                client.send(GET.replace(b"=0", b"=e-0"))
                await client.read_until(b"cursor")
                client.reset()
        await until(lambda: not server._uvicorn.server_state.connections)
        await until(lambda: gc.collect() is not None and connections() <= before)


@pytest.mark.skipif(sys.platform == "win32", reason="no limit of descriptors")
def test_silent_connections_do_not_shut_others_out_for_good(tmp_path: Path) -> None:
    """With 128 descriptors and 150 half heads a server is back as soon as their time is over."""
    preamble = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))"
    preamble += "; from servers import on_uvicorn; on_uvicorn.SLOWEST = 1"
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 300

    @on_a_loop
    async def body() -> None:
        async with command("servers", "sse", "--port", "0", "--watch", f"{tmp_path}", preamble=preamble) as process:
            url = await url_of(process, "sse")
            port = int(url.rsplit(":", 1)[1])
            clients = [socket.create_connection(("127.0.0.1", port), timeout=20) for _ in range(150)]
            for client in clients:
                client.sendall(b"GET / HT")

            async def healthy() -> bool:
                try:
                    async with asyncio.timeout(5):
                        reader, writer = await asyncio.open_connection("127.0.0.1", port)
                        with contextlib.closing(writer):
                            writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                            return b"200 OK" in await reader.read()
                except (OSError, TimeoutError):
                    return False

            async with asyncio.timeout(40):
                while not await healthy():  # noqa: ASYNC110  # another process
                    await asyncio.sleep(0.1)
            for client in clients:
                client.close()
            process.terminate()
            assert (await ended(process))[0] == 0

    body()


@paths
@on_a_loop
async def test_who_leaves_while_it_is_held_is_seen_to_whatever_it_sent_behind(fast: bool) -> None:
    """A second request behind a held one, in the same segment or its own, does not hide that the client has gone."""
    app = long_polling.create_app(Feed(epoch="e"), fast=fast)
    held = b"GET /updates?after=e-0&wait=60 HTTP/1.1\r\nHost: x\r\n\r\n"
    with serve(app) as server:
        for pieces in ([held + GET], [held, GET], [held[:9], held[9:], GET[:9], GET[9:]]):
            with Raw(server) as client:
                for piece in pieces:
                    client.send(piece)
                    await asyncio.sleep(0.01)
                await until(lambda: app.traffic.held == 1)
            await until(lambda: app.traffic.held == 0)
    assert 3 <= app.traffic.requests <= 5, "what it sent behind may be answered: it may only have shut its half"


@paths
@on_a_loop
async def test_who_shuts_its_half_is_answered_what_it_asked_and_let_go(fast: bool) -> None:
    """Polls, held or in one segment, are answered in order and at once; what was cut short ends the connection."""
    feed = Feed(epoch="e")
    app = long_polling.create_app(feed, fast=fast)
    feed.publish("a")
    held = b"GET /updates?after=e-1&wait=60 HTTP/1.1\r\nHost: x\r\n\r\n"
    with serve(app) as server:
        for requests, answers in ((held, 1), (GET + held + GET + held, 4), (2 * GET + held[:9], 2), (held[:9], 0)):
            with Raw(server) as client:
                client.send(requests)
                client.socket.shutdown(socket.SHUT_WR)
                answer = await client.read_all()
            assert answer.count(b"HTTP/1.1 200 OK") == answer.count(b'"cursor":"e-1"}') == answers
        with Raw(server) as client:
            client.send(held)
            await until(lambda: app.traffic.held == 1)
            client.socket.shutdown(socket.SHUT_WR)
            assert (await client.read_all()).endswith(b'{"updates":[],"cursor":"e-1"}')
        assert app.traffic.held == 0


def is_served(server: Server, app: Service) -> bool:
    """Whether a download or a stream is under way."""
    return bool(unsent(server) or app.traffic.held)


@on_a_loop
async def test_a_download_arrives_whole_where_a_stream_ends_when_a_client_shuts_its_half(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Half a connection is enough to read a file; who follows a stream is taken for gone, and neither is in the log."""
    (tmp_path / "large").write_bytes(bytes(2**24))
    feed = Feed(epoch="e")
    files, readable = file_updates.create_app(feed, Tree(tmp_path)), sse.create_app(feed)
    for app, path, size in ((files, "/files/large", 2**24), (files, "/events", 0), (readable, "/events", 0)):
        for at_once in (True, False):
            with serve(app, quiet=False) as server, Raw(server) as client:
                client.send(b"GET %b HTTP/1.1\r\nHost: x\r\n\r\n" % path.encode())
                if not at_once:
                    await until(functools.partial(is_served, server, app))
                client.socket.shutdown(socket.SHUT_WR)
                assert len(await client.read_all()) == pytest.approx(size, abs=1000)
                await until(lambda: not server._uvicorn.server_state.connections)
                assert app.traffic.held == 0
    assert [record for record in caplog.records if record.levelno > logging.INFO] == []


# --- old and foreign protocols ---


@pytest.mark.parametrize(
    "create_app", [sse.create_app, functools.partial(sse.create_app, fast=True), file_updates.create_app]
)
def test_http_1_0_gets_a_stream_without_framing_whose_end_is_the_connections(create_app: Any) -> None:
    """An event stream for HTTP/1.0 has no Transfer-Encoding and no chunk sizes (RFC 9112, sections 6.1 and 6.3)."""

    @on_a_loop
    async def body() -> None:
        feed = Feed(epoch="e")
        with serve(create_app(feed)) as server, Raw(server) as client:
            client.send(b"GET /events HTTP/1.0\r\n\r\n")
            answer = await client.read_until(b"id: e-0\n\n")
            feed.publish("a")
            answer += await client.read_until(b"}\n\n")
            await asyncio.to_thread(server.stop)
            answer += await client.read_all()
        head, _, events = answer.partition(b"\r\n\r\n")
        assert b"transfer-encoding" not in head
        assert b"keep-alive" not in head
        assert events.startswith(b"retry: 2000\n\nid: e-0\n\nevent: update\nid: e-1\ndata: {")
        assert events.endswith(b"}\n\n")

    body()


@paths
@on_a_loop
async def test_a_stream_says_once_that_its_connection_ends(fast: bool) -> None:
    """Whether the client wants it so or the server drains: there is one Connection, and it is not also to be kept."""
    app = sse.create_app(Feed(epoch="e"), fast=fast)
    with serve(app) as server:
        for field in (b"Connection: close\r\n", b""):
            with Raw(server) as client:
                client.send(b"GET /events HTTP/1.1\r\nHost: x\r\n%b\r\n" % field)
                head = await client.read_until(b"\r\n\r\n")
            assert re.findall(rb"\r\nconnection: ([^\r]+)", head) == [b"close"]
            loop_of(server).call_soon_threadsafe(app.leases.drain, 60.0)
            await until(lambda: app.closing.drained < math.inf)


@on_a_loop
async def test_an_upgrade_that_is_not_followed_costs_neither_the_body_nor_what_is_behind_it() -> None:
    """A server may ignore Upgrade (RFC 9110, section 7.8): the request is answered as if it had not asked."""
    h2c = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n"
    with serve(echoing()) as server, Raw(server) as client:
        client.send(
            b"PATCH /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n" + h2c + b"body"
            b"GET / HTTP/1.1\r\nHost: x\r\n" + h2c + b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        )
        answer = await client.read_all()
    assert re.findall(rb'"([^"]*)"', answer) == [b"body", b"hello", b"hello"]


@paths
@on_a_loop
async def test_a_client_that_speaks_before_it_is_upgraded_is_heard(fast: bool) -> None:
    """A first message in the same segment as the handshake is not lost."""
    with serve(websocket.create_app(Feed(), fast=fast)) as server, Raw(server) as client:
        client.send(Raw.HANDSHAKE + frame(json.dumps({"type": "filter", "id": 7, "paths": []}).encode()))
        assert b"hello" in await client.read_until(b'"filtered", "id": 7')


@paths
@on_a_loop
async def test_a_whole_url_leads_where_its_path_does(fast: bool) -> None:
    """A target may come in absolute form (RFC 9112, section 3.2.2), that of a handshake too; no path is "/"."""
    assert on_uvicorn.origin_form(b"/a?b=c://d") == b"/a?b=c://d"
    assert on_uvicorn.origin_form(b"http://x:1?after=0") == b"/?after=0"
    handshake = Raw.HANDSHAKE.replace(b" /ws ", b" http://x/ws?after=e-0 ")
    with serve(websocket.create_app(Feed(epoch="e"), fast=fast)) as server, Raw(server) as client:
        client.send(handshake)
        assert b"hello" in await client.read_until(b'"e-0"}')


@paths
@on_a_loop
async def test_http_1_0_upgrades_to_nothing_and_is_answered_as_http_1_0(fast: bool) -> None:
    """Upgrade is ignored in HTTP/1.0 (RFC 9110, section 7.8), and what follows is not in chunks."""
    handshake = Raw.HANDSHAKE.replace(b"HTTP/1.1", b"HTTP/1.0").replace(b"/ws", b"/events")
    with serve(sse.create_app(Feed(epoch="e"), fast=fast)) as server:
        for request in (handshake, handshake.replace(b"Upgrade: websocket", b"Upgrade: h2c")):
            with Raw(server) as client:
                client.send(request)
                assert (await client.read_until(b"e-0\n\n")).endswith(b"\r\n\r\nretry: 2000\n\nid: e-0\n\n")


@paths
@pytest.mark.parametrize(
    ("early", "answer"),
    [
        (frame(b"now", opcode=9), b"\x8a\x03now"),  # a pong
        (GET, b"\x88"),  # a close
        (b"\xff" * 3, b"\x88"),
        (frame(b"", opcode=8), b"\x88\x00"),
    ],
    ids=["ping", "another request", "rubbish", "close"],
)
def test_what_a_client_says_before_it_is_let_in_is_heard_afterwards(
    early: bytes, answer: bytes, fast: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Right or wrong, in one segment with the handshake or behind it: first comes 101, and no line in the log."""

    @on_a_loop
    async def body() -> None:
        with serve(websocket.create_app(Feed(), fast=fast), quiet=False) as server:
            for pieces in ([Raw.HANDSHAKE + early], [Raw.HANDSHAKE, early[:1], early[1:]]):
                with Raw(server) as client:
                    for piece in pieces:
                        client.send(piece)
                    said = await client.read_until(answer)
                    assert said.startswith(b"HTTP/1.1 101 ")
                    assert answer in said.partition(b"\r\n\r\n")[2]

    body()
    assert [record for record in caplog.records if record.levelno > logging.INFO] == []


# --- one write for many ---


@on_a_loop
async def test_what_counts_or_imitates_a_connection_is_not_written_past() -> None:
    """Only a plain transport of the loop's own is written to by its descriptor, and then in order and completely."""
    ends = socket.socketpair()
    ends[1].setblocking(False)
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.create_connection(asyncio.Protocol, sock=ends[0])
    counted = list[int]()
    carrier = type("Carrier", (), {"transport": transport})()
    tap = on_uvicorn.Tap(carrier, counted.append, counted.append)
    assert on_uvicorn.socket_of(tap) == -1
    out = type("Out", (), {"transport": transport, "socket": on_uvicorn.socket_of(transport)})()
    assert out.socket == ends[0].fileno()
    expected = received = b""
    slow = list[Any]()
    for number in range(1000):
        chunk = b"%05d" % number * 1000
        written, slow = on_uvicorn.write_all([out], chunk, 100_000)
        if not written:
            break
        expected += chunk
    assert slow == [out]
    while len(received) < len(expected):
        received += await loop.sock_recv(ends[1], 2**16)
    assert received == expected
    transport.abort()
    assert on_uvicorn.write_all([out], b"late", 100_000) == (0, [])
    assert protocol
    ends[1].close()


# --- the server ---


def test_a_stop_is_not_held_up_by_the_garbage_collector() -> None:
    """While thousands of streams end, what they hold is out of the collector's sight; afterwards it is as before."""
    app = short_polling.create_app(Feed())
    seen = []
    close = app.closing.close

    def closed() -> None:
        seen.append(gc.get_freeze_count())
        close()

    app.closing.close = closed  # type: ignore[method-assign]
    before = gc.get_freeze_count()
    with serve(app):
        pass
    assert seen[0] > 1000
    assert gc.get_freeze_count() == before


def test_a_fault_of_the_servers_own_is_not_called_the_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the room itself does wrong while a request is parsed is an error that stop() raises, not a 400."""

    @on_a_loop
    async def body() -> None:
        server = serve(echoing())
        with Raw(server) as client:
            client.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert await client.read_all() == b""
        assert loop_of(server)
        with pytest.raises(ServerError, match="of the room"):
            server.stop()

    def broken(self: on_uvicorn.HttpProtocol) -> None:
        raise KeyError("of the room")

    monkeypatch.setattr(HttpToolsProtocol, "on_headers_complete", broken)
    body()


def test_another_packages_asyncio_run_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    """nest_asyncio replaces asyncio.run by one that takes no loop_factory: a server starts all the same."""

    def patched(main: Any, *, debug: bool = False) -> None:
        raise AssertionError("not this one")

    monkeypatch.setattr(asyncio, "run", patched)
    with serve(short_polling.create_app(Feed())) as server:
        assert server.running
    assert not server.running
