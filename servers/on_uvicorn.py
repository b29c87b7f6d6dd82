"""All that leans on the insides of uvicorn, httptools, websockets and asyncio; no other room does.

    bytes ─▶ HttpProtocol ─▶ one request at a time ─▶ Front? ─▶ the application ─▶ Cycle ─▶ bytes
                └─ Upgrade: websocket ─▶ WebSocketProtocol
    GracefulServer ─▶ starts, sleeps, ends        find_transport(), write_all(), Tap: what fan_out and demo.py reach for

Read in uvicorn 0.53 and 0.54, httptools 0.8 and 0.9, websockets 15 to 17, starlette 1.7 to 1.10, Python 3.11 to 3.13.
tests/test_on_uvicorn.py holds each name that is used here; when it fails on another release, this is the room to open.

What a client sends is bounded in size, number and time before anything is believed. A head and a body have at most
64 KiB (431, 413), a request arrives within 30 s (408), and little more is read while an answer is under way, nothing
while it is unsent: whoever pipelines, or reads nothing, waits in its own kernel, and is cut off when it has read
nothing for 5 minutes. Who says that it sends no more is answered what it asked. What a client does wrong gets an
answer, and is no line in the server's log. The `Doors` of an application (guard.py) are asked here, before its front.

Of uvicorn's parsers httptools is the one; with h11 there would be all this once more.
"""

import asyncio
import contextlib
import functools
import gc
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from http import HTTPStatus
from typing import Any, NamedTuple, Protocol, TypeVar, cast

import httptools
import uvicorn
from starlette.types import Scope, Send
from uvicorn._types import ASGI3Application, ASGIReceiveEvent, ASGISendEvent
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import Frame, Opcode
from websockets.protocol import State

from servers.feed import HEARTBEAT
from servers.guard import RETRY_AFTER, UNCOUNTED, Doors, Visit
from servers.service import Closing

LARGEST = 64 * 1024  # bytes of a request's head, of its body, of a WebSocket's message
SLOWEST = 30.0  # seconds for a request to arrive, for a new connection to say anything, for a closed one to be emptied
WAITING = 4096  # bytes that may wait behind a request: who reads on sees its client leave
SHORTEST = 2.0  # seconds for a connection beyond the limits to say what it wants, and hear that there is no room
SPARE = 100  # such connections; more are not even heard
UNREAD = 300.0  # seconds for a client to read some of what waits for it in the server's memory
CLEAN_LIMIT = 0.5  # seconds until a client that neither reads nor leaves is cut off by a stop
STEPS = 5  # in which they are waited for
END = b"\r\n\r\n"  # of a head
TRANSPORT = "servers.transport"  # where the scope has it


class Wish(NamedTuple):
    """What of a request's fields makes another answer."""

    keep_alive: bool
    if_none_match: tuple[str, ...]


class Fields(NamedTuple):
    """What stands behind the first line of a request, and what of it matters."""

    lines: bytes
    host: bytes
    wish: Wish


class Front(Protocol):
    """What an application lets answer in its place: the usual requests, whose answers are made once for many.

    It is asked before anything is parsed, and lets the application have what is unusual. What wraps an application
    hides its front.
    """

    def understood(self, lines: bytes) -> Fields | None:
        """What stands behind the first line of a request, if that is a whole and usual head without a body."""

    def take(self, connection: "HttpProtocol", line: bytes, fields: Fields) -> bool:
        """Answer the request with this first line, now or later; or say that the application is to."""

    def release(self, connection: "HttpProtocol") -> None:
        """Answer now what is held: the server is going."""

    def forget(self, connection: "HttpProtocol") -> None:
        """A client that is held has left."""


def uvicorn_options(
    heartbeat: float = HEARTBEAT, front: Front | None = None, doors: Doors | None = None
) -> dict[str, Any]:
    """The settings of every server of the course, as keyword arguments of `uvicorn.Config`.

    The keep-alive is longer than any polling interval (uvicorn's 5 s races a client that polls every 5 s),
    deflate is off (it costs about 100 KiB a connection), a client's message has at most 64 KiB, and a
    WebSocket whose client is silent is pinged each heartbeat and given up 1.5 heartbeats later.
    """
    return {
        "timeout_keep_alive": 75,
        "timeout_graceful_shutdown": 1,
        "http": functools.partial(HttpProtocol, front=front, doors=doors or Doors()),
        "ws": WebSocketProtocol,
        "ws_per_message_deflate": False,
        "ws_max_size": LARGEST,
        "ws_ping_interval": heartbeat,
        "ws_ping_timeout": 1.5 * heartbeat,
        "interface": "asgi3",
        "proxy_headers": False,
        "access_log": False,
        "log_config": None,
        "server_header": False,
    }


