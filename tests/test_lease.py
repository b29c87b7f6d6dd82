"""The lease: a stream ends at a bounded age, after a whole event, and its client comes back with nothing lost or twice.

In virtual time, where an age is exact; the fast path, the readable one and the file service keep the same promise.
"""

import asyncio
import contextlib
import itertools
import random
from collections.abc import Callable

import httpx
import pytest

from lab import clients
from lab.clients import News, Retry, Update
from lab.clients.event_stream import EventStreamParser
from lab.virtual import Link, Net, run_virtual, serve
from servers import file_updates, sse, websocket
from servers.feed import Feed
from servers.lease import SPREAD, Leases
from servers.service import Closing, Service
from tests.support import command, on_a_loop, until

AGE = 20.0  # s
STREAMS: dict[str, Callable[[Feed], Service]] = {
    "sse": lambda feed: sse.create_app(feed, max_age=AGE, seed=1),
    "sse, fast": lambda feed: sse.create_app(feed, max_age=AGE, seed=1, fast=True),
    "file-updates": lambda feed: file_updates.create_app(feed, max_age=AGE, seed=1, coalesce=False),
    "websocket": lambda feed: websocket.create_app(feed, max_age=AGE, seed=1),
    "websocket, fast": lambda feed: websocket.create_app(feed, max_age=AGE, seed=1, fast=True),
}
every_stream = pytest.mark.parametrize("name", STREAMS)


class Spans:
    """When each request began and ended (loop time, s)."""

    def __init__(self) -> None:
        self.spans: list[list[float]] = []

    @contextlib.contextmanager
    def request(self):  # type: ignore[no-untyped-def]
        loop = asyncio.get_running_loop()
        self.spans.append([loop.time(), float("nan")])
        span = self.spans[-1]
        try:
            yield
        finally:
            span[1] = loop.time()


def client_of(name: str) -> Callable[..., object]:
    return clients.websocket if name.startswith("websocket") else clients.sse


@every_stream
def test_a_stream_ends_between_half_its_age_and_all_of_it_and_nothing_is_lost(name: str) -> None:
    """Every stream lasts from S/2 to S seconds; its client is back in a quarter second, and gets each update once."""

    async def main(net: Net) -> tuple[list[News], list[list[float]], Service]:
        app = STREAMS[name](Feed(epoch="e"))
        log, seen = Spans(), list[News]()
        async with serve(app) as served:

            async def follow() -> None:
                retry = Retry(rng=random.Random(1))
                async for news in client_of(name)(served.url, "", retry=retry, log=log):  # type: ignore[attr-defined]
                    seen.append(news)

            following = asyncio.create_task(follow())
            for number in range(800):
                app.feed.publish(f"file-{number}.txt")
                await asyncio.sleep(0.25)
            await asyncio.sleep(1)
            following.cancel()
            await asyncio.wait([following])
            held = len(app.leases.held)
        assert held <= 1
        return seen, log.spans, app

    seen, spans, app = run_virtual(main, link=Link(delay=0.02))
    assert [news.seq for news in seen if isinstance(news, Update)] == list(range(1, 801))
    lasted = [end - begin for begin, end in spans[:-1]]
    gaps = [after[0] - before[1] for before, after in itertools.pairwise(spans)]
    assert len(lasted) >= 200 / AGE
    assert all(SPREAD * AGE <= age <= AGE + 0.4 for age in lasted)
    assert all(gap <= 0.25 for gap in gaps)
    assert app.traffic.requests == len(spans)


@pytest.mark.parametrize("fast", [False, True])
def test_an_event_stream_that_ends_says_so_in_its_last_block(fast: bool) -> None:
    """The end is a whole block, which makes EventSource wait 100 ms instead of `retry`, and moves no cursor."""

    async def main(net: Net) -> bytes:
        app = sse.create_app(Feed(epoch="e"), max_age=AGE, seed=1, fast=fast)
        async with serve(app) as served, httpx.AsyncClient(trust_env=False, timeout=None) as http:
            return (await http.get(f"{served.url}/events")).content  # ends cleanly, or this raises

    body = run_virtual(main)
    parser = EventStreamParser()
    assert [event.type for event in parser.feed(body)] == ["renew"]
    assert body.endswith(b"\n\n")
    assert (parser.reconnection_time, parser.last_event_id) == (100, "e-0")


@every_stream
def test_without_an_age_a_stream_stays(name: str) -> None:
    """A server without `max_age` ends no stream and keeps no timer."""

    async def main(net: Net) -> int:
        module = websocket if name.startswith("websocket") else sse
        app = module.create_app(Feed(epoch="e"), fast="fast" in name)
        async with serve(app) as served:
            stream = client_of(name)(served.url, "")
            async with contextlib.aclosing(stream):  # type: ignore[type-var]
                waiting = asyncio.create_task(anext(stream))  # type: ignore[call-overload]
                await asyncio.sleep(3600)
                waiting.cancel()
                await asyncio.wait([waiting])
        assert app.leases._timer is None
        requests: int = app.traffic.requests
        return requests

    assert run_virtual(main) == 1


