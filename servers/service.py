"""What every server of the course has, so that each model's file holds only its own delivery.

    request ─▶ Traffic (counts, holds) ─▶ the model's route │ / live page │ /healthz │ /metrics │ /docs
                                             └─ BadCursor, bad parameter: 400 · Gap: 410

A `Service` is a FastAPI application that knows its feed, counts its traffic and can end its own
streams: `closing` is the signal on which every stream of this server waits besides the news, by its lease (lease.py).
"""

import asyncio
import contextlib
import functools
import importlib.resources
import inspect
import logging
import math
import mimetypes
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, MutableSequence, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import JSONResponse, PlainTextResponse
from fastapi.routing import APIRoute
from fastapi.staticfiles import StaticFiles
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.requests import HTTPConnection
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from servers.feed import HEARTBEAT, BadCursor, Feed, Gap
from servers.guard import RETRY_AFTER, Doors
from servers.lease import Leases

if TYPE_CHECKING:
    from servers.on_uvicorn import Front

PAGES = Path(__file__).parent / "pages"
SWAGGER_UI = Path(str(importlib.resources.files("fastapi_offline"))) / "static"
# Who may have a page in a frame: a notebook at the same origin, at another port of this machine, or in VS Code.
FRAMED_BY = "frame-ancestors 'self' http://localhost:* http://127.0.0.1:* vscode-webview: vscode-file:"
# No inline script, nothing from elsewhere.
PAGE_POLICY = f"default-src 'self'; base-uri 'none'; form-action 'none'; object-src 'none'; {FRAMED_BY}"
ASSET = {"Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
NO_STORE = {"Cache-Control": "no-store"}
POLLED = "/updates"  # where an answer says that there is nothing later, which must be known for that
CELLS = 5  # numbers of a server's traffic
REQUESTS, HELD = 0, 1  # the cells of two of them, for who counts often
BEGINS = ("http.response.start", "websocket.accept")  # the messages that an answer begins with

mimetypes.add_type("text/javascript", ".js")  # on Windows the registry may say otherwise, and no module would load
log = logging.getLogger("servers")
Source = Callable[[], Coroutine[Any, Any, None]]
Endpoint = Callable[..., Any]


class Closing:
    """The signal that this server is about to stop; readers see it when the feed wakes them."""

    def __init__(self, feed: Feed) -> None:
        self._feed, self._set = feed, False
        self.drained = math.inf  # loop time at which a drain is over, once one has begun

    def open(self) -> None:
        """Before a server starts: its application may have been served, and closed, before."""
        self._set, self.drained = False, math.inf

    def is_set(self) -> bool:
        """Whether the server is about to stop, or its clients had better go elsewhere."""
        return self._set or self._feed.lost

    def close(self) -> None:
        """From any thread: end this server's streams and held polls. The feed lives on."""
        self._set = True
        self.wake()

    def wake(self) -> None:
        """From any thread: let all who wait for news look whether they are to end."""
        self._feed.wake()


class Count:
    """One of the numbers of a Traffic, in a cell that other processes may read."""

    def __init__(self, at: int) -> None:
        self.at = at

    def __get__(self, traffic: "Traffic", owner: object) -> int:
        return traffic.cells[self.at]

    def __set__(self, traffic: "Traffic", value: int) -> None:
        traffic.cells[self.at] = value


class Traffic(Collector):
    """What went through one server: plain numbers, changed on its loop only, read by anybody.

    A *request* is any handshake, poll or reconnect at the model's own path, refused ones included. Of a server in many
    processes each has `cells` of its own among `everybody`'s, and any of them tells the sums.
    """

    requests, held, delivered, resets, skipped = (Count(at) for at in range(CELLS))

    def __init__(self, model: str, feed: Feed) -> None:
        self.model, self.feed = model, feed
        self.cells: MutableSequence[int] | memoryview[int] = [0] * CELLS
        self.everybody: Sequence[MutableSequence[int] | memoryview[int]] = (self.cells,)

    def join(self, everybody: "Sequence[memoryview[int]]", number: int) -> None:
        """Count in the cells of this number, where a predecessor may have counted before."""
        self.cells, self.everybody = everybody[number], everybody
        self.held = 0

    def total(self, name: str) -> int:
        """The sum over all processes."""
        at: int = vars(Traffic)[name].at
        return sum(cells[at] for cells in self.everybody)

    def collect(self) -> Iterator[Metric]:
        """The metrics of one scrape (https://prometheus.io/docs/instrumenting/exposition_formats/)."""
        self.skipped = self.feed.skipped
        counters = {
            "updates_requests": ("Handshakes, polls and reconnects.", self.total("requests")),
            "updates_delivered": ("Updates written to clients.", self.total("delivered")),
            "updates_resets": ("Gap answers: clients told to list again.", self.total("resets")),
            "updates_published": ("Updates accepted by the feed in this epoch.", self.feed.published),
        }
        gauges = {
            "updates_held": ("Requests in progress: open streams and held polls.", self.total("held")),
            "updates_skipped": ("Files left out: unreadable, or with a name that is not UTF-8.", self.total("skipped")),
            "updates_history": ("Updates kept for clients that resume.", len(self.feed)),
        }
        for family, metrics in ((CounterMetricFamily, counters), (GaugeMetricFamily, gauges)):
            for name, (text, value) in metrics.items():
                metric = family(name, text, labels=["model"])
                metric.add_metric([self.model], value)
                yield metric


class Held:
    """One request in the gauge of what is held, until the block's end.

    A poll is held from its beginning (`at_once`), a stream from when its answer begins, for by then it has a cursor:
    what is published once it is seen here, it hears.
    """

    __slots__ = ("held", "send", "traffic")

    def __init__(self, traffic: Traffic, send: Send, *, at_once: bool = False) -> None:
        self.traffic, self.send, self.held = traffic, send, at_once
        traffic.held += at_once

    def __enter__(self) -> Send:
        return self.answer

    def __exit__(self, *_: object) -> None:
        self.traffic.held -= self.held

    async def answer(self, message: Message) -> None:
        """Send, and see whether it begins here."""
        if not self.held and message["type"] in BEGINS:
            self.held = True
            self.traffic.held += 1
        await self.send(message)


class Counted:
    """ASGI middleware that keeps `Traffic` true for one path, however a request ends.

    While the server drains, an answer ends its connection too: the next request is another server's.
    """

    def __init__(self, app: ASGIApp, path: str, traffic: Traffic, leases: Leases) -> None:
        self.app, self.path, self.traffic, self.leases = app, path, traffic, leases

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or scope["path"] != scope.get("root_path", "") + self.path:
            return await self.app(scope, receive, send)
        self.traffic.requests += 1
        feed = self.traffic.feed
        if feed.lost or (feed.away and self.path == POLLED):
            away = JSONResponse({"detail": f"{feed.trouble}: ask again"}, 503, NO_STORE | {"Retry-After": RETRY_AFTER})
            return await away(scope, receive, send)

        async def send_last(message: Message) -> None:
            if self.leases.closing.drained < math.inf and message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), (b"connection", b"close")]
            await send(message)

        with Held(self.traffic, send_last, at_once=self.path == POLLED) as answer:
            return await self.app(scope, receive, answer)


