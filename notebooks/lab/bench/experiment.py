"""An experiment: clients of one model, or of several side by side, while a schedule is published.

    clients start, one after another ─▶ each has asked, the server has counted it
      ─▶ the schedule is published at its planned times ─▶ everybody has everything, or the grace is over
      ─▶ no more requests; the clients end ─▶ a Run for each model

A client is an async function `client(url, log)`, written in the notebook. It says what it does as it
does it: `with log.request():` around each request it makes, `log.deliver(update)` for each update it
gets. All moments are `time.perf_counter()` readings of one process, so delays need no second clock. The
sender never waits for a receiver: LIVE it is a thread of its own, which a client that blocks the event loop does not
block. An update that could not be published in time goes out late; its delay counts from the planned moment all the
same, and the lateness is in the result. In virtual time nothing is late, and one thread does it all, repeatably.
"""

import asyncio
import dataclasses
import random
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Protocol

import httpx

from lab.bench.metronome import Ticks, metronome
from lab.bench.progress import progress
from lab.bench.result import LIVE, Delivery, Publication, Request, Run, mode, table
from lab.bench.schedule import Schedule
from lab.clients.connections import tls
from servers.feed import Feed
from servers.limits import check_finite, check_whole
from servers.service import Service
from servers.tree import Edit

__all__ = ["HTTP", "ClientLog", "ExperimentError", "Run", "Schedule", "experiment", "side_by_side", "table"]

START_LIMIT = 10.0  # seconds that the clients get to begin their first request
END_LIMIT = 5.0  # seconds that cancelled clients get to end
LEAD = 0.1  # seconds from everybody's readiness to the schedule's beginning
TICK = 0.01  # seconds between two looks at a condition
MOST_CLIENTS = 100_000  # of one model


class _HttpOptions(Mapping[str, Any]):
    """The TLS context is built when a client first asks for it, and is then the one of all clients."""

    def __init__(self) -> None:
        self._options: dict[str, Callable[[], Any]] = {
            "verify": tls,
            "trust_env": lambda: False,  # no proxy between us and loopback
            "timeout": lambda: httpx.Timeout(5, read=None),  # the default, 5 s, ends a held poll and a silent stream
        }

    def __getitem__(self, name: str) -> Any:
        return self._options[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._options)

    def __len__(self) -> int:
        return len(self._options)

    def __or__(self, other: Mapping[str, Any]) -> dict[str, Any]:
        return {**self, **other}


HTTP = _HttpOptions()
"""Settings for every `httpx.AsyncClient(**HTTP)` of the course."""


class ExperimentError(RuntimeError):
    """An experiment that could not be carried out: a client raised, never began, or did not end."""


class Server(Protocol):
    """Anything that serves: `servers.background.serve(app)`, or the virtual network's server.

    Where it also has `bytes`, a mapping with "up" and "down", the run says how many went over the wire.
    """

    @property
    def url(self) -> str:
        """Where the clients ask."""

    @property
    def app(self) -> Any:
        """The application, a `servers.service.Service`: it knows its feed and counts its requests."""


class ClientLog:
    """What one client sees. `number` counts from 0; `cursor` is the log's head before the first update.

    `rng` is this client's own source of randomness, seeded: for jitter, for example.
    """

    def __init__(self, number: int, cursor: str, seed: int = 0) -> None:
        self.number, self.cursor = number, cursor
        self.rng = random.Random(f"{seed}/{number}")
        self.requests: list[Span] = []
        self.deliveries: list[tuple[int, float]] = []  # seq, moment
        self.seen: set[int] = set()
        self.arrived = 0  # requests so far that reach the server sooner or later; one that failed may never do
        self.closed = False

    def request(self) -> "Span":
        """The context of one request: enter before asking, leave when the answer is there or the stream over."""
        return Span(self)

    def deliver(self, update: Mapping[str, Any]) -> None:
        """Say that an update has arrived, now; it counts for the request begun last."""
        self.deliveries.append((update["seq"], time.perf_counter()))
        self.seen.add(update["seq"])
        if self.requests:
            self.requests[-1].updates += 1


