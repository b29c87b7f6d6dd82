"""What is to be done, when, and what comes of it: a job for each path that differs, and workers.

    enqueue ─▶ Queue ─▶ work ─▶ do ─▶ report: Applied, to whoever takes the events
                 ▲                      └─▶ what failed ─┐
                 └──── try_again, after a pause ◀────────┘

A path has one job at a time, that of its last update, and two workers never share a path. What is small is done many
at a time. A deletion waits until what was asked for before it has been tried: of what is renamed, the new name is there
before the old one goes. A job is over only when what was announced stands there. A file that was changed again before
it was fetched is taken as it came, if its ETag says so, and asked for again until an update names it: it may have been
changed *back*, and then none ever will.
"""

import asyncio
import errno
import itertools
import math
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

from tqdm.auto import tqdm

from lab.clients.answers import GaveUp, Refused
from lab.clients.terminal import WORTH_IT, watched
from lab.mirror.bundle import SMALL
from lab.mirror.fetch import Corrupt, LeftOut, NoBundles, Vanished
from lab.mirror.names import UnsafePath
from lab.mirror.queue import Job, Queue
from lab.mirror.report import Applied, Counters, Faults
from lab.mirror.settings import Settings
from lab.mirror.state import State

PATIENCE = 5.0  # seconds for which a file may be announced and not be there: an update that says so is on its way
BACKLOG = 1000  # changes applied and not yet taken by the caller, before the mirror waits for it

Events = asyncio.Queue[Applied | Exception | None]


Outcome = Applied | Exception | None
Batch = list[tuple[str, Job]]
Do = Callable[[Batch], Awaitable[dict[str, Outcome]]]


class Bar:
    """A progress bar, for a person who waits; nothing before it is shown."""

    def __init__(self) -> None:
        self._bar: Any = None

    def show(self, total: int) -> None:
        """Begin one, of so many bytes, if anybody watches."""
        if watched():
            self._bar = tqdm(total=total, unit="B", unit_scale=True, desc="fetching", leave=False, delay=WORTH_IT)

    def move(self, size: int, *, over: bool) -> None:
        """So many bytes further; wipe it away when it is over."""
        if self._bar is not None:
            self._bar.update(size)
        if over:
            self.close()

    def close(self) -> None:
        """Wipe it away."""
        if self._bar is not None:
            self._bar.close()


