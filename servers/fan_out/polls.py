"""The fast path of both kinds of polling: an answer is made once, head and body, for everybody who asks the same.

    a head's bytes ─▶ understood() ─▶ Polls.take() ─▶ the answer of this second and cursor ─▶ reply()
                          └─ unusual ──────┴─▶ the application  └─ nothing later: HeldPolls keeps the connection
    feed ─▶ HeldPolls.run(), one task ─▶ the answer, made once ─▶ reply() to everybody who is held

What a request costs elsewhere is its parsing, routing and encoding, 50 to 300 µs; here it is two look-ups and a write.
Usual is a GET of HTTP/1.1, or 1.0 as proxies ask, that follows a cursor which can be followed, without a body, and with
fields that have been understood before. Everything else, all refusals among it, the application answers, and makes the
answers kept here: a client cannot tell which of the two it was. Who is held costs its connection and a place in its
group, no task.
"""

import asyncio
import heapq
import itertools
import math
import re
from collections.abc import Callable
from typing import NamedTuple

from fastapi import Response

from servers.fan_out import TURN, start
from servers.feed import BadCursor, Gap
from servers.on_uvicorn import END, Fields, HttpProtocol, Wish, reply_all, whole
from servers.service import HELD, REQUESTS, Service, gone

LINE = re.compile(
    rb"GET (/[a-z]+)\?after=([0-9a-z]{1,32}-(?:0|[1-9][0-9]{0,17}))(?:&wait=([0-9]{1,9}(?:\.[0-9]{1,9})?))?"
    rb" HTTP/1\.[01]"
)
NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, section 5.6.2
UNUSUAL = (b"content-length", b"transfer-encoding", b"expect", b"upgrade", b"http2-settings", b"proxy-connection")
LARGEST_HEAD = 4096  # bytes
KEPT = 1000  # understood lines, fields, and answers
LARGEST_KEPT = 16 * 1024  # bytes of an answer

CLOCK = 1e-6  # seconds that two readings of a loop's clock may differ, when a timer fires


class Answer(NamedTuple):
    """An answer, ready to be written, and what one counts."""

    data: bytes
    delivered: int
    resets: int


Asked = tuple[int, float | None]  # a position, and how long to wait for what is later (s), if that is said
Ask = tuple[int, Wish]  # a position, and what of the fields makes another answer


