"""A network in memory: connections that take the time, and lose the bytes, that their link says.

    protocol ─write─▶ buffer ─window─▶ on its way (rate, delay, jitter, loss) ─▶ arrived ─▶ protocol
                                  └─ black hole: stays on its way until heal()       └─ read: the window reopens,
                                  └─ cut: both ends are reset, at an exact byte          one delay later

What is simulated is what an application sees of TCP: the handshake (one round trip, repeated if unanswered),
order, back pressure, half-close, reset. Not simulated: packet headers, slow start, congestion, a sender that
gives up (Linux does, after about 15 minutes without an answer). Processing takes no time.
"""

import asyncio
import contextlib
import errno
import itertools
import math
import random
import socket
from collections import deque
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, cast, get_args

from lab.virtual.clock import TINY, VirtualError, VirtualLoop

Way = Literal["up", "down"]  # from the client to the server, and back
Kind = Literal["OPEN", "DATA", "FIN", "RST"]  # OPEN: the handshake's third step, with which the server accepts
ANY_HOST = ("0.0.0.0", "::", "")
SYN_TRIES = 7  # as Linux: the first SYN and 6 more, after 1, 2, 4, ... 32 s; given up after 127 s
HIGH_WATER = 64 * 1024  # bytes in a write buffer before its protocol is asked to pause, as in asyncio


@dataclass(eq=False)
class Link:
    """A network path; every connection opened over it behaves as it says, in both directions.

    `delay` one way and `jitter`, which adds up to so much, in seconds; `loss`, the probability that what one
    write sends must be sent again, which takes `rto` seconds, doubled each time; `rate` in bytes per second
    and `window` in bytes sent and not yet read, both for each connection and direction; `name` is what
    the server sees as the client's host. A change holds for what is sent from then on.
    """

    delay: float = 0.025
    jitter: float = 0.0
    loss: float = 0.0
    rate: float = math.inf
    window: int = 65536
    name: str = "client"
    rto: float = 0.2
    _dark: set[Way] = field(default_factory=set, init=False, repr=False)
    _budget: dict[Way, int] = field(default_factory=dict, init=False, repr=False)
    _live: "dict[Connection, None]" = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if min(self.delay, self.jitter, self.rto) < 0 or not 0 <= self.loss < 1 or self.rate <= 0 or self.window < 1:
            raise ValueError(f"no such link: {self}")

    def cut(self) -> None:
        """Reset every live connection at both ends, now. What was on its way is lost; what had arrived can be read."""
        for connection in tuple(self._live):
            connection.cut()

    def cut_after(self, n_bytes: int, way: Way = "down") -> None:
        """Cut once `n_bytes` more bytes have been delivered that way: exactly those, and not one byte more.

        The bytes of all connections over this link count, the next one's too if none is open. It happens
        once. With 0, it happens when the first byte would have been delivered. A second call replaces the first.
        """
        if n_bytes < 0:
            raise ValueError(f"cannot cut after {n_bytes} bytes")
        self._budget[_checked(way)] = n_bytes

    def blackhole(self, *ways: Way) -> None:
        """From now on deliver nothing, "up", "down", or both if neither is named; nobody is told."""
        self._dark |= {_checked(way) for way in ways or get_args(Way)}

    def heal(self) -> None:
        """End the black hole. What fell into it is sent again at once (TCP's next retry may be seconds away)."""
        self._dark.clear()
        for connection in self._live:
            for end in connection.ends:
                end._send_again()

    def _deliverable(self, way: Way, data: bytes) -> tuple[bytes, bool]:
        """How much of `data` is delivered before the cut that was asked for, and whether that cut is now."""
        if way not in self._budget:
            return data, False
        budget = self._budget[way]
        if budget > len(data):
            self._budget[way] = budget - len(data)
            return data, False
        del self._budget[way]
        return data[:budget], True

    def _renew(self) -> None:
        """After a run: no connection, no black hole, no cut to come, so that the next run finds a new link."""
        for state in (self._live, self._dark, self._budget):
            state.clear()


def _checked(way: Way) -> Way:
    if way not in get_args(Way):
        raise ValueError(f'a way is "up" or "down", not {way!r}')
    return way


class Row(NamedTuple):
    """One line of the transcript: when it was sent and is due (s), on which connection, which way, what it is.

    A black hole may keep what is due from arriving, and so may a cut.
    """

    sent: float
    due: float
    connection: int
    way: Way
    kind: Kind
    data: bytes


