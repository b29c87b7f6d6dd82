"""A directory as it stands: looked at, compared with what was known of it, and opened so that nothing leads out of it.

    directory ─▶ Tree.scan()       ─▶ [Edit, ...]   all of it: what differs from what was known, in a fixed order
    names     ─▶ Tree.look(names)  ─▶ [Edit, ...]   these only, and what is below them
              ─▶ Tree.sweep()      ─▶ [Edit, ...] ... all of it, a slice at a time: the look goes on in between
    path      ─▶ Tree.open()       ─▶ a file and its File: its size, its hash, what tells whether it has changed since

Names are those of the file system, relative, with "/" between their parts; paths are the same in UTF-8. What fills a
feed from it is in sources.py, what hears of names in hints.py, what answers requests for its files in downloads.py.
"""

import contextlib
import errno
import hashlib
import math
import os
import stat
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Protocol

from servers.feed import Change, Known, check_path
from servers.ignore import Ignore, folds_case

FRESH = 100_000_000  # ns; a file changed so shortly before it was read may change again within one tick of the clock
COARSE = 2_000_000_000  # ns; the same, where the file system counts whole seconds
CHUNK = 2**20  # bytes hashed at a time
LARGE = 2**20  # bytes; a file of more than that is hashed apart, if anybody does
BLOCK = 2**16  # bytes at a file's beginning and end that tell a file that has grown from one that was written anew
VERIFY = 50  # times as long as reading all of it took, a file that grows is believed to have only grown
STATES = 256  # files that grow, and whose growth only is hashed
SLICE = 0.02  # seconds of a sweep, after which others have their turn
MANY = 100  # files; if another directory in the place of the known one lacks more, and half, or all, it is not believed
SHORT = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
PRIVATE = ".mirror"  # the directory that makes its directory a mirror's copy
NOT_UTF8 = "its name is not UTF-8"
TOO_LARGE = "it is larger than"
A_COPY = f"it is a mirror's copy (it holds {PRIVATE})"
READ = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
HELD = os.open in os.supports_dir_fd and os.scandir in os.supports_fd  # a directory can be held open (not on Windows)
COARSE_CLOCK = 5  # Linux: the clock that stamps files, CLOCK_REALTIME_COARSE


@dataclass(frozen=True, slots=True)
class Edit:
    """One change, `at` seconds after the start; `size` in bytes; `content` only when it travels inline.

    A rename is an addition and, after it in the same look, a deletion: who follows can move what it has.
    """

    at: float
    path: str
    change: Change
    size: int | None = None
    sha256: str | None = None
    content: bytes | None = None
    mtime: float | None = field(default=None, compare=False)
    executable: bool | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class File:
    """A file as a look found it: `size` in bytes, and the stat fields that differ whenever its bytes may.

    They are of one moment: a file that has grown since still begins with these bytes.
    """

    size: int
    sha256: str
    identity: tuple[int, ...]
    settled: bool  # False: changed so shortly before it was read that the same stat may hide another change
    seen: float = field(default=0.0, compare=False)  # monotonic time since when it is so known, while it is not settled
    executable: bool = False  # whether its owner may run it

    @property
    def mtime(self) -> float:
        """When it was last changed, in Unix time (s)."""
        seconds, rest = divmod(self.identity[3], 10**9)
        return seconds + rest / 1e9

    @property
    def known(self) -> Known:
        """What is told of it."""
        return Known(self.size, self.sha256, self.mtime, self.executable)


class Folder:
    """A directory as last listed: what it is (device and inode), and the names known in it."""

    __slots__ = ("files", "folders", "place")

    def __init__(self, place: tuple[int, int]) -> None:
        self.place = place
        self.files: set[str] = set()
        self.folders: set[str] = set()


class Abandoned(Exception):
    """Nobody wants the result of this look any more."""

    def __init__(self) -> None:
        super().__init__("the server is stopping")


class Replaced(OSError):
    """Another directory stands where the known one stood, without most of its files: a mount that is not there?"""