class Refused(Exception):
    """A request that gets this status and text for an answer, whatever the application is; `later`: it may retry."""

    def __init__(self, status: HTTPStatus, text: str, *, later: bool = False) -> None:
        super().__init__(text)
        self.status, self.later = status, later


class UnknownUpgrade(Exception):
    """A request for a protocol that is not spoken here: to be answered as if it had not asked (RFC 9110, 7.8)."""


class HttpProtocol(HttpToolsProtocol):
    """uvicorn's, but it takes one request at a time, and only so much of it.

    uvicorn hands all it has to the parser, which sees a request of any size, thousands of them at once, and loses
    what stands behind an upgrade that nobody follows. Here the parser is given a piece that ends with a head.
    """

    # In uvicorn's own dict these would make it too large to share its keys, and each of them a cache miss.
    __slots__ = (
        "at", "doors", "draining", "due", "ended", "fields", "front", "held", "in_body", "length", "overdue", "replied",
        "size", "socket", "unread", "until", "visit",
    )  # fmt: skip

    def __init__(self, *args: Any, front: Front | None = None, doors: Doors | None = None, **options: Any) -> None:
        super().__init__(*args, **options)
        self.front, self.doors = front, doors or Doors()
        self.visit: Visit | None = None
        self.fields: Fields | None = None  # of its last usual request
        self.socket = -1  # as of `socket_of`, for the front's answers
        self.held: Any = None  # by the front: what it owes an answer to
        self.until = self.due = math.inf  # the front's: when that ends, and when it looks at it (loop time, s)
        self.replied = -math.inf  # when the front last answered (loop time, s)
        self.unread, self.at = b"", 0  # what was received, and how much of it was parsed
        self.in_body = self.ended = False  # ended: the client says nothing more
        self.size = 0  # bytes of the head, or else of the body, so far
        self.length: int | None = None  # of the body, if it does not come in chunks
        self.overdue: asyncio.TimerHandle | None = None
        self.draining: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        super().connection_made(transport)
        if self.front:
            self.socket = socket_of(transport)
        self.visit = self.doors.visit(self.client[0] if self.client else "")
        full = self.visit.refusal()
        if full and self.doors.spare > SPARE:
            transport.abort()
        wait = SHORTEST if full else SLOWEST
        self.timeout_keep_alive_task = self.loop.call_later(wait, self.timeout_keep_alive_handler)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self.front:
            self.front.forget(self)
        self._unset_keepalive_if_required()  # uvicorn keeps it, and all that hangs on it, when a client resets
        self.arrived()
        self.drained()
        if self.visit:
            self.visit.leave()
        self.unread = b""

    def data_received(self, data: bytes) -> None:
        if (
            self.front
            and not (self.unread or self.held or self.flow.write_paused or self.transport.is_closing())
            and (self.cycle is None or self.cycle.response_complete)
            and self.passes(self.front, data)
        ):
            return  # most requests come alone, and whole
        self.unread, self.at = self.unread[max(self.at - 3, 0) :] + data, min(self.at, 3)  # an end may be cut in two
        self.read_on()

    def eof_received(self) -> bool:  # type: ignore[override]  # what asyncio reads is whether it stays open
        """Answer all that was asked, and hang up. Who is held or streams is taken for one that has left: most have."""
        self.ended = True
        if self.held and self.front:
            self.front.release(self)
        if not self.answered and not self.in_body:
            cast(Cycle, self.cycle).leave()
        return not (self.answered or self.in_body)

    def pause_writing(self) -> None:
        super().pause_writing()
        self.draining = self.draining or self.loop.call_later(UNREAD, self.look_after, self.unsent)

    def resume_writing(self) -> None:
        super().resume_writing()
        self.drained()
        self.read_on()

    @property
    def unsent(self) -> int:
        """The bytes that wait for the client to read."""
        size: int = self.transport.get_write_buffer_size()
        return size

    @property
    def answered(self) -> bool:
        """Whether there is an answer, whole, to all that was asked."""
        return not self.held and (self.cycle is None or self.cycle.response_complete)

    @property
    def is_free(self) -> bool:
        """Whether the next request may be answered."""
        return self.answered and not (self.flow.write_paused or self.transport.is_closing())

    def look_after(self, before: int) -> None:
        """Cut off who has read nothing since as many bytes were unsent."""
        if self.unsent >= before:
            self.transport.abort()
        else:
            self.draining = self.loop.call_later(UNREAD, self.look_after, self.unsent)

    def drained(self) -> None:
        """Stop the clock of what is unsent."""
        if self.draining:
            self.draining.cancel()
            self.draining = None

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.at < len(self.unread):
            self.flow.pause_reading()
            self.loop.call_soon(self.read_on)  # not here, where the exception that was answered may be being handled
        else:
            self.read_on()

    def read_on(self) -> None:
        """Parse what there is, as far as a request that is to be answered first."""
        while self.at < len(self.unread) and not self.transport.is_closing():
            answered = self.cycle is None or self.cycle.response_complete
            if self.held or self.flow.write_paused or not (self.in_body or answered):
                if self.flow.write_paused or len(self.unread) - self.at > WAITING:
                    self.flow.pause_reading()
                else:
                    self.flow.resume_reading()
                return
            end = self.end()
            piece = self.unread[self.at : end]
            self.at += len(piece)
            if self.front and end and not (self.in_body or self.size) and self.passes(self.front, piece):
                continue
            self._unset_keepalive_if_required()
            self.size += len(piece)
            try:
                if self.size > LARGEST:
                    raise too_large(body=self.in_body)
                self.parse(piece)
            except Refused as refusal:
                self.refuse(refusal)
        self.flow.resume_reading()
        if self.in_body or self.size:
            self.overdue = self.overdue or self.loop.call_later(SLOWEST, self.too_slow)
        else:
            self.unread, self.at = b"", 0
        if self.ended and self.answered:
            self.transport.close()

    def passes(self, front: Front, head: bytes) -> bool:
        """Whether the doors let it in without a closer look, and the front takes it."""
        line, _, lines = head.partition(b"\r\n")
        fields = self.fields  # a client says the same each time, whatever others say
        if fields is None or fields.lines != lines:
            fields = self.fields = front.understood(lines)
        return bool(
            fields
            and self.doors.is_harmless(fields.host)
            and self.visit
            and (self.visit.inside or not self.visit.refusal())
            and not self.ended  # it cannot be held
            and front.take(self, line, fields)
        )

    def knock(self) -> None:
        """Ask the doors. Raises Refused."""
        if not self.doors.knows(self.headers, self.server[0] if self.server else ""):
            raise Refused(HTTPStatus.MISDIRECTED_REQUEST, "this server has another name; --allow-host adds one")
        full = self.visit.refusal() if self.visit else ""
        if full and self.url.partition(b"?")[0] not in UNCOUNTED:
            raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, full, later=True)

    def end(self) -> int | None:
        """How far the parser may go, so that it does not see what is behind this request."""
        if not self.in_body:
            found = self.unread.find(END, max(self.at - 3, 0))
            return found + 4 if found >= 0 else None
        if self.length is not None:
            return self.at + self.length - self.size
        return self.unread.find(b"\n", self.at) + 1 or None  # chunks end with one (RFC 9112, section 7.1)

    def parse(self, piece: bytes) -> None:
        """Let the parser call back for what is in the piece. Raises Refused."""
        try:
            self.parser.feed_data(piece)
        except httptools.HttpParserUpgrade:
            early, self.unread = self.unread[self.at :], b""
            self.flow.resume_reading()
            self.handle_websocket_upgrade()
            self.drained()
            protocol = cast(WebSocketProtocol, self.transport.get_protocol())
            protocol.visit = self.visit
            if early:
                protocol.data_received(early)
        except httptools.HttpParserError as error:
            match error.__context__:
                case UnknownUpgrade():
                    self.parse_without_upgrade()
                case Refused() as refusal:
                    raise refusal from None
                case None | httptools.HttpParserError() | UnicodeError():
                    raise Refused(HTTPStatus.BAD_REQUEST, "this is no HTTP request") from None
                case fault:
                    raise fault from None  # this server's own

    def parse_without_upgrade(self) -> None:
        """Begin with the same head again, in a new parser."""
        version = self.parser.get_http_version().encode()
        lines = [self.parser.get_method() + b" " + self.url + b" HTTP/" + version]
        lines += [name + b": " + value for name, value in self.headers if name != b"upgrade"]
        self.parser = httptools.HttpRequestParser(self)
        self.parse(b"\r\n".join([*lines, b"", b""]))

    def on_headers_complete(self) -> None:
        """Refuse, or have the application begin. Raises Refused and UnknownUpgrade, which the parser passes on."""
        self.in_body, self.size = True, 0
        version = self.parser.get_http_version()
        if version not in ("1.1", "1.0"):
            raise Refused(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED, "this server speaks HTTP/1.1")
        names = [name for name, _ in self.headers]
        if (hosts := names.count(b"host")) != 1 and (hosts or version == "1.1"):
            raise Refused(HTTPStatus.BAD_REQUEST, "a request has one Host")  # RFC 9112, section 3.2
        self.url = origin_form(self.url)
        self.knock()
        self.length = int(dict(self.headers)[b"content-length"]) if b"content-length" in names else None
        if self.length and self.length > LARGEST:
            raise too_large(body=True)
        if self.parser.should_upgrade() and (version == "1.0" or not self._should_upgrade()):  # RFC 9110, section 7.8
            if self.parser.get_method() == b"CONNECT":
                raise Refused(HTTPStatus.NOT_IMPLEMENTED, "this server is no tunnel")
            raise UnknownUpgrade
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self.in_body, self.size = False, 0
        self.arrived()

    def timeout_keep_alive_handler(self) -> None:
        """Let a client go that is silent. After a reply the clock runs on, and is looked at when it has run down."""
        rest = self.replied + self.timeout_keep_alive - self.loop.time()
        if self.held or rest > 0:
            wait = self.timeout_keep_alive if self.held else rest
            self.timeout_keep_alive_task = self.loop.call_later(wait, self.timeout_keep_alive_handler)
        else:
            super().timeout_keep_alive_handler()

    def shutdown(self) -> None:
        if self.held and self.front:
            self.front.release(self)
        super().shutdown()

    def arrived(self) -> None:
        """Stop the clock of a request."""
        if self.overdue:
            self.overdue.cancel()
            self.overdue = None

    def too_slow(self) -> None:
        """Give up a request that does not arrive."""
        self.overdue = None
        if not self.transport.is_closing():
            self.refuse(Refused(HTTPStatus.REQUEST_TIMEOUT, f"a request arrives within {SLOWEST:g} s"))

    def refuse(self, refusal: Refused) -> None:
        """Answer, unless the application has begun to, and hang up."""
        status, body = refusal.status, f"{refusal}\n".encode()
        later = f"retry-after: {RETRY_AFTER}\r\n".encode() if refusal.later else b""
        begun = self.in_body and self.cycle is not None and self.cycle.scope is self.scope
        if not (begun and self.cycle.response_started):
            self.transport.write(
                b"HTTP/1.1 %d %b\r\nconnection: close\r\ncontent-type: text/plain; charset=utf-8\r\n"
                b"%bcontent-length: %d\r\n\r\n%b" % (status, status.phrase.encode(), later, len(body), body)
            )
        if begun:
            self.cycle.disconnected = True  # the application learns that it speaks to nobody any more
            self.cycle.message_event.set()
        self.unread = b""
        self.transport.close()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        # uvicorn makes its own by name
        cycle.__class__ = UnframedCycle if cycle.scope["http_version"] == "1.0" else Cycle
        if self.ended:
            cast(Cycle, cycle).leave()
        super()._start_asgi_task(cycle, app)


