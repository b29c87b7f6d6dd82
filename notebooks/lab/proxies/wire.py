"""A TCP link under your control, between a real client and a real server.

    with Wire(server.url, delay=0.025) as wire:     # the client uses wire.url
        wire.blackhole("down")
        wire.bytes["down"], wire.connections

Every connection to the wire becomes one connection to the target. Each has two ends; what an end reads from its own
side flies to the other end and is written there, in order, held back by the rate, the delay, the jitter, a black hole
and the receiver's pace:

    client ──▶ end ── "up" ───▶ end ──▶ server
    client ◀── end ◀── "down" ── end ◀── server

The end of a direction (FIN) and a reset (RST) fly like data: each side sees what it would see without the wire, later.
With WINDOW bytes in flight an end reads no more (one read is at most 256 KiB), and TCP makes the sender wait.
Two things differ from a long cable: the kernel accepts a connection at once, so that opening one costs no delay, even
in a black hole; and an end that does not read, or has read a FIN, learns of a reset only when it next reads or writes.
"""

import asyncio
import functools
import math
import random
import socket
import struct
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Concatenate, Literal, NamedTuple, ParamSpec, Self
from urllib.parse import urlsplit

from servers.limits import check_finite, check_positive, check_whole

Way = Literal["up", "down"]  # up: from the client to the server
Kind = Literal["OPEN", "DATA", "FIN", "RST"]  # OPEN: the target has accepted the connection
P = ParamSpec("P")

WAYS: tuple[Way, Way] = ("up", "down")
WINDOW = 64 * 1024  # bytes
SEGMENT = 1460  # bytes that pass together when the rate is limited
DEADLINE = 10.0  # seconds that another thread waits for the wire's


class WireRow(NamedTuple):
    """One line of a transcript: when something left the wire (`time.perf_counter()`), on which connection, and what."""

    time: float
    connection: int
    way: Way
    kind: Kind
    data: bytes


@dataclass
class WireConnection:
    """One connection: its number from 1, its life (`time.perf_counter()`), the bytes passed on in each direction."""

    number: int
    opened: float
    closed: float | None = None
    up: int = 0
    down: int = 0


def _on_the_loop(method: "Callable[Concatenate[Wire, P], None]") -> "Callable[Concatenate[Wire, P], None]":
    """Run a method of Wire in the wire's thread; it has taken effect when the call returns."""

    @functools.wraps(method)
    def call(wire: "Wire", /, *args: P.args, **options: P.kwargs) -> None:
        async def act() -> None:
            method(wire, *args, **options)
            await asyncio.sleep(0)  # a transport that was aborted closes its socket in the loop's next round

        if wire._loop.is_closed():
            raise RuntimeError("the wire is stopped")
        asyncio.run_coroutine_threadsafe(act(), wire._loop).result(DEADLINE)

    return call


