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
from lab.clients.follower import now
from lab.clients.models import sse
from lab.mirror.apply import Hands
from lab.mirror.copy import Copy
from lab.mirror.fetch import Origin
from lab.mirror.jobs import BACKLOG, Events, Jobs
from lab.mirror.protect import Losses
from lab.mirror.queue import Job
from lab.mirror.report import LINK, STATE, Applied, Counters, Faults
from lab.mirror.settings import Settings
from lab.mirror.word import Word

LASTED = 2.0  # heartbeats after which a stream was one: a server that resets each at once is asked less and less often
LOOK = 5.0  # seconds from look to look whether the copy still is where it was

log = logging.getLogger("lab.mirror")
news_log = logging.getLogger("lab.mirror.news")


class Session:
    """One opening of the copy: its parts, the tasks that keep them going, and what they report."""

    def __init__(
        self, settings: Settings, counters: Counters, copy: Copy, http: httpx.AsyncClient, *, once: bool
    ) -> None:
        self.settings, self.counters, self.copy, self.state = settings, counters, copy, copy.state
        self.events: Events = asyncio.Queue(BACKLOG)
        self.faults = Faults(counters)
        self.origin = Origin(settings, counters, self.faults, http)
        self.word = Word(settings, counters, self.faults, copy.state, copy.top)
        self.losses = Losses(settings.max_delete)
        self.hands = Hands(copy, self.origin, counters, self.losses)
        self.jobs = Jobs(settings, counters, self.faults, self.state, self.events, once=once)
        self.hands.tried = self.jobs.tried
        self.behind = False  # and to be said when it no more is
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
        self.copy.reading.abandoned = True
        self.hands.stop()
        for task in self.tasks:
            task.cancel()
        await asyncio.wait(self.tasks)
        self.jobs.bar.close()

    @property
    def idle(self) -> bool:
        """Whether the server has answered about every path, and `next` would wait."""
        return self.jobs.idle and self.events.empty()

    async def next(self) -> Applied | None:
        """The next change that was applied; None: look again whether anything is left."""
        event = await self.events.get()
        if isinstance(event, Exception):
            raise event
        self.say_when_level()
        return event

    async def watch(self) -> None:
        """List unless the state says where to go on; then follow the events, and list again at every reset."""
        self.behind = True
        if self.state.cursor is None:
            await self.list()
        else:
            self.plan()
        self.say_when_level()
        resets = 0
        while True:
            begin = now()
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
                    if now() - begin > LASTED * self.settings.heartbeat:
                        resets = 0
                    self.faults.mended(LINK)
                    await self.take(news)
                else:
                    raise BadStatus("the server answered 204: there are no more events")
            await asyncio.sleep(self.settings.relist_pause() + (self.settings.retry.jitter(resets) if resets else 0))
            resets += 1
            self.counters.relisted += 1
            self.behind = True
            await self.list()
            self.say_when_level()

    def say_when_level(self) -> None:
        """Say once, after a start and after each listing, that the copy has all that the server had said by then."""
        if self.behind and self.jobs.idle:
            self.behind = False
            files, left_out = f"{len(self.state.present):,}", self.word.left_out
            news_log.info("up to date: %s files, cursor %s%s", files, self.state.cursor, left_out)

    async def stay(self) -> None:
        """See to it that the copy is where it was. Raises CopyGone."""
        while True:
            await asyncio.sleep(LOOK)
            self.copy.check()

    async def list(self) -> None:
        """Get the listing, and plan what it takes."""
        listing = await self.origin.listing()
        first = self.state.cursor is None
        self.word.take(listing)
        self.jobs.clear()
        self.plan()
        self.check_state()
        if first and self.jobs.latest:
            self.jobs.bar.show(sum(job.size for job in self.jobs.latest.values()))

    def plan(self) -> None:
        """Make a job of everything that differs, and of what is being changed just now."""
        wanted = self.state.wanted
        self.losses.check(self.state.losses(), len(self.state.present))
        for path in [*self.state.differing(), *(path for path in self.jobs.busy if path in wanted)]:
            version = wanted[path]
            self.jobs.enqueue(path, Job(None, version.size if version else 0), deletion=version is None)

    async def take(self, update: Update) -> None:
        """Do what an update asks for as soon as a worker has time."""
        path, deleted = update.path, update.change == "deleted"
        said = update.size, update.sha256, update.mtime, update.executable
        version = None if deleted else self.word.version(path, *said)
        if version is None and not deleted:
            self.state.pass_over(update.cursor)
        elif self.state.expect(path, version, update.cursor):
            job = Job(update.published, version.size if version else 0)
            self.jobs.enqueue(path, job, deletion=deleted)
        self.check_state()

    def check_state(self) -> None:
        """Say so when the state cannot be written; the copy goes on, and a restart will have to look closer."""
        if unsaved := self.state.unsaved:
            self.faults.report(STATE, "the state cannot be written (%s): trying again", unsaved.strerror)
        else:
            self.faults.mended(STATE)
