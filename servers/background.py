"""serve(app): a real uvicorn server in a background thread, so that a notebook can be its client.

    server = serve(app)     # accepts connections when this returns
    server.url              # "http://127.0.0.1:54321", a free port unless one was asked for
    server.stop()           # ends its streams, joins the thread, raises what the server logged as errors

The order of a stop matters. uvicorn alone waits for ever for an open stream, and with a time limit it
cuts it with a traceback. So it stops listening, the application ends its own streams (`app.closing.close()`),
they return as any response does, and then uvicorn has nothing to wait for.
"""

import contextlib
import errno
import logging
import os
import queue
import signal
import socket
import sys
import threading
import time
from types import TracebackType
from typing import Any, Self

import uvicorn
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from servers.feed import HEARTBEAT
from servers.guard import Doors
from servers.lease import NOTICE, TICK
from servers.on_uvicorn import GracefulServer, uvicorn_options
from servers.service import Service

START_LIMIT = 10.0  # seconds until a server that does not accept connections is given up
STOP_LIMIT = 5.0  # seconds until a thread that does not end is reported
LEAVE_LIMIT = 1.3  # seconds until a command no longer waits for what is left of its streams; it has 2 in all
LOGGERS = ("servers", "uvicorn", "uvicorn.error", "uvicorn.access", "asyncio", "sse_starlette.sse", "watchfiles.main")

log = logging.getLogger("servers")


class ServerError(RuntimeError):
    """A server that did not start, did not stop, or logged an error while it ran."""


class Server:
    """A running server; made by `serve`. `url` and `port` say where, `app` is the application."""

    def __init__(
        self, app: ASGIApp, host: str, port: int, quiet: bool, over: threading.Event, listener: socket.socket | None
    ) -> None:
        self.app, self._over, self._listener = app, over, listener
        self._cause: BaseException | None = None
        doors: Doors = getattr(app, "doors", None) or Doors()
        doors.own = host
        options = uvicorn_options(getattr(app, "heartbeat", HEARTBEAT), getattr(app, "front", None), doors)
        config = uvicorn.Config(self._watched, host, port, **options)
        self._uvicorn = GracefulServer(config, getattr(app, "closing", None), START_LIMIT)
        if isinstance(app, Service):
            app.on_failure = over.set
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
        self.port: int = (listener or self._uvicorn.servers[0].sockets[0]).getsockname()[1]
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{self.port}"

    @property
    def errors(self) -> list[logging.LogRecord]:
        """What it has logged as errors so far; `stop()` raises them."""
        return self._silence.errors

    @property
    def running(self) -> bool:
        """Whether it still serves."""
        return self._thread.is_alive()

    def __repr__(self) -> str:
        return f"<server at {self.url}, {'running' if self.running else 'stopped'}>"

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
        if not self.ends(STOP_LIMIT):
            raise ServerError(f"the server at {self.url} did not stop within {STOP_LIMIT:g} s")
        _running.pop(self, None)
        self._silence.close()
        errors, self._silence.errors = self._silence.errors, []
        if errors:
            failure = getattr(self.app, "failure", None)  # of its source
            cause = next((record.exc_info[1] for record in errors if record.exc_info), failure)
            text = "\n".join(_text(record) for record in errors)
            raise ServerError(f"the server at {self.url} logged: {text}") from cause

    def drain(self, seconds: float, enough: threading.Event | None = None) -> None:
        """End its streams evenly over `seconds`, accepting no new ones after a tenth of them; return when all have.

        /healthz answers 503 from the first moment. `enough`, when set, ends the wait. `stop` is still to be called.
        """
        enough = enough or threading.Event()
        app = self.app
        assert isinstance(app, Service), "what has no leases cannot drain"
        begin = time.monotonic()
        self._uvicorn.call(app.leases.drain, seconds)
        enough.wait(NOTICE * seconds)
        self._uvicorn.call(self._uvicorn.stop_listening)
        while (time.monotonic() < begin + seconds + 2 * TICK and app.traffic.held) and self.running:
            if enough.wait(TICK):
                return

    def ends(self, limit: float) -> bool:
        """Tell it to end, and say whether it has, `limit` seconds later at most."""
        self._uvicorn.exit()
        self._thread.join(limit)
        return not self._thread.is_alive()

    def _run(self) -> None:
        self._silence.thread = threading.get_ident()  # before anything is logged
        try:
            self._uvicorn.run([self._listener] if self._listener else None)
        except BaseException as error:  # SystemExit too: uvicorn's way to say that it could not start
            self._cause = self._cause or error
            if self._uvicorn.started:
                log.error("the server ended by itself", exc_info=error)
        finally:
            self._over.set()

    async def _watched(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self.app(scope, receive, send)
        except ClientDisconnect:
            pass  # while its body was read: no fault of the application's
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
    app: ASGIApp,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    quiet: bool = True,
    over: threading.Event | None = None,
    listener: socket.socket | None = None,
) -> Server:
    """Start `app` in a background thread and return once it accepts connections.

    `port` 0 takes a free one. With `quiet` the server logs nothing: errors come out of `stop()`. In a
    notebook, running a cell again stops the servers that the same cell started before. `over` is set when the
    server has ended, or can tell no more news because the application's source has failed. With a `listener`, a TCP
    socket that listens there already, it serves who comes by that.
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
    server = Server(app, host, port, quiet, over or threading.Event(), listener)
    _running[server] = cell, execution
    return server


def run(
    app: Service,
    name: str,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    listener: socket.socket | None = None,
    enough: threading.Event | None = None,
    drain: float = 0.0,
) -> int:
    """Serve as a command does: say where, and go on until Ctrl-C or SIGTERM; return the exit status.

    Then its streams end over `drain` seconds, unless a second signal comes meanwhile.
    It is 1 when the server could not go on: its source failed, which is a line in the log, or it ended by itself.
    `enough` ends it, too. Raises ServerError when it does not start.
    """
    enough = enough or threading.Event()
    heed_signals(enough)
    server = serve(app, host=host, port=port, quiet=False, over=enough, listener=listener)
    print(f"{name} at {server.url} (Ctrl-C stops it)", flush=True)
    enough.wait()
    if drain and server.running and app.failure is None:
        enough.clear()
        server.drain(drain, enough)
    status = 1 if not server.running or app.failure is not None else 0
    if not server.ends(LEAVE_LIMIT):  # of thousands, all were told, or cut off: what they leave behind ends with us
        logging.shutdown()
        sys.stdout.flush()
        os._exit(status)
    server.stop()
    return status


def heed_signals(enough: threading.Event) -> None:
    """Have Ctrl-C and SIGTERM set it. To be called from the main thread.

    Another thread does: a handler runs in the midst of what the main thread is at, which may hold the event's own lock,
    and would wait for that for ever. Of the queue a handler may make use (queue.SimpleQueue.put is reentrant).
    """
    heard: queue.SimpleQueue[int] = queue.SimpleQueue()

    def pass_on() -> None:
        while heard.get():
            enough.set()

    for sign in (signal.SIGINT, signal.SIGTERM):
        signal.signal(sign, lambda number, _: heard.put(number))
    threading.Thread(target=pass_on, name="signals", daemon=True).start()


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
