"""The ladder from a tutorial's event stream to the fast path: the same edits, delivered with less and less work.

    tutorial       a queue and an encoding for each client, and a question before each update
    unasked        the same without the question
    sse            encoded once, no queue: servers/sse.py, still on sse-starlette
    woken          ready bytes by ASGI's `send`, one coroutine woken for each client and update
    file-updates   one task writes to every transport: servers/fan_out

`python -m lab.cost.ladder RUNG` serves one of the rungs that stand here, with synthetic edits at even distances; sse
and file-updates are the real servers. `climb` measures all of them, each in a process of its own, under raw clients.
"""

import asyncio
import functools
import json
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from fastapi import Request, Response
from sse_starlette import EventSourceResponse
from starlette.types import Message, Receive, Scope, Send

from lab.cost.load import Load
from lab.cost.processes import ServerProcess, Window, kept_awake, observe
from servers import sse
from servers.arguments import Parser, number, whole
from servers.background import ServerError, run
from servers.feed import Batch, Feed, Gap
from servers.limits import check_positive
from servers.service import Service, Source, disconnected
from servers.sources import play, synthetic_edits
from servers.sse import reset_block, update_blocks

LADDER = ("tutorial", "unasked", "sse", "woken", "file-updates")  # from the bottom up
RATE = 50.0  # updates per second
COUNTS = (10, 100)  # connections: what a publish costs without clients is in both windows
Queue = asyncio.Queue[dict[str, Any] | None]


async def recipe(request: Request, asks: bool) -> AsyncIterator[dict[str, str]]:
    """One client's events; with `asks` it does not rely on sse-starlette to end it."""
    queue: Queue = asyncio.Queue()
    request.app.state.queues.append(queue)
    try:
        while not (asks and await request.is_disconnected()):
            update = await queue.get()
            if update is None:
                return
            data = json.dumps(update)
            yield {"event": "update", "id": str(update["seq"]), "data": data}
    finally:
        request.app.state.queues.remove(queue)


def tutorial(feed: Feed, *, source: Source | None = None, asks: bool = True) -> Service:
    """A server of the recipe: no cursor, a stream begins with what comes next."""
    app = Service("SSE", feed, path="/events", source=lambda: hand_out(app, source))
    app.state.queues = []

    @app.get("/events")
    async def events(request: Request) -> Response:
        return EventSourceResponse(recipe(request, asks), sep="\n")  # as on the other rungs: the same bytes

    return app


async def hand_out(app: Service, source: Source | None) -> None:
    """Put every update into every queue, and None when the server closes."""
    async with asyncio.TaskGroup() as group:
        if source:
            group.create_task(source())
        async for news in app.feed.follow(app.feed.head, app.closing):
            assert isinstance(news, Batch), "it reads at once: nothing expires"
            for update in [json.loads(accepted.json) for accepted in news.updates]:
                for queue in app.state.queues:
                    queue.put_nowait(update)
        for queue in app.state.queues:
            queue.put_nowait(None)


def woken(feed: Feed, *, source: Source | None = None) -> Service:
    """servers/sse.py without sse-starlette: a response of our own."""
    app = Service("SSE", feed, path="/events", source=source)

    @app.get("/events")
    async def events(request: Request, after: str | None = None) -> Response:
        return Woken(app, feed.opening(request.headers.get("last-event-id") or after))

    return app


class Woken(Response):
    """A stream whose coroutine is woken for each update, and sends ready bytes; of heartbeats it knows nothing."""

    media_type = "text/event-stream"

    def __init__(self, app: Service, opening: Batch | Gap) -> None:
        super().__init__(headers={"Cache-Control": "no-store"})
        del self.headers["content-length"]
        self.app, self.opening = app, opening

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Write until the server closes; stop when the client leaves."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async with asyncio.TaskGroup() as group:
            gone = group.create_task(disconnected(Request(scope, receive)))
            writing = group.create_task(self.write(send))
            await asyncio.wait((gone, writing), return_when=asyncio.FIRST_COMPLETED)
            gone.cancel()
            writing.cancel()

    async def write(self, send: Send) -> None:
        """Follow the feed."""
        position, closing = self.opening.position, self.app.closing
        await send(part(self.encode(self.opening)))
        async for news in self.app.feed.follow(position, closing):
            await send(part(self.encode(news)))
        await send(part(b"", more=False))

    def encode(self, news: Batch | Gap) -> bytes:
        """As event stream blocks, once for all clients, as in servers/sse.py."""
        if isinstance(news, Gap):
            self.app.traffic.resets += 1
            return reset_block(news)
        self.app.traffic.delivered += len(news.updates)
        return news.encoded(update_blocks)


