"""One connection of the simulated network: two transports, each of which sends its bytes over the link to the other.

    protocol ─write─▶ buffer ─window─▶ on its way (rate, delay, jitter, loss) ─▶ inbox ─read─▶ protocol
                        ▲                │ black hole: stays there until heal()           │
                        └────────────────┼───────── one delay later: room for more ◀──────┘
                                         └ cut: lost, and both ends are reset

What is simulated is what an application sees of TCP (RFC 9293): order, back pressure, half-close, reset. Not
simulated: packets and their headers, slow start, congestion, and a sender that gives up (Linux does, after about
15 minutes without an answer). What one write puts into the window travels as one segment.
"""

import asyncio
import errno
import math
import socket
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple, cast

from lab.virtual.clock import TINY

if TYPE_CHECKING:
    from lab.virtual.network import Link, Net

Way = Literal["up", "down"]  # from the client to the server, and back
Kind = Literal["OPEN", "DATA", "FIN", "RST"]  # OPEN: the handshake's third step, with which the server accepts
Address = tuple[str, int]

HIGH_WATER = 64 * 1024  # bytes in a write buffer before its protocol is asked to pause, as in asyncio


class Row(NamedTuple):
    """One line of the transcript: when it was sent and is due (s), on which connection, which way, what it is.

    A black hole or a cut may keep what is due from arriving.
    """

    sent: float
    due: float
    connection: int
    way: Way
    kind: Kind
    data: bytes


@dataclass(eq=False)
class Connection:
    """One connection: its number from 1, its link and server, its life (s), the payload bytes sent each way."""

    number: int
    link: "Link"
    server: tuple[str, int]
    opened: float
    closed: float | None = None
    up: int = 0
    down: int = 0
    ends: "tuple[End, ...]" = field(default=(), repr=False)

    def cut(self) -> None:
        """Reset both ends, now."""
        for end in self.ends:
            end.flight.clear()
        for end in self.ends:
            end.net.record(end, end.net.loop.now, "RST", b"")
            end.reset()


@dataclass
class Segment:
    """Something on its way, and when it is due (s): never, in a black hole."""

    due: float
    kind: Kind
    data: bytes = b""


class Socket:
    """What servers and clients ask of a transport's socket."""

    family, type, proto = socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP

    def __init__(self, here: Address, there: Address | None = None, end: "End | None" = None) -> None:
        self.here, self.there, self.end = here, there, end

    def getsockname(self) -> Address:
        """The address of this end."""
        return self.here

    def getpeername(self) -> Address | None:
        """The address of the other end."""
        return self.there

    def setsockopt(self, *option: object) -> None:
        """Accept any option, such as TCP_NODELAY: none matters here."""

    def fileno(self) -> int:
        """A file that is never readable, or -1 once something waits to be read.

        httpcore looks at it before it uses a connection again: readable while idle means that the server hung up.
        """
        end = self.end
        return -1 if end is None or end.lost or end.inbox or end.peer_ended else end.net.silent.fileno()


