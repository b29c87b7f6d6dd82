"""Keep a connection open and take what comes; ask whether it lives, and after a break go on from the cursor."""

import asyncio
import json
from typing import Any

import websockets

from lab.bench import ClientLog


async def client(url: str, log: ClientLog, heartbeat: float) -> None:
    cursor = log.cursor
    alive: dict[str, Any] = {"ping_interval": heartbeat, "ping_timeout": 1.5 * heartbeat}
    alive |= {"close_timeout": 1, "compression": None, "proxy": None}
    while True:
        address = url.replace("http", "ws", 1) + f"/ws?after={cursor}"
        try:
            with log.request():
                async with websockets.connect(address, **alive) as socket:
                    async for message in socket:
                        news = json.loads(message)
                        for update in news.get("updates", []):
                            log.deliver(update)
                        cursor = news.get("cursor", cursor)
        except (OSError, websockets.WebSocketException):
            pass  # refused, or cut
        await asyncio.sleep(log.rng.uniform(0, 2))
