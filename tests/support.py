"""What the tests of the servers share: clients of each model, conditions with a deadline, a look into a server."""

import asyncio
import contextlib
import functools
import json
import os
import re
import selectors
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, ParamSpec, cast

import httpx
import websockets
from starlette.types import ASGIApp, Message

from servers.background import Server

PATIENCE = 20.0  # seconds until a condition that should hold at once is given up; long, because the machine may be busy
SENTENCE = re.compile(r"(\S+) at (http://127\.0\.0\.1:\d+) \(Ctrl-C stops it\)\n")
Arguments = ParamSpec("Arguments")


def on_a_loop(test: Callable[Arguments, Coroutine[Any, Any, None]]) -> Callable[Arguments, None]:
    """Run an async test to its end on a fresh event loop, within a minute."""

    @functools.wraps(test)
    def run(*args: Arguments.args, **kwargs: Arguments.kwargs) -> None:
        asyncio.run(asyncio.wait_for(test(*args, **kwargs), 60))

    return run


async def until(condition: Callable[[], object]) -> None:
    """Return once the condition holds; TimeoutError when it does not within PATIENCE."""
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110  # the condition changes in another thread
            await asyncio.sleep(0.005)


class Within:
    """A block that must be over within `limit` seconds, not counting those by which this busy machine is late.

    A thread beside it sleeps for 10 ms at a time and adds up by how much it wakes too late; a block that keeps
    the processor to itself is seen in the CPU time of the process. `duration` is what counted.
    """

    def __init__(self, limit: float) -> None:
        self.limit, self.late, self.duration = limit, 0.0, 0.0
        self._over = threading.Event()
        self._sleeper = threading.Thread(target=self._sleep)

    def _sleep(self) -> None:
        while not self._over.is_set():
            start = time.perf_counter()
            time.sleep(0.01)
            self.late += time.perf_counter() - start - 0.01

    def __enter__(self) -> "Within":
        self._sleeper.start()
        self._start, self._cpu = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        duration, cpu = time.perf_counter() - self._start, time.process_time() - self._cpu
        self._over.set()
        self._sleeper.join()
        self.duration = duration - self.late
        if kind is None:
            assert self.duration < self.limit, f"{duration:.2f} s, of which the machine was {self.late:.2f} s late"
            assert cpu < self.limit / 2


def tasks_of(server: Server) -> list[str]:
    """The names of the coroutines that run as tasks on a server's loop, sorted."""
    return sorted(getattr(task.get_coro(), "__qualname__", "") for task in asyncio.all_tasks(loop_of(server)))


def loop_of(server: Server) -> asyncio.AbstractEventLoop:
    """The event loop of a running server's thread."""
    loop: asyncio.AbstractEventLoop = server._uvicorn.servers[0].get_loop()
    return loop


def unsent(server: Server) -> int:
    """The bytes that wait in the server's memory for clients to read."""
    connections = tuple(server._uvicorn.server_state.connections)
    return sum(connection.transport.get_write_buffer_size() for connection in connections)


# What the kernel may keep for a client that does not read: it would grow to tens of megabytes.
WINDOW = (socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)


def http(server: Server, limits: httpx.Limits | None = None, **options: Any) -> httpx.AsyncClient:
    """A client for one server; reading takes as long as the test allows."""
    limits = limits or httpx.Limits()
    transport = httpx.AsyncHTTPTransport(verify=False, trust_env=False, limits=limits, socket_options=[WINDOW])
    timeout = httpx.Timeout(PATIENCE, read=None)
    return httpx.AsyncClient(base_url=server.url, timeout=timeout, transport=transport, trust_env=False, **options)


