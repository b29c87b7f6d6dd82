"""The cures of notebook 07, each as one run of the real servers and clients in virtual time, given back as arrays.

leased(model, age)    ─▶ Run: requests, delays, bytes at one age of streams; age 0 is polling, ∞ is push
herd(clients, retry)  ─▶ moments at which clients come back whose streams broke in one instant
drained(seconds)      ─▶ moments at which the clients of a server that drains reach another one
relisted(seconds)     ─▶ moments at which mirrors list after a reset, spread over so many seconds
"""

import asyncio
import contextlib
import dataclasses
import math
import random
import tempfile
from collections.abc import AsyncGenerator, Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from starlette.types import Receive, Scope, Send

from lab import clients
from lab.bench.experiment import ClientLog, Run, Schedule, experiment
from lab.clients import News, Retry, Update
from lab.mirror import Mirror
from lab.virtual import Link, Net, run_virtual, serve
from servers import file_updates, sse, websocket
from servers.feed import Feed
from servers.service import Service
from servers.tree import Tree

Array = NDArray[np.float64]

MODELS: dict[str, tuple[Callable[..., Service], Callable[..., AsyncGenerator[News, None]]]] = {
    "SSE": (sse.create_app, clients.sse),
    "WebSocket": (websocket.create_app, clients.websocket),
}


def leased(
    model: str, age: float, *, rate: float = 2.0, seconds: float = 300.0, count: int = 10, delay: float = 0.02
) -> Run:
    """`count` robust clients of "SSE" or "WebSocket" follow `rate` updates a second; no stream is older than `age` (s).

    `delay` is the link's, one way (s). The back-off begins at a hundredth of the age, for an age may be short.
    """
    make, client = MODELS[model]
    limit = None if math.isinf(age) else age

    async def follow(url: str, log: ClientLog) -> None:
        retry = Retry(base=0.0 if limit is None else limit / 100, rng=log.rng)
        async with contextlib.aclosing(client(url, log.cursor, retry=retry, log=log)) as stream:
            async for news in stream:
                if isinstance(news, Update):
                    log.deliver({"seq": news.seq})

    async def main(net: Net) -> Run:
        async with serve(make(Feed(epoch="e"), max_age=limit, seed=1)) as server:
            schedule = Schedule.poisson(rate=rate, seconds=seconds, seed=7)
            return await experiment(server, follow, schedule, clients=count, label=f"{model}, {age:g} s")

    return run_virtual(main, link=Link(delay=delay), wall=120)


class Balancer:
    """One address before several servers: a request goes to the first that is ready, and is noted (loop time, s)."""

    def __init__(self, *services: Service) -> None:
        self.services = services
        self.moments: list[tuple[int, float]] = []  # which server, when

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        ready = [number for number, service in enumerate(self.services) if service.status == "ok"]
        if scope["type"] != "lifespan":
            self.moments.append((ready[0], asyncio.get_running_loop().time()))
        await self.services[ready[0] if ready else 0](scope, receive, send)

    def close(self) -> None:
        """End all streams, behind a Balancer or not."""
        for service in self.services:
            service.closing.close()

    def since(self, moment: float, number: int) -> Array:
        """When requests reached that server, after a moment, counted from it (s)."""
        return np.array([at - moment for which, at in self.moments if which == number and at >= moment])


@contextlib.asynccontextmanager
async def audience(url: str, retry: Retry, count: int, cursor: str) -> AsyncGenerator[list[list[int]]]:
    """So many followers of an event stream while the block runs, and what each has got."""
    got: list[list[int]] = [[] for _ in range(count)]

    async def follow(number: int) -> None:
        pauses = dataclasses.replace(retry, rng=random.Random(number))
        stream: AsyncGenerator[News, None] = clients.sse(url, cursor, retry=pauses)
        async with contextlib.aclosing(stream):
            async for news in stream:
                if isinstance(news, Update):
                    got[number].append(news.seq)

    tasks = [asyncio.create_task(follow(number)) for number in range(count)]
    try:
        yield got
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


