"""Raw clients: many connections to one server, with as little work of their own as Python allows.

    Load("sse", url) ─▶ connect(100) ─▶ 100 asyncio protocols ask, answer pings, count what comes

httpx costs more in one process than the servers it asks, so what a *server* costs is measured with these. They know
just enough of each protocol to stay connected. Their requests carry no header that is not needed; a browser's carry
half a kilobyte more.
"""

import asyncio
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar
from urllib.parse import urlsplit

from servers.limits import check_finite, check_positive, check_whole
from servers.models import model

DELIVERY = b'"seq":'  # in every update, once, on every wire
TEXT, PING, PONG = 0x81, 0x89, 0x8A  # the first byte of a WebSocket frame that is whole (RFC 6455, section 5.2)
SAID = b'{"type":"filter","id":1,"paths":[""]}'  # what a client says
ANSWER_LIMIT = 30.0  # s
MASK = bytes(4)  # of zeros: what it masks stays as it is


@dataclass
class Load:
    """Raw clients of one server, and what they counted together.

    `interval` (s) is how often a short-polling client asks, `wait` (s) how long a long poll may be held, `talk` (s)
    how often a client says something, on its WebSocket or, where streams are SSE, by POST: 0 is never. `up` and `down`
    are the bytes of TCP payload.
    Raises UnknownModel, and ValueError for a model without raw clients and for a number that cannot be.
    """

    model: str
    url: str
    interval: float = 0.2
    wait: float = 30.0
    talk: float = 0.0
    open: int = 0
    requests: int = 0
    deliveries: int = 0
    beats: int = 0
    messages: int = 0
    up: int = 0
    down: int = 0
    clients: "list[RawClient]" = field(default_factory=list)

    def __post_init__(self) -> None:
        known = model(self.model)
        if known.slug not in KINDS:
            raise ValueError(f"there are no raw clients of {known.name}")
        if not urlsplit(self.url).port:
            raise ValueError(f"raw clients need a URL with a host and a port, not {self.url!r}")
        check_positive(interval=self.interval)
        check_finite(wait=self.wait, talk=self.talk)

    async def connect(self, number: int) -> None:
        """Open connections until there are `number`, each of which has heard from the server.

        Raises OSError when the server refuses one, or does not answer.
        """
        check_whole(number=number)
        kind = KINDS[model(self.model).slug]
        if kind is Stream and self.talk:
            kind = Speaker
        host, _, port = urlsplit(self.url).netloc.rpartition(":")
        while len(self.clients) < number:
            _, client = await asyncio.get_running_loop().create_connection(lambda: kind(self), host, int(port))
            self.clients.append(client)
        async with asyncio.timeout(ANSWER_LIMIT):
            while any(not (client.heard or client.transport.is_closing()) for client in self.clients):  # noqa: ASYNC110  # protocols
                await asyncio.sleep(0.005)  # a hundred events for it would cost the load more

    def close(self) -> None:
        """Leave, without a goodbye."""
        for client in self.clients:
            client.transport.abort()
        self.clients.clear()


class RawClient(asyncio.Protocol, ABC):
    """One connection. What it gets goes to `take`, which returns what is not whole yet."""

    transport: asyncio.Transport
    path: ClassVar[str]
    headers: ClassVar[str] = ""

    def __init__(self, load: Load) -> None:
        self.load, self.rest, self.heard = load, b"", False
        self.timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.load.open += 1
        self.ask()

    def connection_lost(self, error: Exception | None) -> None:
        """Be one less."""
        self.load.open -= 1
        if self.timer:
            self.timer.cancel()

    def data_received(self, data: bytes) -> None:
        """Count the bytes, and take what is whole."""
        self.load.down += len(data)
        self.heard = True
        self.rest = self.take(self.rest + data)

    def ask(self) -> None:
        """Make one request."""
        self.load.requests += 1
        place = urlsplit(self.load.url).netloc
        self.send(f"GET {self.target()} HTTP/1.1\r\nHost: {place}\r\n{self.headers_now()}\r\n".encode())

    def send(self, data: bytes) -> None:
        """Count the bytes, and send them, unless the connection is gone."""
        if not self.transport.is_closing():
            self.load.up += len(data)
            self.transport.write(data)

    def later(self, seconds: float, action: str) -> None:
        """Do `action` in so many seconds, unless the connection is gone by then."""
        self.timer = asyncio.get_running_loop().call_later(seconds, getattr(self, action))

    def target(self) -> str:
        """The path and query to ask for."""
        return self.path

    def headers_now(self) -> str:
        """The header lines besides Host."""
        return self.headers

    @abstractmethod
    def take(self, data: bytes) -> bytes:
        """Count what is whole in `data`; return the rest."""


