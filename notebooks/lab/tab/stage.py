"""The stage: the servers and clients of a situation, run in virtual time; what happens is told while it happens.

situation, sources ─▶ servers, clients, one feed, one link ─▶ tell(news), again and again ─▶ the result

News and results are dictionaries of plain numbers and words, so that they cross from a browser's Python to its page as
JSON. All times are seconds since the schedule began. The sources are Python text with the names `create_app(feed, ...)`
and `client(url, log, ...)`; the usual ones are the course's own files.
"""

import asyncio
import contextlib
import importlib.resources
import linecache
import math
import traceback
import types
from collections.abc import Callable, Mapping
from typing import Any

import httpx
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.utils import ClientDisconnected

from lab import bench
from lab.bench.experiment import Client, ClientLog, ExperimentError, side_by_side
from lab.bench.result import Run
from lab.bench.schedule import Schedule
from lab.tab.forecast import forecast
from lab.tab.situation import Situation
from lab.virtual import Link, Net, VirtualError, run_virtual, serve
from servers.feed import Feed
from servers.service import Service

LOOKS = 240  # at most so many looks at what has happened, while the schedule lasts
GRACE = 90.0  # seconds after the schedule, and after a black hole, for what is late: half of all packets lost, far more
LIMIT = 600.0  # real seconds
# Settings for a page's `httpx.AsyncClient(**HTTP)`: nothing compressed, so that bytes are the same in every Python.
HTTP = bench.HTTP | {"timeout": httpx.Timeout(10), "headers": {"Accept-Encoding": "identity"}}
SPREAD = 0.5  # seconds in which the clients begin
Settings = Callable[[Situation], dict[str, Any]]
SETTINGS: dict[str, tuple[Settings, Settings]] = {  # of each model's server and of its client, from a situation
    "short-polling": (lambda s: {"poll_interval": s.interval}, lambda s: {"interval": s.interval}),
    "long-polling": (lambda s: {"seed": s.seed}, lambda s: {"hold": s.hold}),
    "websocket": (lambda s: {"heartbeat": s.heartbeat}, lambda s: {"heartbeat": s.heartbeat}),
    "sse": (lambda s: {"heartbeat": s.heartbeat}, lambda s: {"heartbeat": s.heartbeat}),
}
Tell = Callable[[dict[str, Any]], None]


class Mistake(Exception):
    """Something in a source that was given: `where` it is, in which `line`, and what."""

    def __init__(self, where: str, line: int | None, what: str) -> None:
        super().__init__(what)
        self.where, self.line = where, line


def server_source(model: str) -> str:
    """The text of a model's server."""
    return importlib.resources.files("servers").joinpath(f"{model.replace('-', '_')}.py").read_text(encoding="utf-8")


def client_source(model: str) -> str:
    """The text of a model's client."""
    folder = importlib.resources.files("lab.tab") / "clients"
    return folder.joinpath(f"{model.replace('-', '_')}.py").read_text(encoding="utf-8")