@dataclass(eq=False)
class Connection:
    """One connection of a run: its number (from 1), its link, its life (s) and its payload bytes, as sent."""

    number: int
    link: Link
    opened: float
    closed: float | None = None
    bytes: dict[Way, int] = field(default_factory=lambda: {"up": 0, "down": 0})
    ends: "tuple[End, ...]" = field(default=(), repr=False)

    def cut(self) -> None:
        """Reset both ends, now."""
        for end in self.ends:
            end._flight.clear()
        for end in self.ends:
            end._net._record(end, end._net.loop.now, "RST", b"")
            end._reset()


@dataclass
class Segment:
    """Something on its way; `due` is infinite in a black hole."""

    due: float
    kind: Kind
    data: bytes


class Socket:
    """What servers and clients ask of a transport's socket."""

    family, type, proto = socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP

    def __init__(self, here: tuple[str, int], there: tuple[str, int] | None = None, end: "End | None" = None) -> None:
        self._here, self._there, self._end = here, there, end

    def getsockname(self) -> tuple[str, int]:
        """The address of this end."""
        return self._here

    def getpeername(self) -> tuple[str, int] | None:
        """The address of the other end."""
        return self._there

    def setsockopt(self, *args: object) -> None:
        """Accept any option, such as TCP_NODELAY; none matters here."""

    def fileno(self) -> int:
        """A file that is never readable; -1 once something is to be read.

        httpcore polls it before it uses a connection again: readable while idle means that the server hung up.
        """
        end = self._end
        quiet = end is not None and not (end._lost or end._inbox or end._ended)
        return end._net._silent.fileno() if end is not None and quiet else -1


class End(asyncio.Transport):
    """One end of a connection: a transport whose bytes travel `way` over the link to its peer."""

    _peer: "End"

    def __init__(self, net: "Net", connection: Connection, way: Way, here: tuple[str, int], there: tuple[str, int]):
        super().__init__({"sockname": here, "peername": there, "socket": Socket(here, there, self)})
        self._net, self._connection, self._link, self._way = net, connection, connection.link, way
        self._protocol = asyncio.Protocol()  # deaf, until there is a real one
        self._listener: Listener | None = None
        self._out = bytearray()  # the write buffer
        self._flight: deque[Segment] = deque()  # what is on its way to the peer
        self._inbox: deque[Segment] = deque()  # what arrived and is not read
        self._room = self._link.window  # bytes that may still be sent
        self._read_in_the_dark = 0  # bytes read of which the peer could not be told
        self._idle_at = self._last_due = 0.0
        self._high, self._low = HIGH_WATER, HIGH_WATER // 4
        self._choked = self._paused = False  # the protocol may not write, does not read
        self._eof = self._fin = self._ended = False  # asked to end the stream, ended it, found the peer's ended
        self._closing = self._lost = False

    # What a protocol calls (asyncio.Transport)

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._protocol

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = cast(asyncio.Protocol, protocol)

    def is_closing(self) -> bool:
        return self._closing

    def is_reading(self) -> bool:
        return not (self._paused or self._closing)

    def pause_reading(self) -> None:
        self._paused = True

    def resume_reading(self) -> None:
        self._paused = False
        self._net.loop.call_soon(self._read)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._high = high if high is not None else 4 * low if low is not None else HIGH_WATER
        self._low = low if low is not None else self._high // 4

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return self._low, self._high

    def get_write_buffer_size(self) -> int:
        return len(self._out)

    def can_write_eof(self) -> bool:
        return True

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._eof:
            raise RuntimeError("Cannot call write() after write_eof()")
        if self._inbox and self._inbox[-1].kind == "RST":
            self._lose(_reset_error())
        if not self._lost:
            self._out += data
            self._push()
            if len(self._out) > self._high and not self._choked:
                self._choked = True
                self._protocol.pause_writing()

    def write_eof(self) -> None:
        self._eof = True
        self._push()

    def close(self) -> None:
        self._closing = True
        self._push()

    def abort(self) -> None:
        self._out.clear()
        self._finish()

    # Sending

    def _push(self) -> None:
        """Send what the window admits; after the last byte, what ends the stream."""
        if self._out and self._room:
            data = bytes(self._out[: self._room])
            del self._out[: len(data)]
            self._room -= len(data)
            self._send("DATA", data)
        if self._choked and len(self._out) <= self._low:
            self._choked = False
            self._protocol.resume_writing()
        if self._out or self._lost:
            return
        if self._closing:
            self._finish()
        elif self._eof and not self._fin:
            self._fin = True
            self._send("FIN")

    def _send(self, kind: Kind, data: bytes = b"") -> None:
        link, loop, draw = self._link, self._net.loop, self._net.random
        self._idle_at = max(loop.now, self._idle_at) + len(data) / link.rate
        due = self._idle_at + link.delay
        if link.jitter:
            due += draw.uniform(0, link.jitter)
        rto = link.rto
        while data and link.loss and draw.random() < link.loss:
            due += rto
            rto *= 2
        self._last_due = due = max(due, self._last_due)  # a late one delays those behind it: TCP keeps the order
        self._flight.append(Segment(due, kind, data))
        self._net._record(self, due, kind, data)
        loop.call_at(due, self._deliver)

    def _send_again(self) -> None:
        due = self._net.loop.now + self._link.delay
        for segment in self._flight:
            if segment.due == math.inf:
                segment.due = due
        self._net.loop.call_at(due, self._deliver)
        self._tell_read(0)

    def _deliver(self) -> None:
        """Give the peer what is due. Timers of one moment come in any order, so a timer only says: look."""
        now = self._net.loop.now + TINY
        if self._way in self._link._dark:
            for segment in self._flight:
                if segment.due <= now:
                    segment.due = math.inf
        while self._flight and self._flight[0].due <= now:
            self._peer._arrive(self._flight.popleft())

    def _may_send(self, size: int) -> None:
        self._room += size
        self._push()

    # Receiving

    def _arrive(self, segment: Segment) -> None:
        cut = False
        if segment.kind == "OPEN":
            self._accept()
        elif segment.kind == "RST":
            self._reset()
        elif self._lost:
            if segment.data:
                self._send("RST")
        else:
            if segment.data:
                segment.data, cut = self._link._deliverable(self._peer._way, segment.data)
            if segment.data or not cut:
                self._inbox.append(segment)
            self._read()
        if cut:
            self._link.cut()

    def _read(self) -> None:
        while self._inbox and not self._paused and not self._closing:
            segment = self._inbox.popleft()
            if segment.kind == "DATA":
                self._tell_read(len(segment.data))
                self._protocol.data_received(segment.data)
            elif segment.kind == "RST":
                self._lose(_reset_error())
            else:
                self._ended = True
                if not self._protocol.eof_received():
                    self.close()

    def _tell_read(self, size: int) -> None:
        """What was read makes room in the peer's window, once the peer hears of it."""
        size += self._read_in_the_dark
        self._read_in_the_dark = size if self._way in self._link._dark else 0
        if size and not self._read_in_the_dark:
            self._net.loop.call_later(self._link.delay, self._peer._may_send, size)

    # Beginning and end

    def _accept(self) -> None:
        assert self._listener is not None
        if self._listener.is_serving():
            self._protocol = self._listener.new_protocol()
            self._protocol.connection_made(self)
        else:
            self._lose(None, "RST")

    def _finish(self) -> None:
        """Nothing is left to write: say goodbye, rudely if the peer's last bytes were never read."""
        self._lose(None, "RST" if self._inbox else None if self._fin else "FIN")

    def _reset(self) -> None:
        if self._inbox and not self._out and not self._closing:
            self._inbox.append(Segment(0, "RST", b""))  # what arrived before can still be read
        else:
            self._lose(_reset_error())

    def _lose(self, error: Exception | None, farewell: Kind | None = None) -> None:
        if self._lost:
            return
        self._lost = self._closing = True
        self._out.clear()
        if farewell:
            self._send(farewell)
        self._net.loop.call_soon(self._protocol.connection_lost, error)
        if self._peer._lost:
            self._connection.closed = self._net.loop.now
            self._link._live.pop(self._connection, None)


