"""What a mirror does while its copy is open: what the server says becomes jobs, and what comes of them events.

Origin.listing ─▶ list ─┐
                        ├─▶ State.expect ─▶ Jobs ─▶ Hands.do ─▶ Applied ─▶ next()
sse ─▶ watch ─▶ take ───┘
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine
from typing import Any

import httpx

from lab.clients.answers import BadStatus, Reset, Update
from lab.clients.models import sse
from lab.mirror.apply import Hands
from lab.mirror.copy import Copy
from lab.mirror.fetch import SHA256, Origin
from lab.mirror.jobs import BACKLOG, Events, Job, Jobs
from lab.mirror.names import UnsafePath, Version, check_name
from lab.mirror.report import LINK, STATE, Applied, Counters, Faults
from lab.mirror.settings import Settings

log = logging.getLogger("lab.mirror")


class Session:
    """One opening of the copy: its parts, the tasks that keep them going, and what they report."""

    def __init__(
        self, settings: Settings, counters: Counters, copy: Copy, http: httpx.AsyncClient, *, once: bool
    ) -> None:
        self.settings, self.counters, self.copy, self.state = settings, counters, copy, copy.state
        self.events: Events = asyncio.Queue(BACKLOG)
        self.faults = Faults(counters)
        self.origin = Origin(settings, counters, self.faults, http)
        self.hands = Hands(copy, self.origin, counters)
        self.jobs = Jobs(settings, counters, self.faults, self.state, self.events, once=once)
        self.tasks: list[asyncio.Task[None]] = []
        for _ in range(settings.parallel):
            self.start(lambda: self.jobs.work(self.hands.do))

    def start(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run something until the session ends; what it raises comes out of `next`."""

        async def run() -> None:
            try:
                await work()
            except Exception as error:
                await self.events.put(error)

        self.tasks.append(asyncio.create_task(run()))

    async def stop(self) -> None:
        """End what was started."""
        self.copy.abandoned = True
        self.hands.stop()
        for task in self.tasks:
            task.cancel()
        await asyncio.wait(self.tasks)
        self.jobs.close_bar()

    @property
    def idle(self) -> bool:
        """Whether the server has answered about every path, and `next` would wait."""
        return self.jobs.idle and self.events.empty()

    async def next(self) -> Applied | None:
        """The next change that was applied; None: look again whether anything is left."""
        event = await self.events.get()
        if isinstance(event, Exception):
            raise event
        return event

    async def watch(self) -> None:
        """List unless the state says where to go on; then follow the events, and list again at every reset."""
        if self.state.cursor is None:
            await self.list()
        else:
            self.plan()
        resets = 0
        while True:
            stream = sse(
                self.settings.url,
                self.state.cursor,
                heartbeat=self.settings.heartbeat,
                retry=self.settings.retry,
                log=self.origin,
                headers=self.settings.headers,
            )
            async with contextlib.aclosing(stream):
                async for news in stream:
                    if isinstance(news, Reset):
                        log.warning("the log does not reach back to %s (%s): listing", self.state.cursor, news.reason)
                        break
                    resets = 0
                    self.faults.mended(LINK)
                    await self.take(news)
                else:
                    raise BadStatus("the server answered 204: there are no more events")
            if resets:
                await asyncio.sleep(self.settings.retry.jitter(resets))
            resets += 1
            self.counters.relisted += 1
            await self.list()

    async def list(self) -> None:
        """Get the listing, and plan what it takes."""
        listing = await self.origin.listing()
        versions = ((path, self.version(path, size, sha256)) for path, size, sha256 in listing.files)
        first, wanted = self.state.cursor is None, {path: version for path, version in versions if version}
        self.state.expect_all(wanted, listing.cursor)
        self.jobs.clear()
        self.plan()
        self.check_state()
        if first:
            self.jobs.show_bar()

    def plan(self) -> None:
        """Make a job of everything that differs, and of what is being changed just now."""
        wanted = self.state.wanted
        for path in [*self.state.differing(), *(path for path in self.jobs.busy if path in wanted)]:
            version = wanted[path]
            self.jobs.enqueue(path, Job(None, version.size if version else 0))

    async def take(self, update: Update) -> None:
        """Do what an update asks for: a deletion now, the rest as soon as a worker has time."""
        path, deleted = update.path, update.change == "deleted"
        version = None if deleted else self.version(path, update.size, update.sha256)
        if version is None and not deleted:
            self.state.pass_over(update.cursor)
        elif self.state.expect(path, version, update.cursor):
            job = Job(update.published)
            if deleted and path not in self.jobs.busy:
                self.jobs.latest[path] = job
                await self.jobs.attempt(path, job, self.hands.do)
            else:
                self.jobs.enqueue(path, job)
        self.check_state()

    def version(self, path: str, size: int | None, sha256: str | None) -> Version | None:
        """What the server says is there; None, counted and named, if that must not be written or cannot be checked."""
        try:
            check_name(path)
            if size is None or size < 0 or sha256 is None or not SHA256.fullmatch(sha256):
                raise UnsafePath("no size and SHA-256 to check it by")
        except UnsafePath as error:
            self.faults.refuse(path, error)
            return None
        return Version(size, sha256)

    def check_state(self) -> None:
        """Say so when the state cannot be written; the copy goes on, and a restart will have to look closer."""
        if unsaved := self.state.unsaved:
            self.faults.report(STATE, "the state cannot be written (%s): trying again", unsaved.strerror)
        else:
            self.faults.mended(STATE)