class End(asyncio.Transport):
    """One end of a connection: a transport whose bytes travel `way`."""

    peer: "End"

    def __init__(self, net: "Net", connection: Connection, way: Way, here: Address, there: Address) -> None:
        super().__init__({"sockname": here, "peername": there, "socket": Socket(here, there, self)})
        self.net, self.connection, self.link, self.way = net, connection, connection.link, way
        self.protocol = asyncio.Protocol()  # deaf, until there is a real one
        self.accept: Callable[[], asyncio.Protocol | None] = lambda: None
        self.buffer = bytearray()  # written, not yet sent
        self.high, self.low = HIGH_WATER, HIGH_WATER // 4
        self.room = self.link.window  # bytes that may be sent before the peer reads on
        self.flight: deque[Segment] = deque()  # on its way to the peer
        self.busy_until = self.last_due = 0.0
        self.inbox: deque[Segment] = deque()  # arrived, not yet read
        self.untold = 0  # bytes read in a black hole, of which the peer does not know
        self.choked = self.paused = False  # the protocol was asked not to write; asked not to be given anything
        self.ending = self.ended = self.peer_ended = False  # the stream: to be ended (FIN), ended, and the peer's
        self.closing = self.lost = False

    # What protocols call (asyncio.Transport)

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self.protocol

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = cast(asyncio.Protocol, protocol)

    def is_closing(self) -> bool:
        return self.closing

    def is_reading(self) -> bool:
        return not (self.paused or self.closing)

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False
        self.net.loop.call_soon(self._read)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self.high = high if high is not None else HIGH_WATER if low is None else 4 * low
        self.low = low if low is not None else self.high // 4

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return self.low, self.high

    def get_write_buffer_size(self) -> int:
        return len(self.buffer)

    def can_write_eof(self) -> bool:
        return True

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self.ending:
            raise RuntimeError("Cannot call write() after write_eof()")
        if self.inbox and self.inbox[-1].kind == "RST":
            self._lose(_reset_by_peer())
        if not self.lost:
            self.buffer += data
            self._push()
            if len(self.buffer) > self.high and not self.choked:
                self.choked = True
                self.protocol.pause_writing()

    def write_eof(self) -> None:
        self.ending = True
        self._push()

    def close(self) -> None:
        self.closing = True
        self._push()

    def abort(self) -> None:
        self.buffer.clear()
        self._say_goodbye()

    # Sending

    def _push(self) -> None:
        """Send what the window admits, and after the last byte what ends the stream."""
        if self.buffer and self.room:
            data = bytes(self.buffer[: self.room])
            del self.buffer[: len(data)]
            self.room -= len(data)
            self.send("DATA", data)
        if self.choked and len(self.buffer) <= self.low:
            self.choked = False
            self.protocol.resume_writing()
        if self.buffer or self.lost:
            return
        if self.closing:
            self._say_goodbye()
        elif self.ending and not self.ended:
            self.ended = True
            self.send("FIN")

    def send(self, kind: Kind, data: bytes = b"") -> None:
        """Put a segment on its way."""
        link, loop, random = self.link, self.net.loop, self.net.random
        self.busy_until = max(loop.now, self.busy_until) + len(data) / link.rate
        due = self.busy_until + link.delay
        if link.jitter:
            due += random.uniform(0, link.jitter)
        rto = link.rto
        while data and link.loss and random.random() < link.loss:
            due += rto
            rto *= 2
        self.last_due = due = max(due, self.last_due)  # a late one holds up those behind it: TCP keeps the order
        self.flight.append(Segment(due, kind, data))
        self.net.record(self, due, kind, data)
        loop.call_at(due, self._deliver)

    def send_again(self) -> None:
        """Put on its way once more what fell into a black hole."""
        due = self.net.loop.now + self.link.delay
        for segment in self.flight:
            if segment.due == math.inf:
                segment.due = due
        self.net.loop.call_at(due, self._deliver)
        self._tell(0)

    def _deliver(self) -> None:
        """Give the peer what is due. Timers of one moment come in any order, so a timer only says: look."""
        now = self.net.loop.now + TINY
        if self.way in self.link._dark:
            for segment in self.flight:
                if segment.due <= now:
                    segment.due = math.inf
        while self.flight and self.flight[0].due <= now:
            self.peer._arrive(self.flight.popleft())

    def _may_send(self, size: int) -> None:
        self.room += size
        self._push()

    # Receiving

    def _arrive(self, segment: Segment) -> None:
        if segment.kind == "OPEN":
            self._accept()
        elif segment.kind == "RST":
            self.reset()
        elif self.lost:
            if segment.kind == "DATA":  # nobody can read it any more
                self.send("RST")
        else:
            cut = segment.kind == "DATA" and self.link._shorten(segment, self.peer.way)
            self.inbox.append(segment)
            self._read()
            if cut:
                self.link.cut()

    def _read(self) -> None:
        while self.inbox and not self.paused and not self.closing:
            segment = self.inbox.popleft()
            if segment.data:
                self._tell(len(segment.data))
                self.protocol.data_received(segment.data)
            elif segment.kind == "RST":
                self._lose(_reset_by_peer())
            elif segment.kind == "FIN":
                self.peer_ended = True
                if not self.protocol.eof_received():
                    self.close()

    def _tell(self, size: int) -> None:
        """Let the peer know, one delay from now, how much was read: so much more may it send."""
        self.untold += size
        if self.untold and self.way not in self.link._dark:
            self.net.loop.call_later(self.link.delay, self.peer._may_send, self.untold)
            self.untold = 0

    # Beginning and end

    def _accept(self) -> None:
        protocol = self.accept()
        if protocol:
            self.protocol = protocol
            protocol.connection_made(self)
        else:
            self._lose(None, "RST")

    def _say_goodbye(self) -> None:
        """Nothing is left to write: end the stream, rudely if something that arrived will never be read."""
        self._lose(None, "RST" if self.inbox else None if self.ended else "FIN")

    def reset(self) -> None:
        """Take a reset; what arrived before it can still be read."""
        if self.inbox and not self.buffer and not self.closing:
            self.inbox.append(Segment(0, "RST"))
        else:
            self._lose(_reset_by_peer())

    def _lose(self, error: Exception | None, farewell: Kind | None = None) -> None:
        if self.lost:
            return
        self.lost = self.closing = True
        self.buffer.clear()
        if farewell:
            self.send(farewell)
        self.net.loop.call_soon(self.protocol.connection_lost, error)
        if self.peer.lost:
            self.connection.closed = self.net.loop.now
            self.link._live.pop(self.connection, None)


def _reset_by_peer() -> ConnectionResetError:
    return ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")