def part(body: bytes, *, more: bool = True) -> Message:
    """A part of a response's body, as ASGI sends it."""
    return {"type": "http.response.body", "body": body, "more_body": more}


def talking(feed: Feed, *, source: Source | None = None) -> Service:
    """servers/sse.py, whose clients have something to say: a POST with a JSON object, answered by 204.

    No rung of the ladder: what a message up costs where the stream goes one way (lab.cost.measuring).
    """
    app = sse.create_app(feed, source=source)

    @app.post("/say", status_code=204)
    async def say(message: dict[str, Any]) -> None:
        app.state.heard = message

    return app


RUNGS: dict[str, Callable[..., Service]] = {
    "talking": talking,
    "tutorial": tutorial,
    "unasked": functools.partial(tutorial, asks=False),
    "woken": woken,
}


def main(arguments: list[str] | None = None) -> int:
    """Serve one rung until Ctrl-C or SIGTERM; return the exit status."""
    p = Parser(prog="python -m lab.cost.ladder", description="Serve one rung of the ladder, with synthetic edits.")
    p.add_argument("model", choices=RUNGS, metavar="RUNG", help=", ".join(RUNGS))
    p.add_argument("--port", type=whole(0, 65535), default=8000, help="0: a free one")
    p.add_argument("--rate", type=number, default=RATE, metavar="R", help="updates a second, evenly spaced (50)")
    p.add_argument("--seed", type=int, default=0, metavar="N", help="of the updates (0)")
    options = p.parse_args(arguments)
    feed = Feed()
    edits = synthetic_edits(options.rate, seed=options.seed, regular=True)
    app = RUNGS[options.model](feed, source=functools.partial(play, feed, edits))
    try:
        return run(app, options.model, port=options.port)
    except ServerError as error:
        p.error(str(error))


@dataclass(frozen=True)
class Step:
    """One rung's two windows: with few connections, and with many."""

    rung: str
    few: Window
    many: Window

    @property
    def cpu(self) -> float:
        """CPU seconds for each delivery more."""
        return self._more("cpu") / self._more("deliveries")

    @property
    def memory(self) -> float:
        """Bytes in main memory for each connection more."""
        return (self.many.memory - self.few.memory) / (self.many.connections - self.few.connections)

    @property
    def busy(self) -> bool:
        """Whether a window is not to be believed."""
        return self.few.busy or self.many.busy

    def _more(self, what: str) -> float:
        """What comes on top a second, from few connections to many."""
        few, many = (getattr(window, what) / window.seconds for window in (self.few, self.many))
        return float(many - few)


def process(rung: str, rate: float = RATE) -> ServerProcess:
    """A rung in a process of its own."""
    if rung in RUNGS:
        return ServerProcess(rung, module="lab.cost.ladder", rate=rate)
    return ServerProcess(rung, rate=rate, regular=True)


async def climb(
    ladder: Sequence[str] = LADDER, *, rate: float = RATE, counts: tuple[int, int] = COUNTS, seconds: float = 1.2
) -> dict[str, Step]:
    """Every rung's step, one after the other, in about three seconds each, on processors that are kept awake.

    Raises RuntimeError when one fails.
    """
    check_positive(rate=rate, seconds=seconds, more_connections=counts[1] - counts[0])
    with ExitStack() as ends:
        servers = [process(rung, rate) for rung in ladder]
        await asyncio.gather(*(asyncio.to_thread(ends.enter_context, server) for server in servers))
        ends.enter_context(kept_awake())
        steps = {}
        for server in servers:
            clients = Load("sse", server.url)
            try:
                few, many = [await observe(server, clients, n, seconds, due=["deliveries"]) for n in counts]
            finally:
                clients.close()
            steps[server.model] = Step(server.model, few, many)
    return steps


if __name__ == "__main__":
    sys.exit(main())
