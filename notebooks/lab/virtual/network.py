"""The simulated network: links under your control, and what asyncio's servers and connections are on it.

    loop.create_server ──▶ Net.listen ──▶ Listener ─┐
    loop.create_connection ──▶ Net.connect ── SYN ──┴─▶ two Ends (transport.py) over the Link that `via` names

Opening a connection takes a round trip, and is tried again as Linux does if no answer comes. Host names are addresses.
TLS is what it costs (`Link(tls=True)`), never `ssl`. Processing takes no time: what is measured is the network and the
protocol, not the machine.
"""

import asyncio
import contextlib
import errno
import itertools
import math
import os
import random
import socket
import sys
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from io import FileIO
from typing import Any, cast, get_args

from lab.virtual.clock import VirtualError, VirtualLoop
from lab.virtual.transport import SYN, Address, Connection, End, Kind, Row, Segment, Socket, Way
from servers.limits import check_finite, check_positive, check_whole

Factory = Callable[[], asyncio.BaseProtocol]

ANY_HOST = ("0.0.0.0", "::", "")
MOST_LOSS = 0.9  # each loss doubles the wait for the next try
# s after which a SYN without an answer is repeated, and at last given up: in all 131 s (Linux since 6.5, with
# tcp_syn_linear_timeouts 4 and tcp_syn_retries 6; before, and elsewhere, 1, 2, 4, ... 64)
SYN_WAITS = (1, 1, 1, 1, 1, 2, 4, 8, 16, 32, 64)


@dataclass(eq=False)
class Link:
    """A network path; every connection opened over it behaves as it says, in both directions.

    `delay` one way and `jitter`, which adds up to so much, in seconds; `loss`, the probability that what one write
    sends (with `packets`: one packet) must be sent again after `rto` seconds, twice that if it is lost again, and so
    on. None is what Linux does: round trip + max(0.2 s, four deviations). `rate` in bytes per second, each way, for
    each connection, or `shared` by all of the link; `window` in bytes sent and not yet read, each way; `name` is the
    client's host as the server sees it.

    `slow_start`: at first 10 packets may be on their way (14 480 bytes), then as many more as are acknowledged, and 10
    again after a pause: a larger answer takes one more round trip for each doubling. `packets`: data travels in packets
    of 1448 bytes with 52 of heads, answered by acknowledgements, and bytes are those of IP; into a black hole they are
    sent again when their timers say so, for about 15 minutes. `tls`: a connection takes one round trip more and 2 kB, a
    write 22 bytes more; URLs stay http:// and ws://.

    `slow_start`, `packets`, `tls`, `shared` are for the link's whole life; the others may be assigned at any time and
    hold for what is sent from then on. Raises ValueError for a number that cannot be.
    """

    delay: float = 0.025
    jitter: float = 0.0
    loss: float = 0.0
    rate: float = math.inf
    window: int = 65536
    name: str = "client"
    rto: float | None = None
    slow_start: bool = True
    packets: bool = False
    tls: bool = False
    shared: bool = False
    _busy: dict[Way, float] = field(default_factory=dict, init=False, repr=False)  # until when (s), if it is shared
    _dark: set[Way] = field(default_factory=set, init=False, repr=False)
    _budget: dict[Way, int] = field(default_factory=dict, init=False, repr=False)  # bytes to deliver before a cut
    _live: dict[Connection, None] = field(default_factory=dict, init=False, repr=False)  # in the order of opening

    def __setattr__(self, name: str, value: Any) -> None:
        match name:
            case "delay" | "jitter":
                check_finite(**{name: value})
            case "rto" if value is not None:
                check_finite(rto=value)
            case "loss":
                check_finite(loss=value, most=MOST_LOSS)
            case "rate":
                check_positive(rate=value, infinite=True)
            case "window":
                check_whole(window=value, least=1)
        super().__setattr__(name, value)

    def cut(self) -> None:
        """Reset every connection at both ends, now. What was on its way is lost; what had arrived can be read."""
        for connection in tuple(self._live):
            connection.cut()

    def cut_after(self, n_bytes: int, way: Way = "down") -> None:
        """Cut once `n_bytes` more bytes have been delivered that way: exactly those, and not one byte more.

        The bytes of all connections count, the next one's too if none is open. It happens once, together with the
        last byte's delivery; with 0, when the first byte would have been delivered. A second call replaces the first.
        """
        check_whole(bytes_before_a_cut=n_bytes)
        self._budget[_checked(way)] = n_bytes

    def blackhole(self, *ways: Way) -> None:
        """Deliver nothing that way (neither way if none is named) until `heal()`; nobody is told."""
        self._dark.update(map(_checked, ways or get_args(Way)))

    def heal(self) -> None:
        """End the black hole. What fell into it arrives one delay from now; packets, at their sender's next try."""
        self._dark.clear()
        for connection in self._live:
            for end in connection.ends:
                end.send_again()

    def _shorten(self, segment: Segment, way: Way) -> bool:
        """Leave of a segment what is delivered before a cut that was asked for; say whether the cut is now."""
        if way not in self._budget:
            return False
        size = len(segment.data)
        segment.data = segment.data[: self._budget[way]]
        self._budget[way] -= size
        if self._budget[way] > 0:
            return False
        del self._budget[way]
        return True

    def _renew(self) -> None:
        for state in (self._busy, self._dark, self._budget, self._live):
            state.clear()