def _reset_error() -> ConnectionResetError:
    return ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")


class Listener(asyncio.AbstractServer):
    """What loop.create_server returns: while it serves, connections to its address are accepted."""

    def __init__(self, net: "Net", factory: Callable[[], asyncio.BaseProtocol], address: tuple[str, int]) -> None:
        self._net, self._factory, self._address = net, factory, address
        self.sockets = (Socket(address),)
        net._listeners[address] = self

    def new_protocol(self) -> asyncio.Protocol:
        """The protocol of a connection that is accepted."""
        return cast(asyncio.Protocol, self._factory())

    def get_loop(self) -> asyncio.AbstractEventLoop:
        return self._net.loop

    def is_serving(self) -> bool:
        return self._net._listeners.get(self._address) is self

    def close(self) -> None:
        if self.is_serving():
            del self._net._listeners[self._address]

    async def start_serving(self) -> None:
        pass

    async def serve_forever(self) -> None:
        await self._net.loop.create_future()

    async def wait_closed(self) -> None:
        pass


_via: ContextVar[Link | None] = ContextVar("via", default=None)


class Net:
    """The network of one run.

    `link` is the path that connections take unless `via` names another. `bytes` counts the payload that was
    sent "up" and "down"; `connections` has the same for each of them; `transcript` has every segment, in the
    order of sending, or is None to keep none. Nothing is recorded once `main` has returned.
    """

    def __init__(self, loop: VirtualLoop, link: Link, seed: int) -> None:
        self.loop, self.link = loop, link
        self.random = random.Random(f"network {seed}")
        self.bytes: dict[Way, int] = {"up": 0, "down": 0}
        self.connections: list[Connection] = []
        self.transcript: list[Row] | None = []
        self.recording = True
        self._links = [link]
        self._listeners: dict[tuple[str, int], Listener] = {}
        self._ports = itertools.count(50000)
        self._silent, self._mute = socket.socketpair()  # nobody writes to _mute, so _silent is never readable

    def close(self) -> None:
        """Let go of what the run used."""
        self._silent.close()
        self._mute.close()
        for link in self._links:
            link._renew()

    @contextlib.contextmanager
    def via(self, link: Link) -> Iterator[Link]:
        """Connections opened in this block, and by tasks started in it, go over `link`.

        What counts is where the connection is opened, not where the client object was made.
        """
        self._links.append(link)
        token = _via.set(link)
        try:
            yield link
        finally:
            _via.reset(token)

    async def connect(
        self, factory: Callable[[], asyncio.BaseProtocol], host: str, port: int
    ) -> tuple[End, asyncio.Protocol]:
        """Open a connection as loop.create_connection does, after one round trip."""
        link = _via.get() or self.link
        for attempt in range(SYN_TRIES):
            await asyncio.sleep(link.delay)
            listener = None if "up" in link._dark else self._listener(host, port)
            heard = "up" not in link._dark
            await asyncio.sleep(link.delay)
            if heard and "down" not in link._dark:
                break
            await asyncio.sleep(max(0, 2**attempt - 2 * link.delay))
        else:
            raise TimeoutError(errno.ETIMEDOUT, f"Connect to {host}:{port} timed out")
        if listener is None:
            raise ConnectionRefusedError(errno.ECONNREFUSED, f"Connect to {host}:{port} refused")

        connection = Connection(len(self.connections) + 1, link, opened=self.loop.now)
        here, there = (link.name, next(self._ports)), (host, port)
        client, server = End(self, connection, "up", here, there), End(self, connection, "down", there, here)
        client._peer, server._peer, server._listener = server, client, listener
        connection.ends = client, server
        self.connections.append(connection)
        link._live[connection] = None

        client._protocol = cast(asyncio.Protocol, factory())
        client._send("OPEN")
        client._protocol.connection_made(client)
        return client, client._protocol

    def listen(self, factory: Callable[[], asyncio.BaseProtocol], host: str | None, port: int | None) -> Listener:
        """Accept connections to an address, as loop.create_server does; port 0 takes a free one."""
        address = (host or ANY_HOST[0], port or next(self._ports))
        if address in self._listeners:
            raise OSError(errno.EADDRINUSE, f"address {address} is in use")
        return Listener(self, factory, address)

    def _listener(self, host: str, port: int) -> Listener | None:
        found = (self._listeners.get((name, port)) for name in (host, *ANY_HOST))
        return next((listener for listener in found if listener), None)

    def _record(self, end: End, due: float, kind: Kind, data: bytes) -> None:
        if not self.recording:
            return
        self.bytes[end._way] += len(data)
        end._connection.bytes[end._way] += len(data)
        if self.transcript is not None:
            self.transcript.append(Row(self.loop.now, due, end._connection.number, end._way, kind, data))