def origin_form(target: bytes) -> bytes:
    """A request's target as a path and query: it may come as a whole URL (RFC 9112, section 3.2.2)."""
    if not target.partition(b"://")[0].isalpha():
        return target
    url = httptools.parse_url(target)
    return (url.path or b"/") + (b"" if url.query is None else b"?" + url.query)


def too_large(*, body: bool) -> Refused:
    """The refusal of what is larger than LARGEST."""
    what = HTTPStatus.REQUEST_ENTITY_TOO_LARGE if body else HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
    return Refused(what, f"the {'body' if body else 'head'} of a request has at most {LARGEST // 1024} KiB")


def whole(status: int, headers: Iterable[tuple[bytes, bytes]], body: bytes, *, keep_alive: bool = True) -> bytes:
    """An answer to HTTP/1.1 that has its length or, with 304, no body, to the byte as uvicorn would write it."""
    lines = [STATUS_LINE[status], *(b"%b: %b\r\n" % header for header in headers)]
    return b"".join([*lines, b"" if keep_alive else b"connection: close\r\n", b"\r\n", body])


def reply_all(connections: Sequence[HttpProtocol], answer: bytes, *, keep_alive: bool) -> None:
    """Write an answer, head and body, to the request that the front took of each."""
    write_all(connections, answer, sys.maxsize)
    now = connections[0].loop.time()
    for connection in connections:
        connection.replied = now
        if not keep_alive:
            connection.transport.close()
    connections[0].server_state.total_requests += len(connections)