def test_a_lease_is_kept_by_a_socket_that_has_sent_a_filter() -> None:
    """A client that leaves the fast path for a filter of its own keeps the age that it had."""

    async def main(net: Net) -> float:
        import websockets

        app = websocket.create_app(Feed(epoch="e"), max_age=AGE, seed=1, fast=True)
        loop = asyncio.get_running_loop()
        async with serve(app) as served:
            begin = loop.time()
            async with websockets.connect(f"ws{served.url[4:]}/ws", proxy=None, compression=None) as socket:
                await asyncio.sleep(3)
                await socket.send('{"type": "filter", "id": 1, "paths": ["a/"]}')
                with contextlib.suppress(websockets.ConnectionClosed):
                    while True:
                        await socket.recv()
                assert socket.close_code == 1012
            return loop.time() - begin

    assert SPREAD * AGE <= run_virtual(main) <= AGE + 0.2


def test_a_client_that_reads_nothing_holds_no_lease_beyond_its_age() -> None:
    """On the fast path the age of a stream ends also when its client reads nothing and its buffer is full."""

    async def main(net: Net) -> tuple[int, int]:
        app = sse.create_app(Feed(epoch="e", history=10_000), max_age=AGE, seed=1, fast=True)
        async with serve(app) as served:
            async with (
                httpx.AsyncClient(trust_env=False, timeout=None) as http,
                http.stream("GET", f"{served.url}/events"),
            ):
                net.link.blackhole("down")
                for number in range(4000):
                    app.feed.publish(f"{'x' * 100}/{number}.txt")
                    if number % 100 == 0:
                        await asyncio.sleep(0.05)
                before = len(app.leases.held)
                await asyncio.sleep(AGE)
                over = [lease for lease in app.leases.held if not lease.over]
                net.link.heal()
                net.link.cut()
            return before, len(over)

    assert run_virtual(main) == (1, 0)


def test_one_timer_for_all() -> None:
    """Ten thousand streams have one timer, which fires at most ten times a second, and ages of S/2 to S, evenly."""

    async def main(net: Net) -> tuple[list[float], int]:
        loop = asyncio.get_running_loop()
        feed = Feed()
        leases, ended, looks = Leases(Closing(feed), 100.0, seed=1), list[float](), 0
        look = leases._look

        def counted() -> None:
            nonlocal looks
            looks += 1
            look()

        leases._look = counted  # type: ignore[method-assign]
        for _ in range(10_000):
            leases.begin(lambda: ended.append(loop.time()))
        begin = loop.time()
        await asyncio.sleep(101)
        return [end - begin for end in ended], looks

    ages, looks = run_virtual(main)
    assert len(ages) == 10_000
    assert looks <= 502
    assert min(ages) >= 50
    assert max(ages) <= 100.1
    assert sum(ages) / len(ages) == pytest.approx(75, rel=0.01)


def test_leases_that_are_over_at_once_end_on_every_loop() -> None:
    """A drain of no time, and what begins while it is over, end; uvloop has no timer for what is due."""
    uvloop = pytest.importorskip("uvloop")

    async def main() -> None:
        leases = Leases(Closing(Feed()))
        held = [leases.begin() for _ in range(3)]
        leases.drain(0.0)
        held += [leases.begin() for _ in range(3)]
        await until(lambda: all(lease.over for lease in held))

    for new_loop in (asyncio.new_event_loop, uvloop.new_event_loop):
        with asyncio.Runner(loop_factory=new_loop) as runner:
            runner.run(main())


def test_streams_that_left_by_themselves_leave_no_entry_for_ever() -> None:
    """The heap is bounded by what is held, however many streams came and went meanwhile."""

    async def main(net: Net) -> int:
        leases = Leases(Closing(Feed()), 1e6, seed=1)
        for _ in range(20_000):
            leases.begin().release()
        return len(leases._ends)

    assert run_virtual(main) < 2000


@pytest.mark.parametrize("wrong", [0.0, -1.0, float("nan"), float("inf")])
def test_an_age_is_a_number_above_0(wrong: float) -> None:
    """Another is refused when the server is made."""
    with pytest.raises(ValueError, match="max age is a number above 0"):
        sse.create_app(Feed(), max_age=wrong)


@on_a_loop
async def test_the_command_line_refuses_an_age_for_what_is_no_stream() -> None:
    """--max-age on a polling server is one line and exit status 2."""
    async with command("servers", "long-polling", "--max-age", 60) as process:
        _, error = await process.communicate()
    assert process.returncode == 2
    assert error.decode() == "python -m servers: --max-age is for streams: it has no effect on long-polling\n"