class NetworkLoop(VirtualLoop):
    """A virtual loop whose servers and connections are those of `net`."""

    def __init__(self, link: Link, seed: int, limit: float | None) -> None:
        super().__init__(seed, limit)
        self.net = Net(self, link, seed)

    # The signatures are narrower than asyncio's on purpose: what is not simulated is refused.

    async def create_server(  # type: ignore[override]
        self,
        factory: Callable[[], asyncio.BaseProtocol],
        host: str | None = None,
        port: int | None = None,
        *,
        sock: object = None,
        ssl: object = None,
        **options: object,
    ) -> Listener:
        self._refuse(sock, ssl)
        return self.net.listen(factory, host, port)

    async def create_connection(  # type: ignore[override]
        self,
        factory: Callable[[], asyncio.BaseProtocol],
        host: str,
        port: int,
        *,
        sock: object = None,
        ssl: object = None,
        **options: object,
    ) -> tuple[End, asyncio.Protocol]:
        self._refuse(sock, ssl)
        return await self.net.connect(factory, host, port)

    async def getaddrinfo(self, host: Any, port: Any, **options: object) -> list[Any]:
        name = host.decode() if isinstance(host, bytes) else host
        return [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (name, port))]  # a name is its address

    def _refuse(self, sock: object, ssl: object) -> None:
        if sock is not None:
            self.escape("a socket")
        if ssl:
            raise VirtualError("TLS is not simulated: use http:// and ws://")
