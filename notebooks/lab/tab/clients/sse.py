"""Read a stream that does not end; when it breaks or falls silent, go on from the last event's id."""

import asyncio

import httpx
from httpx_sse import aconnect_sse

from lab.bench import ClientLog
from lab.tab import HTTP


async def client(url: str, log: ClientLog, heartbeat: float) -> None:
    cursor = log.cursor
    limit = {"timeout": httpx.Timeout(10, read=2.5 * heartbeat)}
    async with httpx.AsyncClient(**HTTP | limit) as http:
        while True:
            here = {"Last-Event-ID": cursor}
            try:
                with log.request():
                    async with aconnect_sse(http, "GET", f"{url}/events", headers=here) as source:
                        async for event in source.aiter_sse():
                            if event.event == "update":
                                log.deliver(event.json())
                            cursor = event.id or cursor
            except httpx.HTTPError:  # a cut, or silence
                pass
            await asyncio.sleep(2 + log.rng.uniform(0, 2))