class Span:
    """One request from `start` to `end` (perf_counter, s; `end` None while open) and the updates it brought."""

    __slots__ = ("end", "failed", "log", "start", "updates")

    def __init__(self, log: ClientLog) -> None:
        self.log = log
        self.start = 0.0
        self.end: float | None = None
        self.updates, self.failed = 0, False

    def __enter__(self) -> "Span":
        if self.log.closed:  # the observation is over: end here, between two requests
            raise asyncio.CancelledError
        self.log.requests.append(self)
        self.log.arrived += 1
        self.start = time.perf_counter()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.end = time.perf_counter()
        self.failed = isinstance(error, Exception)
        self.log.arrived -= self.failed


Client = Callable[[str, ClientLog], Awaitable[None]]


async def experiment(
    server: Server,
    client: Client,
    schedule: Schedule,
    *,
    clients: int = 5,
    spread: float = 0.5,
    grace: float = 10.0,
    finite: bool = False,
    seed: int = 1,
    label: str | None = None,
) -> Run:
    """Publish `schedule` into the server's feed while `clients` clients follow it; see `side_by_side`.

    `label` names the run in figures and tables; without one it is the model's name.
    """
    [run] = await side_by_side(
        [(server, client)], schedule, clients=clients, spread=spread, grace=grace, finite=finite, seed=seed
    )
    return run if label is None else dataclasses.replace(run, label=label)


async def side_by_side(
    contenders: Sequence[tuple[Server, Client]],
    schedule: Schedule,
    *,
    clients: int = 5,
    spread: float = 0.5,
    grace: float = 10.0,
    finite: bool = False,
    seed: int = 1,
    at_zero: Callable[[float], None] | None = None,
) -> list[Run]:
    """Publish `schedule` once, into the one feed that all the servers share; `clients` of each model follow it.

    Client number i of every model starts at a seeded moment in the i-th part of `spread` seconds. The run
    ends when the schedule is over and everybody has everything, or `grace` seconds after the schedule;
    `finite` says that the clients return by themselves, and that the run lasts until they have. `at_zero` is told, a
    moment before, when (perf_counter, s) the schedule begins.

    Returns one Run per contender, in order. Raises ExperimentError, with the client's number, when a
    client raises, does not begin a request in time, or does not end; ValueError for a number that cannot be.
    """
    check_whole(clients=clients, least=1, most=MOST_CLIENTS)
    check_finite(spread=spread, grace=grace)
    feed = _shared_feed(contenders)
    groups = [_Group(server, client, clients, feed.cursor, seed) for server, client in contenders]
    rng = random.Random(seed)
    offsets = [spread * (i + rng.random()) / clients for i in range(clients)]
    bench = _Bench(feed, schedule, groups, grace, finite, at_zero)
    begin = time.perf_counter()
    followers = [group.follow(log, offsets[log.number]) for group in groups for log in group.logs]
    async with progress(spread + LEAD + schedule.seconds, repr(schedule)), metronome() as ticks:
        await _supervise(followers, bench.conduct)
    return [group.run(bench, begin, offsets, ticks) for group in groups]


