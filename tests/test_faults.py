"""What every model promises, whatever the network and the server do: in order, once, complete, or an explicit reset.

The real servers and the course's robust clients, in virtual time. A fault is a cut, a black hole, a restart of the
server with its log or with a new one; they come at moments that hypothesis chooses, and for the streams a cut comes
at every single byte.
"""

import asyncio
import contextlib
import random
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lab import clients
from lab.clients import News, Reset, Retry, Update
from lab.virtual import Link, Net, run_virtual, serve
from servers import long_polling, short_polling, sse, websocket
from servers.feed import Feed
from servers.service import Service

HEARTBEAT = 2.0  # s
EVERY, UPDATES = 0.5, 24  # s from update to update, and how many


@dataclass(frozen=True)
class Model:
    """A server and its robust client, with limits that suit the faults below."""

    make: Callable[[Feed], Service]
    client: Callable[[str, str, Retry], AsyncGenerator[News, None]]


MODELS = {
    "short polling": Model(
        short_polling.create_app,
        lambda url, cursor, retry: clients.short_polling(url, cursor, interval=0.7, timeout=2, retry=retry),
    ),
    "long polling": Model(
        lambda feed: long_polling.create_app(feed, seed=1),
        lambda url, cursor, retry: clients.long_polling(url, cursor, wait=3, timeout=2, retry=retry),
    ),
    "WebSocket": Model(
        websocket.create_app,
        lambda url, cursor, retry: clients.websocket(url, cursor, heartbeat=HEARTBEAT, retry=retry),
    ),
    "SSE": Model(
        lambda feed: sse.create_app(feed, heartbeat=HEARTBEAT, retry=300),
        lambda url, cursor, retry: clients.sse(url, cursor, heartbeat=HEARTBEAT, retry=retry),
    ),
}
MODELS |= {  # the event stream's is in test_fan_out.py
    "short polling, fast": Model(
        lambda feed: short_polling.create_app(feed, fast=True), MODELS["short polling"].client
    ),
    "long polling, fast": Model(
        lambda feed: long_polling.create_app(feed, seed=1, fast=True), MODELS["long polling"].client
    ),
    "WebSocket, fast": Model(lambda feed: websocket.create_app(feed, fast=True), MODELS["WebSocket"].client),
}


class Stage:
    """One server that can be killed and started again at the same address, and the log it serves."""

    def __init__(self, model: Model, history: int) -> None:
        self.model, self.history, self.epoch = model, history, 0
        self.feed = self.new_log()
        self.running = contextlib.AsyncExitStack()

    def new_log(self) -> Feed:
        self.epoch += 1
        return Feed(history=self.history, epoch=f"log{self.epoch}")

    async def start(self) -> str:
        served = await self.running.enter_async_context(serve(self.model.make(self.feed)))
        return served.url

    async def restart(self, *, with_its_log: bool) -> None:
        await self.running.aclose()
        if not with_its_log:
            self.feed = self.new_log()
        await self.start()


Fault = tuple[str, float]  # what, and for how long (s)


def live_through(model: Model, faults: dict[int, list[Fault]], history: int = 1000) -> tuple[list[News], str]:
    """What a client sees while UPDATES updates are published and, before the nth of them, its faults happen.

    Returns that, and the log's cursor at the end. The run fails if the client has not caught up 60 s later.
    """

    async def main(net: Net) -> tuple[list[News], str]:
        stage, seen = Stage(model, history), list[News]()
        url = await stage.start()
        position = stage.feed.cursor
        retry = Retry(base=0.5, cap=2.0, rng=random.Random(1))

        async def follow() -> None:
            nonlocal position
            async with contextlib.aclosing(model.client(url, position, retry)) as stream:
                async for news in stream:
                    seen.append(news)
                    position = news.cursor

        following = asyncio.create_task(follow())
        await asyncio.sleep(0.2)
        for number in range(UPDATES):
            for what, seconds in faults.get(number, []):
                match what:
                    case "cut":
                        net.link.cut()
                    case "black hole":
                        net.link.blackhole()
                        asyncio.get_running_loop().call_later(seconds, net.link.heal)
                    case "half open":
                        net.link.blackhole("down")
                        asyncio.get_running_loop().call_later(seconds, net.link.heal)
                    case "restart":
                        await stage.restart(with_its_log=True)
                    case "restart with a new log":
                        await stage.restart(with_its_log=False)
            stage.feed.publish(f"file-{number}.txt")
            await asyncio.sleep(EVERY)
        async with asyncio.timeout(60):
            while position != stage.feed.cursor and not following.done():  # noqa: ASYNC110  # virtual: it costs nothing
                await asyncio.sleep(0.1)
        following.cancel()
        await asyncio.wait([following])
        if not following.cancelled():
            following.result()
        net.link.heal()
        net.link.cut()
        await stage.running.aclose()
        return seen, stage.feed.cursor

    return run_virtual(main, link=Link(delay=0.02, jitter=0.01))