def _checked(way: Way) -> Way:
    if way not in get_args(Way):
        raise ValueError(f"a way is 'up' or 'down', not {way!r}")
    return way


class Net:
    """The network of one run.

    `link` is the path that connections take unless `via` names another. `bytes` counts what was sent "up" and "down":
    TCP's payload, with TLS's around it if the link has it, or IP's bytes if the link is one of packets. `connections`
    has the same for each of them; `transcript` has a Row for every segment, in the order of sending, or is set to None
    to keep none. Nothing is recorded any more once `main` has returned.
    """

    def __init__(self, loop: VirtualLoop, link: Link, seed: int) -> None:
        self.loop, self.link = loop, link
        self.random = random.Random(f"network {seed}")
        self.bytes: dict[Way, int] = {"up": 0, "down": 0}
        self.connections: list[Connection] = []
        self.transcript: list[Row] | None = []
        self.recording = True
        self.listeners: dict[Address, Listener] = {}
        self.silent, self._mute = _never_readable()
        self._links = [link]
        self._ports = itertools.count(50000)

    def close(self) -> None:
        """After the run: let go of what it used, and leave its links as new for the next one."""
        for end in self.silent, self._mute:
            end.close()
        for link in self._links:
            link._renew()

    @contextlib.contextmanager
    def via(self, link: Link) -> Iterator[Link]:
        """Connections opened in this block, and by tasks started in it, take `link`.

        What counts is where the connection is opened, not where the client was made.
        """
        self._links.append(link)
        token = _via.set(link)
        try:
            yield link
        finally:
            _via.reset(token)

    async def connect(self, factory: Factory, host: str, port: int) -> tuple[End, asyncio.Protocol]:
        """Open a connection, as loop.create_connection does; raises ConnectionRefusedError or TimeoutError."""
        link = _via.get() or self.link
        asking = 0
        for wait in SYN_WAITS:
            asking += SYN
            await asyncio.sleep(link.delay)
            asked, listener = "up" not in link._dark, self._listener(host, port)
            await asyncio.sleep(link.delay)
            if asked and "down" not in link._dark:
                break
            await asyncio.sleep(max(0, wait - 2 * link.delay))
        else:
            raise TimeoutError(errno.ETIMEDOUT, f"Connect to {host}:{port} timed out")
        if listener is None:
            raise ConnectionRefusedError(errno.ECONNREFUSED, f"Connect to {host}:{port} refused")

        connection = Connection(len(self.connections) + 1, link, (host, port), opened=self.loop.now)
        self.connections.append(connection)
        link._live[connection] = None
        here, there = (link.name, next(self._ports)), (host, port)
        client, server = End(self, connection, "up", here, there), End(self, connection, "down", there, here)
        client.peer, server.peer, server.accept = server, client, listener.accept
        connection.ends = client, server

        if link.packets:
            self.count(client, asking)
            self.count(server, SYN)
        client.send("OPEN")
        if link.tls:
            await client.secure()
        client.protocol = cast(asyncio.Protocol, factory())
        client.protocol.connection_made(client)
        return client, client.protocol

    def listen(self, factory: Factory, host: str | None, port: int | None) -> "Listener":
        """Accept connections, as loop.create_server does; no host is any host, no port is a free one."""
        address = (host or ANY_HOST[0], port or next(self._ports))
        if address in self.listeners:
            raise OSError(errno.EADDRINUSE, f"{address[0]}:{address[1]} is in use")
        return Listener(self, factory, address)

    def record(self, end: End, due: float, kind: Kind, data: bytes, around: int = 0) -> None:
        """Count what an end sends, with the bytes around it, and write it down."""
        if not self.recording:
            return
        self.count(end, len(data) + around)
        if self.transcript is not None:
            self.transcript.append(Row(self.loop.now, due, end.connection.number, end.way, kind, data))

    def count(self, end: End, size: int) -> None:
        """Count bytes that an end sends."""
        if not self.recording:
            return
        connection, way = end.connection, end.way
        self.bytes[way] += size
        if way == "up":
            connection.up += size
        else:
            connection.down += size

    def _listener(self, host: str, port: int) -> "Listener | None":
        found = (self.listeners.get((name, port)) for name in (host, *ANY_HOST))
        return next(filter(None, found), None)


