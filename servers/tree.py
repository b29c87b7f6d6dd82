"""A directory as it stands: scanned, compared with what stood there before, and opened so that nothing leads out of it.

    directory ─▶ Tree.scan() ─▶ Edit, Edit, ...   what differs from the last scan, in a fixed order
    path ─▶ Tree.open() ─▶ a file and its File    its size, its hash, what tells whether it has changed since

What fills a feed from it is in sources.py, what answers requests for its files in downloads.py.
"""

import errno
import fnmatch
import hashlib
import math
import os
import stat
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from servers.feed import Change, check_path

FRESH = 2_000_000_000  # ns; a file changed so shortly before it was read may change again within one clock tick
CHUNK = 2**20  # bytes hashed at a time
READ = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)


@dataclass(frozen=True, slots=True)
class Edit:
    """One change, `at` seconds after the start; `size` in bytes; `content` only when it travels inline."""

    at: float
    path: str
    change: Change
    size: int | None = None
    sha256: str | None = None
    content: bytes | None = None


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
    `directories` are those that were listed: absolute name to device and inode, since another may come to stand
    under the same name. Setting `abandoned` ends a scan that runs in another thread.
    """

    def __init__(self, directory: Path, *, limit: float = math.inf, ignore: Iterable[str] = ()) -> None:
        """Take the first look. Raises OSError when `directory` is missing, not a directory, or unreadable."""
        self.directory, self.limit, self.ignore = directory, limit, tuple(ignore)
        self.files: dict[str, File] = {}
        self.skipped: dict[str, str] = {}
        self.directories: dict[str, tuple[int, int]] = {}
        self.abandoned = False
        self.scan()

    def scan(self) -> list[Edit]:
        """Look again; return what changed since the last look: deletions, then the rest, each in the order of paths.

        A renamed file is one deletion and one addition. A file that was touched but holds the same bytes has
        not changed. Raises OSError when the directory itself cannot be read, and Abandoned; what was known
        stays known.
        """
        top = os.path.realpath(self.directory)
        before, files, skipped = self.files, dict[str, File](), dict[str, str]()
        directories: dict[str, tuple[int, int]] = {}
        self._walk(top, files, skipped, directories)
        Path(top).stat()  # moved away while it was being read, it would seem to be empty
        self.files, self.skipped, self.directories = files, skipped, directories
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
        parts = os.fsdecode(path.encode()).split("/")
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

    def _walk(
        self, top: str, files: dict[str, File], skipped: dict[str, str], directories: dict[str, tuple[int, int]]
    ) -> None:
        ahead = [(top, "")]  # directories still to be listed, and what their paths begin with
        while ahead:
            if self.abandoned:
                raise Abandoned
            directory, prefix = ahead.pop()
            try:
                status = os.stat(directory)  # noqa: PTH116  # a Path for each directory costs more than the look
                with os.scandir(directory) as entries:
                    found = list(entries)
            except OSError as error:
                if not prefix:
                    raise
                self._leave_out(prefix, error, files, skipped)
                continue
            directories[directory] = status.st_dev, status.st_ino
            for entry in found:
                path = prefix + entry.name
                if self._ignores(path, entry.name):
                    continue
                try:
                    if entry.is_dir(follow_symlinks=False):
                        ahead.append((entry.path, f"{path}/"))
                    elif entry.is_file(follow_symlinks=False):
                        name = in_utf8(path)
                        if name is None:
                            skipped[repr(os.fsencode(path))[1:]] = "its name is not UTF-8"
                            continue
                        status = entry.stat(follow_symlinks=False)
                        if status.st_size > self.limit:
                            skipped[repr(path)] = f"it is larger than {self.limit:,} bytes"
                            continue
                        known = self.files.get(name)
                        same = known and known.settled and known.identity == identity(status)
                        files[name] = known if known and same else self._look(entry.path)
                except OSError as error:
                    self._leave_out(path, error, files, skipped)

    def _leave_out(self, path: str, error: OSError, files: dict[str, File], skipped: dict[str, str]) -> None:
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            return  # gone since it was listed: another hint is on its way
        skipped[repr(path)] = error.strerror or type(error).__name__
        name = in_utf8(path)
        for known, file in self.files.items():  # as far as anybody can tell, what was there still is
            if name is not None and (known == name or (name.endswith("/") and known.startswith(name))):
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


def in_utf8(name: str) -> str | None:
    """A name from the file system, read as UTF-8 whatever the locale says; None when its bytes are not UTF-8."""
    try:
        return os.fsencode(name).decode()
    except UnicodeDecodeError:
        return None
