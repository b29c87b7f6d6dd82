"""What fills a feed: a seeded schedule of synthetic edits, or a real directory that is watched.

    synthetic_edits(rate, seed) ─▶ play(feed, edits)    publishes each edit at its planned time
    directory ─▶ Tree.scan() ─▶ watch(feed, directory)  publishes what differs from the last scan

The operating system only *hints* that something changed: its notices come unordered, merged, and for a
renamed directory without its files. So a hint leads to a scan, and the scan says what really changed.
"""

import asyncio
import errno
import hashlib
import logging
import os
import random
import stat
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import watchfiles

from servers.feed import Change, Feed

RESCAN_MS = 5000  # without a hint for so long, the tree is looked at all the same
FRESH = 2_000_000_000  # ns; a file changed so shortly before it was read may change again within one clock tick

log = logging.getLogger("servers")


@dataclass(frozen=True, slots=True)
class Edit:
    """One change, `at` seconds after the start; `size` in bytes; `content` only when it travels inline."""

    at: float
    path: str
    change: Change
    size: int | None = None
    sha256: str | None = None
    content: bytes | None = None


def synthetic_edits(rate: float, *, seed: int = 0, payload: int = 0, files: int = 50) -> Iterator[Edit]:
    """An endless Poisson stream of edits, `rate` a second on average, over at most `files` paths.

    The same seed gives the same edits. With `payload` > 0 every added or modified file has that many
    bytes and carries them inline.
    """
    rng = random.Random(seed)
    living: list[str] = []
    at, born = 0.0, 0
    while True:
        at += rng.expovariate(rate)
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


@dataclass(frozen=True, slots=True)
class File:
    """A file as a scan found it: `size` in bytes, and the stat fields that differ whenever its bytes may."""

    size: int
    sha256: str
    identity: tuple[int, ...]
    settled: bool  # False: changed so shortly before it was read that the same stat may hide another change


class Tree:
    """A directory as last scanned. `files` maps POSIX paths to what stood there; `skipped` maps names to why not.

    Only regular files count. Symbolic links are not followed: nothing outside the directory is ever read.
    """

    def __init__(self, directory: Path) -> None:
        """Take the first look. Raises OSError when `directory` is missing, not a directory, or unreadable."""
        self.directory = directory
        self.files: dict[str, File] = {}
        self.skipped: dict[str, str] = {}
        self.scan()

    def scan(self) -> list[Edit]:
        """Look again; return what changed since the last look: deletions, then the rest, each in the order of paths.

        A renamed file is one deletion and one addition. A file that was touched but holds the same bytes has
        not changed. Raises OSError when the directory itself cannot be read; what was known stays known.
        """
        before, files, skipped = self.files, dict[str, File](), dict[str, str]()
        self._walk(self.directory, "", files, skipped)
        self.files, self.skipped = files, skipped
        gone = [Edit(0.0, path, "deleted") for path in sorted(before.keys() - files.keys())]
        come = [
            Edit(0.0, path, "modified" if path in before else "added", file.size, file.sha256)
            for path, file in sorted(files.items())
            if path not in before or before[path].sha256 != file.sha256
        ]
        return gone + come

    def _walk(self, directory: Path, prefix: str, files: dict[str, File], skipped: dict[str, str]) -> None:
        with os.scandir(directory) as entries:
            found = list(entries)
        for entry in found:
            path = prefix + entry.name
            try:
                if entry.is_dir(follow_symlinks=False):
                    self._walk(Path(entry.path), f"{path}/", files, skipped)
                elif entry.is_file(follow_symlinks=False):
                    path.encode()
                    known = self.files.get(path)
                    same = known and known.settled and known.identity == identity(entry.stat(follow_symlinks=False))
                    files[path] = known if known and same else look(entry.path)
            except UnicodeEncodeError:
                skipped[repr(os.fsencode(path))[1:]] = "its name is not UTF-8"
            except FileNotFoundError:
                pass  # gone since the directory was listed: another hint is on its way
            except OSError as error:
                skipped[repr(path)] = error.strerror or type(error).__name__
                below = f"{path}/"  # as far as anybody can tell, what was there still is
                files.update((p, f) for p, f in self.files.items() if p == path or p.startswith(below))


def look(path: str) -> File:
    """Read the regular file at `path`, following no link. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    with os.fdopen(descriptor, "rb") as file:
        now, before = time.time_ns(), os.fstat(descriptor)
        if not stat.S_ISREG(before.st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        unmoved = identity(os.fstat(descriptor)) == identity(before)
        settled = unmoved and max(before.st_mtime_ns, before.st_ctime_ns) < now - FRESH
        return File(file.tell(), digest, identity(before), settled)


def identity(status: os.stat_result) -> tuple[int, ...]:
    """What of a stat differs whenever the bytes may differ, time stamps' resolution apart."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


async def watch(feed: Feed, tree: Tree) -> None:
    """Publish what changes in the tree's directory, for ever; what stood there at the first look is not news.

    Each name that has to be left out is counted in `feed.skipped` and named in one log line.
    """
    hint = asyncio.Event()
    hint.set()  # whatever changed between the first look and the start of the watch

    async def listen() -> None:
        hints = watchfiles.awatch(
            tree.directory, watch_filter=None, step=20, debounce=200, rust_timeout=RESCAN_MS, yield_on_timeout=True
        )
        async for _ in hints:
            hint.set()

    async with asyncio.TaskGroup() as group:
        group.create_task(listen())
        await asyncio.sleep(0)  # the watch is in place before the scan that it would otherwise miss
        named: dict[str, str] = {}
        missing = False
        while True:
            await hint.wait()
            hint.clear()
            try:
                edits = await asyncio.to_thread(tree.scan)
            except OSError as error:
                if not missing:
                    log.warning("%s cannot be read (%s): waiting for it", tree.directory, error.strerror)
                missing = True
                continue
            missing = False
            for name, reason in tree.skipped.items():
                if named.get(name) != reason:
                    log.warning("left out %s: %s", name, reason)
                    feed.skipped += 1
            named = tree.skipped
            for edit in edits:
                feed.publish(edit.path, edit.change, size=edit.size, sha256=edit.sha256)
