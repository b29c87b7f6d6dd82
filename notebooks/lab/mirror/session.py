"""What a mirror does while its copy is open: a job for each path that differs, workers, and what comes of it.

    Session.list ───┐                          ┌─ remove ─┐
                    ├─▶ enqueue ─▶ work ─▶ apply ─ copy ──┼─▶ Applied ─▶ next()
    Session.take ───┘      ▲                   └─ fetch ──┘
                           └── try_again, after a pause ◀── what failed

A path has one job at a time, that of its last update, and two workers never share a path. A job is over only when
what was announced stands there. A file that was changed again before it was fetched is taken as it came, if its ETag
says so, and asked for again until an update names it: it may have been changed *back*, and then none ever will.

File operations that take no time (a rename, a chunk written to the system's cache) are done on the loop, so that no
reader and no other job sees them half done; reading a whole file is done in a thread.
"""

import asyncio
import contextlib
import logging
import math
import random
import re
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import quote

import httpx
from tqdm.auto import tqdm

from lab.bench.progress import WORTH_IT, watched
from lab.bench.result import LIVE
from lab.clients.answers import BadAnswer, BadStatus, GaveUp, Refused, Reset, Unavailable, Update, refusal, split
from lab.clients.models import RETRY, Log, Retry, named, sse
from lab.mirror.copy import KEPT, Copy, Part, UnsafePath, Version, check_name
from servers.feed import HEARTBEAT, Change

PATIENCE = 5.0  # seconds for which a file may be announced and not be there: an update that says so is on its way
BACKLOG = 1000  # changes applied and not yet taken by the caller, before the mirror waits for it
SHA256 = re.compile("[0-9a-f]{64}")

log = logging.getLogger("lab.mirror")


@dataclass(frozen=True, slots=True)
class Applied:
    """One change that the copy has now.

    `published` and `applied` in Unix time (s), `published` None for what a listing said; `how` the copy got it: what
    stood there already was "kept", what stood elsewhere in the copy "copied". `size` and `fetched` in bytes.
    """

    path: str
    change: Change
    size: int | None
    sha256: str | None
    published: float | None
    applied: float
    how: Literal["fetched", "copied", "kept", "removed"]
    fetched: int = 0


@dataclass
class Counters:
    """What a mirror has done so far.

    Files `fetched`, and `bytes` received for them; files `copied` from another path of the copy, and `deleted`; fetches
    that failed and were `refetched`; unsafe paths `refused`; resets after which it `relisted`.
    """

    fetched: int = 0
    bytes: int = 0
    copied: int = 0
    deleted: int = 0
    refetched: int = 0
    refused: int = 0
    relisted: int = 0


@dataclass(frozen=True)
class Settings:
    """How a mirror works; see `lab.mirror.Mirror`. `url` is the server's, `files_url` where it lists its files."""

    url: str
    files_url: httpx.URL
    parallel: int = 4
    jitter: float = 0.05
    heartbeat: float = HEARTBEAT
    timeout: float = 30.0
    retry: Retry = RETRY
    headers: dict[str, str] = field(default_factory=dict)
    log: Log | None = None


class _Vanished(Exception):
    """404: gone since it was announced, or not readable for the server just now."""


class _Corrupt(Exception):
    """Bytes that are neither what was announced nor what the answer says they are."""


class _Job:
    """What is to be done about a path; `published` when the update says, None from a listing; `size` in bytes."""

    __slots__ = ("begun", "failures", "published", "size")

    def __init__(self, published: float | None, size: int = 0) -> None:
        self.published, self.size = published, size
        self.failures = 0
        self.begun: float | None = None  # loop time of the first failure (s)


