"""The recipes that tutorials give, to be compared with: python recipes.py NAME PORT RATE.

Each is what a reader finds first, kept as it is usually written: a queue per client, an encoding per
client, and no cursor. They publish one update of about 190 bytes `RATE` times a second.
"""

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, WebSocket, WebSocketDisconnect
from sse_starlette import EventSourceResponse

RATE = float(sys.argv[3]) if len(sys.argv) > 3 else 10.0

history: list[dict[str, Any]] = []
news = asyncio.Condition()
queues: list[asyncio.Queue[dict[str, Any]]] = []


class ConnectionManager:
    """The FastAPI documentation's way to serve several WebSocket clients."""

    def __init__(self) -> None:
        self.active: list[WebSocket] = []

    async def broadcast(self, message: dict[str, Any]) -> None:
        for connection in list(self.active):
            await connection.send_json(message)


manager = ConnectionManager()


async def publish() -> None:
    while True:
        await asyncio.sleep(1 / RATE)
        seq = len(history) + 1
        update = {
            "seq": seq,
            "path": f"reports/file-{seq % 50:03}.txt",
            "change": "modified",
            "size": 1234,
            "sha256": "0" * 64,
            "published": round(time.time(), 6),
        }
        async with news:
            history.append(update)
            news.notify_all()
        for queue in queues:
            queue.put_nowait(update)
        await manager.broadcast(update)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    task = asyncio.create_task(publish())
    yield
    task.cancel()


app = FastAPI(lifespan=lifespan)


@app.get("/events")
async def events(request: Request) -> EventSourceResponse:
    async def stream() -> AsyncIterator[dict[str, str]]:
        queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        queues.append(queue)
        try:
            while True:
                if await request.is_disconnected():
                    break
                update = await queue.get()
                yield {"event": "update", "id": str(update["seq"]), "data": json.dumps(update)}
        finally:
            queues.remove(queue)

    return EventSourceResponse(stream())


@app.websocket("/ws")
async def ws(websocket: WebSocket) -> None:
    await websocket.accept()
    manager.active.append(websocket)
    try:
        while True:
            await websocket.receive_text()
    except WebSocketDisconnect:
        manager.active.remove(websocket)


@app.get("/updates")
async def updates(after: int | None = None, wait: float = 0) -> dict[str, Any]:
    if after is None:
        after = len(history)
    if wait:
        async with news:
            try:
                await asyncio.wait_for(news.wait_for(lambda: len(history) > after), wait)
            except TimeoutError:
                pass
    return {"updates": history[after:], "cursor": len(history)}


if __name__ == "__main__":
    websockets = {"ws": "websockets", "ws-sansio": "websockets-sansio", "ws-deflate": "websockets"}
    uvicorn.run(
        app,
        port=int(sys.argv[2]),
        log_level="error",
        ws=websockets.get(sys.argv[1], "auto"),
        ws_per_message_deflate=sys.argv[1] == "ws-deflate",
    )
