"""Keep a directory identical to the one that a server of file updates watches (servers/file_updates.py).

    mirror = Mirror(server.url, "copy")
    await mirror.sync()                                   # list, and fetch what differs

    async with contextlib.aclosing(mirror.follow()) as applied:
        async for change in applied: ...                  # list, then watch, for ever; goes on after any failure

    GET /files ─▶ everything at cursor C ─┐
                                          ├─▶ Copy.expect ─▶ a Job for each path ─▶ workers ─▶ Applied
    GET /events after C ─▶ every update ──┘                   ▲                      │ remove │ copy │ GET /files/PATH
                                                              └── a pause, jitter ◀──┘ what failed

Listing at C and watching from C leaves no gap; a reset leads to a new listing. A path has one job, and its last update
decides; a job is over only when what was announced stands there. A file that was changed again before it was fetched
is taken as it came, if its ETag says so, and asked for again until an update names it: it may have been changed *back*,
and then none will. All that is known is kept in COPY (lab/copy_tree.py), so stopping is as good as being killed.

`python -m lab.mirror URL COPY` does that until Ctrl-C; with --once it ends when the copy is complete.
"""

import argparse
import asyncio
import contextlib
import io
import logging
import os
import random
import re
import signal
import sys
import time
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import httpx
from tqdm.auto import tqdm

from lab.answers import BadAnswer, BadStatus, ClientError, GaveUp, Refused, Reset, Unavailable, Update, refusal, split
from lab.clients import RETRY, Log, Retry, address_below, http_client, named, printable, sse
from lab.copy_tree import KEPT, Copy, CopyError, Part, UnsafePath, Version, check_name
from lab.progress import WORTH_IT, watched
from lab.result import LIVE
from servers.__main__ import Parser, number, whole
from servers.feed import Change
from servers.service import HEARTBEAT

__all__ = ["Applied", "CopyError", "Counters", "Mirror"]

PATIENCE = 3  # times to ask for a file that is announced and not there, before anybody is told
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
    """What a mirror has done: files `fetched`, `bytes` received for them, files `copied` locally, `deleted`; fetches
    to be repeated because they failed (`refetched`), unsafe paths `refused`, listings after a reset (`relisted`)."""

    fetched: int = 0
    bytes: int = 0
    copied: int = 0
    deleted: int = 0
    refetched: int = 0
    refused: int = 0
    relisted: int = 0


class Mirror:
    """A mirror of the server at `url` in the directory `copy`, which is made if it is not there.

    At most `parallel` fetches at once, each begun within `jitter` seconds at random, so that many mirrors do not ask in
    the same instant; a link is dead after 2.5 `heartbeat`s of silence, a fetch after `timeout` (s). `retry` paces what
    failed; its `give_up_after` ends `follow` when the server does not answer, and `sync` also when a file cannot be
    had. `token` goes out as a bearer token. A directory that is not empty must have been a mirror's, unless `adopt`:
    what the server has too is then taken over, the rest is left alone. `log` counts requests (`ClientLog` is one).
    """

    def __init__(
        self,
        url: str,
        copy: str | os.PathLike[str],
        *,
        parallel: int = 4,
        jitter: float = 0.05,
        heartbeat: float = HEARTBEAT,
        timeout: float = 30.0,
        retry: Retry = RETRY,
        token: str | None = None,
        adopt: bool = False,
        log: Log | None = None,
    ) -> None:
        if parallel < 1 or not (jitter >= 0 and heartbeat > 0 and timeout > 0):
            raise ValueError("a mirror needs parallel >= 1, jitter >= 0, heartbeat > 0 and timeout > 0")
        self.url, self.files_url = url, address_below(url, "/files")
        self.copy, self.parallel, self.jitter = Path(copy), parallel, jitter
        self.heartbeat, self.timeout, self.retry, self.adopt, self.log = heartbeat, timeout, retry, adopt, log
        self.headers = {"Authorization": f"Bearer {token}"} if token else {}
        self.counters = Counters()

    def __repr__(self) -> str:
        return f"<mirror of {self.url} in {self.copy}: {self.counters}>"

    async def sync(self) -> list[Applied]:
        """List once and apply it. Raises ClientError, CopyError, and OSError if the copy cannot be used at all.

        What vanishes or changes meanwhile is as the server last gave it: only `follow` settles that.
        """
        async with self._session(once=True) as session:
            await session.list()
            applied = []
            while session.unmet or session.busy or not session.events.empty():
                if change := await session.next():
                    applied.append(change)
            return applied

    async def follow(self) -> AsyncGenerator[Applied, None]:
        """Apply what the server says, for ever, from where the copy stands. Raises as `sync` does."""
        async with self._session(once=False) as session:
            session.start(session.watch())
            while True:
                if change := await session.next():
                    yield change

    @contextlib.asynccontextmanager
    async def _session(self, *, once: bool) -> AsyncGenerator["_Session", None]:
        with Copy(self.copy, adopt=self.adopt) as copy:
            async with http_client(self.timeout) as http:
                session = _Session(self, copy, http, once=once)
                try:
                    for _ in range(self.parallel):
                        session.start(session.work())
                    yield session
                finally:
                    await session.stop()


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
        self.begun = 0.0  # loop time of the first failure (s)


