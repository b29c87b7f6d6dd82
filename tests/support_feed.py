"""A plain reader of each model, on the library a user would take: what a server says, as it comes.

READERS[model](url, after) ─▶ (updates, cursor), (updates, cursor), ...    each update the JSON object of the wire
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Callable
from typing import Any

import httpx
import httpx_sse
import websockets

Answer = tuple[list[dict[str, Any]], str]
Reader = Callable[[str, str], AsyncGenerator[Answer, None]]
POLL = 0.02  # seconds between two short polls
HOLD = 10  # seconds of a long poll


def client() -> httpx.AsyncClient:
    """No proxy, no certificates, and no limit on silence: whoever reads has its own deadline."""
    return httpx.AsyncClient(timeout=httpx.Timeout(10, read=None), trust_env=False, verify=False)


async def short_polling(url: str, after: str) -> AsyncGenerator[Answer, None]:
    """Ask at an interval; a 304 is no answer worth telling."""
    async with client() as http:
        headers: dict[str, str] = {}
        while True:
            response = await http.get(f"{url}/updates", params={"after": after}, headers=headers)
            if response.status_code != 304:
                body = response.raise_for_status().json()
                after, headers = body["cursor"], {"If-None-Match": response.headers["ETag"]}
                yield body["updates"], after
            await asyncio.sleep(POLL)


async def long_polling(url: str, after: str) -> AsyncGenerator[Answer, None]:
    """Ask again as soon as there is an answer."""
    async with client() as http:
        while True:
            response = await http.get(f"{url}/updates", params={"after": after, "wait": HOLD})
            body = response.raise_for_status().json()
            after = body["cursor"]
            yield body["updates"], after


async def websocket(url: str, after: str) -> AsyncGenerator[Answer, None]:
    """Connect once and listen; the greeting comes as an answer without updates."""
    address = url.replace("http", "ws", 1) + f"/ws?after={after}"
    async with websockets.connect(address, proxy=None, max_size=None) as connection:
        async for text in connection:
            message = json.loads(text)
            assert message["type"] in ("hello", "updates")
            yield message.get("updates", []), message["cursor"]


async def sse(url: str, after: str) -> AsyncGenerator[Answer, None]:
    """Connect once and listen; the opening block comes as an answer without updates."""
    async with (
        client() as http,
        httpx_sse.aconnect_sse(http, "GET", f"{url}/events", params={"after": after}) as source,
    ):
        source.response.raise_for_status()
        async for event in source.aiter_sse():
            if event.event == "update":
                yield [event.json()], event.id
            else:  # httpx-sse tells a block of an id alone as an event without data
                assert (event.event, event.data) == ("message", "")
                yield [], event.id


READERS: dict[str, Reader] = {
    "short-polling": short_polling,
    "long-polling": long_polling,
    "websocket": websocket,
    "sse": sse,
}


async def read_until(
    model: str, url: str, after: str, enough: Callable[[list[dict[str, Any]]], object], limit: float = 30
) -> Answer:
    """All updates from `after` on until there are enough of them, and the cursor then; TimeoutError past `limit` s."""
    seen: list[dict[str, Any]] = []
    async with asyncio.timeout(limit), contextlib.aclosing(READERS[model](url, after)) as answers:
        async for updates, cursor in answers:
            seen += updates
            if updates:  # whoever is cut off here resumes here
                assert cursor.rpartition("-")[2] == str(updates[-1]["seq"])
            if enough(seen):
                return seen, cursor
    raise AssertionError(f"{model} ended after {len(seen)} updates")
