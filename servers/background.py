"""serve(app): a real uvicorn server in a background thread, so that a notebook can be its client.

    server = serve(app)     # accepts connections when this returns
    server.url              # "http://127.0.0.1:54321", a free port unless one was asked for
    server.stop()           # ends its streams, joins the thread, raises what the server logged as errors

The order of a stop matters. uvicorn alone waits for ever for an open stream, and with a time limit it
cuts it with a traceback. So it stops listening, the application ends its own streams (`app.closing.close()`),
they return as any response does, and then uvicorn has nothing to wait for.
"""

import asyncio
import contextlib
import errno
import functools
import logging
import threading
import time
from types import TracebackType
from typing import Any, Protocol, Self

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn._types import ASGISendEvent
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import Frame, Opcode
from websockets.protocol import State

from servers.feed import HEARTBEAT

START_LIMIT = 10.0  # seconds until a server that does not accept connections is given up
CLEAN_LIMIT = 0.5  # seconds until a client that neither reads nor leaves is cut off by a stop
STOP_LIMIT = 5.0  # seconds until a thread that does not end is reported
LOGGERS = ("servers", "uvicorn", "uvicorn.error", "uvicorn.access", "asyncio", "sse_starlette.sse", "watchfiles.main")

log = logging.getLogger("servers")


class ServerError(RuntimeError):
    """A server that did not start, did not stop, or logged an error while it ran."""