class _Session:
    """One opening of the copy: the jobs, the workers, and what they report."""

    def __init__(self, mirror: Mirror, copy: Copy, http: httpx.AsyncClient, *, once: bool) -> None:
        self.mirror, self.copy, self.http, self.once = mirror, copy, http, once
        self.counters, self.retry = mirror.counters, mirror.retry
        self.jobs: dict[str, _Job] = {}
        self.busy: set[str] = set()
        self.unmet: dict[str, None] = {}  # paths of jobs about which the server has not answered yet
        self.ready: asyncio.Queue[tuple[str, _Job]] = asyncio.Queue()
        self.events: asyncio.Queue[Applied | Exception | None] = asyncio.Queue(BACKLOG)
        self.tasks: list[asyncio.Task[None]] = []
        self.faults: dict[str, str] = {}  # the last that was logged, of each path; "" stands for the connection
        self.emptying: asyncio.TimerHandle | None = None
        self.bar: Any = None

    def start(self, work: Any) -> None:
        """Run a coroutine until the session ends; what it raises comes out of `next`."""

        async def run() -> None:
            try:
                await work
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
                self.mirror.url,
                self.copy.cursor,
                heartbeat=self.mirror.heartbeat,
                retry=self.retry,
                log=self,
                headers=self.mirror.headers,
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
        """Get the listing and plan what it takes; again until there is an answer, or until it is time to give up."""
        begun, failures = _now(), 0
        while True:
            try:
                with self.request():
                    response = await self.http.get(self.mirror.files_url, headers=self.mirror.headers)
                if response.status_code != 200:
                    raise refusal(response.status_code, response.headers, response.content)
                break
            except (Unavailable, httpx.RequestError) as error:
                pause = self.pause(error, failures)
                if self.is_over(begun, pause):
                    raise self.gave_up(f"no listing from {self.mirror.files_url}", error) from error
                await asyncio.sleep(pause)
                failures += 1
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
        log.warning("refused %r: %s", path, error)

    # Jobs

    def enqueue(self, path: str, job: _Job) -> None:
        """Have a worker see to it, in place of what was to be done there before."""
        self.jobs[path] = job
        self.unmet[path] = None
        asyncio.get_running_loop().call_later(self.random(self.mirror.jitter), self.ready.put_nowait, (path, job))

    async def work(self) -> None:
        """One worker: a job at a time, never two of one path."""
        while True:
            path, job = await self.ready.get()
            if self.jobs.get(path) is job and path not in self.busy:
                await self.attempt(path, job)

    async def attempt(self, path: str, job: _Job) -> None:
        """Do a job, or see to it that it is tried again; report what came of it."""
        self.busy.add(path)
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
            if job.failures == PATIENCE:
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
        self.busy.discard(path)
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
        job.begun = job.begun or _now()
        if self.once and self.is_over(job.begun, pause):
            return self.gave_up(f"{path!r} cannot be had", error)
        self.try_again(path, job, pause)
        return None

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
        headers = {"Accept-Encoding": "identity", "Cache-Control": "no-cache"} | self.mirror.headers
        if present := self.copy.present.get(path):
            headers["If-None-Match"] = f'"{present.sha256}"'
        url = f"{self.mirror.files_url}/{quote(path)}"
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
        with self.mirror.log.request() if self.mirror.log else contextlib.nullcontext():
            try:
                yield
            except (httpx.RequestError, Unavailable) as error:
                self.report("", "the link to %s failed (%s): trying again", self.mirror.url, named(error))
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

    def is_over(self, begun: float, pause: float) -> bool:
        limit = self.retry.give_up_after
        return limit is not None and _now() + pause - begun > limit

    def gave_up(self, what: str, error: Exception) -> GaveUp:
        return GaveUp(f"{what}, for {self.retry.give_up_after:g} s ({named(error)})")

    def random(self, most: float) -> float:
        return (self.retry.rng or random).uniform(0, most)

    def show_bar(self) -> None:
        """A progress bar of the first listing, for a person who waits, and gone when it is over."""
        virtual = getattr(asyncio.get_running_loop(), "mode", LIVE) != LIVE
        if not virtual and watched():
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


