"""The wire: what passes, when, and how it breaks, between real sockets.

The wire runs in its own thread, so most tests hold both ends of a connection themselves, as blocking sockets.
"""

import asyncio
import gc
import math
import random
import socket
import struct
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI, WebSocket
from fastapi.responses import StreamingResponse
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosedError

from lab.proxies.wire import WINDOW, Way, Wire, WireConnection, WireRow
from servers.background import serve

LIMIT = 20.0  # seconds: no wait is longer
SHORT = 0.15  # seconds in which nothing may arrive


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.001)


@contextmanager
def listening() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0), backlog=256) as listener:
        listener.settimeout(LIMIT)
        yield listener


@dataclass
class Link:
    """A wire with one connection through it, both ends in hand."""

    wire: Wire
    client: socket.socket
    server: socket.socket
    listener: socket.socket

    @property
    def connection(self) -> WireConnection:
        return self.wire.connections[0]

    def towards(self, way: Way) -> tuple[socket.socket, socket.socket]:
        """The sender and the receiver of a direction."""
        return (self.client, self.server) if way == "up" else (self.server, self.client)

    def another(self) -> tuple[socket.socket, socket.socket]:
        client = dial(self.wire)
        return client, answer(self.listener)


def at(listener: socket.socket) -> str:
    return f"127.0.0.1:{listener.getsockname()[1]}"


def dial(wire: Wire) -> socket.socket:
    return socket.create_connection(("127.0.0.1", wire.port), timeout=LIMIT)


def answer(listener: socket.socket) -> socket.socket:
    server, _ = listener.accept()
    server.settimeout(LIMIT)
    return server


@contextmanager
def linked(delay: float = 0.0, jitter: float = 0.0, rate: float = math.inf, seed: int = 1) -> Iterator[Link]:
    with (
        listening() as listener,
        Wire(at(listener), delay=delay, jitter=jitter, rate=rate, seed=seed, transcript=True) as wire,
        dial(wire) as client,
        answer(listener) as server,
    ):
        yield Link(wire, client, server, listener)


def read(sock: socket.socket, n: int) -> bytes:
    data = b""
    while len(data) < n:
        piece = sock.recv(n - len(data))
        assert piece, f"ended after {len(data)} of {n} bytes"
        data += piece
    return data


def read_to_the_end(sock: socket.socket, pause: float = 0.0) -> tuple[bytes, bool]:
    """All bytes until the end, and whether the end was a reset."""
    data = bytearray()
    try:
        while piece := sock.recv(65536):
            data += piece
            time.sleep(pause)
    except ConnectionResetError:
        return bytes(data), True
    return bytes(data), False


def silent(sock: socket.socket) -> bool:
    """Nothing arrives for a while, not even an end."""
    sock.settimeout(SHORT)
    try:
        sock.recv(1)
    except TimeoutError:
        return True
    finally:
        sock.settimeout(LIMIT)
    return False


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def send_until_it_blocks(sock: socket.socket, most: int) -> int:
    """How much of `most` bytes a sender gets rid of before it has to wait."""
    sock.settimeout(1.0)
    sent, block = 0, bytes(65536)
    try:
        while sent < most:
            sent += sock.send(block)
    except TimeoutError:
        pass
    finally:
        sock.settimeout(LIMIT)
    return sent


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def passed(wire: Wire, way: Way) -> bytes:
    assert wire.transcript is not None
    return b"".join(row.data for row in wire.transcript if row.way == way)


def events(wire: Wire) -> list[tuple[int, Way, str]]:
    assert wire.transcript is not None
    return [(row.connection, row.way, row.kind) for row in wire.transcript if row.kind in ("FIN", "RST")]


BOTH = pytest.mark.parametrize("way", ["up", "down"])


# --- addresses ---


@pytest.mark.parametrize(
    ("target", "url"),
    [
        ("http://127.0.0.1:9", "http://127.0.0.1:{}"),
        ("http://localhost:9/", "http://127.0.0.1:{}/"),
        ("ws://[::1]:9/ws?after=a-1", "ws://127.0.0.1:{}/ws?after=a-1"),
        ("127.0.0.1:9", "127.0.0.1:{}"),
    ],
)
def test_the_url_is_that_of_the_target_at_the_address_of_the_wire(target: str, url: str) -> None:
    """A wire changes the host and the port of its target's URL, and nothing else."""
    with Wire(target) as wire:
        assert wire.url == url.format(wire.port)
        assert repr(wire).startswith(f"<wire {wire.url} to ")
        assert repr(wire).endswith(":9: 0 connections, 0 bytes up, 0 down>")