class _Group:
    """The clients of one model."""

    def __init__(self, server: Server, client: Client, clients: int, cursor: str, seed: int) -> None:
        self.server, self.client = server, client
        self.traffic = server.app.traffic
        self.coalescing: bool = getattr(server.app, "coalesced", False)  # the service says so
        self.counted_before: int = self.traffic.requests
        self.logs = [ClientLog(number, cursor, seed) for number in range(clients)]
        self.bytes_before = self.bytes

    @property
    def bytes(self) -> dict[str, int] | None:
        """What the server's wire has counted, real or virtual, if there is one."""
        counted = getattr(self.server, "bytes", None)
        return None if counted is None else dict(counted)

    @property
    def server_requests(self) -> int:
        counted: int = self.traffic.requests
        return counted - self.counted_before

    def arrived(self) -> int:
        """The requests so far that reach the server sooner or later."""
        return sum(log.arrived for log in self.logs)

    async def follow(self, log: ClientLog, offset: float) -> None:
        await asyncio.sleep(offset)
        try:
            await self.client(self.server.url, log)
        except Exception as error:
            name = f"client {log.number} ({self.traffic.model})"
            raise ExperimentError(f"{name} raised {type(error).__name__}: {error}") from error

    def run(self, bench: "_Bench", begin: float, offsets: list[float], ticks: Ticks) -> Run:
        zero, end = bench.zero, bench.end
        before, after = self.bytes_before, self.bytes
        spans = [(log.number, span) for log in self.logs for span in log.requests]
        arrivals = [(log.number, seq, at) for log in self.logs for seq, at in log.deliveries]
        return Run(
            model=self.traffic.model,
            label=self.traffic.model,
            mode=mode(),
            clients=len(self.logs),
            schedule=bench.schedule,
            begin=begin + min(offsets) - zero,
            end=end - zero,
            server_requests=self.server_requests,
            published=[Publication(seq, plan, at - zero, path) for seq, plan, at, path in bench.published],
            all_requests=sorted(
                (Request(n, s.start - zero, min(s.end or end, end) - zero, s.updates, s.failed) for n, s in spans),
                key=lambda request: request.start,
            ),
            all_deliveries=sorted(
                (Delivery(n, seq, at - zero) for n, seq, at in arrivals), key=lambda delivery: delivery.at
            ),
            bytes_up=after["up"] - before["up"] if after and before else None,
            bytes_down=after["down"] - before["down"] if after and before else None,
            floor=ticks.floor,
            waited=ticks.waited,
            coalescing=self.coalescing,
        )


class _Bench:
    """Conducts one experiment, and keeps its clock: `zero` and `end` are perf_counter readings (s)."""

    def __init__(
        self,
        feed: Feed,
        schedule: Schedule,
        groups: list[_Group],
        grace: float,
        finite: bool,
        at_zero: Callable[[float], None] | None,
    ) -> None:
        self.feed, self.schedule, self.groups, self.grace, self.finite = feed, schedule, groups, grace, finite
        self.at_zero = at_zero
        self.published: list[tuple[int, float, float, str]] = []
        self.zero = self.end = 0.0

    async def conduct(self, following: Sequence[asyncio.Task[None]]) -> None:
        """From the clients' start to the last delivery."""
        if not await self.all_have_begun():
            late = [f"{log.number} ({g.traffic.model})" for g in self.groups for log in g.logs if not log.requests]
            if late:
                hint = "is it made inside `with log.request():`?"
                raise ExperimentError(f"no request of client {', '.join(late)} within {START_LIMIT:g} s: {hint}")
            raise ExperimentError(f"after {START_LIMIT:g} s the servers have counted less than the clients have asked")
        self.zero = time.perf_counter() + LEAD
        if self.at_zero:
            self.at_zero(self.zero)
        await self.publish()
        await asyncio.sleep(self.zero + self.schedule.seconds - time.perf_counter())
        waits = [_Wait(log, seqs) for group in self.groups for seqs in [self.wanted(group)] for log in group.logs]
        await _until(lambda: self.is_over(following, waits), self.grace)
        for group in self.groups:
            for log in group.logs:
                log.closed = True
        await _until(self.all_are_counted, END_LIMIT)  # a poll on its way still reaches the server
        self.end = time.perf_counter()

    async def publish(self) -> None:
        if mode() != LIVE:
            for edit in self.schedule.edits:
                await asyncio.sleep(self.zero + edit.at - time.perf_counter())
                self.accept(edit)
            return
        enough = threading.Event()
        with ThreadPoolExecutor(1, "publisher") as sender:  # whose end waits for the thread
            try:
                await asyncio.get_running_loop().run_in_executor(sender, self.publish_in_time, enough)
            finally:
                enough.set()

    def publish_in_time(self, enough: threading.Event) -> None:
        """In a thread of its own, each edit at its moment, whatever the clients' loop is at; until it is `enough`."""
        for edit in self.schedule.edits:
            while (early := self.zero + edit.at - time.perf_counter()) > 0:
                if enough.wait(min(early, threading.TIMEOUT_MAX)):
                    return
            self.accept(edit)

    def accept(self, edit: Edit) -> None:
        update = self.feed.publish(edit.path, edit.change, size=edit.size, sha256=edit.sha256, content=edit.content)
        self.published.append((update.seq, edit.at, update.stamp, update.path))

    async def all_have_begun(self) -> bool:
        """Wait until each client has asked and the servers have counted as much; say whether it came to that.

        What the clients ask in the meantime is not waited for: of many there is always one on its way.
        """
        if not await _until(lambda: all(log.requests for group in self.groups for log in group.logs), START_LIMIT):
            return False
        asked = [(group, group.arrived()) for group in self.groups]
        return await _until(lambda: all(group.server_requests >= count for group, count in asked), START_LIMIT)

    def all_are_counted(self) -> bool:
        return all(group.server_requests >= group.arrived() for group in self.groups)

    def wanted(self, group: _Group) -> list[int]:
        """The numbers of what each of its clients is to get, ascending: where it coalesces, the last of each file."""
        newest = {path: seq for seq, _, _, path in self.published}
        return sorted(newest.values()) if group.coalescing else [seq for seq, *_ in self.published]

    def is_over(self, following: Sequence[asyncio.Task[None]], waits: "Sequence[_Wait]") -> bool:
        if all(task.done() for task in following):
            return True
        return not self.finite and all(wait.is_over() for wait in waits)


