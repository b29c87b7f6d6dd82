"""What fills a feed: a seeded schedule of synthetic edits, or a real directory that is watched.

    synthetic_edits(rate, seed) ─▶ play(feed, edits)     publishes each edit at its planned time
    hints ─▶ Tree.look(names) ─▶ watch(feed, directory)  publishes what differs from what was known

The operating system only *hints* that something changed: its notices come unordered, merged, and for a
renamed directory without its files. So a hint leads to a look, and the look says what really changed.
"""

import asyncio
import contextlib
import errno
import functools
import hashlib
import heapq
import itertools
import logging
import math
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator

from servers.apart import Apart
from servers.feed import Change, Feed
from servers.hashing import Abandoned
from servers.hints import GATHER, hints_of
from servers.index import Index
from servers.limits import check_finite, check_whole
from servers.tree import Edit, Replaced, Tree

RESCAN = 60.0  # seconds from one sweep of everything to the next, at least: hints say what has changed
SHARE = 0.005  # of a core that sweeps take
TOP = 2.0  # seconds from look to look whether the directory's name leads where it did: no hint tells of a link above it
PAUSE = 0.5  # seconds between two looks while the directory is missing, and at least while the system gives no hints
BLIND_SHARE = 0.1  # of a core that sweeps take then
SAVE = 60.0  # seconds from one keeping of the index to the next, at least
SAY = 2.0  # seconds of a first look, after which a line says how far it is

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
        publish = functools.partial(
            feed.publish, edit.path, edit.change, size=edit.size, sha256=edit.sha256, content=edit.content
        )
        if feed.elsewhere:
            await asyncio.to_thread(publish)
        else:
            publish()


async def watch(feed: Feed, tree: Tree, index: Index | None = None) -> None:
    """Publish what changes in the tree's directory, for ever; what stood there at the first look is not news.

    A tree that has not been looked at is, first; meanwhile `feed.starting` says how far that is. Each name that has to
    be left out is counted in `feed.skipped` and named in one log line. While the directory is missing, or another one
    without most of its files stands in its place, nothing is published; what differs when it is back is. `index` keeps
    what is known of the files.
    """
    loop = asyncio.get_running_loop()
    watcher = Watcher(feed, tree, index, lambda *line: loop.call_soon_threadsafe(functools.partial(log.warning, *line)))
    over: asyncio.Future[None] = loop.create_future()

    def end(error: BaseException | None) -> None:
        if error:
            over.set_exception(error)
        else:
            over.set_result(None)

    def run() -> None:
        error: BaseException | None = None
        try:
            watcher.run()
        except BaseException as failed:
            error = failed
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(end, error)

    tree.abandoned = False
    if not tree.looked:
        feed.starting = watcher.progress
    threading.Thread(target=run, name=f"watch of {tree.directory}", daemon=True).start()
    try:
        say_at = SAY
        while not over.done():
            await asyncio.wait({over}, timeout=say_at if feed.starting else None)
            if feed.starting:
                log.warning("%s", feed.starting())
                say_at = 5 * SAY
        over.result()
    finally:
        tree.abandoned = True  # a thread cannot be cancelled: one that hashes a huge file ends at the next chunk
        watcher.hints.wake()
        await asyncio.wait({over})
        over.result()  # what it ran into meanwhile is not lost


