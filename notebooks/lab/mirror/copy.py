"""A directory that becomes what a server says it should be, one whole file at a time, and knows so after any crash.

    what the server says ─▶ COPY/.mirror/state ─▶ wanted ─┐
                                                          ├─▶ differing() ─▶ a Part, renamed into place ─▶ present
    what stands there, looked at when it is opened ───────┘                └▶ remove(path)

The state is a journal. A line says what one update said, its cursor included, and is written in one piece *before*
the update is applied: cursor and expectation cannot come apart, and what was not yet applied when the process was
killed is seen to differ when the copy is opened again. So nothing needs to be flushed file by file: whatever a crash
leaves, each file is compared with what is wanted, by its stat and, if that has changed, by its hash.

A file is never written where it can be seen: it is written inside COPY/.mirror and renamed. Only paths that the server
once named are ever replaced or removed; what others put beside them stays.
"""

import contextlib
import errno
import hashlib
import json
import os
import stat
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Self

from servers.feed import check_path
from servers.tree import CHUNK, Abandoned, identity, open_below

PRIVATE = ".mirror"
KEPT = 2.0  # seconds that a removed file's bytes stay within reach: a rename is a deletion and an addition
SLACK = 1000  # superseded lines in the journal before it is written anew, besides as many as there are files
APPEND = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0)
FORBIDDEN_ON_WINDOWS = set('<>:"\\|?*')


class CopyError(Exception):
    """A directory that cannot be a copy: somebody else's, or in use by another mirror."""


class UnsafePath(ValueError):
    """A path that a mirror must not write to, whoever asks for it."""


class Version(NamedTuple):
    """What a file holds: `size` in bytes, and its SHA-256 in hexadecimal."""

    size: int
    sha256: str