class WebSocketProtocol(WebSocketsSansIOProtocol):
    """uvicorn's, but what a client does wrong gets an answer, and is no error in the server's log.

    uvicorn leaves a handshake that it cannot parse (a line over 8 KiB) open and unanswered, and stumbles over
    it when it stops; for a text that is not UTF-8 it logs a traceback; and of a client that answers no ping
    because it reads no more, it waits for the unread bytes to be read before it lets it go. And a text that goes
    to many clients is made a frame once.
    """

    async def send(self, message: ASGISendEvent) -> None:
        text = message.get("text") if message["type"] == "websocket.send" else None
        if not self.writable.is_set():
            await self.writable.wait()
        if text is None or self.disconnected or self.conn.state is not State.OPEN or self.conn.extensions:
            await super().send(message)  # which also knows what cannot be sent now
        else:
            self.transport.write(framed(str(text)))

    def handle_events(self) -> None:
        super().handle_events()
        if self.conn.handshake_exc and not self.handshake_initiated:
            self.transport.write(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
            self.transport.close()

    def send_receive_event_to_app(self) -> None:
        try:
            if self.curr_msg_data_type == "text":
                b"".join(self.frames).decode()
        except UnicodeDecodeError:
            self.conn.send_close(1007)
            self.handle_parser_exception()
        else:
            super().send_receive_event_to_app()

    def keepalive_timeout(self) -> None:
        super().keepalive_timeout()
        if self.transport.get_write_buffer_size():
            self.transport.abort()


@functools.lru_cache(maxsize=1)  # one: the clients of one text follow each other, and a text may be large
def framed(text: str) -> bytes:
    """The text as one frame of a server (RFC 6455, section 5.2)."""
    return Frame(Opcode.TEXT, text.encode()).serialize(mask=False)


def uvicorn_options(heartbeat: float = HEARTBEAT) -> dict[str, Any]:
    """The settings of every server of the course, as keyword arguments of `uvicorn.Config`.

    The keep-alive is longer than any polling interval (uvicorn's 5 s races a client that polls every 5 s),
    deflate is off (it costs about 100 KiB a connection), a client's message has at most 64 KiB, and a
    WebSocket whose client is silent is pinged each heartbeat and given up 1.5 heartbeats later.
    """
    return {
        "timeout_keep_alive": 75,
        "timeout_graceful_shutdown": 1,
        "ws": WebSocketProtocol,
        "ws_per_message_deflate": False,
        "ws_max_size": 65536,
        "ws_ping_interval": heartbeat,
        "ws_ping_timeout": 1.5 * heartbeat,
        "interface": "asgi3",
        "proxy_headers": False,
        "access_log": False,
        "log_config": None,
        "server_header": False,
    }


class Server:
    """A running server; made by `serve`. `url` and `port` say where, `app` is the application."""

    def __init__(self, app: ASGIApp, host: str, port: int, quiet: bool, heartbeat: float) -> None:
        self.app = app
        self._cause: BaseException | None = None
        config = uvicorn.Config(self._watched, host, port, **uvicorn_options(heartbeat))
        self._uvicorn = _Uvicorn(config, getattr(app, "closing", None))
        self._thread = threading.Thread(target=self._run, name=f"server of {host}:{port}", daemon=True)
        self._silence = Silence(quiet=quiet)  # errors while it starts, in any case: they come as an exception
        self._thread.start()
        try:
            self._wait_until_started(f"{host}:{port}")
        except BaseException:
            self._uvicorn.exit()  # also when it was the wait that was interrupted
            self._silence.close()
            raise
        if not quiet:
            self._silence.close()
        self.port: int = self._uvicorn.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{self.port}"

    @property
    def errors(self) -> list[logging.LogRecord]:
        """What it has logged as errors so far; `stop()` raises them."""
        return self._silence.errors

    def __repr__(self) -> str:
        return f"<server at {self.url}, {'running' if self._thread.is_alive() else 'stopped'}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        try:
            self.stop()
        except ServerError:
            if error is None:  # an error in the block is the one to see
                raise

    def stop(self) -> None:
        """End this server's streams, then the server. A second call does nothing.

        Raises ServerError with what the server logged as errors while it ran. In a cell whose own clients
        are still connected, call it as `await asyncio.to_thread(server.stop)`.
        """
        self._uvicorn.exit()
        self._thread.join(STOP_LIMIT)
        if self._thread.is_alive():
            raise ServerError(f"the server at {self.url} did not stop within {STOP_LIMIT:g} s")
        _running.pop(self, None)
        self._silence.close()
        errors, self._silence.errors = self._silence.errors, []
        if errors:
            cause = next((record.exc_info[1] for record in errors if record.exc_info), None)
            text = "\n".join(_text(record) for record in errors)
            raise ServerError(f"the server at {self.url} logged: {text}") from cause

    def _run(self) -> None:
        self._silence.thread = threading.get_ident()  # before anything is logged
        try:
            self._uvicorn.run()
        except BaseException as error:  # SystemExit too: uvicorn's way to say that it could not start
            self._cause = self._cause or error
            if self._uvicorn.started:
                log.error("the server ended by itself", exc_info=error)

    async def _watched(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self.app(scope, receive, send)
        except Exception as error:
            if scope["type"] == "lifespan":
                self._cause = error  # what startup raised; uvicorn only logs it
            raise

    def _wait_until_started(self, address: str) -> None:
        deadline = time.monotonic() + START_LIMIT + 1  # uvicorn keeps the limit itself, unless startup blocks its loop
        while not self._uvicorn.started:
            if self._thread.is_alive() and time.monotonic() < deadline:
                time.sleep(0.002)
                continue
            refused = next((record.msg for record in self._silence.errors if isinstance(record.msg, OSError)), None)
            cause = refused or self._cause  # uvicorn logs why it could not listen, and exits
            if refused:
                in_use = refused.errno == errno.EADDRINUSE
                reason = "the port is in use" if in_use else f"cannot listen: {refused.strerror}"
            else:
                reason = repr(cause) if cause else f"not ready within {START_LIMIT:g} s"
            raise ServerError(f"no server at {address}: {reason}") from cause


class Closing(Protocol):
    """The closing signal of an application, as its server sees it: open while it serves, closed for a stop."""

    def open(self) -> None:
        """Let streams and held requests last."""

    def close(self) -> None:
        """End all streams and held requests, now and from now on."""


class _Uvicorn(uvicorn.Server):
    """uvicorn, but the application ends its streams first, and no start or client can keep it waiting for ever.

    It is told to exit, where uvicorn looks ten times a second: a stop begins at once, and a quiet server sleeps.
    """

    def __init__(self, config: uvicorn.Config, closing: Closing | None) -> None:
        super().__init__(config)
        self.closing = closing
        self.exiting = asyncio.Event()
        self.loop: asyncio.AbstractEventLoop | None = None

    def exit(self) -> None:
        """From any thread: stop now, or as soon as it has started."""
        self.should_exit = True  # first: who does not see the loop yet looks at this next
        if self.loop:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self.loop.call_soon_threadsafe(self.exiting.set)

    async def main_loop(self) -> None:
        self.loop = asyncio.get_running_loop()
        while not await self.on_tick(0):  # which also sets the Date header
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1):
                    await self.exiting.wait()

    async def startup(self, sockets: Any = None) -> None:
        if self.closing:
            self.closing.open()
        try:
            async with asyncio.timeout(START_LIMIT):
                await super().startup(sockets)
        except TimeoutError:
            raise TimeoutError(f"not ready within {START_LIMIT:g} s") from None

    async def shutdown(self, sockets: Any = None) -> None:
        for listener in self.servers:
            listener.close()
        asyncio.get_running_loop().call_later(CLEAN_LIMIT, self.cut_connections)
        if self.closing:
            self.closing.close()
            if self.server_state.tasks:  # uvicorn would break off a WebSocket whose own farewell is not written yet
                await asyncio.wait(self.server_state.tasks, timeout=2 * CLEAN_LIMIT)
        await super().shutdown(sockets)

    def cut_connections(self) -> None:
        for connection in tuple(self.server_state.connections):
            connection.transport.abort()


class Silence(logging.Filter):
    """Keeps what one thread (its ident) logs about its server out of the notebook; the errors are in `errors`.

    Without `quiet` it keeps back the errors only.
    """

    def __init__(self, thread: int | None = None, *, quiet: bool = True) -> None:
        super().__init__()
        self.thread, self.quiet = thread, quiet
        self.errors: list[logging.LogRecord] = []
        for name in LOGGERS:
            logging.getLogger(name).addFilter(self)

    def filter(self, record: logging.LogRecord) -> bool:
        if record.thread != self.thread:
            return True
        if record.levelno >= logging.ERROR:
            self.errors.append(record)
            return False
        return not self.quiet

    def close(self) -> None:
        """Let that thread be heard again."""
        for name in LOGGERS:
            logging.getLogger(name).removeFilter(self)


def _text(record: logging.LogRecord) -> str:
    error = record.exc_info and record.exc_info[1]
    return record.getMessage().strip() + (f": {error!r}" if error else "")


_running: dict[Server, tuple[str, str]] = {}  # with the notebook cell that started it, and in which execution


def serve(
    app: ASGIApp, *, host: str = "127.0.0.1", port: int = 0, quiet: bool = True, heartbeat: float = HEARTBEAT
) -> Server:
    """Start `app` in a background thread and return once it accepts connections.

    `port` 0 takes a free one. With `quiet` the server logs nothing: errors come out of `stop()`. In a
    notebook, running a cell again stops the servers that the same cell started before.
    Raises ServerError with the cause when the port is taken or the application's startup fails.
    """
    cell, execution = _this_cell()
    with contextlib.ExitStack() as predecessors:  # stops them all, even if one of them raises
        for server, (its_cell, its_execution) in tuple(_running.items()):
            if cell and cell == its_cell and execution != its_execution:
                predecessors.callback(server.stop)
    for server in tuple(_running):
        if server.app is app and hasattr(app, "closing") and server._thread.is_alive():
            raise ServerError(f"the application is already served at {server.url}: make another one")
    server = Server(app, host, port, quiet, heartbeat)
    _running[server] = cell, execution
    return server


def _this_cell() -> tuple[str, str]:
    """Which notebook cell is running (its id, else its text) and which execution of it; empty outside a kernel."""
    try:
        from IPython.core.getipython import get_ipython
    except ImportError:
        return "", ""
    shell: Any = get_ipython()
    if not hasattr(shell, "get_parent"):
        return "", ""
    request = shell.get_parent()
    cell = request.get("metadata", {}).get("cellId") or request.get("content", {}).get("code", "")
    return cell, request.get("header", {}).get("msg_id", "")
