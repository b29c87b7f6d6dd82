"""Tests of lab.clients: each model's client against the real servers, and against servers that misbehave.

Most run in virtual time, where a dead link is noticed at an exact second and a pause has an exact length; those that
must show sockets, processes and signals run live.
"""

import asyncio
import contextlib
import email.utils
import gzip
import itertools
import json
import math
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from typing import Any

import httpx
import pytest
from websockets.asyncio.server import ServerConnection
from websockets.asyncio.server import serve as serve_websocket

from lab import clients
from lab.bench.experiment import ClientLog, experiment
from lab.bench.schedule import Schedule
from lab.clients import (
    BadAnswer,
    BadClose,
    BadCursor,
    BadStatus,
    ClientError,
    GaveUp,
    News,
    Reset,
    Retry,
    Unavailable,
    Update,
    connections,
    long_polling,
    models,
    short_polling,
    sse,
    websocket,
)
from lab.clients.__main__ import main
from lab.proxies.wire import Wire
from lab.virtual import Link, Net, run_virtual, serve
from servers import background
from servers import models as course
from servers.feed import BATCH, Feed
from servers.service import Service
from tests.support import until

MODELS = tuple(model.slug for model in course.MODELS)
PULLS = MODELS[:2]
STREAMS = MODELS[2:]
HTTP = ("short-polling", "long-polling", "sse")
AT_ONCE = Retry(base=0)  # no jitter: what pauses remain are those the server asks for
URL = "http://server"
D = 0.025  # seconds one way

every_model = pytest.mark.parametrize("model", MODELS)


def create(model: str, feed: Feed) -> Service:
    """The server of a model, fit for tests."""
    fit = {"short-polling": {"poll_interval": 1}, "long-polling": {"jitter": 0}, "sse": {"retry": 0}}
    return course.model(model).create_app(feed, **fit.get(model, {}))


def follow(model: str, url: str = URL, **options: Any) -> AsyncGenerator[News, None]:
    """The client of a model."""
    return clients.MODELS[model](url, **options)


class Count:
    """A log: when each request began and ended, and what broke it."""

    def __init__(self) -> None:
        self.begun: list[float] = []
        self.ended: list[float] = []
        self.errors: list[BaseException | None] = []

    @contextlib.contextmanager
    def request(self) -> Iterator[None]:
        self.begun.append(asyncio.get_running_loop().time())
        error: BaseException | None = None
        try:
            yield
        except BaseException as reason:
            error = reason
            raise
        finally:
            self.ended.append(asyncio.get_running_loop().time())
            self.errors.append(error)

    @property
    def pauses(self) -> list[float]:
        """From the end of each request to the beginning of the next."""
        return [begin - end for end, begin in zip(self.ended, self.begun[1:], strict=False)]


@contextlib.asynccontextmanager
async def following(stream: AsyncGenerator[News, None]) -> AsyncIterator[list[News]]:
    """What a client gets while the block runs; what ended it, if it ended, is raised at the end."""
    got: list[News] = []

    async def run() -> None:
        async with contextlib.aclosing(stream):
            async for news in stream:
                got.append(news)

    task = asyncio.create_task(run())
    try:
        yield got
    finally:
        task.cancel()
        await asyncio.wait({task})
    if not task.cancelled():
        task.result()


def seqs(got: Sequence[News]) -> list[int]:
    return [news.seq for news in got if isinstance(news, Update)]


def resets(got: Sequence[News]) -> list[Reset]:
    return [news for news in got if isinstance(news, Reset)]


def virtual(main: Callable[[Net], Coroutine[Any, Any, None]], link: Link | None = None) -> None:
    run_virtual(main, link=link or Link(delay=D), limit=100_000)


# Servers that misbehave

