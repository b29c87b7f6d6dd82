"""The faults: each a coroutine that does its harm to a world and returns when the harm is over.

@fault("reset", VIRTUAL)
async def reset(world): world.link.cut()
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lab.bench.result import LIVE, VIRTUAL
from lab.faults.live import LiveWorld
from lab.faults.simulated import VirtualWorld
from lab.faults.world import World

DARK = 60.0  # s of a black hole, an outage of sense, a middleware
IDLE = 10.0  # s of silence after which a proxy of the row "idle cut" ends a connection: less than a heartbeat
TOTAL = 60.0  # s after which a platform ends a request, whatever flows
STEP = 3600  # s that the wall clock is set back
BULK = 64 * 1024  # bytes of an update, for a consumer that is slow
HELD_BACK = 2.5  # s of the LIVE faults: five heartbeats
BUFFERING = "proxy_http_version 1.0; proxy_ignore_headers X-Accel-Buffering;"  # 1.0: the default before nginx 1.29.7
PASSING = "proxy_http_version 1.1;"
UPGRADE = "proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection upgrade;"


@dataclass(frozen=True)
class Fault:
    """A row of the matrix. `loses` says that updates may be gone even with a cursor, and then a reset says so."""

    name: str
    mode: str
    strike: Callable[[Any], Awaitable[None]]
    loses: bool = False
    history: int = 1000  # updates that the log keeps
    clients: int = 1
    meddle: Callable[[ASGIApp], ASGIApp] | None = None  # what stands before the server from the beginning
    proxy: str | None = None  # directives of the nginx in between, if there is one
    act: str = ""  # whose act it is, if it is a participant's

    @property
    def text(self) -> str:
        """What happens, in a line."""
        return (self.strike.__doc__ or "").strip()


FAULTS: dict[str, Fault] = {}


def fault(name: str, mode: str, **options: Any) -> Callable[[Callable[[Any], Awaitable[None]]], Any]:
    """Put a coroutine into the catalogue."""

    def enter(strike: Callable[[Any], Awaitable[None]]) -> Callable[[Any], Awaitable[None]]:
        FAULTS[name] = Fault(name, mode, strike, **options)
        return strike

    return enter


@fault("reset", VIRTUAL)
async def reset(world: VirtualWorld) -> None:
    """Both ends of every connection get a reset, once."""
    world.link.cut()


@fault("black hole", VIRTUAL)
async def black_hole(world: VirtualWorld) -> None:
    """Nothing arrives, either way, for a minute; nobody is told."""
    world.link.blackhole()
    await asyncio.sleep(DARK)
    world.link.heal()


@fault("black hole, one way", VIRTUAL)
async def half_open(world: VirtualWorld) -> None:
    """What the client sends arrives, what the server sends does not, for a minute."""
    world.link.blackhole("down")
    await asyncio.sleep(DARK)
    world.link.heal()


@fault("idle cut", VIRTUAL, act="proxy")
async def idle_cut(world: VirtualWorld) -> None:
    """For a minute there is no news, and a proxy ends what was silent for 10 s: less than a heartbeat."""
    world.quiet = True
    await world.end_connections(DARK, lambda: world.silent_for() > IDLE)


@fault("total limit", VIRTUAL, act="proxy")
async def total_limit(world: VirtualWorld) -> None:
    """For three minutes a platform ends each request that is a minute old, whatever flows."""
    await world.end_connections(3 * TOTAL, lambda: world.asked_ago() > TOTAL)


@fault("restart", VIRTUAL, act="server")
async def restart(world: VirtualWorld) -> None:
    """The server stops, is away for 5 s, and comes back with its log."""
    await world.stop()
    await asyncio.sleep(5)
    await world.start()


@fault("5xx on reconnect", VIRTUAL)
async def unavailable(world: VirtualWorld) -> None:
    """A reset, and then 20 s of 503 from whatever stands before the server."""
    with meddling(world, refused):
        world.link.cut()
        await asyncio.sleep(20)


@fault("error after the 200", VIRTUAL)
async def broken_off(world: VirtualWorld) -> None:
    """A reset, and then 20 s in which each answer begins well and fails after its head."""
    with meddling(world, failing):
        world.link.cut()
        await asyncio.sleep(20)


@fault("history expired", VIRTUAL, loses=True, history=6)
async def expired(world: VirtualWorld) -> None:
    """A minute of black hole, and a log that reaches back over six updates only."""
    await black_hole(world)


@fault("clock step", VIRTUAL)
async def clock_step(world: VirtualWorld) -> None:
    """The wall clock is set back by an hour, on all machines."""
    world.step_clock(-STEP)


@fault("relist storm", VIRTUAL, clients=6, act="server")
async def relist_storm(world: VirtualWorld) -> None:
    """The server comes back with a new log: all its clients, six here, are told to list again."""
    world.quiet = True
    await world.stop()
    world.feed = world.new_log()
    if world.is_service:
        world.feed.adopt({path: file.known for path, file in world.tree.files.items()})
    await world.start()
    await asyncio.sleep(world.pace.start)  # until the last of them has come back
    world.aside = f"{world.worst_second()} requests in the worst second"


@fault("buffering proxy", LIVE, proxy=BUFFERING, act="proxy")
async def buffering(world: LiveWorld) -> None:
    """From the beginning a proxy collects what it is sent, whatever the server asks; then it is passed by."""
    world.began = 0.0
    await asyncio.sleep(HELD_BACK)
    world.cured = world.now
    world.pass_by()


@fault("proxy acks for the dead", LIVE, proxy=PASSING, act="proxy")
async def ghost(world: LiveWorld) -> None:
    """The client has vanished behind a proxy, which goes on taking what the server sends."""
    world.link.blackhole()
    await asyncio.sleep(HELD_BACK)
    world.door.open = False  # what the server hears from here on it hears because the client is back
    world.link.heal()


@fault("slow consumer", LIVE, act="client")
async def slow(world: LiveWorld) -> None:
    """The client's program takes 2.5 s over one update, while 5 MB of others are published."""
    world.stall = HELD_BACK
    world.content = None if world.is_service else bytes(BULK)
    for _ in range(80):
        world.publish()
        await asyncio.sleep(HELD_BACK / 80)
    world.content = None