def _now() -> float:
    return asyncio.get_running_loop().time()


def _options(arguments: list[str] | None) -> argparse.Namespace:
    p = Parser(prog="python -m lab.mirror", description="Keep COPY identical to what a server of file updates has.",
               epilog="What others put into COPY stays, unless the server has a file of that name.")  # fmt: skip
    p.add_argument("url", metavar="URL", help="what the server printed: http://HOST:PORT")
    p.add_argument("copy", metavar="COPY", type=Path, help="a directory: new, empty, or a mirror's")
    p.add_argument("--once", action="store_true", help="list, fetch and end")
    p.add_argument("--adopt", action="store_true", help="take over a directory that is not empty and no mirror's")
    p.add_argument("--parallel", type=whole(1, 64), default=4, metavar="N", help="fetches at a time, at most (4)")
    p.add_argument("--heartbeat", type=number, default=HEARTBEAT, metavar="S", help="the server's (15)")
    p.add_argument("--timeout", type=number, default=30.0, metavar="S", help="of a fetch that has become silent (30)")
    p.add_argument(
        "--longest-pause", type=number, default=30.0, metavar="S", help="from try to try, on average half (30)"
    )
    p.add_argument(
        "--give-up-after", type=number, metavar="S", help="without an answer (default: never; with --once, 60)"
    )
    p.add_argument("--token-file", type=Path, metavar="FILE", help="whose content the server asks for")
    return p.parse_args(arguments)


async def _run(options: argparse.Namespace) -> None:
    task = asyncio.current_task()
    assert task
    with contextlib.suppress(NotImplementedError):  # on Windows
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    pause = options.longest_pause
    mirror = Mirror(
        options.url,
        options.copy,
        parallel=options.parallel,
        heartbeat=options.heartbeat,
        timeout=options.timeout,
        retry=Retry(min(1.0, pause), pause, options.give_up_after or (60.0 if options.once else None)),
        token=options.token_file and _token(options.token_file),
        adopt=options.adopt,
    )
    if options.once:
        await mirror.sync()
        print(f"{printable(str(options.copy))} is complete: {mirror.counters}")
        return
    async with contextlib.aclosing(mirror.follow()) as changes:
        async for change in changes:
            print(_line(change), flush=True)


def _token(file: Path) -> str:
    token = file.read_text(errors="replace").strip()
    if not re.fullmatch("[!-~]+", token):
        raise ValueError(f"{file}: a token is one word of plain ASCII")
    return token


def _line(change: Applied) -> str:
    """A line of the command line: time, time since it was published, what, how, bytes received, path."""
    late = "" if change.published is None else f"{1000 * (change.applied - change.published):.1f} ms"
    clock = f"{datetime.fromtimestamp(change.applied):%H:%M:%S.%f}"[:-3]
    what = f"{clock} {late:>12}  {change.change:8}  {change.how:7}  {change.fetched:11,} bytes  {change.path}"
    return printable(what)


def main(arguments: list[str] | None = None) -> int:
    """Run until Ctrl-C or SIGTERM, or until the copy is complete; return the exit status."""
    options = _options(arguments)
    logging.basicConfig(format="%(levelname)s %(message)s", level=logging.WARNING)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a name may have characters that this terminal has not
    try:
        asyncio.run(_run(options))
    except (KeyboardInterrupt, asyncio.CancelledError):
        return int(options.once)  # not complete
    except BrokenPipeError:  # what read our lines has seen enough; the interpreter's last flush must not fail
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (ClientError, CopyError, OSError, ValueError) as error:
        text = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else str(error)
        print(f"python -m lab.mirror: {printable(text)}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
