"""A world: one real server, one kind of client, what stands between them, and what each of them notices.

    publish() ─▶ feed ─▶ server ─ Door ─▶ link ─▶ client ─▶ Memory ─▶ Outcome
                                   │       └ cut, black hole, heal: `Link` in VIRTUAL, `Wire` LIVE
                                   └ a fault of the server's side: `door.meddle`

The same fault is a coroutine over either world. VIRTUAL: one thread, the clock jumps. LIVE: real sockets and threads.
"""

import asyncio
import contextlib
import math
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lab.bench.result import Delivery, Publication, Request, Run
from lab.bench.schedule import Schedule
from lab.clients import Reset
from lab.faults.outcome import Outcome
from lab.faults.subjects import Forgot, Memory, Pace, Subject
from lab.proxies import Wire
from lab.virtual import Link
from servers.feed import Feed
from servers.tree import Tree

from starlette.types import ASGIApp, Message, Receive, Scope, Send  # isort: skip

Meddle = Callable[[ASGIApp], ASGIApp]

GRACE = 90.0  # s, of the world's own time, until a client that has not caught up never will
MOMENT = 1.0  # s after a fault's end within which a server that notices has noticed the fault


class Door:
    """The server's application, its ear for clients that leave, and the place where its faults happen.

    `meddle`, while it is set, wraps the application; `gone` has the moments when the server learned that a client left.
    """

    def __init__(self, app: Any, path: str) -> None:
        self.app, self.path = app, path
        self.closing, self.heartbeat = app.closing, app.heartbeat
        self.meddle: Meddle | None = None
        self.gone: list[float] = []
        self.open = True

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request by the application, or by what stands before it."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["path"] == "/report":  # somebody's endpoint: `async def`, and it blocks
            time.sleep(float(scope["query_string"].decode()))  # noqa: ASYNC251  # the fault itself
            await send({"type": "http.response.start", "status": 204, "headers": []})
            await send({"type": "http.response.body"})
            return

        async def hear() -> Message:
            message = await receive()
            if scope["path"] == self.path and message["type"].endswith(".disconnect") and self.open:
                self.gone.append(time.perf_counter())
            return message

        app = self.meddle(self.app) if self.meddle else self.app
        await app(scope, hear, send)


