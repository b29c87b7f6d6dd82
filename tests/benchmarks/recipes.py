"""The recipes that tutorials give, to be compared with: python recipes.py NAME PORT RATE ARRIVALS.

Each is what a reader finds first, kept as it is usually written: a queue per client, an encoding per
client, and no cursor. They publish the synthetic edits of our own servers, at the same times: `RATE` a
second, and ARRIVALS is "regular" or "poisson".
"""

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
import uvloop
import websockets
from fastapi import FastAPI, Request, WebSocket, WebSocketDisconnect
from sse_starlette import EventSourceResponse

from servers.sources import synthetic_edits

NAME, PORT, RATE, ARRIVALS = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), sys.argv[4]

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
sockets: set[websockets.ServerConnection] = set()


async def publish() -> None:
    start = time.perf_counter()
    for edit in synthetic_edits(RATE, regular=ARRIVALS == "regular"):
        await asyncio.sleep(start + edit.at - time.perf_counter())
        update = {
            "seq": len(history) + 1,
            "path": edit.path,
            "change": edit.change,
            "size": edit.size,
            "sha256": edit.sha256,
            "published": round(time.time(), 6),
        }
        async with news:
            history.append(update)
            news.notify_all()
        for queue in queues:
            queue.put_nowait(update)
        await manager.broadcast(update)
        if sockets:
            websockets.broadcast(sockets, json.dumps(update))


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


async def broadcasting() -> None:
    """The documentation of `websockets`' way to tell many clients the same: one frame for all of them."""

    async def handler(connection: websockets.ServerConnection) -> None:
        sockets.add(connection)
        try:
            await connection.wait_closed()
        finally:
            sockets.remove(connection)

    async with websockets.serve(handler, "127.0.0.1", PORT, compression=None):
        await publish()


if __name__ == "__main__":
    if NAME == "broadcast":
        uvloop.run(broadcasting())
        sys.exit()
    protocols = {"ws": "websockets", "ws-sansio": "websockets-sansio", "ws-deflate": "websockets"}
    uvicorn.run(
        app,
        port=PORT,
        log_level="error",
        ws=protocols.get(NAME, "auto"),
        ws_per_message_deflate=NAME == "ws-deflate",
    )