class Wire:
    """A relay from a free port of 127.0.0.1 to `target` (a URL or "host:port"), in its own thread until `stop()`.

    `url` is the target's with the wire's own host and `port`. `delay` is seconds one way, `jitter` the most seconds
    that a read takes longer (never overtaking; `seed` decides), `rate` bytes per second in each direction of a
    connection; they may be assigned at any time and hold for what is read from then on. With `transcript`, the
    attribute of that name is a list of Rows. Any thread may call the methods; a stopped wire raises RuntimeError.
    """

    def __init__(
        self,
        target: str,
        *,
        delay: float = 0.0,
        jitter: float = 0.0,
        rate: float = math.inf,
        seed: int = 1,
        transcript: bool = False,
    ) -> None:
        parts = urlsplit(target if "//" in target else f"//{target}")
        if not (parts.hostname and parts.port):
            raise ValueError(f"a wire needs a target with a host and a port, not {target!r}")
        self.target = (parts.hostname, parts.port)
        self.delay, self.jitter, self.rate, self.seed = delay, jitter, rate, seed
        self.connections: list[WireConnection] = []
        self.transcript: list[WireRow] | None = [] if transcript else None
        self._live: dict[_End, None] = {}  # the ends that have an open transport
        self._connecting: set[asyncio.Task[None]] = set()
        self._blackholed: set[Way] = set()
        self._stalled: set[Way] = set()
        self._budget: dict[Way, int] = {}  # bytes to pass before a cut
        self._severed: set[Way] = set()  # the last of them has passed, and the cut is about to come
        self._stopping = threading.Lock()
        self._loop = asyncio.SelectorEventLoop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"wire to {target}", daemon=True)
        self._thread.start()
        listen = self._loop.create_server(self._accept, "127.0.0.1", 0, backlog=1024)
        self._server = asyncio.run_coroutine_threadsafe(listen, self._loop).result(DEADLINE)
        self.port: int = self._server.sockets[0].getsockname()[1]
        self.url = parts._replace(netloc=f"127.0.0.1:{self.port}").geturl().removeprefix("//")

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("delay", "jitter"):
            check_finite(**{name: value})
        elif name == "rate":
            check_positive(rate=value, infinite=True)
        super().__setattr__(name, value)

    def __repr__(self) -> str:
        passed = f"{self.bytes['up']} bytes up, {self.bytes['down']} down"
        return f"<wire {self.url} to {self.target[0]}:{self.target[1]}: {len(self.connections)} connections, {passed}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def bytes(self) -> dict[Way, int]:
        """The bytes passed on so far in each direction, over all connections."""
        return {"up": sum(c.up for c in self.connections), "down": sum(c.down for c in self.connections)}

    @_on_the_loop
    def cut(self) -> None:
        """Reset every connection at both ends, now. What is in flight is lost."""
        self._cut()

    @_on_the_loop
    def cut_after(self, n_bytes: int, way: Way = "down") -> None:
        """Cut once `n_bytes` more bytes have been passed on that way: exactly those, and not one byte more.

        The bytes of all connections count, the next one's too if none is open. It happens once, as soon as the
        receiver's kernel has the last byte (only Linux tells; elsewhere the reset may destroy it). With 0, it happens
        when the first byte would have passed. A second call replaces the first.
        """
        _check(way)
        check_whole(bytes_before_a_cut=n_bytes)
        self._budget[way] = n_bytes

    @_on_the_loop
    def blackhole(self, *ways: Way) -> None:
        """Deliver nothing that way (neither way if none is named) until `heal()`; nobody is told."""
        self._blackholed.update(_check(*ways))

    @_on_the_loop
    def heal(self) -> None:
        """End the black hole. What it held back arrives one delay from now, in order, as TCP would send it again."""
        now = self._loop.time()
        for end in self._ends():
            if end.way in self._blackholed:
                again = ((now + self.delay if due <= now else due, kind, data) for due, kind, data in end.flight)
                end.flight = deque(again)
        self._blackholed.clear()
        for end in self._ends():
            end.land()

    @_on_the_loop
    def stall(self, *ways: Way) -> None:
        """Read nothing that is sent that way (neither way if none is named) until `resume()`: the sender must wait."""
        self._stalled.update(_check(*ways))
        for end in self._ends():
            end.flow()

    @_on_the_loop
    def resume(self, *ways: Way) -> None:
        """Read again what is sent that way (both ways if none is named)."""
        self._stalled.difference_update(_check(*ways))
        for end in self._ends():
            end.flow()

    def stop(self) -> None:
        """Close every connection and end the thread. A second call does nothing."""
        with self._stopping:
            if not self._loop.is_closed():
                asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(DEADLINE)
                self._loop.call_soon_threadsafe(self._loop.stop)
                self._thread.join(DEADLINE)
                self._loop.close()

    # What follows runs in the wire's thread.

    def _accept(self) -> "_End":
        connection = WireConnection(len(self.connections) + 1, time.perf_counter())
        self.connections.append(connection)
        client, server = _End(self, connection, "up"), _End(self, connection, "down")
        client.peer, server.peer = server, client
        return client

    def _ends(self) -> "list[_End]":
        """Both ends of every connection that has one open: what one end read before it closed may still fly."""
        return list(dict.fromkeys(end for live in self._live for end in (live, live.peer)))

    def _cut(self) -> None:
        for end in self._ends():
            end.reset()

    async def _close(self) -> None:
        self._loop.remove_reader(self._server.sockets[0])  # closed now, it would leak what it is just accepting
        while True:
            for task in self._connecting:
                task.cancel()
            for end in self._ends():
                if end.alive:
                    end.transport.abort()
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            if not tasks:
                break
            await asyncio.wait(tasks)  # connections on their way to us (a task of asyncio's each) and to the target
        self._server.close()
        await asyncio.sleep(0)
        await self._loop.shutdown_default_executor()  # a target with a name was looked up there