class Jobs:
    """The jobs that are left. `once`: a file that cannot be had for too long ends it.

    Small ones are done together, unless not `together`; of large ones, one worker less than there are is at them.
    """

    def __init__(
        self, settings: Settings, counters: Counters, faults: Faults, state: State, events: Events, *, once: bool
    ) -> None:
        self.settings, self.retry, self.once = settings, settings.retry, once
        self.counters, self.faults, self.state, self.events = counters, faults, state, events
        self.latest: dict[str, Job] = {}
        self.busy: dict[str, None] = {}  # paths that a worker is at; a set's order would not be repeatable
        self.unmet: dict[str, None] = {}  # paths of jobs about which the server has not answered yet
        self.queue = Queue(max(1, settings.parallel - 1))
        self.numbers = itertools.count()
        self.untried: dict[int, None] = {}  # numbers of the jobs that have something to bring, in their order
        self.deletions: deque[tuple[str, Job]] = deque()  # each waits until what came before it has been tried
        self.soon: Batch | None = None
        self.together = True
        self.telling = 0  # workers that have something to report
        self.bar = Bar()

    @property
    def idle(self) -> bool:
        """Whether the server has answered about every path, and all is reported."""
        return not (self.unmet or self.busy or self.telling)

    def clear(self) -> None:
        """Drop what is not begun: a new listing says what is left to do."""
        for job in self.latest.values():
            self.untried.pop(job.number, None)
        self.latest.clear()
        self.unmet.clear()
        self.deletions.clear()

    def enqueue(self, path: str, job: Job, *, deletion: bool = False) -> None:
        """Have a worker see to it, in place of what was to be done there before."""
        if before := self.latest.get(path):
            self.untried.pop(before.number, None)
        self.latest[path] = job
        self.unmet[path] = None
        job.number = next(self.numbers)
        if deletion:
            job.waits = True
            self.deletions.append((path, job))
        else:
            self.untried[job.number] = None
        if self.soon is None:
            self.soon = []
            asyncio.get_running_loop().call_later(self.settings.spread(), self.begin)
        if not deletion:
            self.soon.append((path, job))

    def begin(self) -> None:
        """Hand over what has come in since the first of it."""
        soon, self.soon = self.soon or [], None
        for path, job in soon:
            self.queue.put(path, job)
        self.release()

    def tried(self, job: Job) -> None:
        """Nothing has to wait for it any more."""
        if self.untried.pop(job.number, self) is None:
            self.release()

    def release(self) -> None:
        """Hand over the deletions before which all has been tried: what is renamed is never missing."""
        oldest = next(iter(self.untried), math.inf)
        while self.soon is None and self.deletions and self.deletions[0][1].number < oldest:
            path, job = self.deletions.popleft()
            job.waits = False
            self.queue.put(path, job)

    async def work(self, do: Do) -> None:
        """One worker: a batch at a time, never two of one path."""
        while True:
            batch = self.queue.take(self.begins, together=self.together)
            if not batch:
                await self.queue.wait()
                continue
            large = batch[0][1].size > SMALL
            self.queue.at_large += large
            outcomes = await do(batch)
            self.queue.at_large -= large
            await self.report(batch, outcomes)

    def begins(self, path: str, job: Job) -> bool:
        """Take a job from the queue, if it still is one and nobody is at that path."""
        if self.latest.get(path) is not job or path in self.busy:
            return False
        self.busy[path] = None
        return True

    async def report(self, batch: Batch, outcomes: dict[str, Outcome]) -> None:
        """See to it that what was not done is tried again; say what came of it all."""
        pauses = dict[int, float]()  # by error: what one failure has stopped is tried again together
        events = [self.settle(path, job, outcomes.get(path), pauses) for path, job in batch]
        for path, job in batch:
            del self.busy[path]
            self.tried(job)
            latest = self.latest.get(path)
            if latest is not None and latest is not job and not latest.waits:
                self.queue.put(path, latest)
        self.telling += 1
        for event in events:
            await self.events.put(event)
        self.telling -= 1

    def settle(self, path: str, job: Job, outcome: Outcome, pauses: dict[int, float]) -> Applied | GaveUp | None:
        """What is left to do about a path after an attempt, and what is to be told."""
        if isinstance(outcome, NoBundles | LeftOut):
            self.together = self.together and not isinstance(outcome, NoBundles)
            job.alone = True
            asyncio.get_running_loop().call_soon(self.queue.put, path, job)
            return None
        if isinstance(outcome, Exception):
            return self.went_wrong(path, job, outcome, pauses)
        self.faults.mended(path)
        if path not in self.state.wanted or self.state.is_right(path):
            self.end(path, job)
        else:
            self.ask_again(path, job)
        return outcome

    def went_wrong(self, path: str, job: Job, error: Exception, pauses: dict[int, float]) -> GaveUp | None:
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
                job.alone = True
                if job.since() > PATIENCE:
                    self.faults.report(path, "%r is announced, but cannot be had (404): trying again", path)
                self.ask_again(path, job)
                return None
            case Corrupt() | Refused():
                job.alone = True
                if id(error) not in pauses:  # it is said of the first of those that it has stopped
                    self.faults.report(path, "%r cannot be fetched (%s): trying again", path, error)
            case OSError() if id(error) not in pauses:
                self.faults.report(path, "%r cannot be written (%s): trying again", path, error.strerror or error)
        return self.failed(path, job, error, pauses)

    def end(self, path: str, job: Job) -> None:
        """It is done."""
        if self.latest.get(path) is job:
            del self.latest[path]
            self.unmet.pop(path, None)
        self.bar.move(job.size, over=not self.unmet)

    def ask_again(self, path: str, job: Job) -> None:
        """The server has answered, though not with what was announced: wait for the update that says so, or ask."""
        if self.latest.get(path) is job:
            self.unmet.pop(path, None)
        self.try_again(path, job, self.retry.jitter(job.failures))

    def failed(self, path: str, job: Job, error: Exception, pauses: dict[int, float]) -> GaveUp | None:
        """Try again, unless it is time to give up."""
        pause = pauses.setdefault(id(error), self.settings.pause(error, job.failures))
        self.counters.refetched += not isinstance(error, OSError)
        limit = self.retry.give_up_after
        if job.since() + pause > (math.inf if limit is None else limit) and self.once:
            return self.settings.gave_up(f"{path!r} cannot be had", error)
        self.try_again(path, job, pause)
        return None

    def try_again(self, path: str, job: Job, pause: float) -> None:
        """Have a worker see to it after a pause (s)."""
        job.failures += 1
        asyncio.get_running_loop().call_later(pause, self.queue.put, path, job)
