"""A directory that becomes what a server says it should be, one whole file at a time.

    State.differing() ─▶ a Part, filled from the server or from the copy itself ─▶ place(): renamed to its path
                    └──▶ remove(path): out of sight, its bytes within reach for a while

A file is never written where it can be seen: it is written inside COPY/.mirror and renamed. Only paths that the server
once named are ever replaced or removed; what others put beside them stays. Windows renames nothing over a file that
somebody has open: there it is tried again until they have closed it.
"""

import contextlib
import errno
import hashlib
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Self

from filelock import FileLock, Timeout

from lab.mirror.journal import Journal
from lab.mirror.names import PRIVATE, UnsafePath, Version
from lab.mirror.state import Stat, State
from servers.tree import CHUNK, Abandoned, identity, open_below

KEPT = 2.0  # seconds that a removed file's bytes stay within reach: a rename is a deletion and an addition


class CopyError(ValueError):
    """A directory that cannot be a copy: somebody else's, or in use by another mirror."""


class Part:
    """A file being written where nobody looks. `size` and `sha256` are those of the bytes written so far."""

    def __init__(self, name: Path) -> None:
        self.name, self.size = name, 0
        self._digest = hashlib.sha256()
        self._file = name.open("xb")  # closed by the copy that made it

    @property
    def sha256(self) -> str:
        """In hexadecimal."""
        return self._digest.hexdigest()

    def write(self, data: bytes) -> None:
        """Add to it. Raises OSError."""
        self._file.write(data)
        self._digest.update(data)
        self.size += len(data)

    def close(self) -> None:
        """Write out what is left in memory. Raises OSError."""
        self._file.close()