class Events:
    """An event stream, one block of lines at a time, not interpreted."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self._chunks = response.aiter_bytes()
        self._unread = b""

    async def block(self) -> str:
        """The next block without the blank line that ends it."""
        async with asyncio.timeout(PATIENCE):
            while b"\n\n" not in self._unread:
                self._unread += await anext(self._chunks)
        block, _, self._unread = self._unread.partition(b"\n\n")
        return block.decode()

    async def update(self) -> dict[str, Any]:
        """The data of the next block, which must be an update whose id is its cursor."""
        event, name, data = (await self.block()).split("\n")
        assert event == "event: update"
        update: dict[str, Any] = json.loads(data.removeprefix("data: "))
        assert name.endswith(f"-{update['seq']}")
        return update

    async def rest(self) -> bytes:
        """All that comes until the end of the stream; httpx.RemoteProtocolError when it is broken off."""
        async with asyncio.timeout(PATIENCE):
            async for chunk in self._chunks:
                self._unread += chunk
        return self._unread


@contextlib.asynccontextmanager
async def events(
    server: Server, headers: dict[str, str] | None = None, *, below: str = "", **query: str
) -> AsyncIterator[Events]:
    """A GET of /events whose answer is read as it comes; leaving the block closes the connection."""
    path = f"{below}/events"
    async with http(server) as client, client.stream("GET", path, params=query, headers=headers) as response:
        yield Events(response)


def socket_to(server: Server, query: str = "", *, below: str = "", **options: Any) -> websockets.connect:
    """A WebSocket to the server; it waits a second at most for the answer to its own close."""
    url = f"ws{server.url.removeprefix('http')}{below}/ws?{query}"
    return websockets.connect(url, **{"proxy": None, "close_timeout": 1, "ping_interval": None} | options)


async def received(connection: websockets.ClientConnection) -> dict[str, Any]:
    """The next message, which must be a JSON object in a text frame."""
    async with asyncio.timeout(PATIENCE):
        text = await connection.recv()
    assert isinstance(text, str)
    message: dict[str, Any] = json.loads(text)
    return message


async def closed(connection: websockets.ClientConnection) -> tuple[int, str]:
    """The code and reason of the close that the server sends, after any messages."""
    async with asyncio.timeout(PATIENCE):
        with contextlib.suppress(websockets.ConnectionClosed):
            while True:
                await connection.recv()
    assert connection.protocol.close_rcvd is not None, "the connection ended without a close frame"
    return connection.protocol.close_rcvd.code, connection.protocol.close_rcvd.reason


@contextlib.asynccontextmanager
async def command(
    module: str, *arguments: object, preamble: str = "", output: int = subprocess.PIPE
) -> AsyncIterator[asyncio.subprocess.Process]:
    """`python -m module` as a process that complains of whatever is left open; `preamble` is run in it before.

    `output` is where stdout and stderr go, each of them, if not into pipes.
    """
    run = ("-c", f"{preamble}; import runpy; runpy.run_module({module!r}, run_name='__main__', alter_sys=True)")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "error::ResourceWarning", *(run if preamble else ("-m", module))),
        *map(str, arguments),
        env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        cast(Any, process)._transport.close()  # children that outlive it for a moment hold its pipes open


async def url_of(process: asyncio.subprocess.Process, model: str) -> str:
    """The URL in the first line of a server's command, which must be exactly as documented."""
    assert process.stdout is not None
    assert process.stderr is not None
    async with asyncio.timeout(PATIENCE):
        line = (await process.stdout.readline()).decode()
    match = SENTENCE.fullmatch(line)
    assert match, line or await process.stderr.read()
    assert match[1] == model
    return match[2]


async def ended(process: asyncio.subprocess.Process) -> tuple[int | None, str, str]:
    """Exit status, and the rest of what it printed on stdout and stderr."""
    async with asyncio.timeout(PATIENCE):
        out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


class Raw:
    """A TCP client that sends the bytes it is told to and reads only when it is told to."""

    HANDSHAKE = (
        b"GET /ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    )

    def __init__(self, server: Server) -> None:
        self.socket = socket.socket()
        self.socket.setsockopt(*WINDOW)
        self.socket.settimeout(PATIENCE)
        self.socket.connect(("127.0.0.1", server.port))

    def __enter__(self) -> "Raw":
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        """Send all of it."""
        self.socket.sendall(data)

    async def read_until(self, end: bytes) -> bytes:
        """Read to these bytes; all there was when the connection ends before."""
        data = b""
        while end not in data and (more := await asyncio.to_thread(self.socket.recv, 65536)):
            data += more
        return data

    async def read_all(self) -> bytes:
        """Read to the end of the connection."""
        data = b""
        while more := await asyncio.to_thread(self.socket.recv, 65536):
            data += more
        return data

    def reset(self) -> None:
        """Leave with a TCP reset, as a process that dies with unread data does."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


def frame(payload: bytes, opcode: int = 1) -> bytes:
    """A client's WebSocket frame (RFC 6455, section 5.2), with a mask of zeros."""
    size = len(payload)
    length = bytes([128 | size]) if size < 126 else b"\xfe" + size.to_bytes(2) if size < 65536 else long_length(size)
    return bytes([128 | opcode]) + length + bytes(4) + payload


def long_length(size: int) -> bytes:
    """The length field of a client's frame of 64 KiB or more."""
    return b"\xff" + size.to_bytes(8)


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps to the next timer when nothing is ready: an hour costs a millisecond."""

    def __init__(self) -> None:
        self.now = 0.0
        outer = self

        class Selector(selectors.DefaultSelector):
            def select(self, timeout: float | None = None) -> Any:
                ready = super().select(0)
                if not ready and timeout:
                    outer.now += timeout
                return ready

        super().__init__(Selector())

    def time(self) -> float:
        """Virtual seconds since the loop was made."""
        return self.now


def virtual_get(app: ASGIApp, target: str) -> tuple[float, int]:
    """The virtual seconds that a GET of path?query takes when nothing else happens, and its status."""

    async def get() -> tuple[float, int]:
        messages: list[Message] = []

        async def receive() -> Message:
            await asyncio.get_running_loop().create_future()  # the client stays
            raise AssertionError

        async def send(message: Message) -> None:
            messages.append(message)

        path, _, raw_query = target.partition("?")
        scope = {"type": "http", "method": "GET", "path": path, "query_string": raw_query.encode(), "headers": []}
        await app(scope, receive, send)
        return asyncio.get_running_loop().time(), messages[0]["status"]

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(get())
