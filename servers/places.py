"""Directories held open, so that nothing that moves meanwhile leads out of them; what tells files and names apart.

    Place.top(directory) ─▶ .directory(name), .below(prefix) ─▶ .entries(), .stat(name), .open(name)
    open_below(top, parts) ─▶ a regular file, opened part by part, through no link

Where directories cannot be held open (Windows), their paths are compared with what they resolve to. Names are those of
the file system, relative, with "/" between their parts; a prefix is a directory's name with "/" at its end.
"""

import errno
import functools
import hashlib
import os
import stat
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

READ = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
HELD = os.open in os.supports_dir_fd and os.scandir in os.supports_fd  # a directory can be held open (not on Windows)


class Place:
    """A directory held open, so that nothing that moves meanwhile leads out of it; where that cannot be, its name."""

    __slots__ = ("at", "place")

    def __init__(self, at: int | str) -> None:
        self.at = at
        status = os.stat(at)
        self.place = status.st_dev, status.st_ino

    @classmethod
    def top(cls, name: str) -> "Place":
        """The directory of this name. Raises OSError."""
        if HELD:
            return cls(os.open(name, READ | os.O_DIRECTORY))
        with os.scandir(name):
            return cls(name)

    def __enter__(self) -> "Place":
        return self

    def __exit__(self, *error: object) -> None:
        if isinstance(self.at, int):
            os.close(self.at)

    def directory(self, name: str) -> "Place":
        """The directory of this name in this one, through no link. Raises OSError."""
        if isinstance(self.at, int):
            return Place(os.open(name, READ | os.O_DIRECTORY, dir_fd=self.at))
        path = os.path.join(self.at, name)
        if os.path.realpath(path) != path:
            raise NotADirectoryError(errno.ENOTDIR, "not a directory of the tree")
        return Place(path)

    def below(self, prefix: str) -> "Place":
        """The directory of this prefix below this one, part by part."""
        first, *parts = prefix[:-1].split("/")
        here = self.directory(first)
        for part in parts:
            with here:
                here = here.directory(part)
        return here

    def holds(self, prefix: str, place: "Place") -> bool:
        """Whether that directory is still the one of this prefix."""
        try:
            with self.below(prefix) as now:
                return now.place == place.place
        except OSError:
            return False

    def stat(self, name: str) -> os.stat_result:
        """Of a name in it, no link followed."""
        if isinstance(self.at, int):
            return os.stat(name, dir_fd=self.at, follow_symlinks=False)
        return os.lstat(os.path.join(self.at, name))

    def entries(self) -> "os._ScandirIterator[str]":
        """What is in it. The type checker has os.scandir(int) give str, as it does."""
        return os.scandir(self.at)

    def open(self, name: str) -> BinaryIO:
        """A regular file in it. Raises OSError for anything else."""
        if isinstance(self.at, int):
            file = os.fdopen(os.open(name, READ, dir_fd=self.at), "rb", buffering=0)
        else:
            path = os.path.join(self.at, name)
            file = os.fdopen(os.open(path, READ | getattr(os, "O_BINARY", 0)), "rb", buffering=0)
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            file.close()
            raise OSError(errno.EINVAL, "not a regular file")
        return file


class Descent:
    """Opens directories below a top, one after another; the last parent stays open: siblings follow each other."""

    def __init__(self, top: Place) -> None:
        self.top = top
        self.prefix, self.parent = "", top

    def open(self, prefix: str) -> Place:
        """The directory of this prefix. Raises OSError."""
        if not prefix:
            return self.top
        above, name = split(prefix[:-1])
        if above != self.prefix:
            self.close()
            self.parent = self.top.below(above) if above else self.top
            self.prefix = above
        return self.parent.directory(name)

    def close(self) -> None:
        """Hold nothing open."""
        if self.prefix:
            self.parent.__exit__()
        self.prefix, self.parent = "", self.top


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


def tag(place: tuple[int, int]) -> str:
    """What tells a directory, by its device and inode, from all others, also those of other machines."""
    return hashlib.sha256(f"{machine()} {place[0]} {place[1]}".encode()).hexdigest()[:16]


@functools.cache
def machine() -> str:
    """What tells this machine from others; in its containers it is the same."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text()
    except OSError:  # not Linux
        return str(uuid.getnode())


def split(name: str) -> tuple[str, str]:
    """A name's directory, as a prefix, and its last part."""
    at = name.rfind("/") + 1
    return name[:at], name[at:]


def shown(name: str) -> str:
    """A name as it is shown: what is not printable, or no text, can be read."""
    return repr(name) if in_utf8(name) is not None else repr(os.fsencode(name))[1:]


def utf8(name: str) -> str:
    """A name that is known to be UTF-8, in UTF-8."""
    return os.fsencode(name).decode()


def runs(status: os.stat_result) -> bool:
    """Whether the file's owner may run it."""
    return bool(status.st_mode & stat.S_IXUSR)


def in_utf8(name: str) -> str | None:
    """A name from the file system, read as UTF-8 whatever the locale says; None when its bytes are not UTF-8."""
    try:
        return os.fsencode(name).decode()
    except UnicodeDecodeError:
        return None
