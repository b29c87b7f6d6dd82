"""The live demo: one page, four lanes, the four models on one feed and on one port.

    a seeded schedule ─▶ feed ─▶ /short-polling/updates  /long-polling/updates  /websocket/ws  /sse/events
    (its rate can change)             └────────────── each behind a Lane: delays, counts bytes, cuts ──────┘
    the page ─▶ GET state · PATCH controls · DELETE connections · POST updates

The four servers are the course's own, unchanged. What stands between them and the network is a `Lane`: it holds each
request back before it reaches its server, and each message of the answer before it reaches uvicorn, by the same delay,
in order. So the demo has its slow network on one port, below a Jupyter proxy too. Opening a connection is not delayed.

The controls belong to the server: whoever watches sees them move. A page from elsewhere cannot change them.
"""

import asyncio
import functools
import time
from collections.abc import Callable, Collection, Iterator
from typing import Annotated, Any, Literal, NamedTuple

from fastapi import APIRouter, Depends, HTTPException, Query, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client.core import Metric
from pydantic import BaseModel, ConfigDict, Field, StrictBool, ValidationError
from starlette.datastructures import MutableHeaders
from starlette.requests import HTTPConnection
from starlette.types import Message, Receive, Scope, Send

from servers.feed import HEARTBEAT, Feed
from servers.models import MODELS
from servers.on_uvicorn import Tap, carrier_of
from servers.service import Service, Source, Traffic
from servers.sources import synthetic_edits
from servers.tree import Edit

IN_FLIGHT = 500  # messages on their way to one client; a server that is ahead of a slow one by more waits
STEP = 0.1  # seconds after which a message that is held back learns that the server stops
ATTENTION = 10.0  # seconds without a question until a page counts as gone
VIEWERS = 1000  # remembered at most
ELSEWHERE = {"detail": "the updates come from elsewhere, not from a schedule that could be controlled"}
Edits = Callable[[float], Iterator[Edit]]  # the schedule at this rate
CARRIER = "servers.carrier"  # where the scope has uvicorn's own end of the connection


class Controls(BaseModel):
    """What a page may change; what is absent stays. Rates in updates per second, the rest in seconds."""

    model_config = ConfigDict(extra="forbid")
    rate: Annotated[float | None, Field(ge=0, le=20, allow_inf_nan=False)] = None
    interval: Annotated[float | None, Field(ge=0.2, le=10, allow_inf_nan=False)] = None
    delay: Annotated[float | None, Field(ge=0, le=2, allow_inf_nan=False)] = None
    paused: StrictBool | None = None


class Lane:
    """One model's server behind a network of its own. `up` and `down` are bytes on the wire, framing included.

    Bytes are counted where uvicorn writes them, and on a WebSocket where it reads them. The head of a request is
    parsed already when it comes here; its size follows from what was parsed, since every client of today writes
    "Name: value". Only requests at the model's own `path` are delayed, counted and cut.
    """

    def __init__(self, app: Service, path: str, demo: "Demo") -> None:
        self.app, self.path, self.demo = app, path, demo
        self.up = self.down = 0
        self.open: dict[Tap, str] = {}  # the connections that have a request in progress, and whose page it is

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, late."""
        if scope["path"] != scope["root_path"] + self.path:
            return await self.app(scope, receive, send)
        tap = self.tapped(scope)
        self.open[tap] = HTTPConnection(scope).query_params.get("viewer", "")
        try:
            await self.held_back(self.demo.due())
            await self.delayed(scope, receive, send)
        finally:
            del self.open[tap]

    def tapped(self, scope: Scope) -> Tap:
        """Count the request that has come, and from now on what its connection carries."""
        self.up += head_size(scope)
        return Tap(scope[CARRIER], functools.partial(self.carried, "down"), functools.partial(self.carried, "up"))

    def carried(self, way: Literal["up", "down"], size: int) -> None:
        """Count bytes."""
        setattr(self, way, getattr(self, way) + size)

    async def delayed(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the server, whose messages leave later, in the order in which it sent them."""
        under_way = asyncio.Queue[tuple[float, Message] | None](IN_FLIGHT)
        gone = False

        async def send_later(message: Message) -> None:
            if gone:
                raise OSError("the client has left")
            if message["type"] == "http.response.start":
                self.set_pace(MutableHeaders(raw=message["headers"]))
            await under_way.put((self.demo.due(), message))

        async def carry() -> None:
            nonlocal gone
            while item := await under_way.get():
                due, message = item
                if not gone:
                    await self.held_back(due)
                    try:
                        await send(message)
                    except OSError:
                        gone = True

        carrying = asyncio.create_task(carry())
        try:
            await self.app(scope, receive, send_later)
        finally:
            await under_way.put(None)
            await carrying

    def set_pace(self, headers: MutableHeaders) -> None:
        """Ask a polling client for the interval of the controls."""
        if "x-poll-interval" in headers:
            headers["x-poll-interval"] = f"{self.demo.interval:g}"

    async def held_back(self, due: float) -> None:
        """Return at that moment (loop time), or when the server stops."""
        loop = asyncio.get_running_loop()
        while (left := due - loop.time()) > 0 and not self.demo.closing.is_set():  # noqa: ASYNC110  # set by a thread
            await asyncio.sleep(min(left, STEP))

    def cut(self, viewer: str | None = None) -> int:
        """Abort the connections that have a request in progress, all or one page's; return how many."""
        cut = [tap for tap, whose in self.open.items() if viewer in (None, whose)]
        for tap in cut:
            tap.abort()
        return len(cut)

    def counts(self) -> dict[str, int]:
        """What went through so far, and what is held now."""
        t = self.app.traffic
        known = {"requests": t.requests, "held": t.held, "delivered": t.delivered, "resets": t.resets}
        return known | {"up": self.up, "down": self.down}