class World(ABC):
    """One run of one cell; `began` and `ended` (s, from the world's beginning) are the fault's, once it has struck."""

    link: Link | Wire

    def __init__(self, subject: Subject, pace: Pace, *, keeps: bool, history: int = 1000, clients: int = 1) -> None:
        self.subject, self.pace, self.keeps, self.history = subject, pace, keeps, history
        self.stack = contextlib.AsyncExitStack()
        self.folder = Path(self.stack.enter_context(tempfile.TemporaryDirectory(prefix="faults-")))
        (self.folder / "original").mkdir()
        self.tree = Tree(self.folder / "original")
        self.tree.scan()
        self.logs_begun = 0
        self.feed = self.new_log()
        self.memories = [Memory(number, self.feed.cursor, keeps=keeps) for number in range(clients)]
        self.gone: list[float] = []  # of doors that were there before
        self.published: list[tuple[int, float]] = []
        self.arrived: list[tuple[int, int, float]] = []  # client, number, moment
        self.zero = self.began = self.ended = 0.0
        self.cured = math.inf  # when somebody ended the fault by cutting what was open: that is not the fault's doing
        self.quiet = False  # while it is, nothing is published
        self.aside = ""
        self.stall = 0.0  # s that a client takes over the next update
        self.meddle: Meddle | None = None  # before the server from the beginning
        self.content: bytes | None = None  # of each update, where the model carries contents

    @property
    def is_service(self) -> bool:
        """Whether the file service is on trial."""
        return self.subject.path == "/events" and self.subject.name != "SSE"

    def new_log(self) -> Feed:
        """A log that begins anew; what stands in the directory is its listing."""
        self.logs_begun += 1
        return Feed(history=self.history, epoch=f"log{self.logs_begun}")

    def application(self) -> Door:
        """The server, and its door."""
        self.door = Door(self.subject.make(self.feed, self.pace, self.tree), self.subject.path)
        self.door.meddle = self.meddle
        return self.door

    @property
    def now(self) -> float:
        """Seconds since the world began."""
        return time.perf_counter() - self.zero

    def publish(self) -> None:
        """Write the next file of its name, and announce it."""
        number = len(self.published) + 1
        path = f"file-{number}.txt"
        if not self.is_service:
            self.feed.publish(path, content=self.content)
        else:
            (self.folder / "original" / path).write_text(f"{number}")
            for edit in self.tree.look([path]):
                self.feed.publish(
                    edit.path, edit.change, size=edit.size, sha256=edit.sha256, mtime=edit.mtime,
                    executable=edit.executable,
                )  # fmt: skip
        self.published.append((number, self.now))

    async def publish_all(self) -> None:
        """Publish at the world's pace, for ever."""
        while True:
            await asyncio.sleep(self.pace.every)
            if not self.quiet:
                self.publish()

    async def follow(self, memory: Memory) -> None:
        """Be one client, for ever."""
        place = self.folder / f"copy-{memory.number}"
        follow = self.subject.keeping if memory.keeps else self.subject.forgetting
        cursor: str | None = memory.cursor
        while True:
            try:
                async with contextlib.aclosing(follow(self.url, cursor, self.pace, memory, place)) as news:
                    async for path in news:
                        self.take(memory, path)
                        stall, self.stall = self.stall, 0.0
                        await asyncio.sleep(stall)
            except Forgot:
                cursor = None

    def take(self, memory: Memory, news: str | Reset) -> None:
        """Note what a client was given."""
        if isinstance(news, Reset):
            memory.resets.append(self.now)
        else:
            number = int(news.removeprefix("file-").removesuffix(".txt"))
            self.arrived.append((memory.number, number, self.now))
            memory.deliver({"seq": number})

    @property
    def complete(self) -> bool:
        """Whether every client has the newest of what was published."""
        newest = self.published[-1][0]
        have = {client for client, number, _ in self.arrived if number == newest}
        return len(have) == len(self.memories)

    async def live_through(self, strike: "Strike") -> None:
        """From the first update to the last, with the fault in between."""
        publishing = asyncio.create_task(self.publish_all())
        try:
            await asyncio.sleep(self.pace.start)
            self.began = self.ended = self.now
            await strike(self)
            self.ended = self.now
            await asyncio.sleep(self.pace.after)
            self.quiet = False
            self.publish()
            publishing.cancel()
            async with asyncio.timeout(GRACE):
                while not self.complete:  # noqa: ASYNC110  # nobody tells
                    await asyncio.sleep(self.pace.every / 4)
        except TimeoutError:
            self.aside = "it never caught up"
        finally:
            publishing.cancel()
            self.door.open = False

    def worst_second(self) -> int:
        """The most requests that were begun within one second since the fault began."""
        begun = sorted(s.start - self.zero for memory in self.memories for s in memory.requests)
        late = [at for at in begun if at >= self.began]
        return max((sum(at <= other < at + 1 for other in late) for at in late), default=0)

    @property
    @abstractmethod
    def url(self) -> str:
        """Where clients ask."""

    @abstractmethod
    async def start(self) -> None:
        """Serve."""

    @abstractmethod
    async def stop(self) -> None:
        """Serve no more."""

    def outcome(self, fault: str, mode: str) -> Outcome:
        """What became of it."""
        spans = [(memory.number, span) for memory in self.memories for span in memory.requests]
        end = self.now
        requests = [
            Request(n, s.start - self.zero, (s.end or time.perf_counter()) - self.zero, s.updates, s.failed)
            for n, s in spans
        ]
        failures = [request.end for request in requests if request.failed and self.began <= request.end < self.cured]
        resets = [at for memory in self.memories for at in memory.resets if at >= self.began]
        until = min(self.cured, max(self.ended, self.began + MOMENT))
        gone = [at - self.zero for at in [*self.gone, *self.door.gone]]
        left = [at for at in gone if self.began <= at <= until] if self.subject.held else []
        run = Run(
            model=self.subject.name,
            label=f"{self.subject.name}, {'with' if self.keeps else 'without'} a cursor",
            mode=mode,
            clients=len(self.memories),
            schedule=Schedule(fault, end, ()),
            begin=0.0,
            end=end,
            server_requests=len(requests),
            published=[Publication(number, at, at, f"file-{number}.txt") for number, at in self.published],
            all_requests=sorted(requests, key=lambda request: request.start),
            all_deliveries=[Delivery(client, number, at) for client, number, at in self.arrived],
        )
        return Outcome(
            fault,
            self.subject.name,
            mode,
            self.keeps,
            self.began,
            self.ended,
            min([*failures, *resets], default=None),
            min(left, default=None),
            self.back(requests, run),
            len(resets),
            run,
            self.aside,
        )

    def back(self, requests: list[Request], run: Run) -> float:
        """When the client was back: it had asked with success after its last failure, and had what it had missed."""
        missed = {number for number, at in self.published if at <= self.ended}
        late = [at for (_, number), at in run.first_deliveries.items() if number in missed]
        failed = max((r.end for r in requests if r.failed and r.end >= self.began), default=None)
        again = [] if failed is None else sorted(r.start for r in requests if r.start >= failed)[:1]
        return max([self.ended, *late, *again])


Strike = Callable[[World], Any]
