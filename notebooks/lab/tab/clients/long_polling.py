"""Ask, wait for the answer that comes with the news, and ask again at once from its cursor."""

import asyncio

import httpx

from lab.bench import ClientLog
from lab.tab import HTTP


async def client(url: str, log: ClientLog, hold: float) -> None:
    cursor = log.cursor
    limit = {"timeout": httpx.Timeout(10, read=hold + 10)}
    async with httpx.AsyncClient(**HTTP | limit) as http:
        while True:
            try:
                with log.request():
                    query = f"?after={cursor}&wait={hold}"
                    response = await http.get(f"{url}/updates{query}")
                    answer = response.json()
                    for update in answer.get("updates", []):
                        log.deliver(update)
                cursor = answer["cursor"]
            except httpx.HTTPError:  # a cut, or silence
                await asyncio.sleep(log.rng.uniform(0, 2))