class Cycle(RequestResponseCycle):
    """uvicorn's, but its application can learn that the client leaves while what it sends still goes out.

    And whether the connection ends is said once.
    """

    leaving = heard = False  # heard: the application has the whole request

    def leave(self) -> None:
        """Tell the application, once it has the request."""
        self.leaving = True
        self.message_event.set()

    async def receive(self) -> ASGIReceiveEvent:
        if not (self.leaving and self.heard):
            message = await super().receive()
            if not (self.leaving and self.heard):
                self.heard = self.heard or not message.get("more_body")
                return message
        return {"type": "http.disconnect"}

    async def send(self, message: ASGISendEvent) -> None:
        if message["type"] == "http.response.start":
            headers = message.get("headers", ())
            self.keep_alive = self.keep_alive and (b"connection", b"close") not in headers
            if not self.keep_alive:  # which uvicorn says by itself, and would say beside an application's keep-alive
                message["headers"] = [each for each in headers if each[0].lower() != b"connection"]
        await super().send(message)

    async def run_asgi(self, app: ASGI3Application) -> None:
        async def to_its_end(scope: Any, receive: Any, send: Any) -> None:
            await app(scope, receive, send)
            if self.leaving and not self.response_complete:  # a stream that was begun: no error of the application
                self.disconnected = True
                self.transport.close()

        await super().run_asgi(to_its_end)