class Listener(Protocol):
    """Who wants to hear of what happens in each directory of the tree."""

    def listen(self, prefix: str, place: "Place") -> None:
        """This directory, held open, belongs to the tree: called before it is listed."""

    def forget(self, prefix: str) -> None:
        """No directory has this name any more."""


class Found:
    """What a look has found so far, until the tree takes it."""

    def __init__(self) -> None:
        self.come: dict[str, tuple[str, File]] = {}  # path to name and file
        self.gone: dict[str, str] = {}  # path to name
        self.left: dict[str, None] = {}  # prefixes of directories that are gone
        self.missing: list[str] = []  # names that a listing lacks
        self.skipped: dict[str, str] = {}
        self.passed: dict[str, str] = {}


class Tree:
    """A directory as last looked at. `files` maps paths to what stood there; `skipped` maps names to why not.

    Only regular files count. Symbolic links are not followed: nothing outside the directory is ever read. A file
    of more than `limit` bytes is left out and named in `skipped`, and so is a directory below this one that is a
    mirror's copy. What a pattern of `ignore` hides is as if it were not there (servers/ignore.py). `remembered` are
    files known from before (servers/index.py): what is as it was then is not read. `first_look=False` leaves the first
    look to whoever watches; until then `looked` is false, and nothing can be opened.

    One thread looks, any may open. Setting `abandoned` ends a look that runs in another thread.
    """

    def __init__(
        self,
        directory: Path,
        *,
        limit: float = math.inf,
        ignore: Iterable[str] = (),
        remembered: Mapping[str, File] | None = None,
        first_look: bool = True,
    ) -> None:
        """Raises OSError when `directory` is missing, not a directory, or unreadable; ValueError for a pattern."""
        self.directory, self.limit = directory, limit
        self.ignore = Ignore(ignore, any_case=folds_case(str(directory)))
        self.remembered = dict(remembered or {})
        self.files: dict[str, File] = {}
        self.skipped: dict[str, str] = {}
        self.passed: dict[str, str] = {}  # names that are left out without a word, and what they are
        self.folders: dict[str, Folder] = {}
        self.place: tuple[int, int] | None = None  # of the directory itself
        self.source: str | None = None  # what names the directory, if that is kept over restarts (servers/index.py)
        self.looked = self.abandoned = False
        self.read_bytes = self.counted = 0  # so far, for who waits
        self.again: dict[str, float] = {}  # names to look at again, so many seconds after a look that was not sure
        self.apart: list[str] | None = None  # names of large files that somebody else hashes; None: nobody does
        self.listener: Listener | None = None
        self._growing: dict[str, Growth] = {}
        self._fresh: dict[str, File] = {}  # read since the last look, for who opens them
        self._reading = threading.Lock()
        with self._top():
            pass
        if first_look:
            self.scan()

    # --- looking ---

    def scan(self) -> list[Edit]:
        """Look at everything; return what has changed: what came before what went, each in the order of paths.

        Only a file that stands where a directory comes, or the other way round, goes first. So whoever follows has
        new names before old ones are gone, and a renamed file, an addition and a deletion, is there all the time. A
        file that was touched but holds the same bytes has not changed. Raises OSError when the directory itself cannot
        be read, Replaced when it may be the wrong one, and Abandoned; what was known stays known.
        """
        found = Found()
        with self._top() as top:
            for _ in self._walk(top, [""], found, deep=True):
                pass
            for name in found.missing:
                self._forget(name, found)
            self._distrust(top, found)
        edits = self._take(found)
        self.place, self.skipped, self.passed, self.looked = top.place, found.skipped, found.passed, True
        self.remembered = {}
        return edits

    def look(self, names: Iterable[str]) -> list[Edit]:
        """Look at these names, and at what is below a directory that was not known; the edits are as those of `scan`.

        Raises as `scan` does; Replaced whenever another directory stands in the place of the known one.
        """
        found = Found()
        by_folder: dict[str, dict[str, None]] = {}
        for name in names:
            prefix, last = split(self._known_part(name))
            by_folder.setdefault(prefix, {})[last] = None
        with self._top() as top:
            if top.place != self.place:
                raise Replaced(errno.ESTALE, "another directory stands in its place")
            for prefix, group in by_folder.items():
                self._look_in(top, prefix, group, found)
            for name in found.missing:
                self._forget(name, found)
            self._still(top)
        edits = self._take(found)
        self.skipped |= found.skipped
        self.passed |= found.passed
        return edits

    def sweep(self) -> Iterator[list[Edit]]:
        """Look at everything, a slice at a time, with other looks in between. Raises as `look` does."""
        found = Found()
        with self._top() as top:
            if top.place != self.place:
                raise Replaced(errno.ESTALE, "another directory stands in its place")
            until = time.monotonic() + SLICE
            for _ in self._walk(top, [""], found, deep=True):
                if time.monotonic() > until:
                    self._still(top)
                    yield self._take(found)
                    until = time.monotonic() + SLICE
            self._still(top)
        yield self._take(found)
        self.skipped, self.passed = found.skipped, found.passed
        yield self.look(found.missing)  # a look in between may have found some of them

    def _look_in(self, top: "Place", prefix: str, names: Iterable[str], found: Found) -> None:
        try:
            place = top.below(prefix) if prefix else top
        except OSError as error:
            if prefix:
                self._left_out(prefix, error, found)
            return
        ahead: list[str] = []
        with place if prefix else contextlib.nullcontext(place):
            for name in names:
                if name == PRIVATE and prefix and self._is_copy(place):
                    self._leave_copy(prefix, found)
                    return
                self.skipped.pop(shown(prefix + name), None)
                self.skipped.pop(shown(f"{prefix}{name}/"), None)
                self.passed.pop(prefix + name, None)
                self._entry(place, prefix, name, None, ahead, found)
        for _ in self._walk(top, ahead, found, deep=False):
            pass

    def _known_part(self, name: str) -> str:
        """The name, or that of the first directory above it that is not known."""
        at = name.find("/")
        while at >= 0:
            if name[: at + 1] not in self.folders:
                return name[:at]
            at = name.find("/", at + 1)
        return name

    def _walk(self, top: "Place", ahead: list[str], found: Found, *, deep: bool) -> Iterator[None]:
        """List these directories, and those below them: all if `deep`, else what is new; give way now and then."""
        descent = Descent(top)
        with contextlib.closing(descent):
            while ahead:
                prefix = ahead.pop()
                try:
                    place = descent.open(prefix)
                except OSError as error:
                    if not prefix:
                        raise
                    self._left_out(prefix, error, found)
                    continue
                with place if prefix else contextlib.nullcontext(place):
                    if prefix and self._is_copy(place):
                        self._leave_copy(prefix, found)
                        continue
                    try:
                        yield from self._list(top, place, prefix, ahead, found, deep)
                    except OSError as error:
                        if not prefix:
                            raise
                        self._left_out(prefix, error, found)
                yield

    def _list(
        self, top: "Place", place: "Place", prefix: str, ahead: list[str], found: Found, deep: bool
    ) -> Iterator[None]:
        folder = self.folders.get(prefix)
        deep = deep or folder is None or folder.place != place.place
        found.left.pop(prefix, None)
        if folder is None:
            folder = self.folders[prefix] = Folder(place.place)
            if prefix:
                above, name = split(prefix[:-1])
                self.folders[above].folders.add(name)
        if self.listener:
            self.listener.listen(prefix, place)
        folder.place = place.place
        missing, fresh = folder.files | folder.folders, list[str]()
        with place.entries() as entries:
            for number, entry in enumerate(entries, 1):
                if self.abandoned:
                    raise Abandoned
                missing.discard(entry.name)
                self._entry(place, prefix, entry.name, entry, ahead if deep else fresh, found)
                if fresh:
                    ahead += [each for each in fresh if each not in self.folders]
                    fresh.clear()
                if number % 256 == 0:
                    yield
                    if self.folders.get(prefix) is not folder or (prefix and not top.holds(prefix, place)):
                        if prefix in self.folders:
                            ahead.append(prefix)  # another has come in its place meanwhile
                        return
        found.missing += [prefix + name for name in missing]

    def _entry(
        self,
        place: "Place",
        prefix: str,
        name: str,
        entry: "os.DirEntry[str] | None",
        ahead: list[str],
        found: Found,
    ) -> None:
        """One name in a directory, which may be nothing by now."""
        full = prefix + name
        folder = self.folders[prefix]
        try:
            status = entry.stat(follow_symlinks=False) if entry and not entry.is_dir(follow_symlinks=False) else None
            if status is None and entry is None:
                status = place.stat(name)
            is_dir = status is None or stat.S_ISDIR(status.st_mode)
            if is_dir and name == PRIVATE:
                return
            if self.ignore.hides(full, is_dir):
                found.passed[full] = "ignored"
                return
            if is_dir:
                if name in folder.files:
                    self._forget(full, found)
                ahead.append(f"{full}/")
                return
            if name in folder.folders:
                self._forget(full, found)
            assert status is not None
            if not stat.S_ISREG(status.st_mode):
                found.passed[full] = "links" if stat.S_ISLNK(status.st_mode) else "special"
                if name in folder.files:
                    self._forget(full, found)
            elif (path := in_utf8(full)) is None:
                found.skipped[shown(full)] = NOT_UTF8
            elif status.st_size > self.limit:
                found.skipped[shown(full)] = f"{TOO_LARGE} {self.limit:,} bytes"
                self._forget(full, found)
            else:
                self._file(place, full, name, path, status, found)
        except OSError as error:
            self._left_out(full, error, found)

    def _file(self, place: "Place", full: str, name: str, path: str, status: os.stat_result, found: Found) -> None:
        self.counted += 1
        found.gone.pop(path, None)  # it has come back since
        what = identity(status)
        known = self.files.get(path)
        if known is None and self.remembered and (known := self.remembered.get(path)) and known.identity == what:
            found.come[path] = full, known
            return
        if known is not None and known.settled and known.identity == what:
            return
        if status.st_size > LARGE and self.apart is not None:
            self.apart.append(full)
            return
        with place.open(name) as file:
            now = self.read(file, known)
        if not now.settled:
            self.again[full] = fresh_for(status) * 1.2e-9
        if known != now:
            found.come[path] = full, now

    def _forget(self, name: str, found: Found) -> None:
        """What was known under this name is gone: a file, or a directory with all that is below it."""
        prefix, last = split(name)
        folder = self.folders.get(prefix)
        if folder is None:
            return
        if last in folder.files:
            found.gone[utf8(name)] = name
        if last in folder.folders:
            ahead = [f"{name}/"]
            while ahead:
                below = ahead.pop()
                found.left[below] = None
                if inner := self.folders.get(below):
                    found.gone |= {utf8(below + each): below + each for each in inner.files}
                    ahead += [f"{below}{each}/" for each in inner.folders]

    def _left_out(self, name: str, error: OSError, found: Found) -> None:
        """What cannot be read is there as it was, as far as anybody can tell, unless it is gone."""
        plain = name.removesuffix("/")
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            self._forget(plain, found)
            return
        found.skipped[shown(name)] = error.strerror or type(error).__name__
        if error.errno in SHORT:  # it says nothing about this one, and no hint says when it is over
            self.again[plain] = 1.0
        folder = self.folders.get(split(plain)[0])
        last = split(plain)[1]
        if folder and last in (folder.files if name.endswith("/") else folder.folders):
            self._forget(plain, found)  # a closed directory in the place of a file, or the other way round

    def _is_copy(self, place: "Place") -> bool:
        try:
            return stat.S_ISDIR(place.stat(PRIVATE).st_mode)
        except OSError:
            return False

    def _leave_copy(self, prefix: str, found: Found) -> None:
        """A mirror of this server might write there: everything would come again, one level deeper, for ever."""
        self._forget(prefix[:-1], found)
        found.skipped[shown(prefix)] = A_COPY

    # --- taking what was found ---

    def _take(self, found: Found) -> list[Edit]:
        """Know what was found from now on; return what has changed."""
        before = self.files
        gone = {path: name for path, name in found.gone.items() if path in before and path not in found.come}
        come = sorted((path, file, before.get(path)) for path, (_, file) in found.come.items())
        edits = [
            Edit(0.0, path, "modified" if known else "added", **file.known._asdict())
            for path, file, known in come
            if known is None or (known.sha256, known.executable) != (file.sha256, file.executable)
        ]
        for path, name in gone.items():
            prefix, last = split(name)
            del self.files[path]
            self._fresh.pop(path, None)
            if folder := self.folders.get(prefix):
                folder.files.discard(last)
        for prefix in found.left:
            self._drop(prefix)
        for path, (name, file) in found.come.items():
            prefix, last = split(name)
            if path not in self.files:
                self.folders[prefix].files.add(last)
            self.files[path] = file
            self._fresh.pop(path, None)
        found.come, found.gone, found.left = {}, {}, {}
        first = in_the_way(gone, [edit.path for edit in edits if edit.change == "added"])
        return [
            *(Edit(0.0, path, "deleted") for path in sorted(first)),
            *edits,
            *(Edit(0.0, path, "deleted") for path in sorted(gone.keys() - first)),
        ]

    def _drop(self, prefix: str) -> None:
        """Know this directory no more, unless it was listed again meanwhile."""
        if self.folders.pop(prefix, None):
            above, name = split(prefix[:-1])
            if above in self.folders:
                self.folders[above].folders.discard(name)
            if self.listener:
                self.listener.forget(prefix)

    def _distrust(self, top: "Place", found: Found) -> None:
        """Raise Replaced if another directory stands where the known one stood, without most of what was known."""
        self._still(top)
        if self.place is None or top.place == self.place:
            return
        gone, known = len(found.gone.keys() - found.come.keys()), len(self.files)
        if gone and (gone == known or gone > max(MANY, known / 2)):
            raise Replaced(errno.ESTALE, f"another directory stands in its place, without {gone:,} of {known:,} files")

    def _still(self, top: "Place") -> None:
        """Raise OSError if the directory has moved away meanwhile: it would have seemed to be empty."""
        status = os.stat(os.path.realpath(self.directory))  # noqa: PTH116
        if (status.st_dev, status.st_ino) != top.place:
            raise Replaced(errno.ESTALE, "another directory has come in its place")

    def _top(self) -> "Place":
        return Place.top(os.path.realpath(self.directory))

    def left_out(self) -> dict[str, int]:
        """How many names were left out, by what they are; what is below an ignored directory is not counted."""
        why = [*list(self.passed.values()), *map(kind, list(self.skipped.values()))]
        return dict(sorted(Counter(why).items()))

    # --- reading ---

    def told(self, path: str) -> File | None:
        """What is known of a file."""
        return self.files.get(path)

    def open(self, path: str) -> tuple[BinaryIO, File]:
        """A file opened for reading, and what it is: what is known if that may still hold, else read anew.

        One that has grown since is what it was, its first `size` bytes: whoever sends them hashes them. No
        part of the path may be a link. Raises ValueError for what is no path of a tree, and OSError: FileNotFoundError
        for what no look has found, too, BlockingIOError when it cannot be said now.
        """
        check_path(path)
        if not self.looked:
            raise BlockingIOError(errno.EAGAIN, "the first look is under way")
        known = self.files.get(path)
        if known is None:
            raise FileNotFoundError(errno.ENOENT, "not in the tree")
        file = open_below(os.path.realpath(self.directory), os.fsdecode(path.encode()).split("/"))
        try:
            status = os.fstat(file.fileno())
            if status.st_size > self.limit:
                raise FileNotFoundError(errno.ENOENT, "too large")
            return file, self._current(path, file, known, status)
        except BaseException:
            file.close()
            raise

    def _current(self, path: str, file: BinaryIO, known: File, status: os.stat_result) -> File:
        what, fresh = identity(status), self._fresh.get(path)
        if fresh and fresh.identity == what:
            known = fresh
        if known.identity == what or (known.identity[:2] == what[:2] and known.size < status.st_size):
            return known
        if status.st_size <= LARGE:
            now = self.read(file, known)
        elif self._reading.acquire(blocking=False):  # one at a time: requests can ask for more than can be read
            try:
                now = self.read(file, known)
            finally:
                self._reading.release()
        else:
            raise BlockingIOError(errno.EAGAIN, "another file is being read")
        file.seek(0)
        self._fresh[path] = now
        return now

    def read(self, file: BinaryIO, known: File | None = None) -> File:
        """What an open file is, read from its beginning to its end. Raises Abandoned."""
        file.seek(0)
        before = os.fstat(file.fileno())
        settled, seen = settling(before, known)
        digest = hashlib.sha256()
        while chunk := file.read(CHUNK):
            if self.abandoned:
                raise Abandoned
            digest.update(chunk)
            self.read_bytes += len(chunk)
        settled = settled and identity(os.fstat(file.fileno())) == identity(before)
        return File(file.tell(), digest.hexdigest(), identity(before), settled, 0.0 if settled else seen, runs(before))

    def hashing(self, name: str) -> Iterator["File | None"]:
        """Hash a large file, in steps that give None, the last gives its File, or none if it never stood still.

        Of a file that has only grown, as far as its beginning, its end and its inode tell, what has come is hashed, and
        what it is counts as not settled. Every now and then, and once it grows no more, it is read from its beginning:
        VERIFY bounds how long a change elsewhere in a file that grows as well stays unseen. Raises OSError, Abandoned.
        """
        path = utf8(name)
        with open_below(os.path.realpath(self.directory), name.split("/")) as file:
            before, began = os.fstat(file.fileno()), time.monotonic()
            known, state = self.files.get(path), self._growing.get(name)
            settled, seen = settling(before, known)
            if state is None or not state.goes_on(file, before) or began > state.sure_until:
                state = Growth()
            size, whole = before.st_size, state.size == 0
            digest = state.digest.copy()
            file.seek(state.size)
            while (left := size - file.tell()) > 0:
                if self.abandoned:
                    raise Abandoned
                if not (chunk := file.read(min(CHUNK, left))):
                    return  # cut off meanwhile
                digest.update(chunk)
                self.read_bytes += len(chunk)
                yield None
            ends = ends_of(file, size)
            after = os.fstat(file.fileno())
            unmoved = identity(after) == identity(before)
            if not unmoved and after.st_size <= before.st_size:
                return  # rewritten while it was read
            took = time.monotonic() - began
            sure = time.monotonic() + VERIFY * took if whole else state.sure_until
            self._growing.pop(name, None)
            self._growing[name] = Growth(digest, size, identity(before)[:2], ends, sure)
            while len(self._growing) > STATES:
                del self._growing[next(iter(self._growing))]
            settled = settled and unmoved and whole
            yield File(size, digest.hexdigest(), identity(before), settled, 0.0 if settled else seen, runs(before))

    def hashed(self, name: str, result: File | OSError) -> list[Edit]:
        """Take what `hashing` gave, unless another file has the name by now; or name what could not be read."""
        found = Found()
        prefix, last = split(name)
        with self._top() as top:
            if top.place != self.place:
                raise Replaced(errno.ESTALE, "another directory stands in its place")
            if isinstance(result, OSError):
                self._left_out(name, result, found)
            elif prefix in self.folders:
                with contextlib.suppress(OSError):  # it is gone: its own hint says so
                    with top.below(prefix) if prefix else contextlib.nullcontext(top) as place:
                        status = place.stat(last)
                    if identity(status)[:2] == result.identity[:2] and status.st_size >= result.size:
                        found.come[utf8(name)] = name, result
                        self.skipped.pop(shown(name), None)
            self._still(top)
        self.skipped |= found.skipped
        return self._take(found)

    def sure_at(self, name: str) -> float:
        """Until when, in monotonic time, a file that grows is believed to have only grown."""
        state = self._growing.get(name)
        return state.sure_until if state else 0.0


