"""The WebSocket's fast path: a message is made a frame once, and written to every client that wants everything.

    feed ─▶ SocketFanOut.run(), one task ─▶ Batch ─▶ one frame ─▶ every transport at the head
    a client that sends a filter ─▶ websocket.Connection, which serves it from there, as it always does

uvicorn's protocol goes on to ping, to answer pings and to close. What is left for each client is one task, which waits
for what the client says; none of FastAPI's routing and middleware stands behind it.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

from fastapi import WebSocket
from starlette.types import Receive, Scope, Send

from servers.fan_out import Client, FanOut
from servers.feed import Batch, Gap
from servers.lease import Lease
from servers.on_uvicorn import WebSocketProtocol, carrier_of, frame_of
from servers.service import Held, Service
from servers.websocket import GOING_AWAY, LEFT, RENEW, Connection, hello_message, reset_message, updates_message

Accept = Callable[[WebSocket, str | None], Awaitable[Batch | Gap | None]]


class SocketClient(Client):
    """One open WebSocket: everything up to `position` has been written to it."""

    __slots__ = ("carrier",)

    def __init__(self, carrier: WebSocketProtocol, send: Send, position: int, lease: Lease) -> None:
        super().__init__(carrier.transport, send, position, lease)
        self.carrier = carrier

    async def write(self, block: bytes, *, more: bool = True) -> None:
        """Write a frame, after the client has read most of what it was sent before."""
        await self.carrier.push(block)

    async def finish(self) -> None:
        """Say that the server goes, behind all that was written, also if that takes its time."""
        await self.carrier.push(b"")
        self.end()

    def end(self) -> None:
        """Say that the server goes, or that the lease is over, by one write."""
        self.carrier.farewell(RENEW if self.lease.over else GOING_AWAY)


class SocketFanOut(FanOut):
    """All open WebSockets of one server. `accept` opens one, or refuses it."""

    def __init__(self, app: Service, accept: Accept) -> None:
        super().__init__(app, coalesce=False)
        self.app, self.accept = app, accept
        self.beat = None  # uvicorn's protocol pings

    def stands_before(self, app: Service) -> None:
        """Take the WebSockets at the model's path."""
        behind = app.gate

        async def gate(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "websocket" and scope["path"] == scope.get("root_path", "") + app.path:
                carrier = carrier_of(send)
                if isinstance(carrier, WebSocketProtocol):
                    return await self.serve(carrier, scope, receive, send)
            return await behind(scope, receive, send)

        app.gate = gate

    async def serve(self, carrier: WebSocketProtocol, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one client until it leaves, or asks for less than everything."""
        self.traffic.requests += 1
        with Held(self.traffic, send) as answer, contextlib.suppress(*LEFT):
            socket = WebSocket(scope, receive, answer)
            if opening := await self.accept(socket, socket.query_params.get("after")):
                with self.leases.begin() as lease:
                    await self.follow(carrier, socket, send, opening, lease)

    async def follow(
        self, carrier: WebSocketProtocol, socket: WebSocket, send: Send, opening: Batch | Gap, lease: Lease
    ) -> None:
        """Serve it here until it says something, and from then on as websocket.py does."""
        if carrier.plain:
            await carrier.push(self.greeting(opening))
            client = SocketClient(carrier, send, opening.position, lease)
            del opening
            self.admit(client)
            try:
                message = await socket.receive()
            finally:
                position = await self.withdrawn(client)
            connection = Connection(self.app, socket, position, lease)
            beginning = connection.obey(message)
        else:
            connection = Connection(self.app, socket, opening.position, lease)
            beginning = connection.greet(opening)
        await connection.run(beginning)

    def greeting(self, opening: Batch | Gap) -> bytes:
        """The first message as a frame."""
        if isinstance(opening, Gap):
            self.traffic.resets += 1
            return frame_of(reset_message(opening))
        return frame_of(hello_message(opening))

    async def withdrawn(self, client: SocketClient) -> int:
        """Take a client from here; the position up to which it has been told, to the message."""
        client.lease.end = None
        async with self.turn:
            if client.task:
                client.task.cancel()
                await asyncio.wait([client.task])
            if client.transport and self.fast.pop(client.transport, None):
                return self.position
            return client.position

    def encoded(self, news: Batch | Gap) -> bytes:
        """The news as a frame, made once."""
        return frame_of(reset_message(news)) if isinstance(news, Gap) else news.encoded(_frame)

    framed = encoded


def _frame(batch: Batch) -> bytes:
    return frame_of(batch.encoded(updates_message))