def assert_promise(seen: list[News], last: str, start: str = "log1-0") -> None:
    """Every update directly follows the position before it; only a reset moves it otherwise; it ends at the head."""
    position = start
    for news in seen:
        if isinstance(news, Update):
            epoch, _, number = position.rpartition("-")
            assert news.cursor == f"{epoch}-{int(number) + 1}", f"after {position} came {news.cursor}"
        position = news.cursor
    assert position == last


durations = st.sampled_from([0.3, 1.0, 4.0, 9.0])
same_log = st.tuples(st.sampled_from(["cut", "black hole", "half open", "restart"]), durations)
any_fault = st.one_of(same_log, st.just(("restart with a new log", 0.0)))


def scripts(fault: st.SearchStrategy[Fault]) -> st.SearchStrategy[dict[int, list[Fault]]]:
    moments = st.integers(min_value=0, max_value=UPDATES - 1)
    return st.dictionaries(moments, st.lists(fault, min_size=1, max_size=2), max_size=5)


@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=12, deadline=None)
@given(faults=scripts(same_log))
def test_with_enough_history_every_update_arrives_once_in_order(name: str, faults: dict[int, list[Fault]]) -> None:
    """Through cuts, black holes and restarts, a client that resumes gets every update, once, in order, and no reset."""
    seen, last = live_through(MODELS[name], faults)
    assert [news.seq for news in seen if isinstance(news, Update)] == list(range(1, UPDATES + 1))
    assert not any(isinstance(news, Reset) for news in seen)
    assert_promise(seen, last)


@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=12, deadline=None)
@given(faults=scripts(any_fault), history=st.integers(min_value=1, max_value=6))
def test_a_hole_is_always_announced(name: str, faults: dict[int, list[Fault]], history: int) -> None:
    """With little history, or another log, whatever is missing is announced by a reset, and the rest is in order."""
    seen, last = live_through(MODELS[name], faults, history)
    assert_promise(seen, last)


@pytest.mark.parametrize("name", MODELS)
def test_a_short_history_and_a_long_silence_lead_to_a_reset(name: str) -> None:
    """A client cut off for longer than the history reaches back is told so: reason "expired"."""
    seen, last = live_through(MODELS[name], {4: [("black hole", 9.0)]}, history=2)
    assert [news.reason for news in seen if isinstance(news, Reset)] == ["expired"]
    assert_promise(seen, last)


@pytest.mark.parametrize("name", MODELS)
def test_a_new_log_leads_to_a_reset(name: str) -> None:
    """A client of a log that is gone is told so: reason "epoch", and goes on with the new log."""
    seen, last = live_through(MODELS[name], {8: [("restart with a new log", 0.0)]})
    assert [news.reason for news in seen if isinstance(news, Reset)] == ["epoch"]
    assert last.startswith("log2-")
    assert_promise(seen, last)


@pytest.mark.parametrize("name", ["SSE", "WebSocket", "WebSocket, fast"])
def test_a_stream_survives_a_cut_at_every_byte(name: str) -> None:
    """Wherever in the response the connection breaks, the client resumes without a gap and without a duplicate."""
    model, expected = MODELS[name], [1, 2]

    async def read(url: str, retry: Retry) -> list[int]:
        numbers = list[int]()
        async with asyncio.timeout(30), contextlib.aclosing(model.client(url, "0", retry)) as stream:
            async for news in stream:
                assert isinstance(news, Update)
                numbers.append(news.seq)
                if news.seq == expected[-1]:
                    break
        return numbers

    async def main(net: Net) -> dict[int, list[int]]:
        feed, results = Feed(epoch="e"), dict[int, list[int]]()
        for number in expected:
            feed.publish(f"{number}")
        async with serve(model.make(feed)) as server:
            whole = net.bytes["down"]
            results[-1] = await read(server.url, Retry(base=0))
            whole = net.bytes["down"] - whole
            net.transcript = None
            for offset in range(whole + 1):
                net.link.cut_after(offset)
                results[offset] = await read(server.url, Retry(base=0))
                net.link.cut()
        return results

    results = run_virtual(main, link=Link(delay=0.001), wall=110)
    assert len(results) > 300
    assert {offset: numbers for offset, numbers in results.items() if numbers != expected} == {}