class Copy:
    """An open copy; nobody else can open it meanwhile. Only `stands` and `fill` may run in another thread.

    `state` says what it should be and is; `abandoned` ends what runs in other threads.
    """

    def __init__(self, directory: Path, *, adopt: bool = False) -> None:
        """Open or begin a copy. Raises CopyError when it is not empty and no mirror's, unless told to `adopt` it.

        Raises OSError when it cannot be read or written.
        """
        self.top = directory.resolve()
        if self.top.exists() and not self.top.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "not a directory", str(directory))
        self.top.mkdir(parents=True, exist_ok=True)
        self._own = self.top / PRIVATE
        if not adopt and not os.path.lexists(self._own) and any(self.top.iterdir()):
            raise CopyError(f"{directory} is not empty, and no mirror made it (--adopt takes it over)")
        self._own.mkdir(exist_ok=True)
        if self._own.is_symlink():
            raise CopyError(f"{self._own} is a symbolic link")
        self.abandoned = False
        self._removed: dict[str, float] = {}  # SHA-256 to when such a file was removed
        self._parts = 0
        self._lock = _locked(self._own / "lock", directory)
        try:
            self._clear()
            self.state = State(self.top, Journal(self._own / "state"))
        except BaseException:
            self._lock.release()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of it."""
        self.abandoned = True
        with contextlib.suppress(OSError):
            self._clear()
        self.state.close()
        self._lock.release()

    # What stands there

    def stands(self, path: str, version: Version) -> Stat | None:
        """Read the file that stands there; its stat if it holds that version, else None. Raises Abandoned."""
        try:
            with open_below(str(self.top), path.split("/")) as file:
                status = os.fstat(file.fileno())
                if status.st_size != version.size:
                    return None
                digest = hashlib.sha256()
                for chunk in self._chunks(file):
                    digest.update(chunk)
                same = identity(os.fstat(file.fileno())) == identity(status) and digest.hexdigest() == version.sha256
                return identity(status) if same else None
        except OSError:
            return None

    def source(self, sha256: str) -> str | None:
        """The path of a file that should have these bytes, present or just removed."""
        return self.state.holder(sha256) or (f"{PRIVATE}/removed-{sha256}" if sha256 in self._removed else None)

    def fill(self, part: Part, source: str) -> None:
        """Write a source's bytes into a part. Raises OSError, and Abandoned."""
        with open_below(str(self.top), source.split("/")) as file:
            for chunk in self._chunks(file):
                part.write(chunk)

    def _chunks(self, file: BinaryIO) -> Iterator[bytes]:
        while chunk := file.read(CHUNK):
            if self.abandoned:
                raise Abandoned
            yield chunk

    # Changing it: at once, as far as a reader can see

    @contextlib.contextmanager
    def part(self) -> Iterator[Part]:
        """A new part, gone at the end of the block unless it has been placed."""
        self._parts += 1
        part = Part(self._own / f"part-{self._parts}")
        try:
            yield part
        finally:
            with contextlib.suppress(OSError):  # of a full disk
                part.close()
            part.name.unlink(missing_ok=True)

    def place(self, part: Part, path: str) -> None:
        """Rename a finished part to its path. Raises OSError, and UnsafePath if a symbolic link is in its way."""
        part.close()
        target = self._name(path)
        if stat.S_ISDIR(_mode(target)):  # a directory has become a file
            for below in [other for other in self.state.present if other.startswith(f"{path}/")]:
                self.remove(below)
        self._make_parents(path)
        part.name.replace(target)
        self.state.note(path, Version(part.size, part.sha256), identity(target.lstat()))

    def remove(self, path: str) -> None:
        """Remove a file if it is there, and the directories that are empty then. Raises as `place` does."""
        if self._make_parents(path, make=False):
            self._take(path)
        self.state.note_gone(path)
        self._prune(path)

    def forget_removed(self, age: float = KEPT) -> bool:
        """Let go of what was removed `age` seconds ago or earlier; say whether something is left."""
        now = time.monotonic()
        for sha256 in [sha256 for sha256, then in self._removed.items() if now - then >= age]:
            del self._removed[sha256]
            (self._own / f"removed-{sha256}").unlink(missing_ok=True)
        return bool(self._removed)

    def _name(self, path: str) -> Path:
        return self.top.joinpath(*path.split("/"))

    def _make_parents(self, path: str, *, make: bool = True) -> bool:
        """See to it that every part of the path but the last is a real directory; if not to `make` it, say if it is."""
        parts = path.split("/")
        for n in range(1, len(parts)):
            above = "/".join(parts[:n])
            name = self._name(above)
            mode = _mode(name)
            if stat.S_ISLNK(mode):
                raise UnsafePath(f"{above!r} is a symbolic link")
            if stat.S_ISDIR(mode):
                continue
            if not make:
                return False
            if mode and above not in self.state.present:
                raise NotADirectoryError(errno.ENOTDIR, f"{above!r} is no directory, and not the mirror's to replace")
            if mode:  # a file has become a directory
                self._take(above)
            name.mkdir()
        return True

    def _take(self, path: str) -> None:
        """Move a file out of sight, if it is one; a directory there means that its path has been taken over."""
        name, known = self._name(path), self.state.present.get(path)
        mode = _mode(name)
        if stat.S_ISREG(mode) and known:
            name.replace(self._own / f"removed-{known.sha256}")
            self._removed[known.sha256] = time.monotonic()
        elif mode and not stat.S_ISDIR(mode):
            name.unlink()
        self.state.forget(path)

    def _prune(self, path: str) -> None:
        """Remove the directories above a path that nothing is left in."""
        parts = path.split("/")
        with contextlib.suppress(OSError):
            for n in range(len(parts) - 1, 0, -1):
                self._name("/".join(parts[:n])).rmdir()

    def _clear(self) -> None:
        """Remove what a mirror leaves in its own directory."""
        self._removed.clear()
        for name in list(self._own.iterdir()):
            if name.name.startswith(("part-", "removed-", "state-")):
                name.unlink()


def _mode(name: Path) -> int:
    """What a name stands for, links not followed; 0 if for nothing."""
    try:
        return name.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return 0


def _locked(name: Path, copy: Path) -> FileLock:
    """A file whose lock says that a mirror is at work there; the system lets go of it however the process ends."""
    lock = FileLock(name, thread_local=False)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise CopyError(f"another mirror is at work in {copy}") from None
    return lock