def play(said: Mapping[str, Any], tell: Tell, sources: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Play a situation; `sources` has what is not as usual, under "server/MODEL" and "client/MODEL".

    `tell` is called with news: {"now": s, "published": [[seq, s], ...], "lanes": {model: {"requests": [[number, client,
    begin, end or None, updates, failed], ...], "delivered": [[client, seq, s], ...]}}}, a request again when it has
    ended. Returns {"models": {model: counts and what the laws say}, "published": n, "end": s}; or {"error": text,
    "where": source or None, "line": number or None} when the situation is none or a source has a mistake.
    """
    try:
        situation = Situation.of(said)
        cast = {model: _actors(situation, model, sources or {}) for model in situation.models}
        return _played(situation, cast, tell)
    except Mistake as mistake:
        return {"error": str(mistake), "where": mistake.where or None, "line": mistake.line}
    except SystemExit:
        return {"error": "a source ends the program that it runs in", "where": None, "line": None}
    except (ValueError, VirtualError) as error:
        return {"error": str(error).partition("\n")[0], "where": None, "line": None}


Actors = tuple[Callable[[Feed], Service], Client]


def _actors(situation: Situation, model: str, sources: Mapping[str, str]) -> Actors:
    """What makes a model's server, and its client. Raises Mistake."""
    of_server, of_client = (settings(situation) for settings in SETTINGS[model])
    usual = {f"server/{model}": server_source(model), f"client/{model}": client_source(model)} | dict(sources)
    server = _made(f"server/{model}", usual[f"server/{model}"], "create_app")
    client = _made(f"client/{model}", usual[f"client/{model}"], "client")

    def create(feed: Feed) -> Service:
        try:
            app = server(feed, **of_server)
        except Exception as error:
            raise mistake_in(error, f"server/{model}") from error
        if not isinstance(app, Service):
            raise Mistake(f"server/{model}", None, "create_app returns a Service")
        return app

    async def follow(url: str, log: ClientLog) -> None:
        try:
            await client(url, log, **of_client)
        except Exception as error:
            raise mistake_in(error, f"client/{model}") from error

    return create, follow


def _made(where: str, source: str, name: str) -> Any:
    """The function of that name in a source. Raises Mistake."""
    module = types.ModuleType(where)
    linecache.cache[where] = (len(source), None, source.splitlines(keepends=True), where)
    try:
        exec(compile(source, where, "exec"), module.__dict__)
    except SyntaxError as error:
        raise Mistake(where, error.lineno, f"SyntaxError: {error.msg}") from None
    except Exception as error:
        raise mistake_in(error, where) from error
    if not callable(made := getattr(module, name, None)):
        raise Mistake(where, None, f"there is no function {name!r}")
    return made


def mistake_in(error: BaseException, where: str) -> Mistake:
    """The mistake that an exception comes from: the innermost line of a source, if one was under way, else `where`."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    lines = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in lines if frame.filename.startswith(("server/", "client/"))]
    what = f"{type(error).__name__}: {error}"
    return Mistake(ours[-1].filename, ours[-1].lineno, what) if ours else Mistake(where, None, what)


def _played(situation: Situation, cast: Mapping[str, Actors], tell: Tell) -> dict[str, Any]:
    s = situation
    schedule = Schedule.poisson(s.rate, s.seconds, seed=s.seed)
    link = Link(delay=s.delay)
    grace = GRACE * (1 + 20 * s.loss) + (max(0.0, s.dark + s.darkness - s.seconds) if s.dark else 0.0)
    teller = Teller({model: [] for model in cast}, tell)

    async def main(net: Net) -> list[Run]:
        net.transcript = None
        feed = Feed(epoch="tab")
        loop = asyncio.get_running_loop()
        teller.feed, teller.clock = feed, loop.time

        def begin(zero: float) -> None:
            teller.zero = zero
            link.loss = s.loss  # not before: who is still connecting would keep the schedule waiting
            for at, act in (s.cut, link.cut), (s.dark, link.blackhole), (s.dark and s.dark + s.darkness, link.heal):
                if at:
                    loop.call_at(zero + at, act)

        async with contextlib.AsyncExitStack() as servers:
            fault = loop.create_future()
            contenders = []
            for port, (model, (create, follow)) in enumerate(cast.items(), 8001):
                app = create(feed)
                app.add_middleware(Noticing, fault=fault, where=f"server/{model}")
                server = await servers.enter_async_context(serve(app, port=port))
                contenders.append((server, teller.watching(model, follow)))
            experiment = asyncio.create_task(
                side_by_side(
                    contenders, schedule, clients=s.clients, spread=SPREAD, grace=grace, seed=s.seed, at_zero=begin
                )
            )
            telling = asyncio.create_task(teller.keep_telling(max(0.5, s.seconds / LOOKS)))
            try:
                await asyncio.wait((experiment, fault), return_when=asyncio.FIRST_COMPLETED)
                if fault.done():
                    fault.result()
                return await experiment
            finally:
                telling.cancel()
                experiment.cancel()
                await asyncio.wait({experiment})
                if not experiment.cancelled():
                    experiment.exception()
                teller.tell_all()

    try:
        runs = run_virtual(main, link=link, seed=s.seed, wall=LIMIT)
    except ExperimentError as error:
        cause = error.__cause__
        raise cause if isinstance(cause, Mistake) else Mistake("", None, str(error)) from error
    models = {model: counted(run) | forecast(s, model)._asdict() for model, run in zip(cast, runs, strict=True)}
    return {"models": models, "published": len(schedule), "end": runs[0].end}


def counted(run: Run) -> dict[str, Any]:
    """The numbers of a run, as JSON has them: what never came has no delay."""
    delays = {name: run.delay(q) for name, q in (("median", 0.5), ("most_of_it", 0.95), ("max", 1.0))}
    counts = {
        "requested": len(run.requests_between(0, run.schedule.seconds)),
        "asked": run.requests,
        "useful": run.useful,
        "held": run.held_peak,
        "expected": run.expected,
        "delivered": len(run.first_deliveries),
        "missing": run.lost,
        "duplicated": run.duplicated,
        "out_of_order": run.out_of_order,
        "up": run.bytes_up,
        "down": run.bytes_down,
        "mean": run.mean_delay,
    }
    return {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in (counts | delays).items()}


class Noticing:
    """Around a server's routes: what they raise is a mistake in its source, and ends the run."""

    def __init__(self, app: ASGIApp, fault: asyncio.Future[None], where: str) -> None:
        self.app, self.fault, self.where = app, fault, where

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through."""
        try:
            await self.app(scope, receive, send)
        except ClientDisconnected:  # in the middle of a handshake: uvicorn takes it for no error either
            raise
        except Exception as error:
            if not self.fault.done():
                self.fault.set_exception(mistake_in(error, self.where))
            raise


class Teller:
    """Tells what has happened since it last told: it looks at the clients' own logs."""

    def __init__(self, logs: dict[str, list[ClientLog]], tell: Tell) -> None:
        self.logs, self.tell = logs, tell
        self.feed: Feed | None = None
        self.clock: Callable[[], float] = float
        self.zero: float | None = None  # loop time (s) at which the schedule begins, once it is known
        self.position = 0
        self.told: dict[tuple[str, int], int] = {}  # deliveries of a client
        self.open: dict[tuple[str, int], list[int]] = {}  # its requests that had not ended
        self.known: dict[tuple[str, int], int] = {}  # how many of its requests were told

    def watching(self, model: str, client: Client) -> Client:
        """The client, but its log is looked at."""

        async def follow(url: str, log: ClientLog) -> None:
            self.logs[model].append(log)
            await client(url, log)

        return follow

    async def keep_telling(self, pause: float) -> None:
        """Tell, and again after each `pause` (virtual s), until it is cancelled."""
        while True:
            await asyncio.sleep(pause)
            self.tell_all()

    def tell_all(self) -> None:
        """Tell what is new; nothing before the schedule's beginning is known."""
        if self.zero is None or self.feed is None:
            return
        zero = self.zero
        published = []
        while self.position < self.feed.head:
            batch = self.feed.read(self.position)
            published += [[update.seq, update.stamp - zero] for update in batch.updates]
            self.position = batch.position
        lanes = {model: self._lane(model, logs, zero) for model, logs in self.logs.items()}
        self.tell({"now": self.clock() - zero, "published": published, "lanes": lanes})

    def _lane(self, model: str, logs: list[ClientLog], zero: float) -> dict[str, Any]:
        requests: list[list[Any]] = []
        delivered: list[list[Any]] = []
        for log in logs:
            me = (model, log.number)
            first = self.known.get(me, 0)
            still_open = []
            for number in [*self.open.get(me, []), *range(first, len(log.requests))]:
                span = log.requests[number]
                end = None if span.end is None else span.end - zero
                requests.append([number, log.number, span.start - zero, end, span.updates, span.failed])
                if end is None:
                    still_open.append(number)
            self.open[me], self.known[me] = still_open, len(log.requests)
            told = self.told.get(me, 0)
            delivered += [[log.number, seq, at - zero] for seq, at in log.deliveries[told:]]
            self.told[me] = len(log.deliveries)
        return {"requests": requests, "delivered": delivered}