def test_a_wire_refuses_what_it_cannot_do() -> None:
    """A target without a port, a negative delay, a rate of 0, an unknown way, a negative count: errors, at any time."""
    threads = threading.active_count()
    for target in ("http://127.0.0.1", "127.0.0.1", ":80", ""):
        with pytest.raises(ValueError, match=r"^a wire needs a target with a host and a port, not "):
            Wire(target)
    for delay, jitter, rate in ((-1.0, 0.0, 1.0), (0.0, -1.0, 1.0), (0.0, 0.0, 0.0), (math.nan, 0.0, 1.0)):
        with pytest.raises(ValueError, match=r"^(delay|jitter|rate) is a number (from 0 up|above 0), not "):
            Wire("127.0.0.1:9", delay=delay, jitter=jitter, rate=rate)
    assert threading.active_count() == threads
    with Wire("127.0.0.1:9") as wire:
        for act in (wire.blackhole, wire.stall, wire.resume):
            with pytest.raises(ValueError, match=r"^a way is 'up' or 'down', not 'left'$"):
                act("left")  # type: ignore[arg-type]  # the point of the test
        with pytest.raises(ValueError, match=r"^bytes before a cut is a whole number from 0 up, not -1$"):
            wire.cut_after(-1)
        with pytest.raises(ValueError, match=r"^delay is a number from 0 up, not nan$"):
            wire.delay = math.nan


# --- what passes ---


def test_bytes_pass_unchanged_both_ways_and_are_counted() -> None:
    """Whatever is sent arrives; the counts of the connection, of the wire and of the transcript are what was sent."""
    chance = random.Random(1)
    with linked() as link:
        sent: dict[Way, bytes] = {"up": b"", "down": b""}
        for size in (1, 2, 1460, 65536, 100_000, 3):
            for way in ("up", "down"):
                data = chance.randbytes(size)
                sent[way] += data
                sender, receiver = link.towards(way)
                sender.sendall(data)
                assert read(receiver, size) == data
                assert link.wire.bytes[way] == len(sent[way])  # counted before it can be received
        assert link.wire.bytes == {"up": len(sent["up"]), "down": len(sent["down"])}
        assert (link.connection.up, link.connection.down) == (len(sent["up"]), len(sent["down"]))
        assert passed(link.wire, "up") == sent["up"]
        assert passed(link.wire, "down") == sent["down"]


def test_twenty_connections_at_once_do_not_mix() -> None:
    """Twenty parallel connections carry their own bytes, 1 MB each way; the wire counts the sum."""
    size = 1_000_000

    def echo(server: socket.socket) -> None:
        with server:
            while data := server.recv(65536):
                server.sendall(data)

    def talk(number: int) -> int:
        data = random.Random(number).randbytes(size)
        with dial(wire) as client, ThreadPoolExecutor(1) as sender:
            sending = sender.submit(client.sendall, data)
            assert read(client, size) == data
            sending.result()
        return size

    with listening() as listener, Wire(at(listener), delay=0.001, jitter=0.002) as wire:
        with ThreadPoolExecutor(40) as pool:
            clients = [pool.submit(talk, number) for number in range(20)]
            servers = [pool.submit(echo, answer(listener)) for _ in range(20)]
            assert [client.result() for client in clients] == [size] * 20
            for server in servers:
                server.result()
        assert wire.bytes == {"up": 20 * size, "down": 20 * size}
        assert sorted(c.number for c in wire.connections) == list(range(1, 21))
        assert {(c.up, c.down) for c in wire.connections} == {(size, size)}
        until(lambda: all(c.closed for c in wire.connections))


@BOTH
def test_a_half_closed_connection_still_carries_the_other_way(way: Way) -> None:
    """FIN passes after the data before it and ends one direction only; with both ended the connection is closed."""
    with linked(delay=0.01) as link:
        sender, receiver = link.towards(way)
        sender.sendall(b"last words")
        sender.shutdown(socket.SHUT_WR)
        assert read_to_the_end(receiver) == (b"last words", False)
        receiver.sendall(b"heard")
        assert read(sender, 5) == b"heard"
        assert link.connection.closed is None
        receiver.close()
        assert read_to_the_end(sender) == (b"", False)
        until(lambda: link.connection.closed)
        back: Way = "down" if way == "up" else "up"
        assert events(link.wire) == [(1, way, "FIN"), (1, back, "FIN")]