class Polls:
    """Answers at once. `make` is the application's own way from a position and the lines of If-None-Match."""

    def __init__(self, app: Service, make: Callable[[int, list[str]], Response]) -> None:
        self.feed, self.traffic, self.closing, self.path = app.feed, app.traffic, app.closing, app.path.encode()
        self.make = make
        self.fields: dict[bytes, Fields] = {}
        self.lines: dict[bytes, Asked] = {}
        self.answers: dict[Ask, Answer] = {}
        self.head, self.epoch = -1, ""  # of the log, that lines and answers are for
        self.date = list[tuple[bytes, bytes]]()  # the fields of this second

    def understood(self, lines: bytes) -> Fields | None:
        """The fields of a head, if they are whole and usual; parsed once, however many clients send the same."""
        fields = self.fields.get(lines)
        if fields is None and len(lines) <= LARGEST_HEAD and (fields := parse_fields(lines)):
            if len(self.fields) >= KEPT:
                self.fields.clear()
            self.fields[lines] = fields
        return fields

    def take(self, connection: HttpProtocol, line: bytes, fields: Fields) -> bool:
        """Answer, or hold, if that is a usual request."""
        feed = self.feed
        if feed.away:
            return False
        if feed.head != self.head or feed.epoch != self.epoch:
            self.renew()
        asked = self.lines.get(line) or self.read(line)
        if asked is None:
            return False
        self.traffic.cells[REQUESTS] += 1
        wish = fields.wish if line.endswith(b"1") else fields.wish._replace(keep_alive=False)  # HTTP/1.0 keeps none
        self.serve(connection, asked, wish)
        return True

    def renew(self) -> None:
        """Forget what held for another log, or another second."""
        self.head, self.epoch = self.feed.head, self.feed.epoch
        self.lines.clear()
        self.answers.clear()

    def read(self, line: bytes) -> Asked | None:
        """What a request's line asks for, if it is usual; looked up once until the log moves."""
        found = LINE.fullmatch(line) if len(line) <= LARGEST_HEAD else None
        if found is None or found[1] != self.path:
            return None
        try:
            asked = self.feed.position(found[2].decode()), None if found[3] is None else float(found[3])
        except (BadCursor, Gap):
            return None
        if len(self.lines) < KEPT:
            self.lines[line] = asked
        return asked

    def serve(self, connection: HttpProtocol, asked: Asked, wish: Wish) -> None:
        """Do what was asked for."""
        self.reply([connection], (asked[0], wish))

    def release(self, connection: HttpProtocol) -> None:
        """Nobody is held."""

    def forget(self, connection: HttpProtocol) -> None:
        """Nobody is held."""

    def reply(self, connections: list[HttpProtocol], ask: Ask) -> None:
        """Count the answer to what these have asked, and write it."""
        position, wish = ask
        if self.closing.drained < math.inf:
            ask = position, wish = position, wish._replace(keep_alive=False)  # the next request is another server's
        date = connections[0].server_state.default_headers  # uvicorn makes them anew each second
        if date is not self.date or self.feed.head != self.head or self.feed.epoch != self.epoch:
            self.date = date
            self.renew()
        answer = self.answers.get(ask)
        if answer is None:
            answer = self.made(position, wish)
            if len(self.answers) < KEPT and len(answer.data) <= LARGEST_KEPT:
                self.answers[ask] = answer
        if answer.delivered:
            self.traffic.delivered += answer.delivered * len(connections)
        if answer.resets:
            self.traffic.resets += answer.resets * len(connections)
        reply_all(connections, answer.data, keep_alive=wish.keep_alive)

    def made(self, position: int, wish: Wish) -> Answer:
        """The application's answer, as uvicorn would write it."""
        traffic = self.traffic
        delivered, resets = traffic.delivered, traffic.resets
        response = self.response(position, list(wish.if_none_match))
        data = whole(
            response.status_code,
            [*self.date, *response.raw_headers],
            bytes(response.body),
            keep_alive=wish.keep_alive,
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


class HeldPolls(Polls):
    """Holds. `make` as in Polls, `drawn` how long a client is held that asks for so much (s), or else for `usual`.

    Nearly every hold is over long before its end. So a connection has one entry in the heap of ends, not one for each
    hold: when it is due, and the hold that is there now ends later, it is entered for that.
    """

    def __init__(
        self, app: Service, make: Callable[[int], Response], drawn: Callable[[float], float], usual: float
    ) -> None:
        super().__init__(app, lambda position, _: make(position))
        self.drawn, self.usual = drawn, usual
        self.held: dict[Ask, dict[HttpProtocol, None]] = {}
        self.ends: list[tuple[float, int, HttpProtocol]] = []  # a heap; void is an entry whose time is not its `due`
        self.entered = self.void = 0
        app.leases.respread = self.respread
        self.at = 0  # where run() has looked
        self.loop: asyncio.AbstractEventLoop  # the server's
        self.task: asyncio.Task[None] | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.rings = math.inf  # when the timer does, if there is one (loop time, s); uvloop's cannot always tell

    def serve(self, connection: HttpProtocol, asked: Asked, wish: Wish) -> None:
        """Answer, or hold until there is something later."""
        position, wait = asked
        hold = self.drawn(self.usual if wait is None else wait)
        ask = position, wish
        if position < self.head or not hold or self.closing.is_set():
            self.reply([connection], ask)
            return
        if self.task is None or self.task.done():
            self.at, self.loop = position, connection.loop
            self.task = start(self.run(), self.break_off)
        group = self.held.get(ask)
        if group is None:
            group = self.held[ask] = {}
        group[connection] = None
        self.traffic.cells[HELD] += 1
        connection.held = ask
        connection.until = until = self.loop.time() + hold
        if until < connection.due:
            self.enter(connection, until)

    def enter(self, connection: HttpProtocol, moment: float) -> None:
        """Have that connection's hold looked at then."""
        self.leave(connection)
        connection.due = moment
        self.entered += 1
        heapq.heappush(self.ends, (moment, self.entered, connection))
        if self.timer is None or moment < self.rings:
            self.set_timer()

    def leave(self, connection: HttpProtocol) -> None:
        """Its entry is void, if it has one."""
        if connection.due == math.inf:
            return
        connection.due = math.inf
        self.void += 1
        if 2 * self.void > len(self.ends) + TURN:
            self.ends = [end for end in self.ends if end[0] == end[2].due]
            heapq.heapify(self.ends)
            self.void = 0

    def respread(self, begin: float, end: float) -> None:
        """Let all who are held go between these moments of the loop, evenly: the server drains."""
        connections = [connection for group in self.held.values() for connection in group]
        for place, connection in enumerate(connections):
            moment = begin + (end - begin) * (place + 0.5) / len(connections)
            connection.until = min(connection.until, moment)
            if connection.until < connection.due:
                self.enter(connection, connection.until)

    def set_timer(self) -> None:
        """One timer for all: it waits for the first end."""
        if self.timer:
            self.timer.cancel()
        self.rings = self.ends[0][0] if self.ends else math.inf
        self.timer = self.loop.call_at(self.rings, self.time_is_up) if self.ends else None

    def time_is_up(self) -> None:
        """Answer those whose hold is over: nothing happened."""
        self.timer = None
        now = self.loop.time() + CLOCK
        for _ in range(TURN):  # then others get the loop
            if not self.ends or self.ends[0][0] > now:
                break
            moment, _, connection = heapq.heappop(self.ends)
            if moment != connection.due:
                self.void -= 1
                continue
            connection.due = math.inf
            if connection.held and connection.until > now:
                self.enter(connection, connection.until)
            else:
                self.release(connection)
        self.set_timer()

    def release(self, connection: HttpProtocol) -> None:
        """Answer what is held, with whatever there is, and read on."""
        if connection.held:
            self.let_go(connection.held, [connection])

    def forget(self, connection: HttpProtocol) -> None:
        """The client has left."""
        self.leave(connection)
        if connection.held:
            self.take_out(connection.held, [connection])

    def take_out(self, ask: Ask, connections: list[HttpProtocol]) -> None:
        """Hold these no more, who have asked that."""
        group = self.held[ask]
        for connection in connections:
            del group[connection]
            connection.held = None
        if not group:
            del self.held[ask]
        self.traffic.cells[HELD] -= len(connections)

    def let_go(self, ask: Ask, connections: list[HttpProtocol]) -> None:
        """Answer these, who have asked that, with whatever there is, and read on."""
        self.take_out(ask, connections)
        try:
            self.reply(connections, ask)
        except BaseException:
            for connection in connections:
                connection.transport.abort()  # it is held no more, and must not wait for ever
            raise
        for connection in connections:
            if connection.unread:
                connection.read_on()

    async def run(self) -> None:
        """Answer those who are held when there is something for them; all of them, when the server closes."""
        while not self.closing.is_set():
            await self.feed.wait(self.at, self.closing)
            self.at = self.feed.head
            await self.round(self.at)
        await self.round(math.inf)
        if self.timer:
            self.timer.cancel()
            self.timer = None

    async def round(self, before: float) -> None:
        """Answer all whose position is before that."""
        for ask in [ask for ask in self.held if ask[0] < before]:
            while group := self.held.get(ask):
                self.let_go(ask, list(itertools.islice(group, TURN)))
                await asyncio.sleep(0)

    def break_off(self) -> None:
        """It has failed: no client may be held for nothing."""
        for group in [*self.held.values()]:
            for connection in tuple(group):
                connection.transport.abort()


def parse_fields(lines: bytes) -> Fields | None:
    """The fields of a head (RFC 9112, section 5), or None if there is anything unusual about them."""
    hosts, connection, tags = list[bytes](), list[bytes](), list[str]()
    if not lines.endswith(END):
        return None
    for line in lines.removesuffix(END).split(b"\r\n"):
        name, colon, value = line.partition(b":")
        name, value = name.lower(), value.strip(b" \t")
        if not (colon and NAME.fullmatch(name) and value.isascii() and value.decode().isprintable()):
            return None
        if name in UNUSUAL:
            return None
        if name == b"host":
            hosts.append(value)
        elif name == b"connection":
            connection.append(value.lower())
        elif name == b"if-none-match":
            tags.append(value.decode())
    if len(hosts) != 1 or connection not in ([], [b"keep-alive"], [b"close"]):
        return None
    return Fields(lines, hosts[0], Wish(connection != [b"close"], tuple(tags)))