class Session:
    """One opening of the copy: the jobs, the workers, and what they report."""

    def __init__(
        self, settings: Settings, counters: Counters, copy: Copy, http: httpx.AsyncClient, *, once: bool
    ) -> None:
        self.settings, self.copy, self.http, self.once = settings, copy, http, once
        self.counters, self.retry = counters, settings.retry
        self.jobs: dict[str, _Job] = {}
        self.busy: dict[str, None] = {}  # paths that a worker is at; a set's order would not be repeatable
        self.unmet: dict[str, None] = {}  # paths of jobs about which the server has not answered yet
        self.ready: asyncio.Queue[tuple[str, _Job]] = asyncio.Queue()
        self.events: asyncio.Queue[Applied | Exception | None] = asyncio.Queue(BACKLOG)
        self.tasks: list[asyncio.Task[None]] = []
        self.faults: dict[str, str] = {}  # the last that was logged, of each path; "" stands for the connection
        self.emptying: asyncio.TimerHandle | None = None
        self.bar: Any = None

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
        if self.emptying:
            self.emptying.cancel()
        for task in self.tasks:
            task.cancel()
        await asyncio.wait(self.tasks)
        if self.bar is not None:
            self.bar.close()

    async def next(self) -> Applied | None:
        """The next change that was applied; None: look again whether anything is left."""
        event = await self.events.get()
        if isinstance(event, Exception):
            raise event
        return event

    # What the server says

    async def watch(self) -> None:
        """List unless the state says where to go on; then follow the events, and list again at every reset."""
        if self.copy.cursor is None:
            await self.list()
        else:
            self.plan()
        resets = 0
        while True:
            stream = sse(
                self.settings.url,
                self.copy.cursor,
                heartbeat=self.settings.heartbeat,
                retry=self.retry,
                log=self,
                headers=self.settings.headers,
            )
            async with contextlib.aclosing(stream):
                async for news in stream:
                    if isinstance(news, Reset):
                        log.warning("the log does not reach back to %s (%s): listing", self.copy.cursor, news.reason)
                        break
                    resets = 0
                    self.well()
                    await self.take(news)
                else:
                    raise BadStatus("the server answered 204: there are no more events")
            if resets:
                await asyncio.sleep(self.retry.jitter(resets))
            resets += 1
            self.counters.relisted += 1
            await self.list()

    async def list(self) -> None:
        """Get the listing, and plan what it takes."""
        response = await self.listing()
        self.well()
        cursor, listed = _listing(response)
        files = {path: version for path, size, sha256 in listed if (version := self.version(path, size, sha256))}
        first = self.copy.cursor is None
        self.copy.expect_all(files, cursor)
        self.jobs.clear()
        self.unmet.clear()
        self.plan()
        self.check_state()
        if first:
            self.show_bar()

    async def listing(self) -> httpx.Response:
        """Ask for the listing until there is an answer, or until it is time to give up."""
        failures, cause = 0, None
        try:
            async with asyncio.timeout(self.retry.give_up_after):
                while True:
                    try:
                        with self.request():
                            response = await self.http.get(self.settings.files_url, headers=self.settings.headers)
                            if response.status_code == 200:
                                return response
                            raise refusal(response.status_code, response.headers, response.content)
                    except (Unavailable, httpx.RequestError) as error:
                        cause = error
                    await asyncio.sleep(self.pause(cause, failures))
                    failures += 1
        except TimeoutError as error:
            raise self.gave_up(f"no listing from {self.settings.files_url}", cause or error) from cause

    def plan(self) -> None:
        """Make a job of everything that differs, and of what is being changed just now."""
        wanted = self.copy.wanted
        for path in [*self.copy.differing(), *(path for path in self.busy if path in wanted)]:
            version = wanted[path]
            self.enqueue(path, _Job(None, version.size if version else 0))

    async def take(self, update: Update) -> None:
        """Do what an update asks for: a deletion now, the rest as soon as a worker has time."""
        path, deleted = update.path, update.change == "deleted"
        version = None if deleted else self.version(path, update.size, update.sha256)
        if version is None and not deleted:
            self.copy.pass_over(update.cursor)
        elif self.copy.expect(path, version, update.cursor):
            job = _Job(update.published)
            if deleted and path not in self.busy:
                self.jobs[path] = job
                await self.attempt(path, job)
            else:
                self.enqueue(path, job)
        self.check_state()

    def version(self, path: str, size: int | None, sha256: str | None) -> Version | None:
        """What the server says is there; None, counted and named, if that must not be written or cannot be checked."""
        try:
            check_name(path)
            if size is None or sha256 is None or not SHA256.fullmatch(sha256):
                raise UnsafePath("no size and SHA-256 to check it by")
        except UnsafePath as error:
            self.refuse(path, error)
            return None
        return Version(size, sha256)

    def refuse(self, path: str, error: UnsafePath) -> None:
        self.counters.refused += 1
        self.report(path, "refused %r: %s", path, error)

    # Jobs

    def enqueue(self, path: str, job: _Job) -> None:
        """Have a worker see to it, in place of what was to be done there before."""
        self.jobs[path] = job
        self.unmet[path] = None
        asyncio.get_running_loop().call_later(self.random(self.settings.jitter), self.ready.put_nowait, (path, job))

    async def work(self) -> None:
        """One worker: a job at a time, never two of one path."""
        while True:
            path, job = await self.ready.get()
            if self.jobs.get(path) is job and path not in self.busy:
                await self.attempt(path, job)

    async def attempt(self, path: str, job: _Job) -> None:
        """Do a job, or see to it that it is tried again; report what came of it."""
        self.busy[path] = None
        event: Applied | Exception | None = None
        try:
            event = await self.apply(path, job)
            self.faults.pop(path, None)
            if path not in self.copy.wanted or self.copy.is_right(path):
                self.end(path, job)
            else:
                self.ask_again(path, job)
        except UnsafePath as error:
            self.refuse(path, error)
            self.end(path, job)
        except _Vanished:
            if self.since(job) > PATIENCE:
                self.report(path, "%r is announced, but cannot be had (404): trying again", path)
            self.ask_again(path, job)
        except (_Corrupt, Refused) as error:
            self.report(path, "%r cannot be fetched (%s): trying again", path, error)
            event = self.failed(path, job, error)
        except (httpx.RequestError, Unavailable) as error:
            event = self.failed(path, job, error)
        except OSError as error:
            self.report(path, "%r cannot be written (%s): trying again", path, error.strerror or error)
            event = self.failed(path, job, error)
        await self.events.put(event)
        del self.busy[path]
        latest = self.jobs.get(path)
        if latest is not None and latest is not job:
            self.ready.put_nowait((path, latest))

    def end(self, path: str, job: _Job) -> None:
        """It is done."""
        if self.jobs.get(path) is job:
            del self.jobs[path]
            self.unmet.pop(path, None)
        if self.bar is not None:
            self.bar.update(job.size)
            if not self.unmet:
                self.bar.close()

    def ask_again(self, path: str, job: _Job) -> None:
        """The server has answered, though not with what was announced: wait for the update that says so, or ask."""
        if self.jobs.get(path) is job:
            self.unmet.pop(path, None)
        self.try_again(path, job, self.retry.jitter(job.failures))

    def failed(self, path: str, job: _Job, error: Exception) -> GaveUp | None:
        """Try again, unless it is time to give up."""
        pause = self.pause(error, job.failures)
        self.counters.refetched += not isinstance(error, OSError)
        limit = self.retry.give_up_after
        if self.since(job) + pause > (math.inf if limit is None else limit) and self.once:
            return self.gave_up(f"{path!r} cannot be had", error)
        self.try_again(path, job, pause)
        return None

    def since(self, job: _Job) -> float:
        """How long ago it failed for the first time (s)."""
        now = asyncio.get_running_loop().time()
        job.begun = now if job.begun is None else job.begun
        return now - job.begun

    def try_again(self, path: str, job: _Job, pause: float) -> None:
        job.failures += 1
        asyncio.get_running_loop().call_later(pause, self.ready.put_nowait, (path, job))

    # Doing it

    async def apply(self, path: str, job: _Job) -> Applied | None:
        """Make a path what it should be; None if there was nothing to do after all. Raises what `attempt` handles."""
        copy, wanted = self.copy, self.copy.wanted.get(path)
        if wanted is None:
            copy.remove(path)
            self.counters.deleted += 1
            self.empty_later()
            return Applied(path, "deleted", None, None, job.published, time.time(), "removed")
        if copy.is_right(path):
            return self.applied(path, "modified", job, "kept")
        change: Change = "modified" if path in copy.present else "added"
        if change == "added" and (status := await asyncio.to_thread(copy.stands, path, wanted)):
            copy.note(path, wanted, status)
            return self.applied(path, change, job, "kept")
        if source := copy.source(wanted.sha256):
            with copy.part() as part:
                try:
                    await asyncio.to_thread(copy.fill, part, source)
                except OSError:
                    pass  # gone, or the disk is full: fetching it will tell
                if part.sha256 == wanted.sha256 and self.place(part, path):
                    self.counters.copied += 1
                    return self.applied(path, change, job, "copied")
        with copy.part() as part:
            if await self.fetch(path, wanted, part) and self.place(part, path):
                self.counters.fetched += 1
                return self.applied(path, change, job, "fetched", part.size)
        return None

    def place(self, part: Part, path: str) -> bool:
        """Put a part into its place, unless an update has meanwhile said that the file is gone."""
        if self.copy.wanted.get(path) is None:
            return False
        self.copy.place(part, path)
        return True

    def applied(
        self, path: str, change: Change, job: _Job, how: Literal["fetched", "copied", "kept"], fetched: int = 0
    ) -> Applied:
        size, sha256 = self.copy.present[path]
        return Applied(path, change, size, sha256, job.published, time.time(), how, fetched)

    async def fetch(self, path: str, wanted: Version, part: Part) -> bool:
        """Write the file's bytes into `part`; False when the server still has what the copy has (304).

        Raises _Corrupt unless they hash to what was announced, or else to what the answer's ETag says.
        """
        headers = {"Accept-Encoding": "identity", "Cache-Control": "no-cache"} | self.settings.headers
        if present := self.copy.present.get(path):
            headers["If-None-Match"] = f'"{present.sha256}"'
        url = f"{self.settings.files_url}/{quote(path)}"
        with self.request():
            async with self.http.stream("GET", url, headers=headers) as response:
                if present and response.status_code == 304:
                    return False
                if response.status_code == 404:
                    raise _Vanished
                if response.status_code != 200:
                    raise refusal(response.status_code, response.headers, await response.aread())
                async for chunk in response.aiter_bytes():
                    self.counters.bytes += len(chunk)
                    part.write(chunk)
        self.well()
        etag = response.headers.get("ETag", "").removeprefix("W/").strip('"')
        if part.sha256 not in (wanted.sha256, etag):
            raise _Corrupt(
                f"{part.size} bytes with SHA-256 {part.sha256[:8]}... came, announced were {wanted.size} with"
                f" {wanted.sha256[:8]}..."
            )
        return True

    def empty_later(self) -> None:
        """Let go of removed files when no rename can need them any more."""

        def empty() -> None:
            self.emptying = None
            with contextlib.suppress(OSError):
                if self.copy.forget_removed():
                    self.empty_later()

        if self.emptying is None:
            self.emptying = asyncio.get_running_loop().call_later(KEPT, empty)

    # Failures

    @contextlib.contextmanager
    def request(self) -> Iterator[None]:
        """The context of one request, counted; the stream's, too, whose failures its follower keeps to itself."""
        with self.settings.log.request() if self.settings.log else contextlib.nullcontext():
            try:
                yield
            except (httpx.RequestError, Unavailable) as error:
                self.report("", "the link to %s failed (%s): trying again", self.settings.url, named(error))
                raise

    def pause(self, error: Exception, failures: int) -> float:
        """How long to wait after a failure (s): as long as the server asks for, and jitter."""
        return (error.wait if isinstance(error, Unavailable) else 0.0) + self.retry.jitter(failures)

    def report(self, path: str, text: str, *arguments: object) -> None:
        """Log a fault, once as long as it is the same."""
        line = text % arguments
        if self.faults.get(path) != line:
            self.faults[path] = line
            log.warning("%s", line)

    def well(self) -> None:
        """The server has answered."""
        self.faults.pop("", None)

    def check_state(self) -> None:
        """Say so when the state cannot be written; the copy goes on, and a restart will have to look closer."""
        if self.copy.unsaved:
            self.report("/", "the state cannot be written (%s): trying again", self.copy.unsaved.strerror)
        else:
            self.faults.pop("/", None)

    def gave_up(self, what: str, error: Exception) -> GaveUp:
        return GaveUp(f"{what}, for {self.retry.give_up_after:g} s ({named(error)})")

    def random(self, most: float) -> float:
        return (self.retry.rng or random).uniform(0, most)

    def show_bar(self) -> None:
        """A progress bar of the first listing, for a person who waits, and gone when it is over."""
        virtual = getattr(asyncio.get_running_loop(), "mode", LIVE) != LIVE
        if self.jobs and not virtual and watched():
            self.bar = tqdm(
                total=sum(job.size for job in self.jobs.values()),
                unit="B",
                unit_scale=True,
                desc="fetching",
                leave=False,
                delay=WORTH_IT,
            )


def _listing(response: httpx.Response) -> tuple[str, list[tuple[str, int | None, str | None]]]:
    """Cursor, and path, size (bytes) and SHA-256 of every file. Raises BadAnswer."""
    try:
        body = response.json()
    except (ValueError, RecursionError) as error:
        raise BadAnswer(f"a listing is JSON: {error}") from None
    match body:
        case {"cursor": str(cursor), "files": list(files)}:
            split(cursor)
            return cursor, [_entry(file) for file in files]
    raise BadAnswer('a listing has "cursor" and "files"')


def _entry(file: Any) -> tuple[str, int | None, str | None]:
    match file:
        case {"path": str(path), "size": int() | None as size, "sha256": str() | None as sha256}:
            return path, size, sha256
    raise BadAnswer('a file in a listing has "path", "size" and "sha256"')