@BOTH
def test_a_reset_passes_after_the_data_before_it(way: Way) -> None:
    """A side that resets its connection is seen to do so by the other, which first gets the data."""
    with linked(delay=0.05) as link:
        sender, receiver = link.towards(way)
        sender.sendall(b"last words")
        until(lambda: held(link.wire, way) + link.wire.bytes[way] == 10)  # the wire has them, and may be done with them
        reset(sender)
        assert read_to_the_end(receiver) == (b"last words", True)
        assert events(link.wire) == [(1, way, "RST")]
        until(lambda: link.connection.closed)


def held(wire: Wire, way: Way) -> int:
    return sum(end.held for end in wire._ends() if end.way == way)


def test_a_transcript_tells_what_passed_in_order() -> None:
    """Rows are (time, connection, way, kind, bytes) on the clock of `time.perf_counter()`."""
    before = time.perf_counter()
    with linked() as link:
        link.client.sendall(b"ping")
        read(link.server, 4)
        link.server.sendall(b"pong")
        read(link.client, 4)
        client, server = link.another()
        with server:
            client.close()
            assert read_to_the_end(server) == (b"", False)
        rows = link.wire.transcript
        assert rows is not None
        until(lambda: len(rows) == 6)
        assert [row[1:] for row in rows] == [
            (1, "up", "OPEN", b""),
            (1, "up", "DATA", b"ping"),
            (1, "down", "DATA", b"pong"),
            (2, "up", "OPEN", b""),
            (2, "up", "FIN", b""),
            (2, "down", "FIN", b""),
        ]
        times = [before, link.connection.opened, *(row.time for row in rows), time.perf_counter()]
        assert times == sorted(times)
        assert isinstance(rows[0], WireRow)


