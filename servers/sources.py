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
from collections.abc import Collection, Iterable, Iterator

import watchfiles

from servers.feed import Change, Feed
from servers.tree import Edit, Tree, is_utf8

RESCAN_MS = 5000  # without a hint for so long, the tree is looked at all the same
PAUSE = 0.5  # seconds between two looks while the directory is missing, or while the system gives no hints

log = logging.getLogger("servers")


def synthetic_edits(
    rate: float, *, seed: int = 0, payload: int = 0, files: int = 50, regular: bool = False
) -> Iterator[Edit]:
    """An endless stream of edits over at most `files` paths, `rate` a second: Poisson arrivals, or `regular` ones.

    The same seed gives the same edits; `regular` moves their times only. With `payload` > 0 every added or
    modified file has that many bytes and carries them inline.
    """
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
    hint = asyncio.Event()
    listener: asyncio.Task[None] | None = None
    listed: frozenset[str] = frozenset()
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
                    listener = group.create_task(listen(listed, hint))
                    await asyncio.sleep(0)  # it listens before the scan that follows: nothing falls in between
                else:
                    await hint.wait()
                hint.clear()
                try:
                    edits = await asyncio.to_thread(tree.scan)
                except OSError as error:
                    if not missing:
                        log.warning("%s cannot be read (%s): waiting for it", tree.directory, error.strerror)
                    missing, listed = True, frozenset()  # it may come back as another: listen anew
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


async def listen(directories: Collection[str], hint: asyncio.Event) -> None:
    """Set `hint` whenever something may have changed in one of `directories`, and every RESCAN_MS in any case.

    Each is watched by itself, since a recursive watch would follow symbolic links out of the tree. Returns
    when one of them went or came, so that others have to be watched from then on.
    """
    names = [name for name in directories if is_utf8(name)]  # elsewhere there is no file to announce
    try:
        changes = watchfiles.awatch(
            *names,
            recursive=False,
            watch_filter=None,
            step=20,
            debounce=200,
            rust_timeout=RESCAN_MS,
            yield_on_timeout=True,
        )
        async with contextlib.aclosing(changes):
            async for some in changes:
                hint.set()
                if any(kind is not watchfiles.Change.modified and name in directories for kind, name in some):
                    return
    except FileNotFoundError:
        await asyncio.sleep(PAUSE)  # one is gone already: the next scan says which
        hint.set()
    except (OSError, RuntimeError) as error:
        log.warning("no hints from the system (%s): looking every %g s instead", error, PAUSE)
        while True:
            await asyncio.sleep(PAUSE)
            hint.set()
