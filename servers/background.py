"""serve(app): a real uvicorn server in a background thread, so that a notebook can be its client.

    server = serve(app)     # accepts connections when this returns
    server.url              # "http://127.0.0.1:54321", a free port unless one was asked for
    server.stop()           # ends its streams, joins the thread, raises what the server logged as errors

The order of a stop matters. uvicorn alone waits for ever for an open stream, and with a time limit it
cuts it with a traceback. So the application ends its own streams first (`app.closing.close()`), they
return as any response does, and then uvicorn has nothing to wait for.
"""

import asyncio
import errno
import logging
import threading
import time
from types import TracebackType
from typing import Any, Self

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from servers.service import HEARTBEAT

START_LIMIT = 10.0  # seconds until a server that does not accept connections is given up
CLEAN_LIMIT = 0.5  # seconds that open streams get to end by themselves before they are cut
STOP_LIMIT = 5.0  # seconds until a thread that does not end is reported
LOGGERS = ("uvicorn", "uvicorn.error", "uvicorn.access", "uvicorn.asgi", "asyncio", "servers", "sse_starlette.sse")


class ServerError(RuntimeError):
    """A server that did not start, did not stop, or logged an error while it ran."""


def uvicorn_options(heartbeat: float = HEARTBEAT) -> dict[str, Any]:
    """The settings of every server of the course, as keyword arguments of `uvicorn.Config`.

    The keep-alive is longer than any polling interval (uvicorn's 5 s races a client that polls every 5 s),
    deflate is off (it costs about 100 KiB a connection), a client's message has at most 64 KiB, and a
    WebSocket whose client is silent is pinged each heartbeat and given up 1.5 heartbeats later.
    """
    return {
        "timeout_keep_alive": 75,
        "timeout_graceful_shutdown": 1,
        "ws": "websockets-sansio",
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
        self.errors: list[logging.LogRecord] = []
        self._cause: BaseException | None = None
        self._uvicorn = _Uvicorn(uvicorn.Config(self._watched, host, port, **uvicorn_options(heartbeat)))
        self._thread = threading.Thread(target=self._run, name=f"server of {host}:{port}", daemon=True)
        self._silence = _Silence(self)  # while it starts, in any case: the cause of a failure comes as an exception
        self._thread.start()
        self._wait_until_started(f"{host}:{port}")
        if not quiet:
            self._silence.end()
        self.port: int = self._uvicorn.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{self.port}"

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
        if self._thread.is_alive():
            if hasattr(self.app, "closing"):
                self.app.closing.close()
            self._uvicorn.should_exit = True
            self._thread.join(CLEAN_LIMIT)
            self._uvicorn.cut_connections()  # a client that neither reads nor leaves
            self._thread.join(STOP_LIMIT)
            if self._thread.is_alive():
                raise ServerError(f"the server at {self.url} did not stop within {STOP_LIMIT:g} s")
        self._silence.end()
        errors, self.errors = self.errors, []
        if errors:
            raise ServerError(f"the server at {self.url} logged: " + "\n".join(_text(record) for record in errors))

    def _run(self) -> None:
        try:
            self._uvicorn.run()
        except BaseException as error:  # SystemExit too: uvicorn's way to say that the port is taken
            self._cause = self._cause or error

    async def _watched(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self.app(scope, receive, send)
        except BaseException as error:
            if scope["type"] == "lifespan":
                self._cause = error  # what startup raised; uvicorn only logs it
            raise

    def _wait_until_started(self, address: str) -> None:
        deadline = time.monotonic() + START_LIMIT
        while not self._uvicorn.started:
            if self._thread.is_alive() and time.monotonic() < deadline:
                time.sleep(0.002)
                continue
            self._uvicorn.should_exit = True
            self._silence.end()
            refused = next((record.msg for record in self.errors if isinstance(record.msg, OSError)), None)
            cause = refused or self._cause  # uvicorn logs why it could not listen, and exits
            reason = f"{cause!r}" if cause else f"not ready within {START_LIMIT:g} s"
            if refused:
                in_use = refused.errno == errno.EADDRINUSE
                reason = "the port is in use" if in_use else f"cannot listen: {refused.strerror}"
            raise ServerError(f"no server at {address}: {reason}") from cause


class _Uvicorn(uvicorn.Server):
    """uvicorn, knowing its loop, and able to cut the connections that keep it from stopping."""

    loop: asyncio.AbstractEventLoop

    async def startup(self, sockets: Any = None) -> None:
        self.loop = asyncio.get_running_loop()
        await super().startup(sockets)

    def cut_connections(self) -> None:
        def cut() -> None:
            for connection in tuple(self.server_state.connections):
                if connection.transport is not None:
                    connection.transport.abort()

        try:
            self.loop.call_soon_threadsafe(cut)
        except RuntimeError:
            pass  # the loop is closed: it stopped by itself


class _Silence(logging.Filter):
    """Keeps the server thread's log lines out of the notebook, and its errors for `stop()`."""

    def __init__(self, server: Server) -> None:
        super().__init__()
        self.server = server
        for name in LOGGERS:
            logging.getLogger(name).addFilter(self)

    def filter(self, record: logging.LogRecord) -> bool:
        if record.thread != self.server._thread.ident:
            return True
        if record.levelno >= logging.ERROR:
            self.server.errors.append(record)
        return False

    def end(self) -> None:
        for name in LOGGERS:
            logging.getLogger(name).removeFilter(self)


def _text(record: logging.LogRecord) -> str:
    return logging.Formatter("%(message)s").format(record)


_started_by_cell: dict[str, tuple[str, list[Server]]] = {}


def serve(
    app: ASGIApp, *, host: str = "127.0.0.1", port: int = 0, quiet: bool = True, heartbeat: float = HEARTBEAT
) -> Server:
    """Start `app` in a background thread and return once it accepts connections.

    `port` 0 takes a free one. With `quiet` the server logs nothing: errors come out of `stop()`. In a
    notebook, running a cell again stops the servers that the same cell started before.
    Raises ServerError with the cause when the port is taken or the application's startup fails.
    """
    cell, execution = _this_cell()
    if cell and cell in _started_by_cell and _started_by_cell[cell][0] != execution:
        for server in _started_by_cell.pop(cell)[1]:
            server.stop()
    server = Server(app, host, port, quiet, heartbeat)
    if cell:
        _started_by_cell.setdefault(cell, (execution, []))[1].append(server)
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
