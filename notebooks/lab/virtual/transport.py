"""One connection of the simulated network: two transports, each of which sends its bytes over the link to the other.

    protocol ─write─▶ buffer ─windows─▶ on its way (rate, delay, jitter, loss) ─▶ inbox ─read─▶ protocol
                        ▲                 │ black hole: stays there until heal()           │
                        └─────────────────┼─ one delay later: arrived, read, go on ◀───────┘
                                          └ cut: lost, and both ends are reset

What is simulated is what an application sees of TCP (RFC 9293): order, back pressure, half-close, reset; and slow
start (RFC 5681, RFC 6928), without which large answers would be too early. What one write puts into the windows travels
as one segment, and bytes are TCP's payload. With `Link(packets=True)` every packet travels for itself, with its heads
and its acknowledgements, is lost for itself, and is sent again when Linux does; with `tls=True` a connection is opened
by TLS 1.3 (RFC 8446), and every write is a record: round trips and bytes, no cipher.

Left out, and what that changes on a real network: congestion avoidance (a loss does not shrink the window: a long
transfer over a link that loses is too fast); the kernel's send queue (a writer is held back by window and write buffer,
81 to 520 kB earlier than on Linux, 3 MB on loopback) and the growth of the receiver's window beyond `window` (half a
megabyte takes Linux fewer round trips); quick acknowledgements at a connection's start, and needless repetitions when
only acknowledgements are lost (some packets of 52 bytes; where 5 % are lost one message in 200 took Linux 0.52 s, and
takes 0.28 here); MTU discovery, Nagle (asyncio switches it off), keep-alive.
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
Kind = Literal["OPEN", "TLS", "DATA", "FIN", "RST", "ACK"]  # OPEN: the handshake's third step; ACK: of packets only
Address = tuple[str, int]

HIGH_WATER = 64 * 1024  # bytes in a write buffer before its protocol is asked to pause, as in asyncio
MSS = 1448  # bytes of a packet's payload: an Ethernet's 1500 without the heads
HEADS = 52  # bytes: IP 20, TCP 20, its timestamps 12 (RFC 7323), which Linux sends
SYN = 60  # bytes of a packet that opens a connection, with TCP's options
INITIAL = 10 * MSS  # bytes that may be on their way before the first acknowledgement (RFC 6928)
LEAST_RTO, MOST_RTO = 0.2, 120.0  # s; Linux adds the first to the round trip, or four deviations if they are more
RETRIES = 16  # of a packet without an answer, 15 by tcp_retries2 of Linux and the wait after them: then it gives up
DELAYED_ACK = 0.04  # s that an acknowledgement waits for something to travel with, unless two full packets came

# Bytes of TLS 1.3 as OpenSSL sends them for one ECDSA certificate without its chain (a public one adds 1 to 3 kB)
CLIENT_HELLO, SERVER_FLIGHT, CLIENT_FINISHED, TICKETS = 517, 928, 80, 510
RECORD, RECORD_HEADS = 16_384, 22  # bytes in a record at most, and around them: head 5, type 1, tag 16


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
    """One connection: its number from 1, its link and server, its life (s), the bytes sent each way as Net counts."""

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
    """Something on its way, and when it is due (s): never, in a black hole. How often it was lost; packets after it."""

    due: float
    kind: Kind
    data: bytes = b""
    losses: int = 0
    overtaken: int = 0


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
        self.congestion = INITIAL  # bytes that may be on their way at once, while `slow_start`
        self.unanswered = 0  # bytes on their way or not yet acknowledged
        self.peak = self.last_peak = 0  # the most of them since there were none, and before that
        self.round_trip, self.deviation = 2 * self.link.delay, self.link.delay  # s, as the handshake shows (RFC 6298)
        self.flight: deque[Segment] = deque()  # on its way to the peer
        self.busy_until = self.last_due = self.last_sent = 0.0
        self.around = 0  # bytes that TLS has put around what was written since something was sent
        self.retries = 0  # of the packet that is in a black hole
        self.inbox: deque[Segment] = deque()  # arrived, not yet read
        self.unacknowledged = self.untold = 0  # bytes that arrived, that were read, of which the peer does not know
        self.ack_timer: asyncio.TimerHandle | None = None
        self.secured: asyncio.Future[None] | None = None  # a client's, while TLS shakes hands
        self.hands = 0  # TLS messages that arrived
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
            if self.link.tls:
                self.around += RECORD_HEADS * math.ceil(len(data) / RECORD)
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
        """Send what the windows admit, and after the last byte what ends the stream."""
        if self.buffer and not self.unanswered and self.congestion > INITIAL:
            self._restart()
        while self.buffer and (size := self._admitted()) > 0:
            data = bytes(self.buffer[:size])
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

    def _admitted(self) -> int:
        size = self.room
        if self.link.slow_start:
            size = min(size, self.congestion - self.unanswered)
        return min(size, MSS) if self.link.packets else size

    def _restart(self) -> None:
        """Halve the window for every timeout that nothing was sent, down to the initial one (RFC 2861, as Linux)."""
        timeouts = int((self.net.loop.now - self.last_sent) / self._timeout())
        self.congestion = max(INITIAL, self.congestion >> min(timeouts, 64))

    def _timeout(self) -> float:
        """How long (s) the sender waits for an acknowledgement before it sends again."""
        if self.link.rto is not None:
            return self.link.rto
        return min(MOST_RTO, self.round_trip + max(LEAST_RTO, 4 * self.deviation))

    def send(self, kind: Kind, data: bytes = b"") -> None:
        """Put a segment on its way."""
        link, loop, random, lossy = self.link, self.net.loop, self.net.random, self.net.random.random
        around, self.around = self.around, 0
        if link.packets:
            self._tell(carried=True)
            around += HEADS * max(1, math.ceil((len(data) + around) / MSS))
        busy_until = max(loop.now, link._busy.get(self.way, 0.0) if link.shared else self.busy_until)
        self.busy_until = link._busy[self.way] = busy_until + (len(data) + around) / link.rate
        due = self.busy_until + link.delay
        if link.jitter:
            due += random.uniform(0, link.jitter)
        segment = Segment(due, kind, data)
        if data:
            timeout = self._timeout()
            self.last_sent = loop.now
            self.unanswered += len(data)
            self.peak = max(self.peak, self.unanswered)
            error = due + link.delay - loop.now - self.round_trip
            self.round_trip += error / 8
            self.deviation += (abs(error) - self.deviation) / 4
            while link.loss and lossy() < link.loss:
                segment.losses += 1
            if segment.losses:
                segment.due += waited(timeout, segment.losses)
            elif link.packets:
                self._overtake(due, timeout)
        if link.packets:  # each for itself: one that was lost holds up those behind it in the flight's own order
            self.net.count(self, segment.losses * (len(data) + around))
        else:
            self.last_due = segment.due = max(segment.due, self.last_due)
        self.flight.append(segment)
        self.net.record(self, segment.due, kind, data, around)
        loop.call_at(segment.due, self._deliver)

    def _overtake(self, due: float, timeout: float) -> None:
        """Let the third packet that arrives after a lost one have it sent again (RFC 5681, fast retransmit)."""
        for late in self.flight:
            if late.losses:
                late.overtaken += 1
                if late.overtaken == 3:
                    late.due = min(late.due, due + 2 * self.link.delay + waited(timeout, late.losses - 1))
                    self.net.loop.call_at(late.due, self._deliver)

    def send_again(self) -> None:
        """Put on its way once more what fell into a black hole; packets wait for their timer."""
        due = self.net.loop.now + self.link.delay
        for segment in self.flight:
            if segment.due == math.inf and not self.link.packets:
                segment.due = due
        self.net.loop.call_at(due, self._deliver)
        self._tell()

    def _deliver(self) -> None:
        """Give the peer what is due. Timers of one moment come in any order, so a timer only says: look."""
        now = self.net.loop.now + TINY
        if self.way in self.link._dark:
            for segment in self.flight:
                if segment.due <= now:
                    segment.due = math.inf
                    if self.link.packets and segment is self.flight[0]:
                        self._retry(segment)
        while self.flight and self.flight[0].due <= now:
            self.retries = 0
            self.peer._arrive(self.flight.popleft())
        if self.link.packets and self.flight and self.flight[0].due == math.inf and not self.retries:
            due = now + 2 * self.link.delay  # those behind are sent again once the first one is acknowledged
            for segment in self.flight:
                segment.due = min(segment.due, due)
            self.net.loop.call_at(due, self._deliver)

    def _retry(self, segment: Segment) -> None:
        """Send the first packet in a black hole again when its timer says so, or give up."""
        self.retries += 1
        timeout = self._timeout()
        again = waited(timeout, self.retries) - waited(timeout, self.retries - 1)
        if self.retries > RETRIES:
            self.flight.clear()
            self._lose(TimeoutError(errno.ETIMEDOUT, "Connection timed out"))
            return
        segment.due = self.net.loop.now + min(MOST_RTO, again)
        self.net.count(self, len(segment.data) + HEADS)
        self.net.loop.call_at(segment.due, self._deliver)

    def _hear(self, arrived: int, read: int) -> None:
        """Learn from the peer how much arrived and how much was read since it last said so."""
        if self.congestion <= 2 * max(self.peak, self.last_peak):  # else the window was not in the way (RFC 7661)
            self.congestion += arrived
        self.unanswered -= arrived
        if not self.unanswered:
            self.last_peak, self.peak = self.peak, 0
        self.room += read
        self._push()

    # Receiving

    def _arrive(self, segment: Segment) -> None:
        if segment.kind == "OPEN":
            if not self.link.tls:
                self._accept()
        elif segment.kind == "RST":
            self.reset()
        elif self.lost:
            if segment.data:  # nobody can read it any more
                self.send("RST")
            elif self.link.packets:
                self.net.record(self, self.net.loop.now + self.link.delay, "ACK", b"", HEADS)
        elif segment.kind == "TLS":
            self.unacknowledged += len(segment.data)
            self._shake_hands()
            self._tell()
        else:
            cut = segment.kind == "DATA" and self.link._shorten(segment, self.peer.way)
            self.unacknowledged += len(segment.data)
            self.inbox.append(segment)
            self._read()
            self._tell()  # of what a paused protocol has not read
            if segment.kind == "FIN" and self.link.packets and not self.lost:
                self.net.record(self, self.net.loop.now + self.link.delay, "ACK", b"", HEADS)
            if cut:
                self.link.cut()

    def _read(self) -> None:
        while self.inbox and not self.paused and not self.closing:
            segment = self.inbox.popleft()
            if segment.data:
                self.untold += len(segment.data)
                self._tell()
                self.protocol.data_received(segment.data)
            elif segment.kind == "RST":
                self._lose(_reset_by_peer())
            elif segment.kind == "FIN":
                self.peer_ended = True
                if not self.protocol.eof_received():
                    self.close()

    def _tell(self, *, now: bool = False, carried: bool = False) -> None:
        """Let the peer know, one delay from now, how much arrived and how much was read: so much more may it send.

        An acknowledgement is a packet of its own, unless it is `carried` by another one.
        """
        link, loop = self.link, self.net.loop
        if not (self.unacknowledged or self.untold) or self.way in link._dark:
            return
        if link.packets:
            if not (now or carried or max(self.unacknowledged, self.untold) >= 2 * MSS):
                if self.ack_timer is None:
                    self.ack_timer = loop.call_later(DELAYED_ACK, lambda: self._tell(now=True))
                return
            if self.ack_timer is not None:
                self.ack_timer.cancel()
                self.ack_timer = None
            if not carried:
                self.net.record(self, loop.now + link.delay, "ACK", b"", HEADS)
        loop.call_later(link.delay, self.peer._hear, self.unacknowledged, self.untold)
        self.unacknowledged = self.untold = 0

    # Beginning and end

    async def secure(self) -> None:
        """Shake hands by TLS, as a client; raises ConnectionResetError if the connection ends meanwhile."""
        self.secured = self.net.loop.create_future()
        self.send("TLS", bytes(CLIENT_HELLO))
        try:
            await self.secured
        except BaseException:
            self.abort()
            raise

    def _shake_hands(self) -> None:
        self.hands += 1
        if self.way == "up" and self.secured is not None and not self.secured.done():
            self.send("TLS", bytes(CLIENT_FINISHED))
            self.secured.set_result(None)
        elif self.way == "down" and self.hands == 1:
            self.send("TLS", bytes(SERVER_FLIGHT))
        elif self.way == "down":
            self._accept()
            if not self.lost:
                self.send("TLS", bytes(TICKETS))

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
        if self.ack_timer is not None:
            self.ack_timer.cancel()
        if self.secured is not None and not self.secured.done():
            self.secured.set_exception(error or _reset_by_peer())
        if farewell:
            self.send(farewell)
        self.net.loop.call_soon(self.protocol.connection_lost, error)
        if self.peer.lost:
            self.connection.closed = self.net.loop.now
            self.link._live.pop(self.connection, None)


def _reset_by_peer() -> ConnectionResetError:
    return ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")


def waited(timeout: float, losses: int) -> float:
    """How late (s) what was lost so often is: Linux probes after a timeout, waits as long, then twice, 4 times ..."""
    return timeout * 2.0 ** (losses - 1) if losses else 0.0