class Lanes(Traffic):
    """The metrics of all lanes as one scrape."""

    def __init__(self, feed: Feed, lanes: Collection[Service]) -> None:
        super().__init__("demo", feed)
        self.lanes = lanes

    def collect(self) -> Iterator[Metric]:
        """Each family once, with a sample for each model."""
        for families in zip(*(app.traffic.collect() for app in self.lanes), strict=True):
            for other in families[1:]:
                families[0].samples += other.samples
            yield families[0]


class Cut(NamedTuple):
    """When connections were last cut (Unix time, s), and how many of each lane."""

    at: float
    lanes: dict[str, int]


class Demo(Service):
    """The application. `rate`, `interval`, `delay` and `paused` are what the page's controls show."""

    allow_origins: Collection[str] = ()

    def __init__(
        self,
        feed: Feed,
        lanes: dict[str, tuple[Service, str]],
        source: Source | None,
        edits: Edits,
        *,
        heartbeat: float = HEARTBEAT,
    ) -> None:
        traffic = Lanes(feed, [app for app, _ in lanes.values()])
        super().__init__(
            "demo", feed, path="", page="demo.html", heartbeat=heartbeat, source=source or self.play, traffic=traffic
        )
        self.edits = edits
        self.synthetic = source is None
        self.rate, self.interval, self.delay, self.paused = 1.0, 2.0, 0.0, False
        self.cut = Cut(0.0, {})
        self.viewers: dict[str, float] = {}
        self.extra = 0  # updates to be published at once
        self.changed = asyncio.Event()
        self.lanes = {name: Lane(app, path, self) for name, (app, path) in lanes.items()}
        for name, lane in self.lanes.items():
            lane.app.closing = self.closing  # a stop of the demo ends the streams of its lanes
            self.mount(f"/{name}", lane)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Remember uvicorn's own end of the connection before anything wraps `send`."""
        scope[CARRIER] = carrier_of(send)
        await super().__call__(scope, receive, send)

    def due(self) -> float:
        """When what sets out now arrives (loop time)."""
        return asyncio.get_running_loop().time() + self.delay

    async def play(self) -> None:
        """Publish the seeded edits. Its gaps are for one update a second; the rate stretches what is left of one."""
        loop = asyncio.get_running_loop()
        before = 0.0
        for edit in self.edits(1.0):
            left, before = edit.at - before, edit.at
            while left > 0 and not self.extra:
                self.changed = asyncio.Event()
                begin, rate = loop.time(), 0.0 if self.paused else self.rate
                try:
                    async with asyncio.timeout(left / rate if rate else None):
                        await self.changed.wait()
                except TimeoutError:
                    break
                left -= rate * (loop.time() - begin)
            self.extra = max(0, self.extra - 1)
            self.feed.publish(edit.path, edit.change, size=edit.size, sha256=edit.sha256, content=edit.content)

    def change(self, controls: Controls) -> None:
        """Obey."""
        for name, value in controls.model_dump(exclude_none=True).items():
            setattr(self, name, value)
        self.changed.set()

    def watched_by(self, viewer: str) -> None:
        """Note that a page is there; forget those that have not asked for a while."""
        now = time.monotonic()
        known = {**self.viewers, viewer: now} if viewer else self.viewers
        recent = {name: seen for name, seen in known.items() if now - seen < ATTENTION}
        self.viewers = dict(list(recent.items())[-VIEWERS:])

    def report(self) -> dict[str, Any]:
        """What a page shows besides the updates."""
        return {
            "now": time.time(),
            "head": self.feed.head,
            "rate": self.rate if self.synthetic else None,
            "interval": self.interval,
            "delay": self.delay,
            "paused": self.paused,
            "viewers": len(self.viewers),
            "cut": self.cut._asdict(),
            "lanes": {name: lane.counts() for name, lane in self.lanes.items()},
        }