def test_a_target_that_is_down_closes_the_connection_at_once() -> None:
    """Who connects while nothing listens at the target is reset; when the target is up again, the wire works."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))  # bound and not listening: the port refuses connections, and stays ours
        listener.settimeout(LIMIT)
        with Wire(at(listener)) as wire:
            with pytest.raises(ConnectionResetError), dial(wire) as client:  # dialling may see the reset already
                client.recv(1)
            until(lambda: wire.connections[0].closed)
            listener.listen()
            with dial(wire) as client, answer(listener) as server:
                client.sendall(b"up again")
                assert read(server, 8) == b"up again"


def test_both_sides_of_the_wire_send_small_writes_at_once() -> None:
    """TCP_NODELAY is set towards the client and towards the server: the wire adds no wait of its own."""
    with linked() as link:
        round_trip(link)
        for end in link.wire._ends():
            assert end.transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


# --- delay, jitter, rate ---


def round_trip(link: Link) -> tuple[float, float]:
    """Seconds up and down of one byte each way."""
    start = time.perf_counter()
    link.client.sendall(b"?")
    read(link.server, 1)
    turn = time.perf_counter()
    link.server.sendall(b"!")
    read(link.client, 1)
    return turn - start, time.perf_counter() - turn


def test_the_delay_is_added_once_each_way() -> None:
    """No byte takes less than the delay, and on a machine that has a moment for it none takes twice as long."""

    def once() -> bool:
        times = round_trip(link)
        assert min(times) >= 0.08
        return max(times) < 0.16

    with linked(delay=0.08) as link:
        until(once)
        link.wire.delay = 0.0
        until(lambda: sum(round_trip(link)) < 0.08)


def test_delayed_data_is_in_flight_together() -> None:
    """A delay is no pause: ten writes 20 ms apart take one delay more, not ten."""
    with linked(delay=0.2) as link:
        start = time.perf_counter()
        for _ in range(10):
            link.client.sendall(b"x")
            time.sleep(0.02)
        read(link.server, 10)
        assert 0.2 + 9 * 0.02 <= time.perf_counter() - start < 10 * 0.2


def test_jitter_is_the_same_for_the_same_seed() -> None:
    """The n-th read of a connection is late by the n-th draw of its seed, its number and its direction."""
    with linked(delay=0.01, jitter=0.05, seed=7) as link:
        draws = {way: random.Random(f"7 1 {way}") for way in ("up", "down")}
        excess: list[float] = []

        def more() -> int:
            for way, taken in zip(("up", "down"), round_trip(link), strict=True):
                excess.append(taken - 0.01 - draws[way].uniform(0, 0.05))
            return sum(each < 0.02 for each in excess)

        until(lambda: more() >= 8)  # whatever else the machine has to do
        assert min(excess) >= 0


@BOTH
def test_jitter_keeps_the_order(way: Way) -> None:
    """Data that is held for a random time never overtakes, nor does the FIN."""
    with linked(jitter=0.02) as link:
        sender, receiver = link.towards(way)
        data = random.Random(3).randbytes(20_000)
        with ThreadPoolExecutor(1) as pool:
            reading = pool.submit(read_to_the_end, receiver)
            for start in range(0, len(data), 100):
                sender.sendall(data[start : start + 100])
                time.sleep(0.0005)
            sender.shutdown(socket.SHUT_WR)
            assert reading.result() == (data, False)


def test_the_rate_is_kept_and_spread_over_the_data() -> None:
    """At r bytes per second n bytes take n / r; the first of them arrive long before the last."""
    size, rate = 100_000, 400_000.0

    def once() -> bool:
        start = time.perf_counter()
        link.server.sendall(bytes(size))
        read(link.client, 1000)
        first = time.perf_counter() - start
        read(link.client, size - 1000)
        last = time.perf_counter() - start
        assert last >= size / rate
        return last - first >= 0.3 * size / rate and last < 2 * size / rate

    with linked(rate=rate) as link:
        until(once)  # a busy machine is late now and then, not always


# --- cuts ---


def test_a_cut_resets_every_connection_at_both_ends() -> None:
    """After a cut both ends of every connection are reset, what was in flight is lost, new connections work."""
    with linked(delay=60) as link, ExitStack() as stack:
        pairs = [(link.client, link.server)] + [link.another() for _ in range(4)]
        for client, server in pairs[1:]:
            stack.enter_context(client)
            stack.enter_context(server)
        link.client.sendall(b"never")
        until(lambda: held(link.wire, "up") == 5)
        link.wire.cut()
        assert all(c.closed for c in link.wire.connections)
        for client, server in pairs:
            assert read_to_the_end(client) == (b"", True)
            assert read_to_the_end(server) == (b"", True)
        assert link.wire.bytes == {"up": 0, "down": 0}
        assert sorted(events(link.wire)) == sorted((n, way, "RST") for n in range(1, 6) for way in ("up", "down"))
        link.wire.delay = 0
        client, server = link.another()
        with client, server:
            client.sendall(b"again")
            assert read(server, 5) == b"again"


@BOTH
@pytest.mark.parametrize("n", [0, 1, 7, 1459, 65536, 65537, 300_000, 12_000_000])
def test_a_cut_comes_exactly_after_n_bytes(way: Way, n: int) -> None:
    """The receiver gets n bytes and a reset, however slowly it reads; the sender is reset too; the next one is not."""
    data = random.Random(n).randbytes(n + 1_000_000)
    with linked() as link, ThreadPoolExecutor(1) as pool:
        sender, receiver = link.towards(way)
        link.wire.cut_after(n, way)

        def send_for_ever() -> None:
            while True:
                sender.sendall(data)

        sending = pool.submit(send_for_ever)
        received, was_reset = read_to_the_end(receiver, pause=0.001)
        assert len(received) == n
        assert was_reset
        assert received == data[:n]
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            sending.result()
        assert link.wire.bytes[way] == n
        client, server = link.another()
        with client, server:
            for source, sink in ((client, server), (server, client)):
                source.sendall(data[: n % 1_000_000 + 10])
                assert read(sink, n % 1_000_000 + 10) == data[: n % 1_000_000 + 10]


def test_a_cut_after_n_bytes_counts_from_the_call_on_a_connection_that_is_open() -> None:
    """What has passed before the call does not count, the other way never counts, a later call replaces the first."""
    with linked() as link:
        link.server.sendall(b"x" * 100)
        read(link.client, 100)
        link.wire.cut_after(5)
        link.wire.cut_after(20)
        link.client.sendall(b"y" * 50)
        read(link.server, 50)
        link.server.sendall(b"abcde")
        assert read(link.client, 5) == b"abcde"
        link.server.sendall(b"x" * 30)
        assert read_to_the_end(link.client) == (b"x" * 15, True)
        assert link.wire.bytes == {"up": 50, "down": 120}


def test_the_bytes_of_all_connections_count_and_all_are_cut() -> None:
    """A cut after n bytes is a cut of the wire: whoever passes the n-th byte, every connection is reset, once."""
    with linked() as link:
        client, server = link.another()
        with client, server:
            link.wire.cut_after(10, "up")
            link.client.sendall(b"x" * 4)
            read(link.server, 4)
            client.sendall(b"x" * 11)
            assert read_to_the_end(server) == (b"x" * 6, True)
            for sock in (client, link.client, link.server):
                assert read_to_the_end(sock) == (b"", True)
        client, server = link.another()
        with client, server:
            client.sendall(b"y" * 100)
            assert read(server, 100) == b"y" * 100


# --- black holes ---


@pytest.mark.parametrize("ways", [("up",), ("down",), ("up", "down"), ()])
def test_a_black_hole_holds_everything_back_until_it_is_healed(ways: tuple[Way, ...]) -> None:
    """What is sent into a black hole arrives after `heal()`, once and in order; the other way is not touched."""
    holes: tuple[Way, ...] = ways or ("up", "down")
    with linked(delay=0.01) as link:
        link.wire.blackhole(*ways)
        for way in ("up", "down"):
            sender, receiver = link.towards(way)
            sender.sendall(b"1")
            if way in holes:
                assert silent(receiver)
                until(partial(holds, link.wire, way, ["DATA"]))  # or both could be read at once
                sender.sendall(b"2")
                sender.shutdown(socket.SHUT_WR)
            else:
                assert read(receiver, 1) == b"1"
        for way in holes:
            until(partial(holds, link.wire, way, ["DATA", "DATA", "FIN"]))
        start = time.perf_counter()
        link.wire.heal()
        for way in holes:
            _, receiver = link.towards(way)
            assert read(receiver, 1) == b"1"
            assert time.perf_counter() - start >= 0.01
            assert read_to_the_end(receiver) == (b"2", False)
            assert link.wire.bytes[way] == 2


def holds(wire: Wire, way: Way, kinds: list[str]) -> bool:
    return kinds == [kind for end in wire._ends() if end.way == way for _, kind, _ in end.flight]


def test_healing_does_not_hold_up_what_was_never_late() -> None:
    """Data that comes due only after the heal keeps its time, and without a black hole `heal()` changes nothing."""
    with linked(delay=3) as link:
        start = time.perf_counter()
        link.client.sendall(b"x")
        until(lambda: held(link.wire, "up") == 1)
        ((due, _, _),) = next(iter(link.wire._ends())).flight
        link.wire.heal()
        link.wire.blackhole()
        link.wire.heal()
        (flight,) = next(iter(link.wire._ends())).flight
        assert flight == (due, "DATA", b"x")
        read(link.server, 1)
        assert time.perf_counter() - start >= 3


def test_a_reset_is_lost_in_a_black_hole_too() -> None:
    """A side whose reset falls into a black hole is not missed by the other until the heal: a half-open connection."""
    with linked() as link:
        link.wire.blackhole("up")
        reset(link.client)
        assert silent(link.server)
        link.wire.heal()
        assert read_to_the_end(link.server) == (b"", True)
        until(lambda: link.connection.closed)


# --- backpressure ---


@BOTH
def test_a_stalled_sender_waits_and_loses_nothing(way: Way) -> None:
    """While a way is stalled nothing passes and the sender is stopped by backpressure; `resume()` delivers all."""
    with linked() as link:
        sender, receiver = link.towards(way)
        link.wire.stall(way)
        sent = send_until_it_blocks(sender, 64_000_000)
        assert 0 < sent < 32_000_000
        assert link.wire.bytes[way] <= 256 * 1024  # one read may have begun before
        receiver.sendall(b"the other way works")
        assert read(sender, 19) == b"the other way works"
        with ThreadPoolExecutor(1) as pool:
            reading = pool.submit(read_to_the_end, receiver)
            link.wire.resume(way)
            sender.shutdown(socket.SHUT_WR)
            data, was_reset = reading.result()
        assert (len(data), was_reset) == (sent, False)


@BOTH
def test_a_slow_receiver_slows_the_sender_and_not_the_memory_of_the_wire(way: Way) -> None:
    """With a receiver that does not read, at most a window and one read are in flight, and the sender has to wait."""
    with linked() as link:
        sender, receiver = link.towards(way)
        sent = send_until_it_blocks(sender, 64_000_000)
        assert sent < 32_000_000
        assert held(link.wire, way) <= WINDOW + 256 * 1024
        assert len(read(receiver, sent)) == sent


@BOTH
def test_a_black_hole_stops_the_sender_after_a_window(way: Way) -> None:
    """A black hole swallows a window and what the kernel holds, not more, and gives it all back."""
    with linked() as link:
        sender, receiver = link.towards(way)
        link.wire.blackhole(way)
        sent = send_until_it_blocks(sender, 64_000_000)
        assert WINDOW < sent < 32_000_000
        assert held(link.wire, way) <= WINDOW + 256 * 1024
        link.wire.heal()
        assert len(read(receiver, sent)) == sent


def test_a_new_connection_is_stalled_and_black_holed_like_the_others() -> None:
    """What holds for a way holds for connections that are opened later."""
    with linked() as link:
        link.wire.stall("up")
        link.wire.blackhole("down")
        client, server = link.another()
        with client, server:
            client.sendall(b"a")
            server.sendall(b"b")
            assert silent(server)
            assert silent(client)
            until(lambda: held(link.wire, "down") == 1)
            assert held(link.wire, "up") == 0
            link.wire.resume()
            link.wire.heal()
            assert read(server, 1) == b"a"
            assert read(client, 1) == b"b"


def test_a_reset_behind_a_stall_is_found_by_the_next_thing_that_passes() -> None:
    """A server that has reset while nobody read from it is noticed when the client's FIN reaches it."""
    with linked() as link:
        link.wire.stall("down")
        reset(link.server)
        link.client.shutdown(socket.SHUT_WR)
        assert read_to_the_end(link.client) == (b"", True)
        until(lambda: link.connection.closed)