Handle = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def raw(handle: Handle, host: str = "server", port: int = 80) -> AsyncIterator[list[str]]:
    """A server that reads each request's head and then does as told; yields the heads."""
    heads: list[str] = []

    async def serve_one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            heads.append((await reader.readuntil(b"\r\n\r\n")).decode())
            await handle(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # a client may leave at any moment
        finally:
            writer.close()

    server = await asyncio.start_server(serve_one, host, port)
    try:
        yield heads
    finally:
        server.close()


def answering(*answers: bytes) -> contextlib.AbstractAsyncContextManager[list[str]]:
    """A server that gives its n-th request the n-th answer, the last one ever after, and closes the connection."""
    script = itertools.chain(answers, itertools.repeat(answers[-1]))

    async def handle(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(next(script))

    return raw(handle)


async def be_silent(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
    """Accept, and never answer."""
    await reader.read()


def http(status: int, body: bytes = b"", kind: str = "application/json", **headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} X", f"Content-Type: {kind}", f"Content-Length: {len(body)}", "Connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def stream(*blocks: str, kind: str = "text/event-stream") -> bytes:
    """An event stream of these blocks, which then ends."""
    return f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nConnection: close\r\n\r\n{''.join(blocks)}".encode()


def update(seq: int, **other: object) -> dict[str, object]:
    known = {"seq": seq, "path": "a", "change": "added", "size": 1, "sha256": "0", "published": 1.5}
    return known | other


def updates(cursor: str, *found: int) -> bytes:
    """A pull's answer."""
    return http(200, json.dumps({"updates": [update(seq) for seq in found], "cursor": cursor}).encode())


def event(seq: int, epoch: str = "e") -> str:
    return f"event: update\nid: {epoch}-{seq}\ndata: {json.dumps(update(seq))}\n\n"


UNAVAILABLE = http(503)


# What arrives


@every_model
def test_gives_every_update_once_in_order(model: str) -> None:
    """A client gives each update of its log once, in order, with the cursor after it."""

    async def main(net: Net) -> None:
        feed = Feed(epoch="e")
        async with serve(create(model, feed)), following(follow(model, cursor=feed.cursor)) as got:
            for number in range(1200):  # more than two batches
                feed.publish(f"file {number}", "added", size=number, sha256="ab", content=b"\x00content")
                if number % 100 == 0:
                    await asyncio.sleep(1.5)
            await asyncio.sleep(5)
        first = got[0]
        assert first == Update(1, "file 0", "added", 0, "ab", round(first.published, 6), b"\x00content", "e-1")  # type: ignore[union-attr]  # the comparison fails for a Reset
        assert [news.cursor for news in got] == [f"e-{seq}" for seq in range(1, 1201)]
        assert seqs(got) == list(range(1, 1201))

    virtual(main)


@every_model
def test_starts_where_it_is_told(model: str) -> None:
    """Without a cursor a client begins now; with "0" or "" at the oldest; with an update's cursor right after it."""

    async def main(net: Net) -> None:
        feed = Feed(epoch="e")
        for _ in range(3):
            feed.publish("old")
        async with (
            serve(create(model, feed)),
            following(follow(model)) as now,
            following(follow(model, cursor="0")) as oldest,
            following(follow(model, cursor="")) as empty,
            following(follow(model, cursor="e-2")) as after,
        ):
            await asyncio.sleep(1)
            feed.publish("new")
            await asyncio.sleep(2)
        assert [seqs(got) for got in (now, oldest, empty, after)] == [[4], [1, 2, 3, 4], [1, 2, 3, 4], [3, 4]]

    virtual(main)


@every_model
def test_first_update_is_not_lost_when_the_first_connection_breaks(model: str) -> None:
    """A client that began "now" and was cut before its first update still gets that update."""

    async def main(net: Net) -> None:
        feed = Feed(epoch="e")
        async with serve(create(model, feed)), following(follow(model, retry=AT_ONCE)) as got:
            await asyncio.sleep(0.5)
            net.link.cut()
            feed.publish("while it is away")
            await asyncio.sleep(3)
        assert seqs(got) == [1]

    virtual(main)


@every_model
@pytest.mark.parametrize("seed", range(3))
def test_survives_cuts_at_random_moments(model: str, seed: int) -> None:
    """Through cuts at random moments, also in the middle of answers, nothing is lost, repeated or out of order."""

    async def main(net: Net) -> None:
        rng = random.Random(seed)
        feed = Feed(epoch="e")
        server = serve(create(model, feed))
        async with server, following(follow(model, cursor="e-0", retry=Retry(0.2, 0.2, rng=rng))) as got:
            for _ in range(100):
                feed.publish("x" * rng.randrange(1, 200))
                await asyncio.sleep(rng.expovariate(5))
                if rng.random() < 0.3:
                    net.link.cut()
                elif rng.random() < 0.3:
                    net.link.cut_after(rng.randrange(2000))
            await asyncio.sleep(20)
        assert seqs(got) == list(range(1, 101))
        assert len(net.connections) > 20

    virtual(main)


@every_model
def test_counts_what_the_server_counts(model: str) -> None:
    """The client's log counts as many requests as the server, if none was cut on its way there."""

    async def main(net: Net) -> None:
        feed, log = Feed(epoch="e"), Count()
        async with serve(create(model, feed)) as server:
            async with following(follow(model, retry=Retry(rng=random.Random(1)), log=log)):
                for _ in range(10):
                    await asyncio.sleep(2)
                    feed.publish("a")
                    await asyncio.sleep(1)
                    while net.loop.time() < log.begun[-1] + 4 * D:  # noqa: ASYNC110  # virtual time
                        await asyncio.sleep(D)
                    net.link.cut()
                    await asyncio.sleep(4)
            assert len(log.begun) == len(log.ended) == server.app.traffic.requests
        assert len(log.begun) >= 10

    virtual(main)


@every_model
def test_resumes_after_a_restart_with_the_same_log(model: str) -> None:
    """A server that stops and comes back with its log is taken up again from the cursor, without a reset."""

    async def main(net: Net) -> None:
        feed = Feed(epoch="e")
        async with following(follow(model, cursor="e-0", retry=Retry(rng=random.Random(1)))) as got:
            for _ in range(3):
                feed.publish("while it is down")
                await asyncio.sleep(4)
                async with serve(create(model, feed)):
                    await asyncio.sleep(20)
                    feed.publish("while it is up")
                    await asyncio.sleep(3)
        assert seqs(got) == [1, 2, 3, 4, 5, 6]
        assert not resets(got)

    virtual(main)


@every_model
def test_signals_a_new_log(model: str) -> None:
    """A server that comes back with another log is noticed: one reset, then everything published after it."""

    async def main(net: Net) -> None:
        old, new = Feed(epoch="old"), Feed(epoch="new")
        for _ in range(5):
            new.publish("before")
        async with following(follow(model, retry=AT_ONCE)) as got:
            async with serve(create(model, old)):
                await asyncio.sleep(1)
                old.publish("a")
                await asyncio.sleep(2)
            async with serve(create(model, new)):
                await asyncio.sleep(3)
                new.publish("b")
                await asyncio.sleep(3)
        assert [news.cursor for news in got] == ["old-1", "new-5", "new-6"]
        assert resets(got) == [Reset("epoch", "new-5", "new-0")]

    virtual(main)


@every_model
def test_signals_a_history_that_has_moved_on(model: str) -> None:
    """A client that was away for longer than the history lasts is told so once, and goes on from the head."""

    async def main(net: Net) -> None:
        feed = Feed(epoch="e", history=3)
        async with serve(create(model, feed)), following(follow(model, retry=AT_ONCE)) as got:
            await asyncio.sleep(1)
            feed.publish("a")
            await asyncio.sleep(2)
            net.link.blackhole()
            await asyncio.sleep(5)
            net.link.cut()
            for _ in range(10):
                feed.publish("lost")
            net.link.heal()
            await asyncio.sleep(20)
            feed.publish("z")
            await asyncio.sleep(2)
        assert seqs(got) == [1, 12]
        assert resets(got) == [Reset("expired", "e-11", "e-8")]

    virtual(main)


# Cursors the server refuses


@pytest.mark.parametrize("model", PULLS)
def test_malformed_cursor_is_refused(model: str) -> None:
    """A cursor that is none ends the iterator with BadCursor, which says what the server says."""

    async def main(net: Net) -> None:
        async with serve(create(model, Feed())):
            with pytest.raises(BadCursor, match="a cursor looks like"):
                await anext(follow(model, cursor="banana"))

    virtual(main)


def test_a_cursor_of_another_server_is_a_reset_of_the_stream() -> None:
    """An event stream's cursor goes out as Last-Event-ID: in whatever form, the client is told, and goes on."""

    async def main(net: Net) -> None:
        feed = Feed(epoch="e")
        feed.publish("old")
        async with serve(create("sse", feed)), contextlib.aclosing(follow("sse", cursor="banana")) as stream:
            assert await anext(stream) == Reset("epoch", "e-1", "e-0")
            feed.publish("new")
            assert (await anext(stream)).cursor == "e-2"

    virtual(main)


def test_malformed_cursor_is_refused_at_the_handshake() -> None:
    """A WebSocket server can only answer 403 to a bad cursor, and 403 is permanent."""

    async def main(net: Net) -> None:
        async with serve(create("websocket", Feed())):
            with pytest.raises(BadStatus, match="403"):
                await anext(websocket(URL, "banana"))

    virtual(main)


@every_model
def test_cursor_from_the_future(model: str) -> None:
    """A cursor ahead of the log is BadCursor on the pulls and a reset on the streams."""

    async def main(net: Net) -> None:
        feed = Feed(epoch="e")
        async with serve(create(model, feed)), contextlib.aclosing(follow(model, cursor="e-9")) as news:
            if model in PULLS:
                with pytest.raises(BadCursor, match="ahead of this log"):
                    await anext(news)
            else:
                assert await anext(news) == Reset("epoch", "e-0", "e-0")

    virtual(main)


@every_model
@pytest.mark.parametrize("cursor", ["é", "a b", "a\r\nX: y", "e-1\n", "e" * 300 + "-1"])
def test_cursor_that_is_not_plain_ascii_never_leaves(model: str, cursor: str) -> None:
    """A cursor that no server hands out is refused before anything is sent."""
    with pytest.raises(BadCursor, match="plain ASCII"):
        follow(model, cursor=cursor)


@every_model
@pytest.mark.parametrize(
    "url",
    [
        "server:80",
        "ftp://server",
        "http://",
        "/updates",
        "http://[::1",
        "http://a:99999",
        "http://a..b",
        f"http://{'a' * 64}",
    ],
)
def test_url_that_is_none(model: str, url: str) -> None:
    """What is not a server's URL is a ValueError at once."""
    with pytest.raises(ValueError, match="URL"):
        follow(model, url)


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("short-polling", "interval"),
        ("short-polling", "timeout"),
        ("long-polling", "wait"),
        ("long-polling", "timeout"),
        ("websocket", "heartbeat"),
        ("sse", "heartbeat"),
    ],
)
def test_durations_are_positive(model: str, name: str) -> None:
    """An interval, a wait, a timeout or a heartbeat that is not a number above 0 is a ValueError."""
    for value in (0, -1, math.nan, math.inf):
        options: dict[str, Any] = {name: value}
        with pytest.raises(ValueError, match=f"{name} is a number of seconds above 0"):
            follow(model, **options)


@every_model
def test_url_with_a_path_and_a_query(model: str) -> None:
    """A base URL below a prefix, with a query of its own, keeps both; the model's path and the cursor are added."""

    async def main(net: Net) -> None:
        async with answering(http(404)) as heads:
            with pytest.raises(BadStatus):
                await anext(follow(model, "http://server/proxy/8000/?token=t", cursor="e-7"))
        path = {"websocket": "/ws", "sse": "/events"}.get(model, "/updates")
        assert heads[0].startswith(f"GET /proxy/8000{path}?token=t")
        assert ("Last-Event-ID: e-7" if model == "sse" else "&after=e-7") in heads[0]

    virtual(main)


@every_model
def test_url_with_a_fragment(model: str) -> None:
    """What names a place in a page goes to no server; escapes in the path stay as they are."""

    async def main(net: Net) -> None:
        async with answering(http(404)) as heads:
            with pytest.raises(BadStatus):
                await anext(follow(model, "http://server/user%2Fname/#top", cursor="e-7"))
        path = {"websocket": "/ws?after=e-7", "sse": "/events"}.get(model, "/updates?after=e-7")
        assert heads[0].startswith(f"GET /user%2Fname{path}")
        assert "top" not in heads[0]

    virtual(main)


# Pauses


def test_backs_off_with_full_jitter() -> None:
    """The pause after failure number n is what the seeded generator draws from [0, min(cap, base 2^n)]."""

    async def main(net: Net) -> None:
        for model in MODELS:
            log, rng = Count(), random.Random(7)
            async with following(follow(model, retry=Retry(base=0.5, cap=30, rng=random.Random(7)), log=log)):
                await asyncio.sleep(300)  # nobody listens
            expected = [rng.uniform(0, min(30, 0.5 * 2**n)) for n in range(len(log.pauses))]
            assert len(log.pauses) > 10
            assert log.pauses == pytest.approx(expected, abs=1e-6), model

    virtual(main)


def test_back_off_spreads_over_the_whole_range() -> None:
    """Jitter is full: its draws fill [0, ceiling] evenly, and the ceiling doubles up to the cap."""
    retry = Retry(base=1, cap=30, rng=random.Random(1))
    assert [retry.ceiling(n) for n in range(7)] == [1, 2, 4, 8, 16, 30, 30]
    draws = [retry.jitter(3) for _ in range(4000)]
    assert 0 <= min(draws) < 0.02
    assert 7.98 < max(draws) <= 8
    assert abs(sum(draws) / 4000 - 4) < 4 * 8 / math.sqrt(12 * 4000)


def test_back_off_lasts_for_weeks() -> None:
    """After 2000 failures, where 2.0**n has long overflowed, the pause is still within the cap."""
    assert Retry().ceiling(2000) == 30


@pytest.mark.parametrize(
    "wrong", [{"base": -1}, {"base": math.inf}, {"cap": -1}, {"cap": math.nan}, {"cap": math.inf}, {"give_up_after": 0}]
)
def test_retry_that_makes_no_sense(wrong: dict[str, Any]) -> None:
    """A negative pause, or a time to give up that is over at once, is a ValueError."""
    with pytest.raises(ValueError, match="pauses are 0 s or more"):
        Retry(**wrong)


def test_exceptions_are_drawn_in_the_docstring() -> None:
    """The tree in the module's docstring names every exception of the module."""
    tree = (clients.__doc__ or "").partition("    ClientError\n")[2].splitlines()
    drawn = {line.strip(" │├└─").split()[0] for line in tree if "├──" in line or "└──" in line}
    exceptions = [getattr(clients, name) for name in clients.__all__ if isinstance(getattr(clients, name), type)]
    assert drawn == {error.__name__ for error in exceptions if issubclass(error, ClientError)} - {"ClientError"}


@every_model
def test_starts_the_count_again_after_an_answer(model: str) -> None:
    """After an answer the next failure is number 0 again."""

    async def main(net: Net) -> None:
        log, rng = Count(), random.Random(3)
        async with following(follow(model, retry=Retry(base=1, cap=1000, rng=random.Random(3)), log=log)):
            await asyncio.sleep(100)
            first_failures = len(log.begun)
            async with serve(create(model, Feed(epoch="e"))):
                await asyncio.sleep(200)
            await asyncio.sleep(100)
        failed = [pause for pause, error in zip(log.pauses, log.errors, strict=False) if error]
        later_failures = len(failed) - first_failures
        expected = [rng.uniform(0, 2**n) for n in (*range(first_failures), *range(later_failures))]
        assert failed == pytest.approx(expected, abs=1e-6)
        assert first_failures > 5 < later_failures

    virtual(main)


@pytest.mark.parametrize("status", [429, 503])
@every_model
def test_honours_retry_after(model: str, status: int) -> None:
    """A Retry-After in seconds is waited for, and jitter comes on top of it."""

    async def main(net: Net) -> None:
        log, rng = Count(), random.Random(5)
        async with (
            answering(http(status, Retry_After="7")) as heads,
            following(follow(model, retry=Retry(rng=random.Random(5)), log=log)),
        ):
            await asyncio.sleep(100)
        assert len(heads) == len(log.begun) >= 4
        assert log.pauses == pytest.approx([7 + rng.uniform(0, min(30, 2**n)) for n in range(len(log.pauses))])

    virtual(main)


@every_model
def test_honours_a_retry_after_date(model: str) -> None:
    """A Retry-After that is a date is waited for."""

    async def main(net: Net) -> None:
        log = Count()
        date = math.floor(time.time()) + 42
        header = email.utils.formatdate(date, usegmt=True)
        async with (
            answering(http(503, Retry_After=header)),
            following(follow(model, retry=AT_ONCE, log=log)),
        ):
            await asyncio.sleep(43)
            assert len(log.begun) > 1
        offset = time.time() - asyncio.get_running_loop().time()
        assert log.begun[1] + offset == pytest.approx(date, abs=1e-3)

    virtual(main)


def test_retry_after_is_bounded() -> None:
    """A server that asks for years is obeyed for an hour."""

    async def main(net: Net) -> None:
        log = Count()
        async with (
            answering(http(503, Retry_After="999999999")),
            following(follow("sse", retry=AT_ONCE, log=log)),
        ):
            await asyncio.sleep(3 * 3600)
        assert log.pauses == pytest.approx([3600, 3600])

    virtual(main)


def test_sse_honours_retry() -> None:
    """The stream's `retry:` is the least pause, also after reconnects that did not repeat it; jitter comes on top."""

    async def main(net: Net) -> None:
        log, rng = Count(), random.Random(2)
        first, later = stream("retry: 4000\n\nid: e-1\n\n"), stream("id: e-1\n\n")
        async with (
            answering(first, later),
            following(follow("sse", retry=Retry(rng=random.Random(2)), log=log)),
        ):
            await asyncio.sleep(120)
        assert len(log.pauses) > 5
        assert log.pauses == pytest.approx([4 + rng.uniform(0, min(30, 2**n)) for n in range(len(log.pauses))])

    virtual(main)


# The pace of polls


def test_short_polling_asks_on_a_grid() -> None:
    """Polls begin `interval` seconds apart, however long the answers take; K intervals make K+1 polls."""

    async def main(net: Net) -> None:
        log = Count()
        async with (
            serve(create("short-polling", Feed())),
            following(short_polling(URL, interval=5, log=log)),
        ):
            await asyncio.sleep(500.5)
        assert log.begun == pytest.approx([log.begun[0] + 5 * k for k in range(101)])

    virtual(main)


def test_short_polling_slower_than_its_interval_asks_at_once() -> None:
    """When every answer takes longer than the interval, each poll follows the answer to the one before at once."""

    async def main(net: Net) -> None:
        log = Count()
        async with (
            serve(create("short-polling", Feed())),
            following(short_polling(URL, interval=1, log=log)),
        ):
            await asyncio.sleep(100)
        assert log.pauses == pytest.approx([0] * len(log.pauses), abs=1e-6)
        assert len(log.begun) == pytest.approx(100 / 4, abs=1)

    virtual(main, Link(delay=2))


def test_short_polling_does_not_make_up_for_what_it_missed() -> None:
    """After one answer that took many intervals, the polls keep their interval again, without a burst."""

    async def main(net: Net) -> None:
        log = Count()
        async with (
            serve(create("short-polling", Feed())),
            following(short_polling(URL, interval=1, timeout=60, log=log)),
        ):
            await asyncio.sleep(5.5)
            net.link.blackhole()
            await asyncio.sleep(20)
            net.link.heal()
            await asyncio.sleep(10)
        gaps = [later - earlier for earlier, later in itertools.pairwise(log.begun)]
        assert max(gaps) > 19
        assert [gap for gap in gaps if gap < 19] == pytest.approx([1] * (len(gaps) - 1))

    virtual(main)


@pytest.mark.parametrize(
    ("asked", "given", "pace"),
    [("7", None, 7), ("0.5", None, 0.5), ("7", 2.0, 2), ("nan", None, 5)],
)
def test_poll_interval(asked: str, given: float | None, pace: float) -> None:
    """Short polling keeps the server's X-Poll-Interval unless the caller sets one; 5 s if it makes no sense."""

    async def main(net: Net) -> None:
        log = Count()
        body = b'{"updates":[],"cursor":"e-0"}'
        async with (
            answering(http(200, body, X_Poll_Interval=asked)),
            following(short_polling(URL, interval=given, log=log)),
        ):
            await asyncio.sleep(10 * pace + 0.5)
        assert log.begun == pytest.approx([k * pace for k in range(len(log.begun))], abs=0.01)
        assert len(log.begun) in (10, 11)

    virtual(main, Link(delay=0.0))


def test_short_polling_is_answered_304() -> None:
    """A poll that finds nothing new costs a 304 without a body, because the last ETag goes with it."""

    async def main(net: Net) -> None:
        feed = Feed(epoch="e")
        async with serve(create("short-polling", feed)), following(short_polling(URL, interval=1)) as got:
            await asyncio.sleep(9.5)
            feed.publish("a")
            await asyncio.sleep(5)
        assert seqs(got) == [1]
        assert net.transcript is not None
        down = [row.data for row in net.transcript if row.way == "down" and row.data.startswith(b"HTTP/1.1 ")]
        assert [data[9:12] for data in down] == [b"200", *[b"304"] * 9, b"200", *[b"304"] * 4]

    virtual(main)


def test_short_polling_reads_on_at_once_when_a_batch_is_full() -> None:
    """A client far behind does not wait between full batches."""

    async def main(net: Net) -> None:
        feed = Feed(epoch="e")
        for _ in range(3 * BATCH + 1):
            feed.publish("a")
        async with serve(create("short-polling", feed)), following(short_polling(URL, "0", interval=60)) as got:
            await asyncio.sleep(5)
            assert seqs(got) == list(range(1, 3 * BATCH + 2))

    virtual(main)


def test_long_polling_asks_again_at_once() -> None:
    """News that come while a poll is on its way are in the next answer: at most three transits late."""

    async def main(net: Net) -> None:
        feed = Feed(epoch="e")
        arrivals: list[float] = []

        async def run() -> None:
            async for news in long_polling(URL, "e-0"):
                assert isinstance(news, Update)
                arrivals.append(time.time() - news.published)

        async with serve(create("long-polling", feed)):
            task = asyncio.create_task(run())
            await asyncio.sleep(1)
            for _ in range(200):
                feed.publish("a")
                await asyncio.sleep(0.013)
            await asyncio.sleep(1)
            task.cancel()
            await asyncio.wait({task})
        assert len(arrivals) == 200
        assert max(arrivals) <= 3 * D + 1e-6

    virtual(main)


def test_long_polling_does_not_spin() -> None:
    """A server that answers at once, with nothing, is asked once a second, not as fast as it answers."""

    async def main(net: Net) -> None:
        async with (
            answering(http(200, b'{"updates":[],"cursor":"e-0"}')) as heads,
            following(long_polling(URL, "e-0")),
        ):
            await asyncio.sleep(10)
        assert len(heads) == 10

    virtual(main)


# Dead links


@pytest.mark.parametrize(
    ("model", "options", "after_last_byte"),
    [
        ("short-polling", {"interval": 1, "timeout": 4}, 4),
        ("long-polling", {"wait": 20, "timeout": 4}, 24),
        ("sse", {"heartbeat": 10}, 25),
    ],
)
def test_notices_a_dead_link_by_its_silence(model: str, options: dict[str, Any], after_last_byte: float) -> None:
    """A black hole is noticed at its second: timeout, wait + timeout, or 2.5 heartbeats after the last sign of life."""

    async def main(net: Net) -> None:
        feed, log = Feed(epoch="e"), Count()
        async with (
            serve(create(model, feed)),
            following(follow(model, cursor="e-0", retry=AT_ONCE, log=log, **options)) as got,
        ):
            await asyncio.sleep(0.5)
            feed.publish("a")
            await asyncio.sleep(1.2)
            net.link.blackhole()
            feed.publish("into the dark")
            now = asyncio.get_running_loop().time()
            await asyncio.sleep(after_last_byte + 1)
            broken = next(index for index, error in enumerate(log.errors) if error)
            assert isinstance(log.errors[broken], httpx.ReadTimeout)
            silent_since = log.begun[broken] if model in PULLS else 0.5 + D
            assert log.ended[broken] == pytest.approx(silent_since + after_last_byte, abs=3 * D)
            assert now - 1.5 < silent_since < now + 1
            net.link.heal()
            await asyncio.sleep(after_last_byte + 20)
        assert seqs(got) == [1, 2]

    virtual(main)


@pytest.mark.parametrize("dies_at", [0.5, 9.9, 10.2, 13.0, 19.9, 20.2])
@pytest.mark.parametrize("ways", [("up", "down"), ("down",), ("up",)])
def test_websocket_notices_a_dead_link(dies_at: float, ways: tuple[str, ...]) -> None:
    """Whenever a WebSocket's link dies, and whichever way, it is noticed within 2.5 heartbeats, and resumed."""

    async def main(net: Net) -> None:
        feed, log = Feed(epoch="e"), Count()
        server = serve(create("websocket", feed), ws_ping_interval=None)  # only the client looks
        async with server, following(websocket(URL, "e-0", heartbeat=10, retry=AT_ONCE, log=log)) as got:
            await asyncio.sleep(dies_at)
            net.link.blackhole(*ways)  # type: ignore[arg-type]  # literals in a parametrize list
            feed.publish("into the dark")
            await asyncio.sleep(26)
            assert log.ended
            assert dies_at + 10 < log.ended[0] <= dies_at + 25 + 2 * D + 1e-6
            net.link.heal()
            await asyncio.sleep(30)
        assert seqs(got) == [1]

    virtual(main)


def test_sse_comments_are_signs_of_life() -> None:
    """A stream quiet but for heartbeats lasts an hour in one request, also when they come half a line at a time."""

    async def main(net: Net) -> None:
        async def handle(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(stream("id: e-0\n\n"))
            for piece in itertools.cycle((b": heart", b"beat\n\n")):
                await writer.drain()
                await asyncio.sleep(24)
                writer.write(piece)

        log = Count()
        async with raw(handle), following(sse(URL, heartbeat=10, log=log)):
            await asyncio.sleep(3600)
            assert len(log.begun) == 1

    virtual(main)


@every_model
def test_an_idle_link_is_not_a_dead_one(model: str) -> None:
    """For an hour without news, no client takes the link for dead; the streams make one request."""

    async def main(net: Net) -> None:
        log = Count()
        options: dict[str, Any] = {"interval": 60} if model == "short-polling" else {}
        async with serve(create(model, Feed())), following(follow(model, log=log, **options)):
            await asyncio.sleep(3600)
            assert not any(log.errors)
            assert len(log.begun) == 1 if model in STREAMS else len(log.begun) >= 60

    virtual(main)


@every_model
def test_a_server_that_never_answers_is_left(model: str) -> None:
    """A server that accepts and is silent does not hold a client for ever: it tries again."""

    async def main(net: Net) -> None:
        log = Count()
        async with raw(be_silent), following(follow(model, retry=AT_ONCE, log=log)):
            await asyncio.sleep(130)
        assert 3 <= len(log.begun) <= 14

    virtual(main)


# What a status means


@every_model
def test_passing_statuses_are_tried_again(model: str) -> None:
    """A server that answers 503, and then as it should, is heard."""

    async def main(net: Net) -> None:
        feed = Feed(epoch="e")
        feed.publish("a")
        async with following(follow(model, cursor="0", retry=AT_ONCE)) as got:
            async with answering(http(503, Retry_After="1")) as heads:
                await asyncio.sleep(3)
            async with serve(create(model, feed)):
                await asyncio.sleep(3)
        assert len(heads) >= 2
        assert seqs(got) == [1]

    virtual(main)


@every_model
def test_permanent_statuses_end_it(model: str) -> None:
    """A status that would come again ends the iterator after one request."""

    async def main(net: Net) -> None:
        for status in (404, 307):
            async with answering(http(status, Location="/elsewhere")) as heads:
                with pytest.raises(BadStatus, match=str(status)):
                    await anext(follow(model, cursor="e-1"))
            assert len(heads) == 1

    virtual(main)


@every_model
def test_other_content_ends_it(model: str) -> None:
    """A 200 whose content is not the model's is BadAnswer after one request, not a reason to ask again."""

    async def main(net: Net) -> None:
        ok = http(200, b"<html>")
        other = {"websocket": talking(["<html>"]), "sse": answering(http(200, b"<html>", kind="text/html"))}
        async with other.get(model) or answering(ok) as asked:
            with pytest.raises(BadAnswer):
                await anext(follow(model))
        assert len(asked) == 1

    virtual(main)


def test_sse_204_ends_the_iteration() -> None:
    """204 is the server's way to say "stop": the iterator ends without an error."""

    async def main(net: Net) -> None:
        async with answering(stream(event(1)), http(204)) as heads:
            got = [news async for news in sse(URL, retry=AT_ONCE)]
        assert seqs(got) == [1]
        assert len(heads) == 2

    virtual(main)


@every_model
def test_an_answer_cut_short_is_asked_for_again(model: str) -> None:
    """An answer that breaks off in the middle, at any byte, is not taken for the whole."""

    async def main(net: Net) -> None:
        feed = Feed(epoch="e")
        feed.publish("a" * 50)
        feed.publish("b")
        async with serve(create(model, feed)):
            for size in range(0, 700, 47):
                net.link.cut_after(size)
                async with following(follow(model, cursor="0", retry=AT_ONCE)) as got:
                    await asyncio.sleep(1)
                assert seqs(got) == [1, 2], size

    virtual(main)


def test_sse_unfinished_block_is_not_an_update() -> None:
    """An update whose block the stream leaves unfinished is not given; it comes again, once, after the reconnect."""

    async def main(net: Net) -> None:
        half = stream(event(1), event(2)[:-1])
        async with answering(half, stream(event(2), event(3))) as heads, following(sse(URL, retry=AT_ONCE)) as got:
            await asyncio.sleep(0.3)
        assert seqs(got)[:3] == [1, 2, 3]
        assert "Last-Event-ID: e-1\r\n" in heads[1]

    virtual(main)


# Servers that break the contract


def test_what_is_known_is_not_given_again() -> None:
    """Updates that a server repeats, or sends after later ones, are dropped: by number, within the epoch."""

    async def main(net: Net) -> None:
        async with (
            answering(stream(*map(event, (3, 4, 4, 3, 5))), stream(*map(event, (1, 5, 6)))) as heads,
            following(sse(URL, "e-2", retry=AT_ONCE)) as got,
        ):
            await asyncio.sleep(1)
        assert seqs(got) == [3, 4, 5, 6]
        assert "Last-Event-ID: e-5\r\n" in heads[1]

    virtual(main)


@pytest.mark.parametrize("model", PULLS)
def test_what_a_pull_knows_is_not_given_again(model: str) -> None:
    """A pull whose server goes back, as a stale cache does, gives nothing twice and does not go back."""

    async def main(net: Net) -> None:
        answers = (updates("e-3", 2, 3), updates("e-3", 2, 3), updates("e-1"), updates("e-4", 3, 4))
        async with answering(*answers) as heads, following(follow(model, cursor="e-1")) as got:
            await asyncio.sleep(17)
        assert seqs(got) == [2, 3, 4]
        assert [head.split("after=")[1][:3] for head in heads[:4]] == ["e-1", "e-3", "e-3", "e-3"]

    virtual(main)


def test_an_epoch_that_changes_without_a_reset_ends_it() -> None:
    """Another log without a reset would be a silent hole: BadAnswer."""

    async def main(net: Net) -> None:
        async with answering(stream(event(1), event(2, epoch="f"))), contextlib.aclosing(sse(URL)) as news:
            assert seqs([await anext(news)]) == [1]
            with pytest.raises(BadAnswer, match="without a reset"):
                await anext(news)

    virtual(main)


def test_reset_moves_back_too() -> None:
    """After a reset the numbers begin where the new log is, also lower than before."""

    async def main(net: Net) -> None:
        reset = 'event: reset\nid: f-1\ndata: {"reason": "epoch", "cursor": "f-1", "oldest": "f-0"}\n\n'
        async with answering(stream(event(8), reset, event(2, epoch="f"))), following(sse(URL)) as got:
            await asyncio.sleep(0.3)
        assert [news.cursor for news in got] == ["e-8", "f-1", "f-2"]

    virtual(main)


def test_sse_id_may_come_late() -> None:
    """A stream that has said no id yet leaves the cursor where it is, "0" too."""

    async def main(net: Net) -> None:
        async with answering(stream(": one moment\n\n")) as heads, following(sse(URL, "0", retry=AT_ONCE)):
            await asyncio.sleep(1)
        assert len(heads) > 2
        assert all("Last-Event-ID: 0\r\n" in head for head in heads)

    virtual(main)


def test_what_is_not_known_is_ignored() -> None:
    """Events and messages of kinds that a later server may add are passed over."""

    async def main(net: Net) -> None:
        async with answering(stream("event: news\ndata: x\n\n", "data: x\n\n", event(1))), following(sse(URL)) as got:
            await asyncio.sleep(0.3)
        assert seqs(got) == [1]
        message = json.dumps({"type": "updates", "updates": [update(1)], "cursor": "e-1"})
        async with talking(['{"type":"weather"}', "[1]", message]), following(websocket(URL)) as got:
            await asyncio.sleep(0.3)
        assert seqs(got) == [1]

    virtual(main)


# WebSocket closes


@contextlib.asynccontextmanager
async def talking(messages: Sequence[str | bytes], code: int | None = None) -> AsyncIterator[list[str]]:
    """A WebSocket server that sends these messages and then closes with `code`, or stays; yields the paths asked."""
    paths: list[str] = []

    async def handle(connection: ServerConnection) -> None:
        assert connection.request
        paths.append(connection.request.path)
        for message in messages:
            await connection.send(message)
        if code == 1006:
            connection.transport.abort()
        elif code == 1005:
            connection.protocol.send_close()
            connection.transport.write(b"".join(connection.protocol.data_to_send()))
        elif code:
            await connection.close(code, "because")
        await connection.wait_closed()

    async with serve_websocket(handle, "server", 80, compression=None):
        yield paths


HELLO = '{"type":"hello","cursor":"e-3"}'


@pytest.mark.parametrize("code", [1000, 1001, 1005, 1006, 1012])
def test_closes_that_pass(code: int) -> None:
    """A server that goes, breaks or restarts is connected to again, from the cursor."""

    async def main(net: Net) -> None:
        async with talking([HELLO], code) as paths, following(websocket(URL, retry=Retry(rng=random.Random(1)))):
            await asyncio.sleep(10)
        assert len(paths) >= 3
        assert paths[0] == "/ws"
        assert set(paths[1:]) == {"/ws?after=e-3"}

    virtual(main)


def test_closes_that_stay() -> None:
    """A close for what was sent ends the iterator after one handshake, with the server's reason."""

    async def main(net: Net) -> None:
        async with talking([HELLO], 1008) as paths:
            with pytest.raises(BadClose, match=r"1008.*because"):
                await anext(websocket(URL))
        assert len(paths) == 1

    virtual(main)


def test_let_in_and_out_again_backs_off() -> None:
    """A hello and then the close is no recovery, whatever the code says: the pauses grow."""

    async def main(net: Net) -> None:
        for code in (1001, 1012, 1013):
            log, rng = Count(), random.Random(4)
            retry = Retry(base=1, cap=60, rng=random.Random(4))
            async with talking([HELLO], code), following(websocket(URL, retry=retry, log=log)):
                await asyncio.sleep(300)
            expected = [rng.uniform(0, min(60, 2**n)) for n in range(len(log.pauses))]
            assert log.pauses == pytest.approx(expected, abs=1e-3)
            assert len(log.pauses) > 6

    virtual(main)


def test_message_that_is_too_large_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A message above the limit would come again at every attempt: BadClose, with this side's 1009."""
    monkeypatch.setattr(connections, "MAX_MESSAGE", 1000)

    async def main(net: Net) -> None:
        async with talking(["x" * 1001]):
            with pytest.raises(BadClose, match="1009"):
                await anext(websocket(URL))

    virtual(main)


PADDING = b" " * 2**16


def endless(head: str, more: bytes) -> tuple[contextlib.AbstractAsyncContextManager[list[str]], list[int]]:
    """A server whose answer goes on for as long as anybody reads, and how many bytes it has sent to each client."""
    sent: list[int] = []

    async def handle(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        sent.append(0)
        writer.write(f"HTTP/1.1 {head}\r\nConnection: close\r\n\r\n".encode())
        with contextlib.suppress(ConnectionError):
            while True:
                writer.write(more)
                await writer.drain()
                await asyncio.sleep(0.001)  # virtual: the window's transits are what it waits for
                sent[-1] += len(more)

    return raw(handle), sent


STREAM = "200 OK\r\nContent-Type: text/event-stream"


@pytest.mark.parametrize(
    ("model", "head", "more"),
    [
        ("short-polling", "200 OK", PADDING),
        ("long-polling", "200 OK", PADDING),
        ("long-polling", "410 Gone", PADDING),
        ("sse", STREAM, b"x" * 2**16),
        ("sse", STREAM, b"data: x\n" * 2**13),
        ("sse", STREAM, b"data\n" * 2**13),
    ],
    ids=["poll", "long poll", "410", "a line", "lines of data", "empty lines of data"],
)
def test_an_answer_without_end_ends_it(model: str, head: str, more: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """A body, a line or an event beyond the limit would come again at each attempt: BadAnswer, soon after the limit."""
    for module in (connections, models):
        monkeypatch.setattr(module, "MAX_MESSAGE", 1_000_000)

    async def main(net: Net) -> None:
        net.link.window = 2**17
        server, sent = endless(head, more)
        async with server:
            with pytest.raises(BadAnswer, match="of more than 1000000 "):
                await anext(follow(model))
        assert len(sent) == 1
        assert sent[0] < 3_000_000

    virtual(main)


@pytest.mark.parametrize("model", HTTP)
def test_a_reason_without_end_is_cut(model: str) -> None:
    """Of an answer that is none, a sentence is read; a 503 passes, however much it says, and a 404 does not."""

    async def main(net: Net) -> None:
        net.link.window = 2**17
        for head, error in (("503 X", GaveUp), ("404 X", BadStatus)):
            server, sent = endless(head, PADDING)
            async with server:
                with pytest.raises(error, match=f"answered {head[:3]}"):
                    await anext(follow(model, retry=Retry(base=1, cap=1, give_up_after=5)))
            assert (len(sent) > 1) == (error is GaveUp)
            assert max(sent) < 1_000_000

    virtual(main)


def test_events_of_any_number_are_no_event_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit is that of one event, not of a stream."""
    for module in (connections, models):
        monkeypatch.setattr(module, "MAX_MESSAGE", 1000)

    async def main(net: Net) -> None:
        many = "".join(f": a comment\n\n{event(seq)}" for seq in range(1, 101))
        async with answering(stream(many), http(204)):
            assert seqs([news async for news in sse(URL, retry=AT_ONCE)]) == list(range(1, 101))

    virtual(main)


@pytest.mark.parametrize("model", HTTP)
def test_a_compressed_answer_ends_it(model: str) -> None:
    """It is asked for as it is; what comes compressed could be any size in memory: BadAnswer, unread."""

    async def main(net: Net) -> None:
        bomb = gzip.compress(b"data: " + bytes(10_000_000))
        kind = "text/event-stream" if model == "sse" else "application/json"
        async with answering(http(200, bomb, kind, Content_Encoding="gzip")) as heads:
            with pytest.raises(BadAnswer, match=r"encoded \('gzip'\)"):
                await anext(follow(model))
        assert "Accept-Encoding: identity" in heads[0]
        assert heads[0].count("Accept-Encoding") == 1

    virtual(main)


@every_model
def test_a_redirect_is_not_followed(model: str) -> None:
    """Another host that a server names is never asked, whatever the URL carries."""

    async def main(net: Net) -> None:
        async with raw(be_silent, host="elsewhere") as strangers:
            async with answering(http(307, Location="http://elsewhere/updates?token=t")):
                with pytest.raises(BadStatus, match="answered 307"):
                    await anext(follow(model, "http://server/?token=t"))
            assert strangers == []

    virtual(main)


def test_a_handshake_that_is_not_one_ends_it() -> None:
    """A 101 with a wrong Sec-WebSocket-Accept is not a WebSocket server: BadAnswer."""

    async def main(net: Net) -> None:
        answer = b"HTTP/1.1 101 X\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: x\r\n\r\n"
        async with answering(answer):
            with pytest.raises(BadAnswer):
                await anext(websocket(URL))

    virtual(main)


# Giving up


@every_model
def test_gives_up(model: str) -> None:
    """Without an answer for `give_up_after` seconds the iterator ends, at that second, with the last failure."""

    async def main(net: Net) -> None:
        loop = asyncio.get_running_loop()
        begun = loop.time()
        with pytest.raises(GaveUp, match=r"http://server/.* for 20 s \(Connect") as caught:
            await anext(follow(model, retry=Retry(give_up_after=20, rng=random.Random(1))))
        assert loop.time() - begun == pytest.approx(20)
        assert isinstance(caught.value.__cause__, httpx.ConnectError | OSError)

        begun = loop.time()
        async with answering(UNAVAILABLE):
            with pytest.raises(GaveUp, match="503") as caught:
                await anext(follow(model, retry=Retry(give_up_after=20, rng=random.Random(1))))
        assert loop.time() - begun == pytest.approx(20)
        assert isinstance(caught.value.__cause__, Unavailable)

    virtual(main)


@every_model
@pytest.mark.parametrize("handle", [None, be_silent])
def test_gives_up_in_the_dark(model: str, handle: Handle | None) -> None:
    """An attempt that hangs, before or after it is connected, is given up at the same second."""

    async def main(net: Net) -> None:
        loop = asyncio.get_running_loop()
        async with contextlib.AsyncExitStack() as stack:
            if handle:
                await stack.enter_async_context(raw(handle))
            else:
                net.link.blackhole()
            with pytest.raises(GaveUp):
                await anext(follow(model, retry=Retry(give_up_after=3)))
        assert loop.time() == pytest.approx(3)

    virtual(main)


@every_model
def test_gives_up_although_bytes_dribble_in(model: str) -> None:
    """A head that comes a byte a second is not an answer."""

    async def main(net: Net) -> None:
        async def dribble(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            for byte in b"HTTP/1.1 200 OK\r\nX-Long: " + b"x" * 1000:
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(1)

        async with raw(dribble):
            with pytest.raises(GaveUp):
                await anext(follow(model, retry=Retry(give_up_after=30)))
        assert asyncio.get_running_loop().time() == pytest.approx(30)

    virtual(main)


@every_model
def test_does_not_give_up_while_it_is_answered(model: str) -> None:
    """The clock of giving up runs only between a failure and the next answer: quiet, and cuts, do not add up."""

    async def main(net: Net) -> None:
        feed = Feed(epoch="e")
        retry = Retry(base=0.5, give_up_after=5, rng=random.Random(1))
        async with serve(create(model, feed)), following(follow(model, cursor="e-0", retry=retry)) as got:
            for _ in range(5):
                await asyncio.sleep(40)
                net.link.cut()
            feed.publish("a")
            await asyncio.sleep(10)
        assert seqs(got) == [1]

    virtual(main)


@every_model
def test_clock_of_giving_up_starts_with_the_failure(model: str) -> None:
    """A server that goes after ten minutes is given up `give_up_after` seconds later, not at once."""

    async def main(net: Net) -> None:
        retry = Retry(give_up_after=50, rng=random.Random(1))
        news = asyncio.create_task(anext(follow(model, retry=retry)))
        async with serve(create(model, Feed())):
            await asyncio.sleep(600)
        stopped = asyncio.get_running_loop().time()
        with pytest.raises(GaveUp):
            await news
        assert stopped + 49 < asyncio.get_running_loop().time() < stopped + 57  # 5 s until the next short poll

    virtual(main)


# Leaving


@every_model
@pytest.mark.parametrize("moment", ["connecting", "asking", "waiting", "pausing", "between updates"])
def test_leaves_nothing_behind(model: str, moment: str) -> None:
    """Cancelled at any moment, or closed between two updates, a client leaves at once: no task, no connection."""

    async def main(net: Net) -> None:
        feed = Feed(epoch="e")
        loop = asyncio.get_running_loop()
        async with contextlib.AsyncExitStack() as stack:
            if moment == "asking":
                await stack.enter_async_context(raw(be_silent))
            elif moment != "pausing":
                await stack.enter_async_context(serve(create(model, feed)))
            before = asyncio.all_tasks()
            log = Count()
            news = follow(model, cursor="e-0", log=log)
            if moment == "between updates":
                feed.publish("a")
                feed.publish("b")
                await anext(news)
                left = loop.time()
                await news.aclose()
            else:
                task = asyncio.create_task(anext(news))
                await asyncio.sleep({"connecting": D, "asking": 1, "waiting": 3, "pausing": 2 * D + 1e-3}[moment])
                assert len(net.connections) == (moment in ("asking", "waiting"))
                left = loop.time()
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            assert loop.time() - left <= 2 * D + 1e-6  # a WebSocket's farewell takes a round trip
            assert len(log.begun) == len(log.ended)
            await asyncio.sleep(2 * D + 1e-3)
            watcher = "_shutdown_watcher"  # one task of sse-starlette's for each thread
            assert not [task for task in asyncio.all_tasks() - before if watcher not in repr(task)]
            assert all(connection.closed for connection in net.connections)

    virtual(main)


def test_websocket_says_goodbye() -> None:
    """A client that leaves closes the WebSocket with 1000, so that the server knows it was not cut."""

    async def main(net: Net) -> None:
        codes: list[int | None] = []

        async def handle(connection: ServerConnection) -> None:
            await connection.send(HELLO)
            await connection.wait_closed()
            codes.append(connection.close_code)

        async with serve_websocket(handle, "server", 80, compression=None), following(websocket(URL)):
            await asyncio.sleep(1)
        await asyncio.sleep(1)
        assert codes == [1000]

    virtual(main)


@every_model
def test_leaves_a_black_hole(model: str) -> None:
    """Even when the other end answers nothing, not even the farewell, leaving takes a second at most."""

    async def main(net: Net) -> None:
        async with serve(create(model, Feed(epoch="e")), ws_ping_interval=None):
            task = asyncio.create_task(anext(follow(model, cursor="e-0")))
            await asyncio.sleep(3)
            net.link.blackhole()
            left = asyncio.get_running_loop().time()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert asyncio.get_running_loop().time() - left <= (1.001 if model == "websocket" else 1e-6)
            net.link.heal()
            net.link.cut()

    virtual(main)


def test_leaves_at_once_when_cancelled_twice() -> None:
    """A second cancellation, in the middle of a WebSocket's farewell, aborts the connection."""

    async def main(net: Net) -> None:
        async with serve(create("websocket", Feed(epoch="e")), ws_ping_interval=None):
            task = asyncio.create_task(anext(websocket(URL)))
            await asyncio.sleep(3)
            net.link.blackhole("down")
            task.cancel()
            await asyncio.sleep(0.1)
            left = asyncio.get_running_loop().time()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert asyncio.get_running_loop().time() == left
            await asyncio.sleep(2 * D)
            assert [row.kind for row in net.transcript or () if row.way == "up"][-1] in ("FIN", "RST")

    virtual(main)


# Live: sockets, processes, signals


@every_model
def test_live_restart_on_the_same_port(model: str) -> None:
    """With real sockets: a server stops and comes back on its port with the same log, and the client loses nothing."""

    async def main() -> None:
        feed, log = Feed(epoch="e"), Count()
        server = background.serve(create(model, feed))
        options = {"interval": 0.1} if model == "short-polling" else {}
        retry = Retry(base=0.05, cap=0.5)
        async with following(follow(model, server.url, cursor="e-0", retry=retry, log=log, **options)) as got:
            feed.publish("a")
            await until(lambda: seqs(got) == [1])
            await asyncio.to_thread(server.stop)
            feed.publish("while it is down")
            app = create(model, feed)
            again = await asyncio.to_thread(background.serve, app, port=server.port)
            await until(lambda: seqs(got) == [1, 2])
            feed.publish("b")
            await until(lambda: seqs(got) == [1, 2, 3])
            assert not resets(got)
            if model in STREAMS:
                assert app.traffic.held == 1
        await until(lambda: app.traffic.held == 0)  # it left
        await until(lambda: len(asyncio.all_tasks()) == 1)
        assert len(log.begun) == len(log.ended)
        await asyncio.to_thread(again.stop)

    asyncio.run(main())


@every_model
def test_live_through_a_bad_link(model: str) -> None:
    """With real sockets, through a wire that is cut and goes dark: everything arrives once, in order."""

    async def main() -> None:
        feed = Feed(epoch="e")
        options: dict[str, Any] = {
            "short-polling": {"interval": 0.05, "timeout": 0.5},
            "long-polling": {"wait": 0.5, "timeout": 0.5},
        }.get(model, {"heartbeat": 0.4})
        retry = Retry(base=0.05, cap=0.2)
        with background.serve(create(model, feed)) as server, Wire(server.url) as wire:
            async with following(follow(model, wire.url, cursor="e-0", retry=retry, **options)) as got:
                for number in range(1, 13):
                    if number % 3 == 0:
                        wire.cut()
                    elif number == 7:
                        wire.cut_after(150)
                    elif number == 10:
                        await until(lambda: seqs(got)[-1:] == [9])
                        wire.blackhole()
                    feed.publish("a")
                    await asyncio.sleep(0.02)
                await asyncio.sleep(0.1)
                wire.heal()
                await until(lambda: seqs(got)[-1:] == [12])
            assert seqs(got) == list(range(1, 13))

    asyncio.run(main())


@every_model
def test_drives_an_experiment(model: str) -> None:
    """An experiment takes these clients as they are: complete, in order, and its count is the server's."""

    async def client(url: str, log: ClientLog) -> None:
        options = {"interval": 0.1} if model == "short-polling" else {}
        counted: clients.Log = log
        news = follow(model, url, cursor=log.cursor, log=counted, retry=Retry(rng=log.rng), **options)
        async with contextlib.aclosing(news):
            async for update in news:
                assert isinstance(update, Update)
                log.deliver({"seq": update.seq})

    with background.serve(create(model, Feed())) as server:
        run = asyncio.run(experiment(server, client, Schedule.poisson(20, 1.0, seed=1), clients=2, spread=0.1))
    assert run.deliveries > 20
    assert (run.lost, run.duplicated, run.out_of_order) == (0, 0, 0)
    assert run.requests == run.server_requests


# The command line


@contextlib.contextmanager
def command_line(*arguments: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """A client in its own process, ended in any case."""
    process = subprocess.Popen(
        [sys.executable, "-m", "lab.clients", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@every_model
def test_command_line_prints_updates_until_ctrl_c(model: str) -> None:
    """It prints each update in a line with time, delay, number, change and path, and ends on Ctrl-C with status 0."""
    feed = Feed(epoch="e", history=3)
    for _ in range(5):
        feed.publish("old")
    with background.serve(create(model, feed)) as server, command_line(model, server.url, "--after", "e-0") as process:
        assert process.stdout
        reset = process.stdout.readline()
        feed.publish("evil\x1b[31m\n\u202e.txt", "deleted")
        line = process.stdout.readline()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    clock = r"\d\d:\d\d:\d\d\.\d{3}"
    assert re.fullmatch(clock + r"  reset \(expired\): list again; it goes on from e-5\n", reset)
    assert re.fullmatch(clock + r" +\d+\.\d ms  #6  deleted   evil\\x1b\[31m\\n\\u202e\.txt\n", line)
    assert (out, err, process.returncode) == ("", "", 0)


def test_command_line_writes_what_its_output_can_take() -> None:
    """A name with characters that the output's encoding lacks is printed with their escapes."""
    feed = Feed(epoch="e")
    feed.publish("é.txt")
    with (
        background.serve(create("sse", feed)) as server,
        command_line("sse", server.url, "--after", "0", PYTHONIOENCODING="ascii") as process,
    ):
        assert process.stdout
        assert process.stdout.readline().endswith("\\xe9.txt\n")


def test_command_line_ends_with_its_pipe() -> None:
    """When what reads its lines has seen enough, as `head -1` has, it ends without a word."""
    feed = Feed(epoch="e")
    with background.serve(create("sse", feed)) as server, command_line("sse", server.url, "--after", "0") as process:
        assert process.stdout
        assert process.stderr
        feed.publish("a")
        process.stdout.readline()
        process.stdout.close()
        feed.publish("b")
        assert process.stderr.read() == ""
        assert process.wait(timeout=20) == 0


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_command_line_does_without_streams(closed: str) -> None:
    """With stdin, stdout or stderr closed it ends as it would with them: status 2 when nobody answers."""
    call = f'exec "$0" -m lab.clients sse http://127.0.0.1:{free_port()} --give-up-after 0.3 {closed}'
    done = subprocess.run(["sh", "-c", call, sys.executable], timeout=60, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    assert ("for 0.3 s" in done.stderr) == ("2>" not in closed)


def free_port() -> int:
    """A port of 127.0.0.1 at which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["telepathy", "http://x"], "argument MODEL: invalid choice"),
        (["sse", "http://x", "--inter\nval"], "unrecognized arguments: --inter\\nval"),
        (["sse"], "the following arguments are required: URL"),
        (["sse", "localhost:8000"], "a server's URL is http://HOST:PORT"),
        (["sse", "http://x", "--after", "\u00e9"], "a cursor is plain ASCII"),
        (["sse", "http://x", "--interval", "5"], "--interval is for short-polling"),
        (["short-polling", "http://x", "--interval", "0"], "a number above 0, not '0'"),
        (["sse", "http://127.0.0.1:FREE", "--give-up-after", "2"], "for 2 s (ConnectionRefusedError"),
    ],
)
def test_command_line_says_in_one_line_what_it_cannot_do(
    arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A bad option, an address where nobody listens, a refusal: one line on stderr and status 2."""
    try:
        status = main([argument.replace("FREE", str(free_port())) for argument in arguments])
    except SystemExit as end:  # argparse's way
        status = int(end.code or 0)
    out, err = capsys.readouterr()
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("python -m lab.clients: ")
    assert expected in err