@fault("blocked event loop", LIVE, act="server")
async def blocked(world: LiveWorld) -> None:
    """An endpoint of the server's, an `async def`, blocks for 2.5 s."""
    world.door.open = False  # what it hears, it hears when it is over
    async with httpx.AsyncClient(trust_env=False, timeout=None) as http:
        await http.get(f"{world.server_url}/report?{HELD_BACK:g}")


@fault("wake from sleep", LIVE, act="client")
async def asleep(world: LiveWorld) -> None:
    """The client's machine sleeps for 2.5 s; its network is back half a second after it."""
    world.link.blackhole()
    world.freeze(HELD_BACK)
    await asyncio.sleep(HELD_BACK + 0.5)
    world.link.heal()


# What some of them put before the server


@contextlib.contextmanager
def meddling(world: World, meddle: Callable[[ASGIApp], ASGIApp]) -> Iterator[None]:
    """While the block runs, the server's application is wrapped."""
    world.door.meddle = meddle
    try:
        yield
    finally:
        world.door.meddle = None


def refused(app: ASGIApp) -> ASGIApp:
    """Nothing but 503."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        kind = "websocket.http.response" if scope["type"] == "websocket" else "http.response"
        await receive() if scope["type"] == "websocket" else None
        await send({"type": f"{kind}.start", "status": 503, "headers": [(b"content-length", b"0")]})
        await send({"type": f"{kind}.body", "body": b""})

    return answer


def failing(app: ASGIApp) -> ASGIApp:
    """An answer that begins well, and no more: a 200 and the end of the connection; a WebSocket closed with 1011."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.accept"})
            await send({"type": "websocket.close", "code": 1011})
            return
        events = scope["path"] == "/events"
        kind = b"text/event-stream" if events else b"application/json"
        length = [] if events else [(b"content-length", b"1000")]
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind), *length]})
        await send({"type": "http.response.body", "body": b"" if events else b'{"up', "more_body": not events})
        if not events:
            raise ConnectionError("the database has gone")

    return answer


def twice(app: ASGIApp) -> ASGIApp:
    """Everything again: a stream's pieces, a socket's messages, the end of the last answer to a poll."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        async def again(message: Message) -> None:
            await send(message)
            stream = message["type"] == "http.response.body" and message.get("more_body")
            if stream or message["type"] == "websocket.send":
                await send(message)

        if scope["path"] == "/updates":
            scope = {**scope, "query_string": earlier(scope["query_string"])}
        await app(scope, receive, again)

    return answer


def earlier(query: bytes) -> bytes:
    """The question of a while ago: what an answer from a cache would fit."""
    asked = httpx.QueryParams(query.decode())
    epoch, _, number = asked.get("after", "").rpartition("-")
    return str(asked.set("after", f"{epoch}-{max(0, int(number) - 1)}")).encode() if epoch else query


class Collecting(BaseHTTPMiddleware):
    """What many write to log or to sign a body: it reads all of it first."""

    async def dispatch(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
        """The answer, once it is complete."""
        response: Any = await call_next(request)
        body = b"".join([piece async for piece in response.body_iterator])
        return Response(body, response.status_code, dict(response.headers))


@fault("duplicate", VIRTUAL, meddle=twice)
async def duplicate(world: VirtualWorld) -> None:
    """From the beginning whatever the server sends is sent again, and a poll is given an answer that it had."""
    world.began = 0.0


@fault("middleware that collects", VIRTUAL, meddle=Collecting, act="server")
async def collecting(world: VirtualWorld) -> None:
    """From the beginning a middleware reads each answer to its end before it passes it on; then it goes."""
    world.began = 0.0
    await asyncio.sleep(DARK - world.now)
    world.door.meddle, world.cured = None, world.now
    world.link.cut()
