"""What fills a feed: a seeded schedule of synthetic edits, or a real directory that is watched.

    synthetic_edits(rate, seed) ─▶ play(feed, edits)    publishes each edit at its planned time
    directory ─▶ Tree.scan() ─▶ watch(feed, directory)  publishes what differs from the last scan

The operating system only *hints* that something changed: its notices come unordered, merged, and for a
renamed directory without its files. So a hint leads to a scan, and the scan says what really changed.
"""

import asyncio
import contextlib
import hashlib
import itertools
import logging
import random
from collections.abc import Collection, Iterable, Iterator, Mapping

import watchfiles

from servers.feed import Change, Feed
from servers.limits import check_finite, check_whole
from servers.tree import Edit, Tree, in_utf8

RESCAN_MS = 5000  # without a hint for so long, the tree is looked at all the same
DEBOUNCE_MS = 200  # what comes within so long is one hint
PAUSE = 0.5  # seconds between two looks while the directory is missing, or while the system gives no hints
LOOKS = 60  # without hints, until the system is asked for them again
NOT_UTF8 = "Unable to decode path"  # watchfiles, of a name that it cannot tell

log = logging.getLogger("servers")


def synthetic_edits(
    rate: float, *, seed: int = 0, payload: int = 0, files: int = 50, regular: bool = False
) -> Iterator[Edit]:
    """An endless stream of edits over at most `files` paths, `rate` a second: Poisson arrivals, or `regular` ones.

    The same seed gives the same edits; `regular` moves their times only. With `payload` > 0 every added or
    modified file has that many bytes and carries them inline. At a `rate` of 0 there are none. Raises ValueError, when
    the first is asked for, for a number that cannot be.
    """
    check_finite(rate=rate)
    check_whole(payload=payload)
    check_whole(files=files, least=1)
    if not rate:
        return
    rng = random.Random(seed)
    living: list[str] = []
    at, born = 0.0, 0
    for number in itertools.count(1):
        at += rng.expovariate(rate)
        if regular:
            at = number / rate
        kind = rng.random()
        if not living or (kind < 0.2 and len(living) < files):
            born += 1
            path = f"{rng.choice(('reports', 'images', 'notes'))}/file-{born:03}.txt"
            living.append(path)
            change: Change = "added"
        elif kind > 0.9:
            yield Edit(at, living.pop(rng.randrange(len(living))), "deleted")
            continue
        else:
            path, change = rng.choice(living), "modified"
        content = rng.randbytes(payload or rng.randrange(20, 400))
        digest = hashlib.sha256(content).hexdigest()
        yield Edit(at, path, change, len(content), digest, content if payload else None)


async def play(feed: Feed, edits: Iterable[Edit]) -> None:
    """Publish each edit at its time, counted from now. An edit that is late goes out at once, none is left out."""
    loop = asyncio.get_running_loop()
    start = loop.time()
    for edit in edits:
        await asyncio.sleep(start + edit.at - loop.time())
        feed.publish(edit.path, edit.change, size=edit.size, sha256=edit.sha256, content=edit.content)


async def watch(feed: Feed, tree: Tree) -> None:
    """Publish what changes in the tree's directory, for ever; what stood there at the first look is not news.

    Each name that has to be left out is counted in `feed.skipped` and named in one log line. While the
    directory is missing nothing is published; what differs when it is back is.
    """
    hints = Hints()
    listener: asyncio.Task[None] | None = None
    listed: Mapping[str, object] = {}
    named: dict[str, str] = {}
    missing = tree.abandoned = False
    try:
        async with asyncio.TaskGroup() as group:
            while True:
                if missing:
                    await asyncio.sleep(PAUSE)
                elif listener is None or listener.done() or listed != tree.directories:
                    if listener is not None:
                        listener.cancel()
                    listed = tree.directories
                    listener = group.create_task(hints.listen(listed))
                    await asyncio.sleep(0)  # it listens before the scan that follows: nothing falls in between
                else:
                    await hints.came.wait()
                hints.came.clear()
                try:
                    edits = await asyncio.to_thread(tree.scan)
                except OSError as error:
                    if not missing:
                        log.warning("%s cannot be read (%s): waiting for it", tree.directory, error.strerror)
                    missing, listed = True, {}  # it may come back as another: listen anew
                    continue
                missing = False
                for name, reason in tree.skipped.items():
                    if named.get(name) != reason:
                        log.warning("left out %s: %s", name, reason)
                        feed.skipped += 1
                named = tree.skipped
                for edit in edits:
                    feed.publish(edit.path, edit.change, size=edit.size, sha256=edit.sha256)
    finally:
        tree.abandoned = True  # a thread cannot be cancelled: one that hashes a huge file ends at the next chunk


class Hints:
    """Says when to look again: `came` is set when something may have changed, and every RESCAN_MS in any case.

    Whatever the system, or the library that hears it, cannot do ends no watch: then the clock hints instead, and one
    line says why.
    """

    def __init__(self) -> None:
        self.came = asyncio.Event()
        self.said = ""  # why the system gives none

    async def listen(self, directories: Collection[str]) -> None:
        """Hint until other directories have to be listened to, or the same ones anew."""
        try:
            await self.hear([name for each in directories if (name := in_utf8(each)) is not None])
        except Exception as error:  # of any kind: a watch that ends leaves a server that has no news, and looks well
            while isinstance(error, ExceptionGroup):  # watchfiles' own tasks put it into groups
                error = error.exceptions[0]
            if isinstance(error, FileNotFoundError):
                await asyncio.sleep(PAUSE)  # one is gone already: the next scan says which
            elif NOT_UTF8 in str(error):
                await asyncio.sleep(DEBOUNCE_MS / 1000)  # the next scan names it, and what else came with it
            else:
                await self.by_the_clock(str(error) or repr(error))
        self.came.set()

    async def hear(self, names: Collection[str]) -> None:
        """Hint as the system says. Each directory is watched by itself: a recursive watch would follow links out of
        the tree, and where a name is not UTF-8 there is no file to announce.
        """
        if not names:
            raise ValueError("the path of the directory is not UTF-8")
        changes = watchfiles.awatch(
            *names,
            recursive=False,
            watch_filter=None,
            step=20,
            debounce=DEBOUNCE_MS,
            rust_timeout=RESCAN_MS,
            yield_on_timeout=True,
        )
        async with contextlib.aclosing(changes):
            async for some in changes:
                self.came.set()
                if any(kind is not watchfiles.Change.modified and name in names for kind, name in some):
                    return

    async def by_the_clock(self, reason: str) -> None:
        """Hint every PAUSE seconds, for a while: then the system may be asked again."""
        if reason != self.said:
            log.warning("no hints from the system (%s): looking every %g s instead", reason, PAUSE)
            self.said = reason
        for _ in range(LOOKS):
            await asyncio.sleep(PAUSE)
            self.came.set()