class UnframedCycle(Cycle):
    """The answer to a client of HTTP/1.0: without a length, its body ends with the connection (RFC 9112, 6.1, 6.3)."""

    async def send(self, message: ASGISendEvent) -> None:
        if message["type"] == "http.response.start":
            headers = message.get("headers", ())
            if not any(name.lower() == b"content-length" for name, _ in headers):
                self.chunked_encoding, self.expected_content_length = False, math.inf  # type: ignore[assignment]  # no int
        elif self.expected_content_length == math.inf and not message.get("more_body"):
            self.expected_content_length = len(message.get("body", b""))  # type: ignore[arg-type]  # it is bytes
        await super().send(message)


class WebSocketProtocol(WebSocketsSansIOProtocol):
    """uvicorn's, but what a client does wrong gets an answer, is no error in the server's log, and costs no memory.

    uvicorn leaves a handshake that it cannot parse (a line over 8 KiB) open and unanswered, and stumbles over
    it when it stops; it answers, or stumbles over, what a client says before it is let in; for a text that is not UTF-8
    it logs a traceback, and another when updates are sent after a client broke the protocol; it answers pings of a
    client that reads nothing, and keeps all fragments that are empty; and of a client that answers no ping because it
    reads no more, it waits for the unread bytes to be read before it lets it go. And a text that goes to many clients
    is made a frame once.
    """

    visit: Visit | None = None
    early = b""  # what came before the client was let in

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self.visit:
            self.visit.leave()

    async def send(self, message: ASGISendEvent) -> None:
        text = message.get("text") if message["type"] == "websocket.send" else None
        if not self.writable.is_set():
            await self.writable.wait()
        if message["type"] == "websocket.accept" and self.transport.is_closing():
            self.disconnected = True  # uvicorn would accept nobody, and call the next message an error
        if text is None or self.disconnected or self.conn.state is not State.OPEN or self.conn.extensions:
            await super().send(message)  # which also knows what cannot be sent now
        else:
            self.transport.write(frame_of(str(text)))
        if self.early and not self.transport.is_closing():
            early, self.early = self.early, b""
            self.transport.resume_reading()
            self.data_received(early)

    @property
    def plain(self) -> bool:
        """Whether a frame that was made for others may be written to it."""
        return self.handshake_complete and not self.conn.extensions

    async def push(self, frame: bytes) -> None:
        """Write a frame as it is, once the client has read most of what it was sent before; nothing when it is over."""
        await self.writable.wait()
        if frame and not self.disconnected and self.conn.state is State.OPEN:
            self.transport.write(frame)

    def farewell(self, code: int) -> None:
        """Say the close by one write, as `send` does; the application hears of it as of a client that has left."""
        if self.disconnected or self.close_sent or self.transport.is_closing():
            return
        self.queue.put_nowait({"type": "websocket.disconnect", "code": code, "reason": ""})
        self.conn.send_close(code)
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.close_sent = True
        if self.read_paused:
            self.read_paused = False
            self.transport.resume_reading()
        self.close_timer = self.loop.call_later(self.close_timeout, self.transport.close)

    def data_received(self, data: bytes) -> None:
        if self.handshake_initiated and not self.handshake_complete:
            self.early += data
            self.transport.pause_reading()
            return
        super().data_received(data)
        if not self.writable.is_set():
            self.transport.pause_reading()  # also when the application took a message meanwhile, and so resumed it

    def pause_writing(self) -> None:
        super().pause_writing()
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        super().resume_writing()
        if not self.read_paused:
            self.transport.resume_reading()

    def handle_events(self) -> None:
        super().handle_events()
        if self.conn.handshake_exc and not self.handshake_initiated:
            self.transport.write(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
            self.transport.close()

    def handle_cont(self, event: Frame) -> None:
        if event.data or event.fin:
            super().handle_cont(event)

    def send_receive_event_to_app(self) -> None:
        try:
            if self.curr_msg_data_type == "text":
                b"".join(self.frames).decode()
        except UnicodeDecodeError:
            if self.conn.state is State.OPEN:  # and no close stands behind it, or went to it before
                self.conn.send_close(1007)
                self.handle_parser_exception()
        else:
            super().send_receive_event_to_app()

    def handle_parser_exception(self) -> None:
        super().handle_parser_exception()
        self.disconnected = True  # or what the application sends from now on would be its error

    def keepalive_timeout(self) -> None:
        super().keepalive_timeout()
        self.disconnected = self.disconnected or self.close_sent
        if self.transport.get_write_buffer_size():
            self.transport.abort()


@functools.lru_cache(maxsize=1)  # one: the clients of one text follow each other, and a text may be large
def frame_of(text: str) -> bytes:
    """The text as one frame of a server (RFC 6455, section 5.2)."""
    return Frame(Opcode.TEXT, text.encode()).serialize(mask=False)


class GracefulServer(uvicorn.Server):
    """uvicorn, but the application ends its streams first, and no start or client can keep it waiting for ever.

    It is told to exit, where uvicorn looks ten times a second: a stop begins at once, and a quiet server sleeps.
    A start takes at most `limit` seconds.
    """

    def __init__(self, config: uvicorn.Config, closing: Closing | None, limit: float) -> None:
        super().__init__(config)
        self.closing, self.limit = closing, limit
        self.exiting = asyncio.Event()
        self.loop: asyncio.AbstractEventLoop | None = None

    def run(self, sockets: Any = None) -> None:
        """Serve until `exit`. With a runner of its own: other packages replace asyncio's `run`."""
        with asyncio.Runner(loop_factory=self.config.get_loop_factory()) as runner:
            runner.run(self.serve(sockets))

    def exit(self) -> None:
        """From any thread: stop now, or as soon as it has started."""
        self.should_exit = True  # first: who does not see the loop yet looks at this next
        self.call(self.exiting.set)

    def call(self, function: Callable[..., object], *arguments: Any) -> None:
        """From any thread: call it on the server's loop, unless that has ended."""
        if self.loop:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self.loop.call_soon_threadsafe(function, *arguments)

    def stop_listening(self) -> None:
        """Refuse new connections, and keep those there are."""
        for listener in self.servers:
            listener.close()

    async def main_loop(self) -> None:
        self.loop = asyncio.get_running_loop()
        closing: set[Any] = set()
        swept = time.monotonic()
        while not await self.on_tick(0):  # which also sets the Date header
            if time.monotonic() - swept > SLOWEST:
                closing = self.sweep(closing)
                swept = time.monotonic()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1):
                    await self.exiting.wait()

    def sweep(self, closing: set[Any]) -> set[Any]:
        """Cut off who was closed by the last sweep and still reads nothing; return who is closed by this one."""
        now = {connection for connection in self.server_state.connections if connection.transport.is_closing()}
        for connection in now & closing:
            connection.transport.abort()
        return now

    async def startup(self, sockets: Any = None) -> None:
        if self.closing:
            self.closing.open()
        try:
            async with asyncio.timeout(self.limit):
                await super().startup(sockets)
        except TimeoutError:
            raise TimeoutError(f"not ready within {self.limit:g} s") from None

    async def shutdown(self, sockets: Any = None) -> None:
        self.stop_listening()
        cutting = asyncio.create_task(self.cut_off())
        gc.freeze()  # or the collector looks through all that 10 000 streams hold, several times, while they end
        try:
            if self.closing:
                self.closing.close()
                if self.server_state.tasks:  # uvicorn would break off a WebSocket whose farewell is not written yet
                    ended = asyncio.create_task(asyncio.wait(set(self.server_state.tasks)))
                    await asyncio.wait({ended, cutting}, return_when=asyncio.FIRST_COMPLETED)
            await super().shutdown(sockets)
        finally:
            cutting.cancel()
            gc.unfreeze()

    async def cut_off(self) -> None:
        """Cut off who still has something to read, then who still is there. A machine that stood still gave no time."""
        for unsent in (1, 0):
            for _ in range(STEPS):  # of which one that stands still, however long, has missed a single one
                await asyncio.sleep(CLEAN_LIMIT / STEPS)
            self.cut_connections(unsent)

    def cut_connections(self, unsent: int) -> None:
        """Cut off whoever has not read so many bytes; of thousands, some may only be waiting for their turn."""
        for connection in tuple(self.server_state.connections):
            if connection.transport.get_write_buffer_size() >= unsent:
                connection.transport.abort()