def kind(reason: str) -> str:
    """In a word, why a name of `Tree.skipped` was left out."""
    if reason.startswith(TOO_LARGE):
        return "large"
    return {NOT_UTF8: "not_utf8", A_COPY: "copies"}.get(reason, "unreadable")


class Growth:
    """A large file as last hashed, so that only what has come since need be."""

    __slots__ = ("digest", "ends", "inode", "size", "sure_until")

    def __init__(
        self,
        digest: "hashlib._Hash | None" = None,
        size: int = 0,
        inode: tuple[int, ...] = (),
        ends: bytes = b"",
        sure_until: float = 0.0,
    ) -> None:
        self.digest, self.size = digest or hashlib.sha256(), size
        self.inode, self.ends, self.sure_until = inode, ends, sure_until

    def goes_on(self, file: BinaryIO, status: os.stat_result) -> bool:
        """Whether the open file seems to be this one with something at its end."""
        same = identity(status)[:2] == self.inode and status.st_size > self.size
        return same and ends_of(file, self.size) == self.ends


def ends_of(file: BinaryIO, size: int) -> bytes:
    """A digest of the first and the last of so many bytes of a file."""
    digest = hashlib.sha256()
    for at in (0, max(0, size - BLOCK)):
        file.seek(at)
        digest.update(file.read(min(BLOCK, size)))
    return digest.digest()