class Stream(RawClient):
    """An event stream: whole is what ends in a blank line."""

    path = "/events"

    def take(self, data: bytes) -> bytes:
        """Updates and heartbeats are counted by what only they contain."""
        whole, blank, rest = data.rpartition(b"\n\n")
        self.load.deliveries += whole.count(DELIVERY)
        self.load.beats += whole.count(b": heartbeat")
        return rest if blank else data


class Poll(RawClient):
    """A connection that asks again after each answer: at once if the server holds, else after the interval."""

    path = "/updates"
    cursor = etag = ""

    def target(self) -> str:
        """From the cursor, if there is one yet."""
        held = f"&wait={self.load.wait:g}" if self.load.model == "long-polling" else ""
        return f"{self.path}?after={self.cursor}{held}" if self.cursor else self.path

    def headers_now(self) -> str:
        """The entity tag of the last answer, as a polling client should send it."""
        return f"If-None-Match: {self.etag}\r\n" if self.etag else ""

    def take(self, data: bytes) -> bytes:
        """An answer is whole when its body is as long as it says; a 304 has none."""
        head, found, body = data.partition(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
        size = int(length[1]) if length else 0
        if not found or len(body) < size:
            return data
        self.load.deliveries += body.count(DELIVERY)
        if cursor := re.search(rb'"cursor":"([^"]+)"\}$', body):
            self.cursor = cursor[1].decode()
            if self.load.model == "short-polling":
                self.etag = f'"{self.cursor}"'
        if self.load.model == "long-polling":
            self.ask()
        else:
            self.later(self.load.interval, "ask")
        return b""


class Speaker(RawClient):
    """Who follows by SSE and has something to say: a connection that POSTs it, again and again."""

    path = "/say"

    def ask(self) -> None:
        """Begin with a silence of one interval."""
        self.later(self.load.talk, "say")

    def say(self) -> None:
        """POST what a WebSocket of the load would say."""
        self.load.requests += 1
        place = urlsplit(self.load.url).netloc
        head = f"POST {self.path} HTTP/1.1\r\nHost: {place}\r\nContent-Type: application/json\r\n"
        self.send(head.encode() + b"Content-Length: %d\r\n\r\n" % len(SAID) + SAID)

    def take(self, data: bytes) -> bytes:
        """An answer without a body ends in a blank line; then the next message is due."""
        if not data.endswith(b"\r\n\r\n"):
            return data
        self.load.messages += 1
        self.later(self.load.talk, "say")
        return b""


class Socket(RawClient):
    """A WebSocket that answers pings, and, if asked to, talks."""

    path = "/ws"
    headers = (
        "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    )
    shaken = False

    def take(self, data: bytes) -> bytes:
        """First the handshake's answer, then frames."""
        if not self.shaken:
            _, blank, rest = data.partition(b"\r\n\r\n")
            if not blank:
                return data
            self.shaken, data = True, rest
            if self.load.talk:
                self.later(self.load.talk, "say")
        for first, payload, rest in frames(data):
            data = rest
            if first == PING:
                self.load.beats += 1
                self.send(bytes([PONG, 128 | len(payload)]) + MASK + payload)
            self.load.deliveries += payload.count(DELIVERY)
            self.load.messages += payload.startswith(b'{"type": "filtered"')
        return data

    def say(self) -> None:
        """Send a filter that lets everything through; the server's answer is counted as the message's."""
        self.send(bytes([TEXT, 128 | len(SAID)]) + MASK + SAID)
        self.later(self.load.talk, "say")


KINDS: dict[str, type[RawClient]] = {
    "short-polling": Poll,
    "long-polling": Poll,
    "websocket": Socket,
    "sse": Stream,
}


def frames(data: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """The whole frames of a server, which masks nothing: the first byte, the payload, and the data after it."""
    while len(data) >= 2:
        size, start = data[1], 2
        if size >= 126:
            start = 4 if size == 126 else 10
            size = int.from_bytes(data[2:start])
        if len(data) < start + size:
            return
        first, payload, data = data[0], data[start : start + size], data[start + size :]
        yield first, payload, data
