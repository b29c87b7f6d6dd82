"""A world in VIRTUAL time: the real server and client, a simulated clock and network; a cell takes milliseconds."""

import asyncio
import time
from collections.abc import Callable
from typing import Any, cast

from lab.faults.subjects import Pace, Subject
from lab.faults.world import Strike, World
from lab.virtual import Link, Net, serve

DELAY = 0.025  # s, one way
LOOK = 0.5  # s from look to look of what ends connections


class VirtualWorld(World):
    """A server at http://server and clients over one `Link`."""

    link: Link

    def __init__(self, net: Net, subject: Subject, pace: Pace, **options: Any) -> None:
        super().__init__(subject, pace, **options)
        self.net, self.link = net, net.link

    @property
    def url(self) -> str:
        """Where clients ask."""
        return "http://server"

    async def start(self) -> None:
        """Serve, by a new server."""
        self.serving = serve(self.application())
        await self.serving.__aenter__()

    async def stop(self) -> None:
        """End the server as it ends by itself: it closes its streams first."""
        self.gone += self.door.gone
        await self.serving.__aexit__(None, None, None)

    async def run(self, strike: Strike) -> None:
        """Live through the fault, from the start of the server to its end."""
        await self.start()
        self.zero = time.perf_counter()
        following = [asyncio.create_task(self.follow(memory)) for memory in self.memories]
        try:
            await self.live_through(strike)
        finally:
            for task in following:
                task.cancel()
            await asyncio.wait(following)
            self.link.heal()
            self.link.cut()
            await self.stop()
        for task in following:
            if not task.cancelled():
                task.result()  # raises what ended it

    async def end_connections(self, seconds: float, due: Callable[[], bool]) -> None:
        """For so long, cut what there is whenever it is due: what a proxy does."""
        end = self.now + seconds
        while self.now < end:
            if due():
                self.link.cut()
            await asyncio.sleep(LOOK)

    def silent_for(self) -> float:
        """Seconds since anything was sent over a connection that is open; 0 if none is."""
        live = {connection.number for connection in self.net.connections if connection.closed is None}
        rows = self.net.transcript or []
        last = next((row.sent for row in reversed(rows) if row.connection in live), None)
        return 0.0 if last is None else asyncio.get_running_loop().time() - last

    def asked_ago(self) -> float:
        """Seconds since the open request was begun; 0 if none is open."""
        spans = [span for memory in self.memories for span in memory.requests if span.end is None]
        return time.perf_counter() - spans[-1].start if spans else 0.0

    def step_clock(self, seconds: int) -> None:
        """Set the wall clock; no timer moves."""
        loop, before = cast(Any, asyncio.get_running_loop()), time.time()
        loop.epoch += seconds
        self.aside = f"ages by the wall clock are {before - time.time():.0f} s off"
