"""The files of a copy, changed at once as far as a reader can see: placed, moved, linked, removed.

    a Part, or what stands elsewhere in the copy ─▶ rename to its path ─▶ State.note
    a path that must go ─▶ COPY/.mirror/removed-SHA256, for a while

All of it is done by the descriptors of directories: whatever becomes of their names meanwhile, nothing outside the copy
is touched.
"""

import contextlib
import errno
import hashlib
import itertools
import os
import stat
from collections.abc import Iterator

from lab.mirror.names import PRIVATE, Version
from lab.mirror.part import Earlier, Part, dress
from lab.mirror.places import Directory, Walk
from lab.mirror.shelf import Shelf
from lab.mirror.state import Stat, State
from servers.hashing import CHUNK
from servers.places import READ, identity

NO_LINKS = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP)


class Files:
    """What stands below `top`, with `own` for what must not be seen; everything here raises OSError."""

    def __init__(self, top: Directory, own: Directory, state: State) -> None:
        self._top, self._own, self.state = top, own, state
        self.shelf = Shelf(own)
        self._stale: dict[str, None] = {}  # paths whose inode has lost or got a name
        self._emptier: dict[str, None] = {}  # directories that have lost a file
        self._numbers = itertools.count()
        self._here, self._there = Walk(top), Walk(top)

    def leave(self) -> None:
        """Let go of the directories that are open: others may change them now."""
        self._here.leave()
        self._there.leave()

    def settle(self) -> None:
        """After some changes: let go of the directories, and write down what is known."""
        self.prune()
        stale, self._stale = sorted(self._stale), {}
        for path in stale:
            with contextlib.suppress(OSError):
                known = self.state.present.get(path)
                if known and (directory := self._enter(path, make=False)):
                    found = identity(directory.stat(_last(path)))
                    if found[:-1] == self.state.stat(path)[:-1]:  # all but the time of its last change of inode
                        self.state.note(path, known, found)
        self.leave()
        self.state.flush()

    def new_part(self) -> Part:
        """A new part, to be placed or dropped."""
        return Part(self._own, f"part-{next(self._numbers)}")

    @contextlib.contextmanager
    def part(self) -> Iterator[Part]:
        """A new part, gone at the end of the block unless it has been placed."""
        part = self.new_part()
        try:
            yield part
        finally:
            self.drop(part)

    def keep(self, path: str) -> str | None:
        """Give what stands at a path a name out of sight, too, before it is replaced; None if it is not what it was."""
        name = f"part-{next(self._numbers)}"
        with contextlib.suppress(OSError):  # no links here: nothing is lost
            directory = self._enter(path, make=False)
            if directory and self._untouched(path, directory):
                directory.link(_last(path), self._own, name)
                self._stale[path] = None
                return name
        return None

    def earlier(self, name: str, digest: "hashlib._Hash") -> Earlier:
        """What was kept, once its own path is another file's. Raises OSError."""
        return Earlier(name, identity(self._own.stat(name)), digest)

    def again(self, earlier: Earlier) -> Part:
        """What was kept, as a part. Raises OSError if it is not the mirror's alone."""
        return Part.again(self._own, earlier)

    def let_go(self, name: str) -> None:
        """Remove what was kept."""
        with contextlib.suppress(FileNotFoundError):
            self._own.unlink(name)

    def drop(self, part: Part) -> None:
        """Remove a part, if it has not been placed."""
        with contextlib.suppress(OSError):  # of a full disk
            part.close()
        self.let_go(part.name)

    def place(self, part: Part, path: str, version: Version | None = None) -> None:
        """Rename a finished part to its path. Raises OSError."""
        wanted = self.state.wanted.get(path)
        known = version or Version(part.size, part.sha256)
        if wanted and wanted.sha256 == known.sha256 and not part.closed:  # what is closed has what goes with it
            known = wanted
        part.close(known)
        self._put(self._own, part.name, path)
        self.state.note(path, known, self._stat(path))

    def reuse(self, path: str, wanted: Version) -> bool:
        """Whether what is wanted stood elsewhere in the copy, untouched, and stands here now. Raises OSError."""
        for source in self.state.holders(wanted.sha256):
            known = self.state.present[source]
            away = self._enter(source, make=False, walk=self._there)
            if source == path or away is None or not wanted.suits(known) or not self._untouched(source, away):
                continue
            try:
                if self.state.wanted.get(source) is None:
                    self._put(away, _last(source), path)
                    self.state.forget(source)
                else:
                    name = f"part-{next(self._numbers)}"
                    away.link(_last(source), self._own, name)
                    self._put(self._own, name, path)
                    self._stale[source] = None
            except OSError as error:
                if error.errno in NO_LINKS:
                    return False
                raise
            self.state.note(path, known, self._stat(path))
            return True
        if (found := self.shelf.take(wanted)) is None:
            return False
        self._put(self._own, found[0], path)
        self.state.note(path, found[1], self._stat(path))
        return True

    def adjust(self, path: str, wanted: Version, status: Stat) -> bool:
        """Give a file that has the right bytes the time and executable bit that are wanted; False if it has names."""
        if (directory := self._enter(path, make=False)) is None:
            return False
        file = directory.open(_last(path), READ)
        try:
            found = os.fstat(file)
            if identity(found) != status or found.st_nlink > 1:
                return False
            dress(file, wanted)
            self.state.note(path, wanted, identity(os.fstat(file)))
        finally:
            os.close(file)
        return True

    def is_file(self, path: str) -> bool:
        """Whether a regular file stands there."""
        with contextlib.suppress(OSError):
            directory = self._enter(path, make=False)
            return directory is not None and stat.S_ISREG(directory.mode(_last(path)))
        return False

    def source(self, sha256: str) -> str | None:
        """The path of a file that should have these bytes, present or just removed."""
        present = self.state.holders(sha256)
        return present[0] if present else self.shelf.path(sha256)

    def remove(self, path: str) -> None:
        """Remove a file if it is there; `prune` the directories that are empty then. Raises as `place` does."""
        if directory := self._enter(path, make=False):
            self._take(directory, path)
        self.state.note_gone(path)
        self._emptier[path.rpartition("/")[0]] = None

    def prune(self) -> None:
        """Remove the directories that are empty, of those that have lost a file: once each, however many that were."""
        emptier, self._emptier = sorted(self._emptier, reverse=True), {}
        self._there.leave()
        for path in emptier:
            with contextlib.suppress(OSError):
                while path:
                    if above := self._enter(path, make=False):
                        above.rmdir(_last(path))
                    path = path.rpartition("/")[0]

    def _enter(self, path: str, *, make: bool = True, walk: Walk | None = None) -> Directory | None:
        """The directory of a path's last part, made unless told not to: None then, if there is none."""

        def absent(here: Directory, name: str, above: str) -> bool:
            mode = here.mode(name)
            if stat.S_ISLNK(mode):
                raise OSError(errno.ELOOP, f"{above!r} is a symbolic link")
            if not make:
                return False
            if mode and above not in self.state.present:
                raise NotADirectoryError(errno.ENOTDIR, f"{above!r} is no directory, and not the mirror's to replace")
            if mode:  # a file has become a directory
                self._take(here, above)
            here.mkdir(name)
            return True

        return (walk or self._here).enter(path.split("/")[:-1], absent)

    def _put(self, origin: Directory, name: str, path: str) -> None:
        """Rename a file to a path of the copy."""
        directory, last = self._enter(path), _last(path)
        assert directory
        try:
            self._rename(origin, name, directory, last)
        except OSError:
            if not stat.S_ISDIR(directory.mode(last)):
                raise
            for below in self.state.give_way(path):  # a directory has become a file
                self.remove(below)
            self.prune()
            self._put_anew(origin, name, path)

    def _put_anew(self, origin: Directory, name: str, path: str) -> None:
        directory = self._enter(path)
        assert directory
        hollow(directory, _last(path))  # killed before it was pruned
        self._rename(origin, name, directory, _last(path))

    def _rename(self, origin: Directory, name: str, directory: Directory, last: str) -> None:
        """Rename; where the directory is on another file system, copy it there first."""
        try:
            origin.rename(name, directory, last)
        except OSError as error:
            if error.errno != errno.EXDEV or origin is not self._own:
                raise
            carry(origin, name, directory, last)

    def _stat(self, path: str) -> Stat:
        directory = self._enter(path, make=False)
        if directory is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return identity(directory.stat(_last(path)))

    def _untouched(self, path: str, directory: Directory) -> bool:
        """Whether a file that is present is what it was when it was noted."""
        with contextlib.suppress(OSError):
            return identity(directory.stat(_last(path))) == self.state.stat(path)
        return False

    def _take(self, directory: Directory, path: str) -> None:
        """Move a file out of sight, if it is one; a directory there means that its path has been taken over."""
        name, known = _last(path), self.state.present.get(path)
        mode = directory.mode(name)
        others = [other for other in self.state.holders(known.sha256) if other != path] if known else []
        if stat.S_ISREG(mode) and known and not others:
            self.shelf.keep(directory, name, known)
        elif mode and not stat.S_ISDIR(mode):
            directory.unlink(name)
            inode = self.state.stat(path)[:2] if known else ()
            self._stale |= {other: None for other in others if self.state.stat(other)[:2] == inode}
        self.state.forget(path)


def hollow(above: Directory, name: str) -> None:
    """Remove a directory in which there is nothing, or only directories like it."""
    with contextlib.suppress(OSError):
        here = Directory(name, above)
        try:
            for each in here.names():
                hollow(here, each)
        finally:
            here.close()
        above.rmdir(name)


def carry(origin: Directory, name: str, directory: Directory, last: str) -> None:
    """Bring a file to another file system: beside its place first, so that it appears there whole."""
    beside = f"{PRIVATE}-{name}"
    with contextlib.suppress(FileNotFoundError):
        directory.unlink(beside)
    part = Part(directory, beside)
    try:
        with os.fdopen(origin.open(name, os.O_RDONLY | getattr(os, "O_BINARY", 0)), "rb") as file:
            while data := file.read(CHUNK):
                part.write(data)
            status = os.fstat(file.fileno())
        part.close(Version(part.size, "", status.st_mtime, bool(status.st_mode & stat.S_IXUSR)))
        directory.rename(beside, directory, last)
    except BaseException:
        part.close()
        directory.unlink(beside)
        raise
    origin.unlink(name)


def _last(path: str) -> str:
    return path.rpartition("/")[2]