def settling(status: os.stat_result, known: File | None) -> tuple[bool, float]:
    """Whether a file whose stat is this can be told by it once it is read, and since when (monotonic) it is known so.

    It can when it was changed some time ago, by the clock that stamps it; modification times are anybody's to set. Or,
    since that clock may have been set back, when it has been seen so for as long.
    """
    stamp = status.st_ctime_ns if os.name == "posix" else max(status.st_ctime_ns, status.st_mtime_ns)
    fresh, now = fresh_for(status), time.monotonic()
    seen = known.seen if known and known.seen and known.identity == identity(status) else now
    clock = time.clock_gettime_ns(COARSE_CLOCK) if sys.platform == "linux" else time.time_ns()
    return clock - stamp > fresh or (now - seen) * 1e9 > fresh, seen


def fresh_for(status: os.stat_result) -> int:
    """For how long after a change (ns) another one may hide behind the same stat."""
    return FRESH if status.st_ctime_ns % 1_000_000_000 else COARSE


def in_the_way(gone: Mapping[str, str], come: Sequence[str]) -> set[str]:
    """Those of the paths that are gone that one that comes is below of, or above."""
    if not gone or not come:
        return set()
    coming = set(come)
    above = {path[:at] for path in come for at, sign in enumerate(path) if sign == "/"}
    below = {path for path in gone if any(path[:at] in coming for at, sign in enumerate(path) if sign == "/")}
    return (gone.keys() & above) | below


class Place:
    """A directory held open, so that nothing that moves meanwhile leads out of it; where that cannot be, its name."""

    __slots__ = ("at", "place")

    def __init__(self, at: int | str) -> None:
        self.at = at
        status = os.stat(at)  # noqa: PTH116
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
        path = os.path.join(self.at, name)  # noqa: PTH118
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
        return os.lstat(os.path.join(self.at, name))  # noqa: PTH118

    def entries(self) -> "os._ScandirIterator[str]":
        """What is in it. The type checker has os.scandir(int) give str, as it does."""
        return os.scandir(self.at)

    def open(self, name: str) -> BinaryIO:
        """A regular file in it. Raises OSError for anything else."""
        if isinstance(self.at, int):
            file = os.fdopen(os.open(name, READ, dir_fd=self.at), "rb", buffering=0)
        else:
            path = os.path.join(self.at, name)  # noqa: PTH118
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