def check_name(path: str) -> None:
    """Raise UnsafePath for what lies outside the copy, or among the mirror's own files, on any file system."""
    try:
        check_path(path)
    except ValueError as error:
        raise UnsafePath(str(error)) from None
    first = "".join(filter(str.isprintable, path.partition("/")[0]))  # some systems ignore case, and zero-width letters
    if first.casefold().rstrip(". ") == PRIVATE:
        raise UnsafePath(f"{PRIVATE} is the mirror's own")
    if os.name == "nt" and FORBIDDEN_ON_WINDOWS & set(path):
        raise UnsafePath("a name that Windows reads differently")


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

    `cursor` is where the state stands in the server's log, None before the first listing. `wanted` maps paths to the
    version that the server named last, None for one that must go; `present` to the version that is known to be there.
    `unsaved` says why the state could not be written, until it can be; `abandoned` ends what runs in other threads.
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
        self._lock = _locked(self._own / "lock", directory)
        self.cursor: str | None = None
        self.wanted: dict[str, Version | None] = {}
        self.present: dict[str, Version] = {}
        self.unsaved: OSError | None = None
        self.abandoned = False
        self._stats: dict[str, tuple[int, ...]] = {}  # of what is present
        self._holders: dict[str, dict[str, None]] = {}  # SHA-256 to the paths that are present with it
        self._removed: dict[str, float] = {}  # SHA-256 to when such a file was removed
        self._parts = self._lines = 0
        self._state = self._own / "state"
        try:
            self._load()
            self._clear()
            self._journal = os.open(self._state, APPEND, 0o666)
            self._append({})  # ends a line that was cut off
        except BaseException:
            os.close(self._lock)
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
        os.close(self._journal)
        os.close(self._lock)

    # What the server says

    def expect(self, path: str, version: Version | None, cursor: str) -> bool:
        """Take note of an update; False when there is nothing to do, since the path was never the mirror's."""
        if version is None and path not in self.wanted:
            self.pass_over(cursor)
            return False
        self.wanted[path], self.cursor = version, cursor
        self._append({"cursor": cursor} | _row(path, version))
        return True

    def pass_over(self, cursor: str) -> None:
        """Take note that the log is read up to here."""
        self.cursor = cursor
        self._append({"cursor": cursor})

    def expect_all(self, files: Mapping[str, Version], cursor: str) -> None:
        """Take note of a listing: `files` is all there is at `cursor`."""
        gone: dict[str, Version | None] = {path: None for path in self.wanted if path not in files}
        self.wanted, self.cursor = {**gone, **files}, cursor
        self._save()

    def differing(self) -> list[str]:
        """The paths where something is to be done, deletions first."""
        return sorted(
            (path for path in self.wanted if not self.is_right(path)), key=lambda path: self.wanted[path] is not None
        )

    def is_right(self, path: str) -> bool:
        """Whether what is wanted there is known to be there."""
        wanted, present = self.wanted.get(path), self.present.get(path)
        return wanted is not None and present is not None and wanted.sha256 == present.sha256

    # What stands there

    def stands(self, path: str, version: Version) -> tuple[int, ...] | None:
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

    def note(self, path: str, version: Version, status: tuple[int, ...]) -> None:
        """Take for present what `stands` has found."""
        self._forget(path)
        self._remember(path, version, status)
        self._append({"path": path, "sha256": version.sha256, "stat": status})

    def source(self, sha256: str) -> str | None:
        """The path of a file that should have these bytes, present or just removed."""
        for path in self._holders.get(sha256, ()):
            return path
        return f"{PRIVATE}/removed-{sha256}" if sha256 in self._removed else None

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
            for below in [other for other in self.present if other.startswith(f"{path}/")]:
                self.remove(below)
        self._make_parents(path)
        part.name.replace(target)
        self.note(path, Version(part.size, part.sha256), identity(target.lstat()))

    def remove(self, path: str) -> None:
        """Remove a file if it is there, and the directories that are empty then. Raises as `place` does."""
        if self._make_parents(path, make=False):
            self._take(path)
        self._forget(path)
        if self.wanted.get(path, ...) is None:
            del self.wanted[path]
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
            if mode and above not in self.present:
                raise NotADirectoryError(errno.ENOTDIR, f"{above!r} is no directory, and not the mirror's to replace")
            if mode:  # a file has become a directory
                self._take(above)
            name.mkdir()
        return True

    def _take(self, path: str) -> None:
        """Move a file out of sight, if it is one; a directory there means that its path has been taken over."""
        name, known = self._name(path), self.present.get(path)
        mode = _mode(name)
        if stat.S_ISREG(mode) and known:
            name.replace(self._own / f"removed-{known.sha256}")
            self._removed[known.sha256] = time.monotonic()
        elif mode and not stat.S_ISDIR(mode):
            name.unlink()
        self._forget(path)

    def _prune(self, path: str) -> None:
        """Remove the directories above a path that nothing is left in."""
        parts = path.split("/")
        with contextlib.suppress(OSError):
            for n in range(len(parts) - 1, 0, -1):
                self._name("/".join(parts[:n])).rmdir()

    def _remember(self, path: str, version: Version, status: tuple[int, ...]) -> None:
        self.present[path], self._stats[path] = version, status
        self._holders.setdefault(version.sha256, {})[path] = None

    def _forget(self, path: str) -> None:
        known = self.present.pop(path, None)
        self._stats.pop(path, None)
        if known:
            holders = self._holders[known.sha256]
            del holders[path]
            if not holders:
                del self._holders[known.sha256]

    # The state

    def _load(self) -> None:
        """Read the journal, and believe of it what a look at the files confirms."""
        stats: dict[str, tuple[int, ...]] = {}
        with contextlib.suppress(FileNotFoundError):
            for line in self._state.read_bytes().split(b"\n"):
                self._lines += 1
                with contextlib.suppress(ValueError):  # cut off when the disk was full, or by the end of the process
                    self._replay(json.loads(line), stats)
        for path, wanted in list(self.wanted.items()):
            try:
                found = identity(self._name(path).lstat())
            except OSError:
                if wanted is None:
                    del self.wanted[path]
                continue
            if wanted is not None and stats.get(path) == found:
                self._remember(path, wanted, found)

    def _replay(self, row: Any, stats: dict[str, tuple[int, ...]]) -> None:
        match row:
            case {"path": str(path), "size": int(size), "sha256": str(sha256)}:
                check_name(path)
                self.wanted[path] = Version(size, sha256)
                stats.pop(path, None)
            case {"path": str(path), "size": None}:
                check_name(path)
                self.wanted[path] = None
        match row:
            case {"path": str(path), "sha256": str(sha256), "stat": list(status)}:
                wanted = self.wanted.get(path)
                if wanted is not None and wanted.sha256 == sha256:
                    stats[path] = tuple(status)
        match row:
            case {"cursor": str(cursor)}:
                self.cursor = cursor

    def _append(self, row: dict[str, Any]) -> None:
        """Write a line; if that fails, everything anew at the next occasion: a later line alone would be a lie."""
        if self.cursor is None:  # nothing is known before the first listing
            return
        if self.unsaved or self._lines > 2 * len(self.wanted) + SLACK:
            self._save()
            return
        line = _line(row)
        try:
            if os.write(self._journal, line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._lines += 1
        except OSError as error:
            self.unsaved = error

    def _save(self) -> None:
        """Write the whole state beside the old one, and rename it over that."""
        new = self._own / "state-new"
        try:
            with new.open("wb") as file:
                file.write(_line({"cursor": self.cursor}))
                for path, version in self.wanted.items():
                    known = {"stat": self._stats[path]} if self.is_right(path) else {}
                    file.write(_line(_row(path, version) | known))
                file.flush()
                os.fsync(file.fileno())  # the one file that a power failure must not leave empty
            new.replace(self._state)
            journal = os.open(self._state, APPEND)
        except OSError as error:
            self.unsaved = error
            return
        os.close(self._journal)
        self._journal, self._lines, self.unsaved = journal, len(self.wanted) + 1, None

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


def _row(path: str, version: Version | None) -> dict[str, Any]:
    return {"path": path, "size": None} if version is None else {"path": path, **version._asdict()}


def _line(row: dict[str, Any]) -> bytes:
    return json.dumps(row).encode() + b"\n"


def _locked(name: Path, copy: Path) -> int:
    """A file whose lock says that a mirror is at work there; the system lets go of it however the process ends."""
    descriptor = os.open(name, APPEND, 0o666)
    if sys.platform != "win32":
        import fcntl

        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            raise CopyError(f"another mirror is at work in {copy}") from None
    return descriptor
