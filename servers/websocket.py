"""WebSocket: one handshake, then messages both ways on one TCP connection, until either side closes.

    client: GET /ws?after=C, Upgrade: websocket ─▶ server: 101, {"type": "hello", "cursor": C}
            ◀─ {"type": "updates", "updates": [...], "cursor": C'}      as they come
            ─▶ {"type": "filter", "id": 1, "paths": ["reports/"]}       at any moment
            ◀─ {"type": "filtered", "id": 1, "cursor": C''}             obeyed from here on
            ◀─ {"type": "reset", "reason": ..., "cursor": C}            some are gone: list again

Close codes (RFC 6455, section 7.4.1): 1001 the server is going, 1008 a message or cursor that breaks the
rules; a refusal before the handshake is HTTP 403. CORS does not protect WebSockets, so `Origin` is checked.
1012 ("service restart" in IANA's registry) is a lease that is over: come back at once. 1001 goes to all in one instant
and wants a pause at random; 1012 the server itself spreads over time.
"""

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Collection, Mapping
from typing import Any

from fastapi import WebSocket, WebSocketDisconnect
from starlette.websockets import WebSocketDisconnected

from servers.feed import BATCH, HEARTBEAT, BadCursor, Batch, Feed, Gap
from servers.lease import Lease
from servers.service import Service, Source, refuse_two_cursors

GOING_AWAY, POLICY_VIOLATION, RENEW = 1001, 1008, 1012
LEFT = (WebSocketDisconnect, WebSocketDisconnected)  # found while reading, while writing


def create_app(
    feed: Feed,
    *,
    allow_origins: Collection[str] = (),
    heartbeat: float = HEARTBEAT,
    max_age: float | None = None,
    seed: int | None = None,
    fast: bool = False,
    source: Source | None = None,
) -> Service:
    """A server that keeps a connection. `allow_origins` admits pages from elsewhere, such as "https://hub.example".

    A client that is silent is pinged each `heartbeat` (s), by what serves this. A connection ends at an age (s) drawn
    from [`max_age`/2, `max_age`]. `fast`: the same messages, each made once for all who want everything, by
    servers/fan_out.
    """
    app = Service(
        "WebSocket",
        feed,
        path="/ws",
        page="websocket.html",
        heartbeat=heartbeat,
        source=source,
        max_age=max_age,
        seed=seed,
    )

    @app.websocket("/ws")
    async def updates(socket: WebSocket, after: str | None = None) -> None:
        if opening := await accepted(socket, after):
            with app.leases.begin() as lease:
                connection = Connection(app, socket, opening.position, lease)
                await connection.run(connection.greet(opening))

    async def accepted(socket: WebSocket, after: str | None) -> Batch | Gap | None:
        with contextlib.suppress(*LEFT):
            return await decided(socket, after)
        return None

    async def decided(socket: WebSocket, after: str | None) -> Batch | Gap | None:
        try:
            refuse_two_cursors(socket)
            opening = feed.opening(after)
        except BadCursor as error:
            await socket.close(POLICY_VIOLATION, str(error))
            return None
        if not admitted(socket, allow_origins):
            await socket.close(POLICY_VIOLATION, "foreign origin")
            return None
        await socket.accept()
        return opening

    if fast:
        from servers.fan_out.sockets import SocketFanOut

        SocketFanOut(app, accepted).stands_before(app)
    return app


class BrokenRules(ValueError):
    """A client's message that is not of the protocol; the text is one sentence for it."""


