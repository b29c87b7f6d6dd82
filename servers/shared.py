"""What many processes do for one feed: one of them fills it, all of them serve.

    lead(feed, source)    the source runs where the lease is; another process takes over when its holder is gone
    watch_shared          a look at the directory: only what differs from the log is published; then what changes
    SharedTree            files are opened as the log says they are, by whoever has the directory

A lease is kept in Redis for LEASE seconds and renewed. Whoever slept for longer publishes nothing: each update carries
the lease, and Redis refuses it with another. Whoever cannot see the directory leaves the lease to who can.
"""

import asyncio
import errno
import logging
import math
import os
import secrets
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from servers.feed import Known, Unavailable, check_path
from servers.hashing import File
from servers.index import Index
from servers.places import identity
from servers.redis_feed import Fenced, RedisFeed
from servers.service import Source
from servers.sources import watch
from servers.tree import Tree

LEASE = 5.0  # seconds for which the holder may be silent
AGAIN = 0.5  # seconds until it is tried again to take the lease
REPEATED = 60.0  # seconds after which the same trouble is said again

log = logging.getLogger("servers")


async def lead(feed: RedisFeed, source: Source, unseen: Callable[[], str | None] = lambda: None) -> None:
    """Run the source for as long as this process holds the lease, for ever. What the source raises is raised.

    `unseen` says why this process could not tell what changes, if it held the lease.
    """
    said, said_at = "", 0.0
    while True:
        why = feed.delayed = await asyncio.to_thread(unseen)
        if not why and await _held(feed, lease := secrets.token_hex(8)):
            feed.fence = lease
            why = await _run(feed, source, lease, unseen)
            feed.delayed = await asyncio.to_thread(unseen)
        if why and (why != said or time.monotonic() > said_at + REPEATED):  # not as often as it is tried
            said, said_at = why, time.monotonic()
            log.warning("no updates from this process for now: %s", why)
        await asyncio.sleep(AGAIN)


async def _held(feed: RedisFeed, lease: str) -> bool:
    try:
        return await asyncio.to_thread(feed.hold, lease, LEASE)
    except Unavailable:
        return False  # the feed says so itself


async def _fill(source: Source) -> None:
    """Run the source, and again if Redis takes no updates: nobody else could give it any."""
    pause = AGAIN
    while True:
        try:
            return await source()
        except Unavailable:  # the feed says so itself
            await asyncio.sleep(pause)
            pause = min(2 * pause, LEASE)


async def _run(feed: RedisFeed, source: Source, lease: str, unseen: Callable[[], str | None]) -> str:
    """Run the source until the lease is lost, or given up; return why."""
    filling = asyncio.create_task(_fill(source), name="source that is shared")
    keeping = asyncio.create_task(_keep(feed, lease, unseen), name="lease")
    try:
        await asyncio.wait({filling, keeping}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (filling, keeping):
            task.cancel()
        await asyncio.wait({filling, keeping})
        try:
            await asyncio.to_thread(feed.renew, lease, 0)
        except Unavailable:
            pass  # it runs out by itself
    errors = [error for task in (filling, keeping) if not task.cancelled() and (error := task.exception())]
    for error in errors:
        if not isinstance(error, Fenced | Unavailable):
            raise error
    return str(errors[0]) if errors else ""


async def _keep(feed: RedisFeed, lease: str, unseen: Callable[[], str | None]) -> None:
    """Renew the lease until it is lost, or had better be another's."""
    while True:
        await asyncio.sleep(LEASE / 4)
        if feed.delayed and (why := await asyncio.to_thread(unseen)):
            raise Unavailable(why)
        try:
            if not await asyncio.to_thread(feed.renew, lease, LEASE):
                raise Fenced
        except Unavailable:
            pass  # whether it is lost is seen when Redis is there again


async def watch_shared(feed: RedisFeed, tree: Tree, index: Index | None = None) -> None:
    """As `watch`, from a new look on: what differs from what the log says is published, and nothing else."""
    await asyncio.to_thread(feed.read_on)
    _, listing = feed.listing()
    tree.remembered = {path: told(known) for path, known in listing.items()} | (index.load() if index else {})
    tree.looked = False
    await watch(feed, tree, index)


class SharedTree(Tree):
    """A directory whose files are opened as the feed says they are, whoever has looked at them."""

    def __init__(
        self, feed: RedisFeed, directory: Path, *, limit: float = math.inf, ignore: Iterable[str] = ()
    ) -> None:
        super().__init__(directory, limit=limit, ignore=ignore, first_look=False)
        self.feed = feed

    def unseen(self) -> str | None:
        """Why this process cannot see what the log speaks of: there is no directory, or nothing in it."""
        try:
            with os.scandir(self.directory) as entries:
                if any(True for _ in entries) or not self.feed.lists:
                    return None
        except OSError as error:
            return f"{self.directory} cannot be read ({error.strerror}): waiting for it"
        return f"{self.directory} is empty: waiting for its files"

    def told(self, path: str) -> File | None:
        """What is known of a file: what the log says."""
        known = self.feed.known(path)
        return told(known) if known and known.sha256 else None

    def open(self, path: str) -> tuple[BinaryIO, File]:
        """As the tree's. Of a file whose size and time are those that were told, the hash is what was told."""
        check_path(path)
        if self.feed.starting:
            raise BlockingIOError(errno.EAGAIN, "the first look is under way")
        known = self.feed.known(path)
        if known is None:
            self.feed.catch_up()  # another process may have told of it
            known = self.feed.known(path)
        if known is None or known.sha256 is None:
            raise FileNotFoundError(errno.ENOENT, "not in the tree")
        file = self._opened(path)
        try:
            status = os.fstat(file.fileno())
            if status.st_size > self.limit:
                raise FileNotFoundError(errno.ENOENT, "too large")
            seen = self.files.get(path)
            if seen is None or seen.sha256 != known.sha256:
                seen = told(known, identity(status))
            return file, self._current(path, file, seen, status)
        except BaseException:
            file.close()
            raise


def told(known: Known, what: tuple[int, ...] = ()) -> File:
    """A file as the log has it; `what` is its identity if it stands on the disk with the same size and time."""
    size, mtime = known.size or 0, known.mtime or 0.0
    file = File(size, known.sha256 or "", what, settled=False, executable=bool(known.executable))
    if what and size == what[2] and mtime == file.mtime:
        return file
    nanoseconds = int(mtime) * 10**9 + round(mtime % 1 * 1e9)
    return replace(file, identity=(*(what[:2] or (0, 0)), size, nanoseconds, 0))
