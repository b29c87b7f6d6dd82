"""What is to be done, when, and what comes of it: a job for each path that differs, and workers.

    enqueue ─▶ work ─▶ attempt ─▶ do ─▶ Applied, to whoever takes the events
                 ▲                  └─▶ what failed ─┐
                 └──── try_again, after a pause ◀────┘

A path has one job at a time, that of its last update, and two workers never share a path. A job is over only when
what was announced stands there. A file that was changed again before it was fetched is taken as it came, if its ETag
says so, and asked for again until an update names it: it may have been changed *back*, and then none ever will.
"""

import asyncio
import errno
import math
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
from tqdm.auto import tqdm

from lab.clients.answers import GaveUp, Refused, Unavailable
from lab.clients.terminal import WORTH_IT, watched
from lab.mirror.fetch import Corrupt, Vanished
from lab.mirror.names import UnsafePath
from lab.mirror.report import Applied, Counters, Faults
from lab.mirror.settings import Settings
from lab.mirror.state import State

PATIENCE = 5.0  # seconds for which a file may be announced and not be there: an update that says so is on its way
BACKLOG = 1000  # changes applied and not yet taken by the caller, before the mirror waits for it

Events = asyncio.Queue[Applied | Exception | None]


class Job:
    """What is to be done about a path; `published` when the update says, None from a listing; `size` in bytes."""

    __slots__ = ("begun", "failures", "published", "size")

    def __init__(self, published: float | None, size: int = 0) -> None:
        self.published, self.size = published, size
        self.failures = 0
        self.begun: float | None = None  # loop time of the first failure (s)

    def since(self) -> float:
        """How long ago it failed for the first time (s)."""
        now = asyncio.get_running_loop().time()
        self.begun = now if self.begun is None else self.begun
        return now - self.begun


Do = Callable[[str, Job], Awaitable[Applied | None]]


class Jobs:
    """The jobs that are left. `once`: a file that cannot be had for too long ends it."""

    def __init__(
        self, settings: Settings, counters: Counters, faults: Faults, state: State, events: Events, *, once: bool
    ) -> None:
        self.settings, self.retry, self.once = settings, settings.retry, once
        self.counters, self.faults, self.state, self.events = counters, faults, state, events
        self.latest: dict[str, Job] = {}
        self.busy: dict[str, None] = {}  # paths that a worker is at; a set's order would not be repeatable
        self.unmet: dict[str, None] = {}  # paths of jobs about which the server has not answered yet
        self.ready: asyncio.Queue[tuple[str, Job]] = asyncio.Queue()
        self.bar: Any = None

    @property
    def idle(self) -> bool:
        """Whether the server has answered about every path."""
        return not (self.unmet or self.busy)

    def clear(self) -> None:
        """Drop what is not begun: a new listing says what is left to do."""
        self.latest.clear()
        self.unmet.clear()

    def enqueue(self, path: str, job: Job) -> None:
        """Have a worker see to it, in place of what was to be done there before."""
        self.latest[path] = job
        self.unmet[path] = None
        asyncio.get_running_loop().call_later(self.settings.spread(), self.ready.put_nowait, (path, job))

    async def work(self, do: Do) -> None:
        """One worker: a job at a time, never two of one path."""
        while True:
            path, job = await self.ready.get()
            if self.latest.get(path) is job and path not in self.busy:
                await self.attempt(path, job, do)

    async def attempt(self, path: str, job: Job, do: Do) -> None:
        """Do a job, or see to it that it is tried again; report what came of it."""
        self.busy[path] = None
        event: Applied | Exception | None = None
        try:
            event = await do(path, job)
            self.faults.mended(path)
            if path not in self.state.wanted or self.state.is_right(path):
                self.end(path, job)
            else:
                self.ask_again(path, job)
        except (UnsafePath, Vanished, Corrupt, Refused, Unavailable, httpx.RequestError, OSError) as error:
            event = self.went_wrong(path, job, error)
        await self.events.put(event)
        del self.busy[path]
        latest = self.latest.get(path)
        if latest is not None and latest is not job:
            self.ready.put_nowait((path, latest))

    def went_wrong(self, path: str, job: Job, error: Exception) -> GaveUp | None:
        """Say what it was, and try again unless that is of no use; GaveUp when it is time to."""
        match error:
            case UnsafePath():
                self.faults.refuse(path, error)
                self.end(path, job)
                return None
            case OSError(errno=errno.ENAMETOOLONG | errno.EILSEQ | errno.EINVAL):
                self.faults.refuse(path, f"this disk holds no such name ({error.strerror})")
                self.end(path, job)
                return None
            case Vanished():
                if job.since() > PATIENCE:
                    self.faults.report(path, "%r is announced, but cannot be had (404): trying again", path)
                self.ask_again(path, job)
                return None
            case Corrupt() | Refused():
                self.faults.report(path, "%r cannot be fetched (%s): trying again", path, error)
            case OSError():
                self.faults.report(path, "%r cannot be written (%s): trying again", path, error.strerror or error)
        return self.failed(path, job, error)

    def end(self, path: str, job: Job) -> None:
        """It is done."""
        if self.latest.get(path) is job:
            del self.latest[path]
            self.unmet.pop(path, None)
        if self.bar is not None:
            self.bar.update(job.size)
            if not self.unmet:
                self.bar.close()

    def ask_again(self, path: str, job: Job) -> None:
        """The server has answered, though not with what was announced: wait for the update that says so, or ask."""
        if self.latest.get(path) is job:
            self.unmet.pop(path, None)
        self.try_again(path, job, self.retry.jitter(job.failures))

    def failed(self, path: str, job: Job, error: Exception) -> GaveUp | None:
        """Try again, unless it is time to give up."""
        pause = self.settings.pause(error, job.failures)
        self.counters.refetched += not isinstance(error, OSError)
        limit = self.retry.give_up_after
        if job.since() + pause > (math.inf if limit is None else limit) and self.once:
            return self.settings.gave_up(f"{path!r} cannot be had", error)
        self.try_again(path, job, pause)
        return None

    def try_again(self, path: str, job: Job, pause: float) -> None:
        """Have a worker see to it after a pause (s)."""
        job.failures += 1
        asyncio.get_running_loop().call_later(pause, self.ready.put_nowait, (path, job))

    def show_bar(self) -> None:
        """A progress bar of the first listing, for a person who waits, and gone when it is over."""
        if self.latest and watched():
            total = sum(job.size for job in self.latest.values())
            self.bar = tqdm(total=total, unit="B", unit_scale=True, desc="fetching", leave=False, delay=WORTH_IT)

    def close_bar(self) -> None:
        """Wipe it away."""
        if self.bar is not None:
            self.bar.close()