class Connection:
    """One client. `send_updates` and `obey_filters` run side by side; when one fails, so does the other."""

    def __init__(self, app: Service, socket: WebSocket, position: int, lease: Lease) -> None:
        self.app, self.socket, self.lease = app, socket, lease
        self.read = self.told = position  # so far: from the log; to the client, which is told less often
        self.prefixes: tuple[str, ...] = ("",)  # every path starts with ""
        self.turn = asyncio.Lock()  # a filter and the messages that obey it keep their order

    async def run(self, beginning: Awaitable[None]) -> None:
        """Begin, and serve until the client leaves or breaks the rules, or the server closes."""
        try:
            async with asyncio.TaskGroup() as both_ways:
                await beginning
                both_ways.create_task(self.send_updates())
                await self.obey_filters()
        except* BrokenRules as broken:
            await self.close(POLICY_VIOLATION, str(broken.exceptions[0]))
        except* LEFT:
            pass

    async def greet(self, opening: Batch | Gap) -> None:
        if isinstance(opening, Gap):
            await self.send(opening)
        else:
            await self.socket.send_text(hello_message(opening))

    async def send_updates(self) -> None:
        async for news in self.app.feed.follow(self.read, self.lease):
            async with self.turn:
                await self.send(news)
        await self.close(RENEW if self.lease.over else GOING_AWAY)

    async def send(self, news: Batch | Gap) -> None:
        self.read = news.position
        if isinstance(news, Gap):
            self.app.traffic.resets += 1
            text = reset_message(news)
        else:
            news = filtered(news, self.prefixes)
            if not news.updates and self.read - self.told < BATCH:
                return  # the next message moves the client's cursor past what was filtered out
            self.app.traffic.delivered += len(news.updates)
            text = news.encoded(updates_message)
        self.told = self.read
        await self.socket.send_text(text)

    async def obey_filters(self) -> None:
        while True:
            await self.obey(await self.socket.receive())

    async def obey(self, message: Mapping[str, Any]) -> None:
        number, prefixes = parse_filter(message)
        async with self.turn:
            self.prefixes, self.told = prefixes, self.read
            cursor = self.app.feed.cursor_at(self.read)
            await self.socket.send_text(json.dumps({"type": "filtered", "id": number, "cursor": cursor}))

    async def close(self, code: int, reason: str = "") -> None:
        with contextlib.suppress(*LEFT):  # a client that has left needs no farewell
            await self.socket.close(code, reason)


def filtered(batch: Batch, prefixes: tuple[str, ...]) -> Batch:
    """The batch without what a client does not want; the same object, which others share, if it wants all."""
    if prefixes == ("",):
        return batch
    return Batch(tuple(u for u in batch.updates if u.path.startswith(prefixes)), batch.position, batch.cursor)


def parse_filter(message: Mapping[str, Any]) -> tuple[int, tuple[str, ...]]:
    """The id and path prefixes of a filter message. Raises BrokenRules on another, WebSocketDisconnect on the last."""
    if message["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(message["code"])
    try:
        match json.loads(message.get("text") or ""):
            case {"type": "filter", "id": int(number), "paths": list(paths)}:
                if not isinstance(number, bool) and all(isinstance(path, str) for path in paths):
                    return number, tuple(paths)
    except (ValueError, RecursionError):
        pass
    raise BrokenRules('a client sends {"type": "filter", "id": number, "paths": [prefix, ...]} as text')


def admitted(socket: WebSocket, allow_origins: Collection[str]) -> bool:
    """Whether the page that opens this socket may: same host, allowed, or not a page (RFC 6455, section 10.2)."""
    origin, host = socket.headers.get("origin"), socket.headers.get("host")
    return origin is None or origin in allow_origins or origin in (f"http://{host}", f"https://{host}")


def hello_message(batch: Batch) -> str:
    """The first message: {"type": "hello", "cursor": C}."""
    return json.dumps({"type": "hello", "cursor": batch.cursor})


def reset_message(gap: Gap) -> str:
    """The gap as a message; the client goes on from its cursor."""
    return json.dumps({"type": "reset"} | gap.as_dict())


def updates_message(batch: Batch) -> str:
    """The batch as one message: {"type": "updates", "updates": [...], "cursor": C}."""
    return '{"type":"updates",' + batch.body.decode()[1:]