def create_app(
    feed: Feed,
    *,
    rate: float = 1.0,
    interval: float = 2.0,
    seed: int = 0,
    payload: int = 0,
    heartbeat: float = HEARTBEAT,
    allow_origins: Collection[str] = (),
    source: Source | None = None,
) -> Demo:
    """All four models on one feed, and a page that shows them side by side.

    `rate` (updates/s) and `interval` (s between two polls) are what the controls begin with, `seed` and `payload`
    are the schedule's. A `source` of one's own, such as a watched directory, takes its place. Raises ValueError
    for a rate over 20 or an interval outside 0.2 to 10.
    """
    try:
        start = Controls(rate=rate, interval=interval)
    except ValidationError:
        raise ValueError("the demo takes up to 20 updates a second, and an interval from 0.2 to 10 s") from None
    given = {"allow_origins": allow_origins, "heartbeat": heartbeat, "poll_interval": interval, "max_age": None}
    lanes = {
        each.slug: (each.create_app(feed, **{name: given[name] for name in each.options}), each.path) for each in MODELS
    }
    app = Demo(feed, lanes, source, functools.partial(synthetic_edits, seed=seed, payload=payload), heartbeat=heartbeat)
    app.allow_origins = allow_origins
    app.change(start)
    app.include_router(controls)
    return app


def demo_of(request: Request) -> Demo:
    """The demo that a request is for. Raises 403 for a page from elsewhere: it may look, but change nothing.

    A browser says whose page asks by Sec-Fetch-Site (Fetch Metadata), an old one by Origin alone; a program says
    nothing, and is no page.
    """
    app, site, origin = request.app, request.headers.get("sec-fetch-site"), request.headers.get("origin")
    assert isinstance(app, Demo)
    host = request.headers.get("host")
    own = site in ("same-origin", "none") if site else origin in (None, f"http://{host}", f"https://{host}")
    if request.method != "GET" and not (own or origin in app.allow_origins):
        raise HTTPException(403, "a page from elsewhere controls nothing here")
    return app


controls = APIRouter()
Here = Annotated[Demo, Depends(demo_of)]


@controls.get("/state")
async def state(app: Here, viewer: str = "") -> Response:
    """The controls, and the counts of each lane. Neither this nor any change counts as a lane's request."""
    app.watched_by(viewer[:64])
    return JSONResponse(app.report(), headers={"Cache-Control": "no-store"})


@controls.patch("/controls")
async def control(app: Here, change: Controls) -> Response:
    """Change some controls, for all who watch."""
    if not app.synthetic and {"rate", "paused"} & change.model_fields_set:
        return JSONResponse(ELSEWHERE, status_code=400)
    app.change(change)
    return await state(app)


@controls.delete("/connections")
async def cut(app: Here) -> Response:
    """Cut every connection of a lane that has a request in progress."""
    app.cut = Cut(time.time(), {name: lane.cut() for name, lane in app.lanes.items()})
    return await state(app)


@controls.post("/updates", status_code=204)
async def publish(app: Here) -> Response:
    """Publish the schedule's next update now, paused or not."""
    if not app.synthetic:
        return JSONResponse(ELSEWHERE, status_code=400)
    app.extra = min(app.extra + 1, 100)
    app.changed.set()
    return Response(status_code=204)


@controls.post("/leave", status_code=204)
async def leave(app: Here, viewer: Annotated[str, Query(min_length=1)]) -> Response:
    """Let go of a page's connections. It says so when it is closed; a proxy may keep its streams open else."""
    app.viewers.pop(viewer, None)
    for lane in app.lanes.values():
        lane.cut(viewer)
    return Response(status_code=204)


def head_size(scope: Scope) -> int:
    """The bytes of a request's line and headers (RFC 9112, sections 3 and 5), as every common client writes them."""
    query = b"?" + scope["query_string"] if scope["query_string"] else b""
    line = len(scope.get("method", "GET")) + len(b"  HTTP/1.1\r\n") + len(scope["raw_path"] + query)
    return line + sum(len(name) + len(value) + 4 for name, value in scope["headers"]) + 2