def herd(count: int = 100, *, base: float = 1.0, cap: float = 30.0) -> Array:
    """When clients come back (s) whose streams broke at 0 to a server that is there: as theory's reconnects("full")."""

    async def main(net: Net) -> Array:
        balancer = Balancer(sse.create_app(Feed(epoch="e"), retry=0))
        loop = asyncio.get_running_loop()
        async with serve(balancer) as served:
            async with audience(served.url, Retry(base, cap), count, "e-0"):
                await asyncio.sleep(base + 1)
                cut = loop.time()
                net.link.cut()
                await asyncio.sleep(base + 1)
            balancer.close()
            await asyncio.sleep(0.1)
        return balancer.since(cut, 0)

    return run_virtual(main, link=Link(delay=0.001))


def drained(seconds: float, count: int = 100, *, fast: bool = False) -> tuple[Array, list[list[int]], int]:
    """When the clients of a server that stops reach the other one (s from the signal); what each got; what there was.

    With 0 the server ends all streams at once, as it does without --drain. Updates are published all the while.
    """

    async def main(net: Net) -> tuple[Array, list[list[int]], int]:
        feed = Feed(epoch="e")
        old, new = (sse.create_app(feed, fast=fast, seed=1) for _ in range(2))
        balancer, loop = Balancer(old, new), asyncio.get_running_loop()
        async with serve(balancer) as served:
            async with audience(served.url, Retry(), count, "e-0") as got:
                await asyncio.sleep(2)
                begin = loop.time()
                old.leases.drain(seconds)
                if not seconds:
                    old.closing.close()
                for number in range(60):
                    feed.publish(f"file-{number}.txt")
                    await asyncio.sleep((seconds + 6) / 60)
                assert old.traffic.held == 0, "a server that has drained holds nothing"
            balancer.close()
            await asyncio.sleep(0.1)
        return balancer.since(begin, 1), got, feed.head

    return run_virtual(main, link=Link(delay=0.02), wall=120)


def relisted(seconds: float, count: int = 30) -> tuple[Array, list[bool]]:
    """When mirrors list (s from the reset) that all got it at once, and which of them end as their server is."""

    def wrote(original: Path, text: str) -> Tree:
        original.mkdir(exist_ok=True)
        (original / "a.txt").write_text(text)
        return Tree(original)

    async def main(net: Net) -> tuple[Array, list[bool]]:
        with tempfile.TemporaryDirectory() as place:
            original = Path(place, "original")
            feeds = Feed(epoch="one"), Feed(epoch="two")
            first = file_updates.create_app(feeds[0], wrote(original, "one"), retry=0)
            balancer, loop = Balancer(first), asyncio.get_running_loop()
            listings = list[float]()

            async def noted(scope: Scope, receive: Receive, send: Send) -> None:
                if scope["type"] == "http" and scope["path"] == "/files":
                    listings.append(loop.time())
                await balancer(scope, receive, send)

            async with serve(noted) as served:
                copies = [Path(place, f"copy-{n}") for n in range(count)]
                tasks = [asyncio.create_task(mirrored(served.url, copy, seconds, n)) for n, copy in enumerate(copies)]
                await asyncio.sleep(5)
                second = file_updates.create_app(feeds[1], wrote(original, "two"), retry=0)  # with a log of its own
                balancer.services = second, first
                begin = loop.time()
                first.closing.close()
                await asyncio.sleep(seconds + 5)
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks)
                balancer.close()
                await asyncio.sleep(0.1)
            same = [(copy / "a.txt").read_text() == "two" for copy in copies]
            return np.array([at - begin for at in listings if at >= begin]), same

    return run_virtual(main, link=Link(delay=0.005), wall=120)


async def mirrored(url: str, copy: Path, relist: float, seed: int) -> None:
    """Mirror for ever."""
    mirror = Mirror(url, copy, relist=relist, retry=Retry(0.1, 0.1, rng=random.Random(seed)))
    async for _ in mirror.follow():
        pass