def carrier_of(send: Send) -> Any:
    """uvicorn's own end of a connection, if this is uvicorn's own `send`: its method. Before anything wraps it."""
    return getattr(send, "__self__", None)


def find_transport(scope: Scope, send: Send) -> None:
    """Put the connection's transport into the scope, if this is uvicorn's own `send`."""
    transport = getattr(carrier_of(send), "transport", None)  # uvloop's is no asyncio.Transport
    if transport is not None:
        scope[TRANSPORT] = transport


def socket_of(transport: Any) -> int:
    """The descriptor that may be written to in the transport's place, as long as that has nothing unsent; -1: none.

    None has what encrypts, counts or only imitates a connection.
    """
    own = type(transport).__module__.partition(".")[0] in ("asyncio", "uvloop")
    if not own or sys.platform == "win32" or transport.get_extra_info("sslcontext"):
        return -1
    descriptor: int = transport.get_extra_info("socket").fileno()
    return descriptor


class Outlet(Protocol):
    """Who can be written to by many: a transport, and its `socket_of`."""

    transport: Any
    socket: int


Out = TypeVar("Out", bound=Outlet)


def write_all(outlets: Iterable[Out], data: bytes, most: int) -> tuple[int, list[Out]]:
    """Write the same to every transport that is open and has at most `most` bytes unsent.

    How many got it, and who has more unsent. Where nothing is, the data go to the kernel by one call: uvloop's `write`
    would queue them first, and costs a sixteenth more.
    """
    written, slow = 0, list[Out]()
    for outlet in outlets:
        transport = outlet.transport
        if transport.is_closing():
            continue  # it has left, or is about to learn that it has
        unsent = transport.get_write_buffer_size()
        if unsent > most:
            slow.append(outlet)
            continue
        written += 1
        sent = 0
        if not unsent and outlet.socket >= 0:
            try:
                sent = os.write(outlet.socket, data)
            except OSError:
                pass  # it is full, or broken: the transport finds out which
        if sent < len(data):
            transport.write(data[sent:])
    return written, slow


class Tap:
    """A transport that tells the size of what is written to it, and of what a WebSocket reads from it."""

    def __init__(self, carrier: Any, sent: Callable[[int], None], received: Callable[[int], None]) -> None:
        self.transport, self.sent = carrier.transport, sent
        carrier.transport = self  # of one request, or of one WebSocket
        if isinstance(carrier, WebSocketProtocol):
            receive_data = carrier.conn.receive_data

            def count(data: bytes | bytearray) -> None:
                received(len(data))
                receive_data(data)

            carrier.conn.receive_data = count  # type: ignore[method-assign]  # uvicorn's

    def write(self, data: bytes) -> None:
        """Count, and write."""
        self.sent(len(data))
        self.transport.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.transport, name)