class Watcher:
    """Looks, in a thread of its own, at what hints name; at everything now and then; and publishes what has changed.

    A full sweep gives way to hints, and its pace is such that it takes no more than SHARE of a core. Large files are
    hashed by another thread, and announced when they are known.
    """

    def __init__(self, feed: Feed, tree: Tree, index: Index | None, say: Callable[..., object]) -> None:
        self.feed, self.tree, self.index, self.say = feed, tree, index, say
        self.hints = hints_of(tree)
        self.apart = Apart(tree, self.hints)
        self.named: dict[str, str] = {}  # what was left out, and why
        self.said = ""  # why the system gives no hints
        self.held: type[OSError] | None = None  # what keeps it from looking
        self.sweeping: Iterator[list[Edit]] | None = None
        self.sweep_at = self.top_at = self.cost = 0.0
        self.saved, self.changed = time.monotonic(), False
        self.again: list[tuple[float, str]] = []  # a heap: when to look at what again
        self.rng = random.Random()

    def progress(self) -> str:
        """How far the first look is."""
        if self.held is Emptied:
            return f"{self.tree.directory} is empty: waiting for its files"
        seen, read = self.tree.counted, self.tree.read_bytes / 1e6
        return f"first look at {self.tree.directory}: {seen:,} files, {read:,.0f} MB read so far"

    def run(self) -> None:
        """Watch until the tree is abandoned."""
        self.tree.listener = self.hints
        try:
            if not self.tree.looked:
                self.first_look()
                self.sweep_at = time.monotonic() + self.pace()
            self.tree.apart = []
            self.apart.start()
            while not self.tree.abandoned:
                self.turn()
        except Abandoned:
            pass
        finally:
            self.tree.abandoned, self.tree.listener, self.tree.apart = True, None, None
            self.feed.delayed = None
            self.apart.close()
            self.hints.close()
            if self.changed:
                self.save()

    def first_look(self) -> None:
        """Know what stands there. A directory that was not empty when the index was kept is waited for if it is now."""
        remembered = self.tree.remembered
        while True:
            began = time.thread_time()
            self.tree.counted, self.tree.remembered = 0, remembered
            try:
                self.tree.scan()
                if self.tree.files or not remembered:
                    break
                self.tree.looked = False
                raise Emptied(errno.ENODATA, f"it is empty, and had {len(remembered):,} files: is it mounted?")
            except OSError as error:
                self.hold(error)
            self.hints.wait(PAUSE)
            if self.tree.abandoned:
                raise Abandoned
        self.cost, self.changed = time.thread_time() - began, True
        self.go_on()
        self.feed.adopt({path: file.known for path, file in self.tree.files.items()})
        self.feed.starting = None
        self.tell([])

    def turn(self) -> None:
        """Wait for a hint, or for what is due, and look."""
        now = time.monotonic()
        due = [self.sweep_at, *(at for at, _ in self.again[:1])]
        if not self.held:
            due.append(self.top_at)
        names, lost = self.hints.wait(0 if self.sweeping else min(due) - now)
        if self.tree.abandoned:
            return
        try:
            if self.held:
                if time.monotonic() >= self.sweep_at:
                    self.recover()
                return
            self.top_at = time.monotonic() + TOP
            if not self.tree.stands():
                self.sweeping = None
                self.recover()
                return
            if lost or "" in names:  # of the directory itself there is nothing else to be told
                self.hints.anew(lost=lost)
                self.sweep_at = 0.0  # the one that is under way may have passed
            now = time.monotonic()
            while self.again and self.again[0][0] <= now:
                names.append(heapq.heappop(self.again)[1])
            for name, result in self.apart.results():
                self.tell(self.tree.hashed(name, result))
            if names := [name for name in names if name]:
                edits = self.tree.look(names, gone := list[str]())
                try:
                    if gone:  # perhaps it has another name, and the next hints tell that: it comes before this one goes
                        edits += self.tree.look([*gone, *self.more()])
                finally:
                    self.tell(edits)
            self.sweep()
        except OSError as error:
            self.hold(error)

    def more(self) -> list[str]:
        """The names that hints give just now."""
        names, lost = self.hints.wait(GATHER)
        self.hints.post([""] if "" in names else [], lost=lost)  # for the next turn, as whatever else is to be done
        self.hints.wake()
        return [name for name in names if name]

    def sweep(self) -> None:
        """Begin the next sweep when it is time, and do a slice of it."""
        began = time.thread_time()
        if self.sweeping is None:
            if time.monotonic() < self.sweep_at:
                return
            self.hints.anew()
            self.sweeping, self.cost, self.sweep_at = self.tree.sweep(), 0.0, math.inf
        edits = next(self.sweeping, None)
        self.cost += time.thread_time() - began
        if edits is not None:
            self.tell(edits)
            return
        self.sweeping = None
        pace = self.pace()
        self.sweep_at = min(self.sweep_at, time.monotonic() + pace)
        if self.hints.blind and self.hints.blind != self.said:
            self.say("no hints from the system (%s): looking every %.1f s instead", self.hints.blind, pace)
        self.said = self.hints.blind
        if self.index and self.changed and time.monotonic() > self.saved + SAVE:
            self.save()

    def pace(self) -> float:
        """Seconds from one sweep to the next, never the same for long: several servers do not keep step."""
        least, share = (PAUSE, BLIND_SHARE) if self.hints.blind else (RESCAN, SHARE)
        return max(least, self.cost / share) * self.rng.uniform(0.8, 1.2)

    def recover(self) -> None:
        """Look whether the directory is there again."""
        self.hints.anew(lost=True)
        began = time.thread_time()
        try:
            edits = self.tree.scan()
        except OSError as error:
            self.hold(error, time.thread_time() - began)
        else:
            self.cost = time.thread_time() - began
            self.go_on()
            self.sweep_at = time.monotonic() + self.pace()
            self.tell(edits)

    def hold(self, error: OSError, cost: float = 0.0) -> None:
        """Publish nothing until the directory is as it was; say so once, and to who asks for the server's health."""
        if self.held is not type(error):
            reason = error.strerror or str(error)
            why = f"{reason}; nothing is published" if isinstance(error, Replaced | Emptied) else reason
            self.feed.delayed = f"{self.tree.directory} cannot be read ({why}): waiting for it"
            self.say("%s", self.feed.delayed)
        self.held, self.sweeping = type(error), None
        self.sweep_at = time.monotonic() + max(PAUSE, cost / BLIND_SHARE)

    def go_on(self) -> None:
        """The directory is there."""
        self.held = self.feed.delayed = None

    def tell(self, edits: list[Edit]) -> None:
        """Publish these, name what was left out, and note what is to be looked at again."""
        for edit in edits:
            self.feed.publish(
                *(edit.path, edit.change),
                size=edit.size,
                sha256=edit.sha256,
                mtime=edit.mtime,
                executable=edit.executable,
            )
        self.changed = self.changed or bool(edits)
        for name, reason in self.tree.skipped.items():
            if self.named.get(name) != reason:
                self.say("left out %s: %s", name, reason)
                self.feed.skipped += 1
                self.named[name] = reason
        now = time.monotonic()
        for name, seconds in self.tree.again.items():
            heapq.heappush(self.again, (now + seconds, name))
        self.tree.again.clear()
        if self.tree.apart:
            self.apart.add(self.tree.apart)
            self.tree.apart.clear()

    def save(self) -> None:
        """Keep what is known, if there is a place for it."""
        if self.index is None:
            return
        self.saved, self.changed = time.monotonic(), False
        try:
            self.index.save(dict(self.tree.files))
        except OSError as error:
            self.say("%s cannot be written: %s", self.index.file, error.strerror)


class Emptied(OSError):
    """A directory that had files when it was last known has none."""
