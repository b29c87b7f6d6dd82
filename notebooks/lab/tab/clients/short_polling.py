"""Ask, and ask again: every `interval` seconds, from the cursor of the answer before."""

import asyncio
import time

import httpx

from lab.bench import ClientLog
from lab.tab import HTTP


async def client(url: str, log: ClientLog, interval: float) -> None:
    cursor = log.cursor
    due = time.perf_counter()
    async with httpx.AsyncClient(**HTTP) as http:
        while True:
            try:
                with log.request():
                    query = {"after": cursor}
                    response = await http.get(f"{url}/updates", params=query)
                    answer = response.json()
                    for update in answer.get("updates", []):
                        log.deliver(update)
                cursor = answer["cursor"]
            except httpx.HTTPError:  # a cut, or silence: the next poll asks again
                pass
            due = max(due + interval, time.perf_counter())
            await asyncio.sleep(due - time.perf_counter())
