"""What is put to the test: the server of each model with its robust client, and the file service with its mirror.

subject.make(feed, pace, tree) ─▶ the real server        subject.news(url, cursor, place) ─▶ paths, as they arrive
"""

import contextlib
import random
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from pathlib import Path

from lab import clients
from lab.bench.experiment import ClientLog, Span
from lab.clients import News, Reset, Retry
from lab.mirror import Mirror
from servers import file_updates, long_polling, short_polling, sse, websocket
from servers.feed import HEARTBEAT, Feed
from servers.service import Service
from servers.tree import Tree


@dataclass(frozen=True)
class Pace:
    """Every time limit of a world, in seconds; the defaults are the course's own."""

    heartbeat: float = HEARTBEAT
    interval: float = 5.0  # of short polling
    wait: float = 30.0  # of long polling
    timeout: float = 10.0  # of a poll
    retry: float = 2.0  # the pause that a stream asks for
    base: float = 1.0  # of the back-off
    cap: float = 30.0  # of the back-off
    every: float = 2.0  # from update to update
    start: float = 41.5  # when the fault begins
    after: float = 20.0  # that a world goes on once the fault is over

    def back_off(self, number: int) -> Retry:
        """The seeded back-off of a client."""
        return Retry(self.base, self.cap, rng=random.Random(number))


COURSE = Pace()
QUICK = Pace(0.5, 0.25, 1.0, 0.6, 0.1, 0.1, 0.4, 0.2, 0.7, 0.7)  # LIVE, where a second is a second


class Forgot(Exception):
    """A client that does not remember where it stood asks again after a failure: it starts anew."""


class Memory(ClientLog):
    """A client's log, of one that keeps its cursor, or (`keeps` False) of one that forgets it at every failure."""

    def __init__(self, number: int, cursor: str, *, keeps: bool) -> None:
        super().__init__(number, cursor)
        self.keeps = keeps
        self.resets: list[float] = []  # moments at which it was told that something is gone
        self.fresh = True

    def request(self) -> Span:
        """The context of one request; raises Forgot for the first one after a failure."""
        if not self.keeps and not self.fresh and self.requests and self.requests[-1].failed:
            self.fresh = True
            raise Forgot
        self.fresh = False
        return super().request()


Paths = AsyncGenerator[str | Reset, None]
Follow = Callable[[str, str | None, Pace, Memory, Path], Paths]


@dataclass(frozen=True)
class Subject:
    """A column of the matrix: `make` gives the server, `keeping` its robust client, `forgetting` one without memory."""

    name: str
    path: str  # where its clients ask
    held: bool  # whether a request is held open
    make: Callable[[Feed, Pace, Tree], Service]
    keeping: Follow
    forgetting: Follow


def _follow(model: Callable[[str, str | None, Pace, Memory], AsyncGenerator[News, None]]) -> Follow:
    async def paths(url: str, cursor: str | None, pace: Pace, log: Memory, place: Path) -> Paths:
        async with contextlib.aclosing(model(url, cursor, pace, log)) as stream:
            async for news in stream:
                yield news if isinstance(news, Reset) else news.path

    return paths


async def _mirrored(url: str, cursor: str | None, pace: Pace, log: Memory, place: Path) -> Paths:
    retry, jitter = pace.back_off(log.number), pace.base / 20
    mirror = Mirror(url, place, retry=retry, log=log, heartbeat=pace.heartbeat, timeout=pace.timeout, jitter=jitter)
    relisted = 0
    async with contextlib.aclosing(mirror.follow()) as changes:
        async for change in changes:
            if mirror.counters.relisted > relisted:
                relisted = mirror.counters.relisted
                yield Reset("expired", "", "")
            yield change.path


_sse = _follow(
    lambda url, cursor, pace, log: clients.sse(
        url, cursor, heartbeat=pace.heartbeat, retry=pace.back_off(log.number), log=log
    )
)
_websocket = _follow(
    lambda url, cursor, pace, log: clients.websocket(
        url, cursor, heartbeat=pace.heartbeat, retry=pace.back_off(log.number), log=log
    )
)
_long = _follow(
    lambda url, cursor, pace, log: clients.long_polling(
        url, cursor, wait=pace.wait, timeout=pace.timeout, retry=pace.back_off(log.number), log=log
    )
)
_short = _follow(
    lambda url, cursor, pace, log: clients.short_polling(
        url, cursor, interval=pace.interval, timeout=pace.timeout, retry=pace.back_off(log.number), log=log
    )
)

SUBJECTS = {
    subject.name: subject
    for subject in (
        Subject(
            "short polling",
            "/updates",
            False,
            lambda feed, pace, tree: short_polling.create_app(feed, poll_interval=pace.interval),
            _short,
            _short,
        ),
        Subject(
            "long polling",
            "/updates",
            True,
            lambda feed, pace, tree: long_polling.create_app(feed, seed=1),
            _long,
            _long,
        ),
        Subject(
            "WebSocket",
            "/ws",
            True,
            lambda feed, pace, tree: websocket.create_app(feed, heartbeat=pace.heartbeat),
            _websocket,
            _websocket,
        ),
        Subject(
            "SSE",
            "/events",
            True,
            lambda feed, pace, tree: sse.create_app(feed, heartbeat=pace.heartbeat, retry=round(1000 * pace.retry)),
            _sse,
            _sse,
        ),
        Subject(
            "file updates",
            "/events",
            True,
            lambda feed, pace, tree: file_updates.create_app(
                feed, tree, heartbeat=pace.heartbeat, retry=round(1000 * pace.retry)
            ),
            _mirrored,
            _sse,
        ),
    )
}
"""The matrix's columns. "With a cursor" the last one is a mirror; without, a page that only listens to its events."""