class _Wait:
    """Until one client has everything: each update is looked for once, the next only when the one before is there."""

    def __init__(self, log: ClientLog, wanted: Sequence[int]) -> None:
        self.log, self.wanted, self.there = log, wanted, 0

    def is_over(self) -> bool:
        while self.there < len(self.wanted) and self.wanted[self.there] in self.log.seen:
            self.there += 1
        return self.there == len(self.wanted)


def _shared_feed(contenders: Sequence[tuple[Server, Client]]) -> Feed:
    services: list[Service] = [server.app for server, _ in contenders if isinstance(server.app, Service)]
    if not services or len(services) < len(contenders):
        raise TypeError("an experiment needs servers whose app is a servers.service.Service")
    if any(service.feed is not services[0].feed for service in services):
        raise ValueError("servers side by side share one feed: create_app(feed) with the same one for each")
    return services[0].feed


async def _until(condition: Callable[[], bool], limit: float) -> bool:
    """Wait until `condition` holds, `limit` seconds at most; say whether it did."""
    deadline = time.perf_counter() + limit
    while not condition():
        if time.perf_counter() >= deadline:
            return False
        await asyncio.sleep(TICK)
    return True


async def _supervise(
    followers: Sequence[Coroutine[Any, Any, None]],
    conduct: Callable[[Sequence[asyncio.Task[None]]], Coroutine[Any, Any, None]],
) -> None:
    """Run the clients and their conductor until it has ended or one of them has failed; then end them all.

    Not a TaskGroup: that waits for ever for a client that refuses to be cancelled.
    """
    following = [asyncio.create_task(coroutine) for coroutine in followers]
    conductor = asyncio.create_task(conduct(following))
    tasks = [conductor, *following]
    over = asyncio.Event()
    for task in tasks:
        task.add_done_callback(lambda task: over.set() if task is conductor or _failure(task) else None)
    try:
        await over.wait()
    finally:
        for task in tasks:
            task.cancel()
        _, stuck = await asyncio.wait(tasks, timeout=END_LIMIT)
    for failure in filter(None, map(_failure, reversed(tasks))):  # a client's failure before the conductor's
        raise failure
    if stuck:
        numbers = ", ".join(str(following.index(task)) for task in following if task in stuck)
        hint = "does it catch CancelledError, or take long to leave an `async with`?"
        raise ExperimentError(f"client {numbers} did not end within {END_LIMIT:g} s: {hint}")


def _failure(task: asyncio.Task[None]) -> BaseException | None:
    return task.exception() if task.done() and not task.cancelled() else None