def _never_readable() -> tuple[Any, Any]:
    """Something with a descriptor that never has anything to read, and its other end, which nobody writes to."""
    if sys.platform == "emscripten":  # there are no sockets
        reading, writing = os.pipe()
        return FileIO(reading), FileIO(writing, "w")
    return socket.socketpair()


_via: ContextVar[Link | None] = ContextVar("via", default=None)


class Listener(asyncio.AbstractServer):
    """What loop.create_server returns: until it is closed, connections to its address are accepted."""

    def __init__(self, net: Net, factory: Factory, address: Address) -> None:
        self._net, self._factory, self._address = net, factory, address
        self.sockets = (Socket(address),)
        net.listeners[address] = self

    def accept(self) -> asyncio.Protocol | None:
        """The protocol for a new connection, or None if there is to be none."""
        return cast(asyncio.Protocol, self._factory()) if self.is_serving() else None

    def get_loop(self) -> asyncio.AbstractEventLoop:
        return self._net.loop

    def is_serving(self) -> bool:
        return self._net.listeners.get(self._address) is self

    def close(self) -> None:
        if self.is_serving():
            del self._net.listeners[self._address]

    async def start_serving(self) -> None:
        pass  # it does so from the start

    async def serve_forever(self) -> None:
        await self._net.loop.create_future()

    async def wait_closed(self) -> None:
        pass  # asyncio's own waits for its connections here, uvicorn before it comes here


class NetworkLoop(VirtualLoop):
    """A virtual loop whose servers and connections are those of `net`."""

    def __init__(self, link: Link, seed: int, limit: float | None) -> None:
        super().__init__(seed, limit)
        self.net = Net(self, link, seed)

    async def create_server(  # type: ignore[override]  # narrower than asyncio's: what is not simulated is refused
        self,
        factory: Factory,
        host: str | None = None,
        port: int | None = None,
        *,
        sock: object = None,
        ssl: object = None,
        **_: object,
    ) -> Listener:
        self._refuse(sock, ssl)
        return self.net.listen(factory, host, port)

    async def create_connection(  # type: ignore[override]  # narrower, too
        self, factory: Factory, host: str, port: int, *, sock: object = None, ssl: object = None, **_: object
    ) -> tuple[End, asyncio.Protocol]:
        self._refuse(sock, ssl)
        return await self.net.connect(factory, host, port)

    async def getaddrinfo(self, host: Any, port: Any, **_: object) -> list[Any]:
        name = host.decode() if isinstance(host, bytes) else host
        return [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (name, port))]

    def _refuse(self, sock: object, ssl: object) -> None:
        if sock is not None:
            self.escape("a socket")
        if ssl:
            raise VirtualError("TLS is not run here: use http:// and ws://, and Link(tls=True) for what it costs")
