"""The fast path of both kinds of polling: an answer is made once, head and body, for everybody who asks the same.

    a head's bytes ─▶ Polls.take() ─▶ is it usual? ─▶ the answer of this second and cursor ─▶ reply()
                          └─ no: the application          └─ nothing later: HeldPolls keeps the connection
    feed ─▶ HeldPolls.run(), one task ─▶ the answer, made once ─▶ reply() to everybody who is held

What a request costs elsewhere is its parsing, routing and encoding, 50 to 300 µs; here it is a comparison and a write.
Usual is a GET of HTTP/1.1 that follows a cursor which can be followed, without a body, and with fields that have been
understood before. Everything else, all refusals among it, the application answers, and makes the answers kept here: a
client cannot tell which of the two it was. Who is held costs its connection and one entry in a heap, no task.
"""

import asyncio
import heapq
import math
import re
from collections.abc import Callable
from typing import NamedTuple

from fastapi import Response

from servers.fan_out import TURN, start
from servers.feed import BadCursor, Gap
from servers.on_uvicorn import HttpProtocol, whole
from servers.service import Service, gone

LINE = re.compile(
    rb"GET (/[a-z]+)\?after=([0-9a-z]{1,32}-(?:0|[1-9][0-9]{0,17}))(?:&wait=([0-9]{1,9}(?:\.[0-9]{1,9})?))? HTTP/1\.1"
)
NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, section 5.6.2
UNUSUAL = (b"content-length", b"transfer-encoding", b"expect", b"upgrade", b"http2-settings")
LARGEST_HEAD = 4096  # bytes
KEPT = 1000  # understood fields, and answers
LARGEST_KEPT = 16 * 1024  # bytes of an answer

CLOCK = 1e-6  # seconds that two readings of a loop's clock may differ, when a timer fires


class Fields(NamedTuple):
    """What matters of a request's fields."""

    keep_alive: bool
    if_none_match: tuple[str, ...]


class Answer(NamedTuple):
    """An answer, ready to be written, and what one counts."""

    data: bytes
    delivered: int
    resets: int


class Polls:
    """Answers at once. `make` is the application's own way from a position and the lines of If-None-Match."""

    def __init__(self, app: Service, make: Callable[[int, list[str]], Response]) -> None:
        self.feed, self.traffic, self.closing, self.path = app.feed, app.traffic, app.closing, app.path.encode()
        self.make = make
        self.fields: dict[bytes, Fields | None] = {}
        self.positions: dict[bytes, int] = {}
        self.answers: dict[tuple[int, Fields], Answer] = {}
        self.head, self.date = -1, list[tuple[bytes, bytes]]()  # of the log, and the fields, that both are for

    def take(self, connection: HttpProtocol, head: bytes) -> bool:
        """Answer, or hold, if that is a usual request."""
        line, _, lines = head.partition(b"\r\n")
        asked = LINE.fullmatch(line)
        if asked is None or asked[1] != self.path or len(head) > LARGEST_HEAD:
            return False
        fields = self.understood(lines)
        if fields is None or self.feed.away:
            return False
        try:
            position = self.position(asked[2])
        except (BadCursor, Gap):
            return False
        self.traffic.requests += 1
        self.serve(connection, position, fields, asked[3])
        return True

    def serve(self, connection: HttpProtocol, position: int, fields: Fields, wait: bytes | None) -> None:
        """Do what was asked for."""
        self.reply(connection, position, fields)

    def release(self, connection: HttpProtocol) -> None:
        """Nobody is held."""

    def forget(self, connection: HttpProtocol) -> None:
        """Nobody is held."""

    def understood(self, lines: bytes) -> Fields | None:
        """The fields of a head, if they are usual; parsed once, however many clients send the same."""
        if lines not in self.fields:
            if len(self.fields) >= KEPT:
                self.fields.clear()
            self.fields[lines] = parse_fields(lines)
        return self.fields[lines]

    def position(self, cursor: bytes) -> int:
        """The position of a cursor, looked up once until the log moves. Raises BadCursor, Gap."""
        if self.head != self.feed.head:
            self.head = self.feed.head
            self.positions.clear()
            self.answers.clear()
        position = self.positions.get(cursor)
        if position is None:
            position = self.feed.position(cursor.decode())
            if len(self.positions) < KEPT:
                self.positions[cursor] = position
        return position

    def reply(self, connection: HttpProtocol, position: int, fields: Fields) -> None:
        """Count the answer for a position, and write it."""
        if self.closing.drained < math.inf:
            fields = fields._replace(keep_alive=False)  # the next request is another server's
        date = connection.server_state.default_headers  # uvicorn makes them anew each second
        if date is not self.date or self.head != self.feed.head:
            self.date, self.head = date, self.feed.head
            self.positions.clear()
            self.answers.clear()
        answer = self.answers.get((position, fields))
        if answer is None:
            answer = self.made(position, fields)
            if len(self.answers) < KEPT and len(answer.data) <= LARGEST_KEPT:
                self.answers[position, fields] = answer
        self.traffic.delivered += answer.delivered
        self.traffic.resets += answer.resets
        connection.reply(answer.data, keep_alive=fields.keep_alive)

    def made(self, position: int, fields: Fields) -> Answer:
        """The application's answer, as uvicorn would write it."""
        traffic = self.traffic
        delivered, resets = traffic.delivered, traffic.resets
        response = self.response(position, list(fields.if_none_match))
        data = whole(
            response.status_code,
            [*self.date, *response.raw_headers],
            bytes(response.body),
            keep_alive=fields.keep_alive,
        )
        answer = Answer(data, traffic.delivered - delivered, traffic.resets - resets)
        traffic.delivered, traffic.resets = delivered, resets  # counted each time that it is written
        return answer

    def response(self, position: int, if_none_match: list[str]) -> Response:
        """The application's answer; it may be that what was asked for, or waited for, is gone by now."""
        try:
            return self.make(position, if_none_match)
        except Gap as gap:
            return gone(gap, self.traffic)


