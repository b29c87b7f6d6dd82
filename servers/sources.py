"""What fills a feed: a seeded schedule of synthetic edits, or a real directory that is watched.

    synthetic_edits(rate, seed) ─▶ play(feed, edits)    publishes each edit at its planned time
    directory ─▶ Tree.scan() ─▶ watch(feed, directory)  publishes what differs from the last scan

The operating system only *hints* that something changed: its notices come unordered, merged, and for a
renamed directory without its files. So a hint leads to a scan, and the scan says what really changed.
"""

import asyncio
import contextlib
import errno
import fnmatch
import hashlib
import itertools
import logging
import math
import os
import random
import stat
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import watchfiles

from servers.feed import Change, Feed, check_path
from servers.limits import check_finite, check_whole

RESCAN_MS = 5000  # without a hint for so long, the tree is looked at all the same
FRESH = 2_000_000_000  # ns; a file changed so shortly before it was read may change again within one clock tick
CHUNK = 2**20  # bytes hashed at a time
READ = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
PAUSE = 0.5  # seconds between two looks while the directory is missing, or while the system gives no hints

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


@dataclass(frozen=True, slots=True)
class File:
    """A file as a scan found it: `size` in bytes, and the stat fields that differ whenever its bytes may."""

    size: int
    sha256: str
    identity: tuple[int, ...]
    settled: bool  # False: changed so shortly before it was read that the same stat may hide another change


class Abandoned(Exception):
    """Nobody wants the result of this scan any more."""

    def __init__(self) -> None:
        super().__init__("the server is stopping")


class Tree:
    """A directory as last scanned. `files` maps POSIX paths to what stood there; `skipped` maps names to why not.

    Only regular files count. Symbolic links are not followed: nothing outside the directory is ever read. A file
    of more than `limit` bytes is left out and named in `skipped`. What matches one of the patterns of `ignore`
    is as if it were not there: a pattern without "/" is held against every part of a path (".git", "*.tmp"),
    another one against the path from its start ("build/*.o"; "*" matches "/" as well).
    `directories` are the absolute names of the directories that were listed; setting `abandoned` ends a scan
    that runs in another thread.
    """

    def __init__(self, directory: Path, *, limit: float = math.inf, ignore: Iterable[str] = ()) -> None:
        """Take the first look. Raises OSError when `directory` is missing, not a directory, or unreadable."""
        self.directory, self.limit, self.ignore = directory, limit, tuple(ignore)
        self.files: dict[str, File] = {}
        self.skipped: dict[str, str] = {}
        self.directories: frozenset[str] = frozenset()
        self.abandoned = False
        self.scan()

    def scan(self) -> list[Edit]:
        """Look again; return what changed since the last look: deletions, then the rest, each in the order of paths.

        A renamed file is one deletion and one addition. A file that was touched but holds the same bytes has
        not changed. Raises OSError when the directory itself cannot be read, and Abandoned; what was known
        stays known.
        """
        top = os.path.realpath(self.directory)
        before, files, skipped, directories = self.files, dict[str, File](), dict[str, str](), set[str]()
        self._walk(top, files, skipped, directories)
        Path(top).stat()  # moved away while it was being read, it would seem to be empty
        self.files, self.skipped, self.directories = files, skipped, frozenset(directories)
        gone = [Edit(0.0, path, "deleted") for path in sorted(before.keys() - files.keys())]
        come = [
            Edit(0.0, path, "modified" if path in before else "added", file.size, file.sha256)
            for path, file in sorted(files.items())
            if path not in before or before[path].sha256 != file.sha256
        ]
        return gone + come

    def open(self, path: str) -> tuple[BinaryIO, File]:
        """A file opened for reading, and what it is: the last scan's word if it still holds, else read anew.

        No part of the path may be a link. Raises ValueError for what is no path of a tree, and OSError:
        FileNotFoundError too for what a scan passes over.
        """
        check_path(path)
        parts = path.split("/")
        if any(self._ignores("/".join(parts[: n + 1]), part) for n, part in enumerate(parts)):
            raise FileNotFoundError(errno.ENOENT, "ignored")
        file = open_below(os.path.realpath(self.directory), parts)
        try:
            found = identity(status := os.fstat(file.fileno()))
            if status.st_size > self.limit:
                raise FileNotFoundError(errno.ENOENT, "too large")
            known = self.files.get(path)
            if known is None or not known.settled or known.identity != found:
                known = self.read(file)
                file.seek(0)
            return file, known
        except BaseException:
            file.close()
            raise

    def _ignores(self, path: str, name: str) -> bool:
        """Whether a pattern fits the path or, if it has no "/", its last part."""
        return any(fnmatch.fnmatchcase(path if "/" in pattern else name, pattern) for pattern in self.ignore)

    def _walk(self, top: str, files: dict[str, File], skipped: dict[str, str], directories: set[str]) -> None:
        ahead = [(top, "")]  # directories still to be listed, and what their paths begin with
        while ahead:
            if self.abandoned:
                raise Abandoned
            directory, prefix = ahead.pop()
            try:
                with os.scandir(directory) as entries:
                    found = list(entries)
            except OSError as error:
                if not prefix:
                    raise
                self._leave_out(prefix, error, files, skipped)
                continue
            directories.add(directory)
            for entry in found:
                path = prefix + entry.name
                if self._ignores(path, entry.name):
                    continue
                try:
                    if entry.is_dir(follow_symlinks=False):
                        ahead.append((entry.path, f"{path}/"))
                    elif entry.is_file(follow_symlinks=False):
                        if not is_utf8(path):
                            skipped[repr(os.fsencode(path))[1:]] = "its name is not UTF-8"
                            continue
                        status = entry.stat(follow_symlinks=False)
                        if status.st_size > self.limit:
                            skipped[repr(path)] = f"it is larger than {self.limit:,} bytes"
                            continue
                        known = self.files.get(path)
                        same = known and known.settled and known.identity == identity(status)
                        files[path] = known if known and same else self._look(entry.path)
                except OSError as error:
                    self._leave_out(path, error, files, skipped)

    def _leave_out(self, path: str, error: OSError, files: dict[str, File], skipped: dict[str, str]) -> None:
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            return  # gone since it was listed: another hint is on its way
        skipped[repr(path)] = error.strerror or type(error).__name__
        for known, file in self.files.items():  # as far as anybody can tell, what was there still is
            if known == path or (path.endswith("/") and known.startswith(path)):
                files[known] = file

    def _look(self, path: str) -> File:
        descriptor = os.open(path, READ)
        with os.fdopen(descriptor, "rb", buffering=0) as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise OSError(errno.EINVAL, "not a regular file")
            return self.read(file)

    def read(self, file: BinaryIO) -> File:
        """What an open file is, read from its beginning to its end. Raises Abandoned."""
        file.seek(0)
        now, before = time.time_ns(), os.fstat(file.fileno())
        digest = hashlib.sha256()
        while chunk := file.read(CHUNK):
            if self.abandoned:
                raise Abandoned
            digest.update(chunk)
        unmoved = identity(os.fstat(file.fileno())) == identity(before)
        settled = unmoved and max(before.st_mtime_ns, before.st_ctime_ns) < now - FRESH
        return File(file.tell(), digest.hexdigest(), identity(before), settled)


