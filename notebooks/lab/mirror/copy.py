"""A directory that becomes what a server says it should be, one whole file at a time.

    State.differing() ─▶ reuse(): what stands in the copy under another name is moved, or linked
                    ├──▶ a Part, filled from the server or from the copy itself ─▶ place(): renamed to its path
                    └──▶ remove(path): out of sight, its bytes within reach for a while

A file is never written where it can be seen: it is written inside COPY/.mirror and renamed. Only paths that the server
once named are ever replaced or removed; what others put beside them stays. All of that is done by the descriptors of
directories (places.py): whatever becomes of their names meanwhile, nothing outside the copy is touched.
"""

import contextlib
import errno
import os
import stat
from pathlib import Path
from typing import Self

from filelock import FileLock, Timeout

from lab.mirror.files import Files
from lab.mirror.journal import Journal
from lab.mirror.names import PRIVATE
from lab.mirror.places import Directory, by_name
from lab.mirror.read import Reading
from lab.mirror.state import State

LEFT = ("part-", "removed-", "state-")  # what the names begin with that a mirror leaves in its own directory


class CopyError(ValueError):
    """A directory that cannot be a copy: somebody else's, or in use by another mirror."""


class CopyGone(Exception):
    """The directory that was the copy is not where it was."""


class Copy(Files):
    """An open copy; nobody else can open it meanwhile. Only `reading`'s methods may run in another thread.

    `state` says what it should be and is.
    """

    def __init__(self, directory: Path, *, adopt: bool = False, doubt: bool = False) -> None:
        """Open or begin a copy. Raises CopyError when it is not empty and no mirror's, unless told to `adopt` it.

        In `doubt`, each file is read before it is believed. Raises OSError when it cannot be read or written.
        """
        self.top = directory.resolve()
        check(directory, adopt=adopt)
        self.top.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as opened:
            top = Directory(str(self.top))
            opened.callback(top.close)
            (self.top / PRIVATE).mkdir(exist_ok=True)
            if stat.S_ISLNK(top.mode(PRIVATE)):
                raise CopyError(f"{self.top / PRIVATE} is a symbolic link")
            own = Directory(PRIVATE, top)
            opened.callback(own.close)
            lock = _locked(self.top / PRIVATE / "lock", directory)
            opened.callback(lock.release)
            self.device, self._inode = top.identity()
            clear(own)
            state = State(str(self.top), Journal(own, "state"), doubt=doubt)
            opened.callback(state.close)
            super().__init__(top, own, state)
            self.reading = Reading(str(self.top))
            self._opened = opened.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of it."""
        self.reading.abandoned = True
        with contextlib.suppress(OSError, CopyGone):
            self.check()
            clear(self._own)
            self.state.flush()
        self.leave()
        self._opened.close()

    def check(self) -> None:
        """Raise CopyGone unless the directory still is where it was, and the mirror's own files in it."""
        own = by_name(self.top / PRIVATE)
        if by_name(self.top) != (self.device, self._inode) or own != self._own.identity():
            raise CopyGone(f"{self.top} has been removed, or another directory is there now")


def check(directory: Path, *, adopt: bool) -> None:
    """Raise CopyError for a directory that is not empty and no mirror's, unless told to `adopt` it; or OSError."""
    if directory.exists() and not directory.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "not a directory", str(directory))
    if not adopt and directory.exists() and not os.path.lexists(directory / PRIVATE) and any(directory.iterdir()):
        raise CopyError(f"{directory} is not empty, and no mirror made it (--adopt takes it over)")


def looked_at(directory: Path, *, adopt: bool, doubt: bool) -> State:
    """The state of a copy that is not opened: what is written to it is written nowhere. Raises as `Copy` does."""
    check(directory, adopt=adopt)
    own = Directory(str(directory / PRIVATE)) if (directory / PRIVATE).exists() else None
    try:
        return State(str(directory), Journal(own, "state"), doubt=doubt, look=True)
    finally:
        if own:
            own.close()


def may_begin(directory: Path, device: int) -> bool:
    """Whether a copy that is gone may be begun again there: not where its file system has gone with it."""
    here = directory.resolve()
    while (found := by_name(here)) is None:
        here = here.parent
    return found[0] == device


def clear(own: Directory) -> None:
    """Remove what a mirror leaves in its own directory."""
    for name in own.names():
        if name.startswith(LEFT):
            own.unlink(name)


def _locked(name: Path, copy: Path) -> FileLock:
    """A file whose lock says that a mirror is at work there; the system lets go of it however the process ends."""
    lock = FileLock(name, thread_local=False)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise CopyError(f"another mirror is at work in {copy}") from None
    return lock