class Hold(NamedTuple):
    """A held request; the last of it tells two of one connection apart."""

    position: int
    fields: Fields
    number: int


class HeldPolls(Polls):
    """Holds. `make` as in Polls, `drawn` how long a client is held that asks for so much (s), or else for `usual`."""

    def __init__(
        self, app: Service, make: Callable[[int], Response], drawn: Callable[[float], float], usual: float
    ) -> None:
        super().__init__(app, lambda position, _: make(position))
        self.drawn, self.usual = drawn, usual
        self.held: dict[HttpProtocol, Hold] = {}
        self.ends: list[tuple[float, int, HttpProtocol]] = []  # a heap; of some the hold is over already
        app.leases.respread = self.respread
        self.number = 0
        self.at = 0  # where run() has looked
        self.task: asyncio.Task[None] | None = None
        self.timer: asyncio.TimerHandle | None = None

    def serve(self, connection: HttpProtocol, position: int, fields: Fields, wait: bytes | None) -> None:
        """Answer, or hold until there is something later."""
        hold = self.drawn(self.usual if wait is None else float(wait))
        if position < self.head or not hold or self.closing.is_set():
            self.reply(connection, position, fields)
            return
        if self.task is None or self.task.done():
            self.at = position
            self.task = start(self.run(), self.break_off)
        self.number += 1
        self.held[connection] = Hold(position, fields, self.number)
        self.traffic.held += 1
        connection.held = True
        if len(self.ends) > 2 * len(self.held) + TURN:
            self.ends = [end for end in self.ends if self.holds(end)]
            heapq.heapify(self.ends)
        end = connection.loop.time() + hold
        heapq.heappush(self.ends, (end, self.number, connection))
        if self.timer is None or end < self.timer.when():
            self.set_timer(connection.loop)

    def respread(self, begin: float, end: float) -> None:
        """Let all who are held go between these moments of the loop, evenly: the server drains."""
        for place, (connection, hold) in enumerate(self.held.items()):
            moment = begin + (end - begin) * (place + 0.5) / len(self.held)
            heapq.heappush(self.ends, (moment, hold.number, connection))
        for connection in [*self.held][:1]:
            self.set_timer(connection.loop)

    def holds(self, end: tuple[float, int, HttpProtocol]) -> bool:
        """Whether that hold is not over yet."""
        _, number, connection = end
        hold = self.held.get(connection)
        return hold is not None and hold.number == number

    def set_timer(self, loop: asyncio.AbstractEventLoop) -> None:
        """One timer for all: it waits for the first end."""
        if self.timer:
            self.timer.cancel()
        self.timer = loop.call_at(self.ends[0][0], self.time_is_up, loop) if self.ends else None

    def time_is_up(self, loop: asyncio.AbstractEventLoop) -> None:
        """Answer those whose hold is over: nothing happened."""
        self.timer = None
        now = loop.time() + CLOCK
        for _ in range(TURN):  # then others get the loop
            if not self.ends or self.ends[0][0] > now:
                break
            end = heapq.heappop(self.ends)
            if self.holds(end):
                self.release(end[2])
        self.set_timer(loop)

    def release(self, connection: HttpProtocol) -> None:
        """Answer what is held, with whatever there is, and read on."""
        hold = self.let_go(connection)
        if hold is None or connection.transport.is_closing():
            return
        try:
            self.reply(connection, hold.position, hold.fields)
        except BaseException:
            connection.transport.abort()  # it is held no more, and must not wait for ever
            raise
        if connection.unread:
            connection.read_on()

    def forget(self, connection: HttpProtocol) -> None:
        """The client has left."""
        self.let_go(connection)

    def let_go(self, connection: HttpProtocol) -> Hold | None:
        hold = self.held.pop(connection, None)
        if hold is not None:
            self.traffic.held -= 1
            connection.held = False
        if not self.held:
            self.ends.clear()
        return hold

    async def run(self) -> None:
        """Answer those who are held when there is something for them; all of them, when the server closes."""
        while not self.closing.is_set():
            await self.feed.wait(self.at, self.closing)
            self.at = self.feed.head
            await self.round([each for each, hold in self.held.items() if hold.position < self.at])
        await self.round(list(self.held))
        if self.timer:
            self.timer.cancel()
            self.timer = None

    async def round(self, connections: list[HttpProtocol]) -> None:
        """Answer each of them."""
        for first in range(0, len(connections), TURN):
            if first:
                await asyncio.sleep(0)
            for connection in connections[first : first + TURN]:
                self.release(connection)

    def break_off(self) -> None:
        """It has failed: no client may be held for nothing."""
        for connection in tuple(self.held):
            connection.transport.abort()


def parse_fields(lines: bytes) -> Fields | None:
    """The fields of a head (RFC 9112, section 5), or None if there is anything unusual about them."""
    hosts, connection, tags = 0, list[bytes](), list[str]()
    for line in lines.removesuffix(b"\r\n\r\n").split(b"\r\n"):
        name, colon, value = line.partition(b":")
        name, value = name.lower(), value.strip(b" \t")
        if not (colon and NAME.fullmatch(name) and value.isascii() and value.decode().isprintable()):
            return None
        if name in UNUSUAL:
            return None
        if name == b"host":
            hosts += 1
        elif name == b"connection":
            connection.append(value.lower())
        elif name == b"if-none-match":
            tags.append(value.decode())
    if hosts != 1 or connection not in ([], [b"keep-alive"], [b"close"]):
        return None
    return Fields(connection != [b"close"], tuple(tags))