def open_below(top: str, parts: Sequence[str]) -> BinaryIO:
    """Open a regular file by its path from `top`, part by part: a link in any place is an OSError, as is anything else.

    Each directory is held open while the next part is looked up in it, so that nothing that moves meanwhile leads
    out of `top`. Windows cannot: there, the path is compared with what it resolves to.
    """
    if os.open not in os.supports_dir_fd:
        path = Path(top, *parts)
        if any("\\" in part or ":" in part for part in parts) or path.resolve() != path or not path.is_file():
            raise FileNotFoundError(errno.ENOENT, "not a regular file of the tree")
        return path.open("rb", buffering=0)
    here = os.open(top, READ | os.O_DIRECTORY)
    try:
        for part in parts[:-1]:
            above, here = here, os.open(part, READ | os.O_DIRECTORY, dir_fd=here)
            os.close(above)
        # before it is opened: opening a device or a pipe is felt at its other end
        if not stat.S_ISREG(os.stat(parts[-1], dir_fd=here, follow_symlinks=False).st_mode):
            raise FileNotFoundError(errno.ENOENT, "not a regular file")
        file = os.fdopen(os.open(parts[-1], READ, dir_fd=here), "rb", buffering=0)
    finally:
        os.close(here)
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise FileNotFoundError(errno.ENOENT, "not a regular file")
    return file


def identity(status: os.stat_result) -> tuple[int, ...]:
    """What of a stat differs whenever the bytes may differ, time stamps' resolution apart."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def is_utf8(name: str) -> bool:
    """Whether a name from the file system is UTF-8 (Python stands in lone surrogates for what is not)."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


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