class _End(asyncio.Protocol):
    """One end of a connection: what it reads from its own side flies `way`, to be written by `peer`."""

    peer: "_End"
    transport: asyncio.Transport  # once made

    def __init__(self, wire: Wire, connection: WireConnection, way: Way) -> None:
        self.wire, self.connection, self.way = wire, connection, way
        self.flight: deque[tuple[float, Kind, bytes]] = deque()  # when due on the loop's clock, and what
        self.held = 0  # bytes in flight
        self.sent = self.due = 0.0  # when, at the given rate, the last of it has left; when it is due
        self.timer: asyncio.TimerHandle | None = None
        self.made = self.read_fin = self.passed_fin = self.choked = False
        self.rng = random.Random(f"{wire.seed} {connection.number} {way}")

    @property
    def alive(self) -> bool:
        return self.made and not self.transport.is_closing()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.set_write_buffer_limits(high=0)  # one write at a time: the rest stays in flight
        self.transport, self.made = transport, True
        self.wire._live[self] = None
        if self.way == "up":
            connecting = self.wire._loop.create_task(self.connect())
            self.wire._connecting.add(connecting)
            connecting.add_done_callback(self.wire._connecting.discard)
        else:
            self.peer.log("OPEN")
            if not self.peer.alive and not self.peer.flight:  # it was cut while this end was connecting
                self.reset()
        self.flow()
        self.peer.land()

    async def connect(self) -> None:
        try:
            await self.wire._loop.create_connection(lambda: self.peer, *self.wire.target)
        except OSError:
            self.reset()

    def data_received(self, data: bytes) -> None:
        size = len(data) if math.isinf(self.wire.rate) else SEGMENT
        for start in range(0, len(data), size):
            self.take_off("DATA", data[start : start + size])

    def eof_received(self) -> bool:
        self.read_fin = True
        self.take_off("FIN")
        return True  # this side can still receive

    def connection_lost(self, error: Exception | None) -> None:
        del self.wire._live[self]
        if error:
            self.take_off("RST")
        else:  # the wire closed it, and with it the whole connection
            self.drop()
            self.peer.reset()
        if self.peer not in self.wire._live:
            self.connection.closed = time.perf_counter()

    def pause_writing(self) -> None:
        self.choked = True

    def resume_writing(self) -> None:
        self.choked = False
        self.peer.land()

    def take_off(self, kind: Kind, data: bytes = b"") -> None:
        self.sent = max(self.wire._loop.time(), self.sent) + len(data) / self.wire.rate
        self.due = max(self.due, self.sent + self.wire.delay + self.rng.uniform(0, self.wire.jitter))
        self.flight.append((self.due, kind, data))
        self.held += len(data)
        self.land()

    def land(self) -> None:
        """Deliver what is due and can be delivered; come back when the next is due."""
        if self.timer:
            self.timer.cancel()
            self.timer = None
        while self.flight and self.can_deliver():
            due, kind, data = self.flight[0]
            if due > self.wire._loop.time():
                self.timer = self.wire._loop.call_at(due, self.land)
                break
            self.flight.popleft()
            self.held -= len(data)
            self.deliver(kind, data)
        self.flow()

    def can_deliver(self) -> bool:
        held_back = self.way in self.wire._blackholed or self.way in self.wire._severed
        return self.peer.alive and not self.peer.choked and not held_back

    def deliver(self, kind: Kind, data: bytes) -> None:
        if kind == "DATA":
            budget = self.wire._budget.pop(self.way, None)
            data = data[:budget]
            if data:
                self.log(kind, data)
                self.peer.transport.write(data)
            if budget == len(data):
                self.wire._severed.add(self.way)
                self.cut_once_received()
            elif budget is not None:
                self.wire._budget[self.way] = budget - len(data)
        elif kind == "FIN":
            self.log(kind)
            self.passed_fin = True
            try:
                self.peer.transport.write_eof()
            except OSError:  # its own side has reset it, and it has not noticed because it was not reading
                self.peer.transport.abort()
            if self.peer.passed_fin:
                self.transport.close()
                self.peer.transport.close()
        else:
            self.peer.reset()

    def flow(self) -> None:
        """Read on, unless enough is in flight or this way is stalled."""
        if self.alive and not self.read_fin:
            if self.held >= WINDOW or self.way in self.wire._stalled:
                self.transport.pause_reading()
            else:
                self.transport.resume_reading()

    def drop(self) -> None:
        self.flight.clear()
        self.held = 0
        self.flow()

    def cut_once_received(self) -> None:
        if self.peer.alive and _unreceived(self.peer.transport):
            self.wire._loop.call_later(0.001, self.cut_once_received)
        else:
            self.wire._severed.discard(self.way)
            self.wire._cut()

    def reset(self) -> None:
        """Send RST to this end's own side, and forget what came from there."""
        self.drop()
        if self.alive:
            self.peer.log("RST")
            rst_on_close = struct.pack("ii", 1, 0)  # SO_LINGER, for 0 seconds
            self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, rst_on_close)
            self.transport.abort()

    def log(self, kind: Kind, data: bytes = b"") -> None:
        """Count what leaves the wire this way before it leaves, so that nobody receives what is not counted."""
        if self.way == "up":
            self.connection.up += len(data)
        else:
            self.connection.down += len(data)
        if self.wire.transcript is not None:
            self.wire.transcript.append(WireRow(time.perf_counter(), self.connection.number, self.way, kind, data))


def _check(*ways: Way) -> tuple[Way, ...]:
    """The ways that were named, or both."""
    for way in ways:
        if way not in WAYS:
            raise ValueError(f"a way is 'up' or 'down', not {way!r}")
    return ways or WAYS


def _unreceived(transport: asyncio.Transport) -> int:
    """The bytes written that the receiver's kernel has not acknowledged; of those in ours, only Linux tells."""
    unacknowledged: int = 0
    if sys.platform == "linux":
        import fcntl
        import termios

        sock = transport.get_extra_info("socket")
        (unacknowledged,) = struct.unpack("i", fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)))
    return transport.get_write_buffer_size() + unacknowledged