class Service(FastAPI):
    """A server of one model: `path` is where its clients ask, `source` a task that fills the feed while it runs.

    `page` is the file of its live page in `pages/`, `heartbeat` (s) how often a silent stream shows that it lives,
    `max_age` (s) how long one lasts at most, `seed` what makes those ages repeatable.
    """

    def __init__(
        self,
        model: str,
        feed: Feed,
        *,
        path: str,
        page: str | None = None,
        heartbeat: float = HEARTBEAT,
        source: Source | None = None,
        traffic: Traffic | None = None,
        max_age: float | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__(title=f"File updates by {model}", lifespan=_lifespan, docs_url=None, redoc_url=None)
        self.router.redirect_slashes = False  # to an absolute URL made of Host, which is the client's word
        self.router.route_class = Route
        self.router.responses = {"4XX": {"description": "Refused: `detail` says why"}}  # in the place of FastAPI's 422
        self.feed, self.path, self.source, self.heartbeat = feed, path, source, heartbeat
        self.filling: asyncio.Task[None] | None = None  # the source, once it was started
        self.on_failure: Callable[[], object] = lambda: None
        self.kept: list[Endpoint] = []
        self.doors = Doors()
        self.front: Front | None = None  # what answers the usual requests before it, where uvicorn serves it
        self.gate: ASGIApp = super().__call__  # what a fast path puts itself before: nothing has wrapped `send` there
        self.leases = Leases(Closing(feed), max_age, seed)
        self.traffic = traffic or Traffic(model, feed)
        registry = CollectorRegistry()
        registry.register(self.traffic)
        pages = Assets(directory=PAGES)

        self.add_middleware(Counted, path=path, traffic=self.traffic, leases=self.leases)
        self.add_exception_handler(BadCursor, _bad_request)
        self.add_exception_handler(RequestValidationError, _bad_request)
        self.add_exception_handler(Gap, _gone)
        self.servers = [{"url": ".", "description": "this server"}]  # beside /openapi.json, wherever a proxy puts that
        self.mount("/pages", pages)
        self.mount("/swagger-ui", Assets(directory=SWAGGER_UI))

        @self.get("/", include_in_schema=False)
        async def live_page(request: Request) -> Response:
            if page is None:
                raise HTTPException(404, "this server has no page")
            response = await pages.get_response(page, request.scope)
            response.headers["Content-Security-Policy"] = PAGE_POLICY
            return response

        @self.get("/docs", include_in_schema=False)
        async def documentation() -> Response:
            response = get_swagger_ui_html(
                openapi_url="openapi.json",
                title=self.title,
                swagger_js_url="swagger-ui/swagger-ui-bundle.js",
                swagger_css_url="swagger-ui/swagger-ui.css",
                swagger_favicon_url="pages/icon.svg",
            )
            response.headers.update(ASSET | {"Content-Security-Policy": FRAMED_BY})
            return response

        @self.get(
            "/healthz", responses={503: {"description": "It starts or drains, or its source has failed or waits"}}
        )
        async def health() -> Response:
            """Whether the server can tell what changes, and where its log stands."""
            state = {"status": self.status, "model": model, "cursor": feed.cursor}
            return JSONResponse(state, 200 if self.status == "ok" else 503, NO_STORE)

        @self.get("/metrics", response_class=PlainTextResponse)
        async def metrics() -> Response:
            """Requests, held connections, deliveries and resets, in Prometheus' text format."""
            return Response(generate_latest(registry), 200, NO_STORE, CONTENT_TYPE_LATEST)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request, or the lifespan."""
        await self.gate(scope, receive, send)

    @property
    def closing(self) -> Closing:
        """The signal that ends its streams; of several applications served as one it may be one signal."""
        return self.leases.closing

    @closing.setter
    def closing(self, closing: Closing) -> None:
        self.leases.closing = closing

    @property
    def failure(self) -> BaseException | None:
        """What ended the source, if anything but a stop did."""
        ended = self.filling is not None and self.filling.done() and not self.filling.cancelled()
        return self.filling.exception() if self.filling and ended else None

    @property
    def status(self) -> str:
        """ "ok", or why this server cannot tell what changes: "starting", "draining", or its source failed."""
        if self.closing.drained < math.inf:
            return "draining"
        if self.source and self.filling is None:
            return "starting"
        if self.failure:
            return f"the source of updates failed: {told(self.failure)}"
        if self.feed.trouble:
            return self.feed.trouble
        if self.feed.starting:
            return f"starting: {self.feed.starting()}"
        return self.feed.delayed or "ok"

    def add_api_websocket_route(self, path: str, endpoint: Endpoint, *args: Any, **options: Any) -> None:
        """As FastAPI's, but as in `Route`."""
        self.kept.append(endpoint)
        super().add_api_websocket_route(path, weakly(endpoint), *args, **options)


class Route(APIRoute):
    """A route that answers HEAD as it answers GET, without the body, and lets its endpoint go with its application."""

    def __init__(self, path: str, endpoint: Endpoint, **options: Any) -> None:
        super().__init__(path, weakly(endpoint), **options)
        self.kept = endpoint
        methods = set(self.methods or ())
        self.answered = methods | ({"HEAD"} if "GET" in methods else set())

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Whether this route is asked for; for HEAD as for GET."""
        head = scope.get("method") == "HEAD" and "HEAD" in self.answered
        return super().matches({**scope, "method": "GET"} if head else scope)

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer; when only the head is asked for, no stream is begun and no file read."""
        if scope["method"] not in self.answered:
            raise HTTPException(405, headers={"Allow": ", ".join(sorted(self.answered))})
        if scope["method"] != "HEAD":
            return await super().handle(scope, receive, send)

        async def send_head(message: Message) -> None:
            await send(message)
            await send({"type": "http.response.body"})
            raise HeadSent

        try:
            await self.app(scope, receive, send_head)
        except* HeadSent:
            pass


class HeadSent(Exception):
    """All that was asked for has been answered."""


def weakly(endpoint: Endpoint) -> Endpoint:
    """The endpoint as FastAPI may see it: FastAPI keeps each in a cache of the process, with all that hangs on it."""
    if not inspect.iscoroutinefunction(endpoint):
        return endpoint
    reference = weakref.ref(endpoint)

    async def call(*args: Any, **kwargs: Any) -> Any:
        the_endpoint = reference()
        assert the_endpoint is not None, "its route keeps it"
        return await the_endpoint(*args, **kwargs)

    call.__name__, call.__doc__ = endpoint.__name__, endpoint.__doc__
    call.__signature__ = inspect.signature(endpoint, eval_str=True)  # type: ignore[attr-defined]  # FastAPI reads it
    return call


class Assets(StaticFiles):
    """Static files that a browser asks about each time, so that an edited page is seen at once."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        """The file, or 304, or 405 with what is allowed."""
        if scope["method"] not in ("GET", "HEAD"):
            raise HTTPException(405, headers={"Allow": "GET, HEAD"})
        return await super().get_response(path, scope)

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        """The file, or 304."""
        response = super().file_response(*args, **kwargs)
        response.headers.update(ASSET)
        return response


@contextlib.asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    assert isinstance(app, Service)
    app.filling = None
    if app.source is None:
        yield
        return
    app.filling = asyncio.create_task(app.source(), name="source")
    app.filling.add_done_callback(functools.partial(_report, app))
    try:
        yield
    finally:
        app.filling.cancel()
        await asyncio.wait({app.filling})


def _report(app: Service, task: asyncio.Task[None]) -> None:
    """A source that fails leaves a server without news: say so in the log, where `stop()` finds it, and to its host."""
    if app.failure:
        log.error("the source of updates failed: %s", told(app.failure))
        app.on_failure()


def told(error: BaseException | None) -> str:
    """An error in one line: the system's says what it is, another needs its type."""
    return " ".join((str(error) if isinstance(error, OSError) else repr(error)).splitlines())


async def _bad_request(request: Request, error: Exception) -> Response:
    if isinstance(error, RequestValidationError):
        first = error.errors()[0]
        where, what = first["loc"][-1], f"{first['msg'][0].lower()}{first['msg'][1:]}"
        text = "the body is not JSON" if first["type"] == "json_invalid" else f"{where}: {what}"
    else:
        text = str(error)
    return JSONResponse({"detail": text}, status_code=400)


async def _gone(request: Request, error: Exception) -> Response:
    assert isinstance(error, Gap)
    assert isinstance(request.app, Service)
    return gone(error, request.app.traffic)


def gone(gap: Gap, traffic: Traffic) -> Response:
    """The answer of a pull to a cursor that it cannot go on from."""
    traffic.resets += 1
    return JSONResponse(gap.as_dict(), status_code=410, headers=NO_STORE)


def refuse_two_cursors(request: HTTPConnection) -> None:
    """Raise BadCursor when a query has `after` twice: this server would take the last, a proxy perhaps the first."""
    if len(request.query_params.getlist("after")) > 1:
        raise BadCursor("a query has one cursor, not two")


async def disconnected(request: Request) -> None:
    """Return when the client of a held request has gone (ASGI: the "http.disconnect" message)."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