# --- the end ---


def test_stop_is_quick_with_a_hundred_connections_and_leaves_nothing() -> None:
    """After `stop()` both ends of every connection are closed, no thread or file descriptor of the wire is left."""
    with listening() as listener, ExitStack() as stack:
        threads, files = threading.active_count(), descriptors()
        wire = Wire(f"http://localhost:{listener.getsockname()[1]}", delay=60)
        pairs = []
        for _ in range(100):
            client = stack.enter_context(dial(wire))
            server = stack.enter_context(answer(listener))
            client.sendall(b"in flight")
            pairs.append((client, server))
        assert descriptors() > files + 400
        start = time.perf_counter()
        wire.stop()
        assert time.perf_counter() - start < 5  # of a minute and more
        assert descriptors() == files + 200
        assert threading.active_count() == threads
        for client, server in pairs:
            assert read_to_the_end(client)[0] == read_to_the_end(server)[0] == b""
        assert all(c.closed for c in wire.connections)
        wire.stop()


@contextmanager
def connecting() -> Iterator[tuple[Wire, socket.socket, Callable[[], socket.socket]]]:
    """A wire whose target does not answer yet, its client, and what makes the target answer: its queue is full."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        listener.settimeout(LIMIT)
        with socket.create_connection(listener.getsockname()), Wire(at(listener)) as wire, dial(wire) as client:
            client.sendall(b"x")
            until(lambda: held(wire, "up") == 1 and wire._connecting)

            def answered() -> socket.socket:
                answer(listener).close()
                return answer(listener)  # Linux tries again after a second

            yield wire, client, answered


def test_a_connection_that_the_target_has_not_answered_waits_for_it() -> None:
    """What the client sends before the target answers reaches it then."""
    with connecting() as (wire, _, answered), answered() as server:
        assert read(server, 1) == b"x"
        assert wire.bytes == {"up": 1, "down": 0}


def test_a_cut_reaches_a_connection_that_the_target_has_not_answered() -> None:
    """The client is reset at once, the target when it answers; nothing of what the client has sent gets there."""
    with connecting() as (wire, client, answered):
        wire.cut()
        assert read_to_the_end(client) == (b"", True)
        with answered() as server:
            assert read_to_the_end(server) == (b"", True)
        assert wire.bytes == {"up": 0, "down": 0}


def test_stop_does_not_wait_for_a_target_that_does_not_answer() -> None:
    """A wire that is still connecting stops as quickly as any other."""
    with connecting() as (wire, client, _):
        start = time.perf_counter()
        wire.stop()
        assert time.perf_counter() - start < 5  # of a minute and more
        assert read_to_the_end(client)[0] == b""


def test_a_stopped_wire_says_so() -> None:
    """Every method but `stop()` raises on a stopped wire; the counts stay."""
    with linked() as link:
        link.client.sendall(b"x")
        read(link.server, 1)
    link.wire.stop()
    wire = link.wire
    acts: list[Callable[[], None]] = [wire.cut, wire.blackhole, wire.heal, wire.stall, wire.resume]
    acts.append(partial(wire.cut_after, 1))
    for act in acts:
        with pytest.raises(RuntimeError, match=r"^the wire is stopped$"):
            act()
    assert link.wire.bytes == {"up": 1, "down": 0}


def test_wires_come_and_go_without_a_trace_whatever_state_they_are_in() -> None:
    """Stalled, black-holed, half closed, still connecting, from several threads at once: nothing is left behind."""
    threads, files = threading.active_count(), descriptors()
    for _ in range(5):
        with linked(delay=0.05, jitter=0.05, rate=1e6) as link, ThreadPoolExecutor(8) as pool, ExitStack() as stack:
            link.client.sendall(bytes(100_000))
            link.server.shutdown(socket.SHUT_WR)
            link.wire.blackhole("up")
            link.wire.stall("down")
            dialling = [pool.submit(dial, link.wire) for _ in range(30)]
            stops = [pool.submit(link.wire.stop) for _ in range(4)]
            for stop in stops:
                stop.result()
            for attempt in dialling:
                if not attempt.exception():  # the port may have been closed before
                    stack.enter_context(attempt.result())
    gc.collect()  # a socket that nobody closed warns here, and a warning is an error
    assert threading.active_count() == threads
    assert descriptors() == files


def test_the_methods_can_be_called_from_any_thread_at_once() -> None:
    """Eight threads that break and mend the wire together leave it usable."""

    def break_and_mend(number: int) -> None:
        for _ in range(50):
            link.wire.blackhole("up" if number % 2 else "down")
            link.wire.stall()
            link.wire.resume()
            link.wire.heal()

    with linked() as link:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(break_and_mend, range(8)))
        link.wire.heal()
        round_trip(link)


# --- real servers, real clients ---


def application() -> FastAPI:
    app = FastAPI()

    @app.get("/hello")
    async def hello() -> dict[str, str]:
        return {"hello": "world"}

    @app.get("/stream")
    async def stream() -> StreamingResponse:
        async def numbers() -> AsyncIterator[str]:
            for number in range(1000):
                yield f"data: {number}\n\n"

        return StreamingResponse(numbers(), media_type="text/event-stream")

    @app.websocket("/ws")
    async def echo(sock: WebSocket) -> None:
        await sock.accept()
        async for text in sock.iter_text():
            await sock.send_text(text)

    return app


def test_http_and_websockets_pass_between_real_clients_and_a_real_server() -> None:
    """uvicorn, httpx and websockets work through a wire, each answer one round trip late; a cut reaches the client."""

    async def body() -> None:
        async with (
            asyncio.timeout(LIMIT),
            httpx.AsyncClient(base_url=wire.url, trust_env=False, verify=False) as client,
            connect(wire.url.replace("http", "ws") + "/ws", proxy=None) as sock,
        ):
            for _ in range(3):
                start = time.perf_counter()
                assert (await client.get("/hello")).json() == {"hello": "world"}
                assert time.perf_counter() - start >= 0.02
            assert (await client.get("/stream")).text == "".join(f"data: {n}\n\n" for n in range(1000))
            assert len(wire.connections) == 2  # the client keeps its connection, and so does the wire
            start = time.perf_counter()
            await sock.send("over and out")
            assert await sock.recv() == "over and out"
            assert time.perf_counter() - start >= 0.02
            wire.cut()
            with pytest.raises(ConnectionClosedError):
                await sock.recv()
            assert (await client.get("/hello")).json() == {"hello": "world"}
            assert len(wire.connections) == 3
            wire.cut_after(40)
            with pytest.raises(httpx.ReadError):
                await client.get("/hello")
            assert wire.connections[2].down > 40

    with serve(application()) as server, Wire(server.url, delay=0.01) as wire:
        asyncio.run(body())
