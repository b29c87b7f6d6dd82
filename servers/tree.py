"""A directory as it stands: looked at, compared with what was known of it, and opened so that nothing leads out of it.

    directory ─▶ Tree.scan()       ─▶ [Edit, ...]   all of it: what differs from what was known, in a fixed order
    names     ─▶ Tree.look(names)  ─▶ [Edit, ...]   these only, and what is below them
              ─▶ Tree.sweep()      ─▶ [Edit, ...] ... all of it, a slice at a time: the look goes on in between
    path      ─▶ Tree.open()       ─▶ a file and its File: its size, its hash, what tells whether it has changed since

Names are those of the file system, relative, with "/" between their parts; paths are the same in UTF-8. How a look
goes is in look.py, what a file is in hashing.py, how directories are held open in places.py; what fills a feed from a
tree in sources.py, what hears of names in hints.py, what answers requests for its files in downloads.py.
"""

import contextlib
import errno
import math
import os
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from servers.feed import Change, check_path
from servers.hashing import File, Hashing, is_large
from servers.ignore import Ignore, folds_case
from servers.look import Folder, Listener, Look, kind
from servers.places import Place, identity, open_below, shown, split, tag, utf8

SLICE = 0.02  # seconds of a sweep, after which others have their turn
MANY = 100  # files; if another directory in the place of the known one lacks more, and half, or all, it is not believed


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


class Replaced(OSError):
    """Another directory stands where the known one stood, without most of its files: a mount that is not there?"""


class Tree(Hashing):
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
        super().__init__(directory)
        self.limit = limit
        self.ignore = Ignore(ignore, any_case=folds_case(str(directory)))
        self.remembered = dict(remembered or {})
        self.skipped: dict[str, str] = {}
        self.passed: dict[str, str] = {}  # names that are left out without a word, and what they are
        self.folders: dict[str, Folder] = {}
        self.place: tuple[int, int] | None = None  # of the directory itself
        self.source: str | None = None  # what names the directory, if that is kept over restarts (servers/index.py)
        self.looked, self.counted = False, 0  # files so far, for who waits
        self.again: dict[str, float] = {}  # names to look at again, so many seconds after a look that was not sure
        self.apart: list[str] | None = None  # names of large files that somebody else hashes; None: nobody does
        self.listener: Listener | None = None
        self._fresh: dict[str, File] = {}  # read since the last look, for who opens them
        self._reading = threading.Lock()
        with self._top() as top:
            self.opened = top.place
        if first_look:
            self.scan()

    # --- looking ---

    def scan(self) -> list[Edit]:
        """Look at everything; return what has changed: what came before what went, each in the order of paths.

        Only a file that stands where a directory comes, or the other way round, goes first. So whoever follows has
        new names before old ones are gone, and a renamed file, an addition and a deletion, is there all the time. A
        file that was touched is modified, its hash the same. Raises OSError when the directory itself cannot be read,
        Replaced when it may be the wrong one, and Abandoned; what was known stays known.
        """
        with self._top() as top:
            found = Look(self, top)
            for _ in found.walk([""], deep=True):
                pass
            for name in found.missing:
                found.forget(name)
            self._distrust(found)
        edits = self._take(found)
        self.place, self.skipped, self.passed, self.looked = top.place, found.skipped, found.passed, True
        self.remembered = {}
        return edits

    def look(self, names: Iterable[str], doubtful: list[str] | None = None) -> list[Edit]:
        """Look at these names, and at what is below a directory that was not known; the edits are as those of `scan`.

        With `doubtful`, the names of what is gone are put there, and it stays known until they are looked at again: it
        may have been renamed. Raises as `scan` does; Replaced whenever another directory stands in the place of the
        known one.
        """
        with self._known_top() as top:
            found = Look(self, top)
            found.at(names)
            self._still(top)
        if doubtful is not None and found.gone and not in_the_way(found.gone, [*found.come]):
            doubtful += [*found.gone.values(), *(prefix[:-1] for prefix in found.left)]
            found.gone, found.left = {}, {}
        return self._take_some(found)

    def sweep(self) -> Iterator[list[Edit]]:
        """Look at everything, a slice at a time, with other looks in between. Raises as `look` does."""
        with self._known_top() as top:
            found, until = Look(self, top), time.monotonic() + SLICE
            for _ in found.walk([""], deep=True):
                if time.monotonic() > until:
                    self._still(top)
                    yield self._take(found)
                    found.descent.close()  # the look in between may know it by another name
                    until = time.monotonic() + SLICE
            self._still(top)
        yield self._take(found)
        self.skipped, self.passed = found.skipped, found.passed
        yield self.look(found.missing)  # a look in between may have found some of them

    def hashed(self, name: str, result: File | OSError) -> list[Edit]:
        """Take what `hashing` gave, unless another file has the name by now; or name what could not be read."""
        prefix, last = split(name)
        with self._known_top() as top:
            found = Look(self, top)
            if isinstance(result, OSError):
                found.left_out(name, result)
            elif prefix in self.folders:
                with contextlib.suppress(OSError):  # it is gone: its own hint says so
                    with top.below(prefix) if prefix else contextlib.nullcontext(top) as place:
                        status = place.stat(last)
                    if identity(status)[:2] == result.identity[:2] and status.st_size >= result.size:
                        found.come[utf8(name)] = name, result
                        self.skipped.pop(shown(name), None)
            self._still(top)
        return self._take_some(found)

    # --- taking what was found ---

    def _take(self, found: Look) -> list[Edit]:
        """Know what was found from now on; return what has changed."""
        before = self.files
        if found.left:  # what was found in a directory before that went is not there
            found.come = {path: come for path, come in found.come.items() if split(come[0])[0] not in found.left}
        gone = {path: name for path, name in found.gone.items() if path in before and path not in found.come}
        come = sorted((path, file, before.get(path)) for path, (_, file) in found.come.items())
        edits = [
            Edit(0.0, path, "modified" if known else "added", **file.known._asdict())
            for path, file, known in come
            if known is None or known.known != file.known
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

    def _take_some(self, found: Look) -> list[Edit]:
        edits = self._take(found)
        self.skipped |= found.skipped
        self.passed |= found.passed
        return edits

    def _drop(self, prefix: str) -> None:
        """Know this directory no more, unless it was listed again meanwhile."""
        if self.folders.pop(prefix, None):
            above, name = split(prefix[:-1])
            if above in self.folders:
                self.folders[above].folders.discard(name)
            if self.listener:
                self.listener.forget(prefix)

    def _distrust(self, found: Look) -> None:
        """Raise Replaced if another directory stands where the known one stood, without most of what was known."""
        self._still(found.top)
        if self.place is None or found.top.place == self.place:
            return
        gone, known = len(found.gone.keys() - found.come.keys()), len(self.files)
        if gone and (gone == known or gone > max(MANY, known / 2)):
            raise Replaced(errno.ESTALE, f"another directory stands in its place, without {gone:,} of {known:,} files")

    def _still(self, top: Place) -> None:
        """Raise OSError if the directory has moved away meanwhile: it would have seemed to be empty."""
        if not self._stands(top.place):
            raise Replaced(errno.ESTALE, "another directory has come in its place")

    def stands(self) -> bool:
        """Whether the directory's name leads to the one that is known. Raises OSError."""
        return self.place is not None and self._stands(self.place)

    def _stands(self, place: tuple[int, int]) -> bool:
        """Whether what now has the directory's name is this one. Raises FileNotFoundError."""
        status = os.stat(os.path.realpath(self.directory))  # noqa: PTH116  # str, as are all paths here
        return (status.st_dev, status.st_ino) == place

    def _top(self) -> Place:
        return Place.top(os.path.realpath(self.directory))

    @contextlib.contextmanager
    def _known_top(self) -> Iterator[Place]:
        with self._top() as top:
            if top.place != self.place:
                raise Replaced(errno.ESTALE, "another directory stands in its place")
            yield top

    def tag(self) -> str:
        """What tells the directory from all others."""
        return tag(self.place or self.opened)

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
        file = self._opened(path)
        try:
            status = os.fstat(file.fileno())
            if status.st_size > self.limit:
                raise FileNotFoundError(errno.ENOENT, "too large")
            return file, self._current(path, file, known, status)
        except BaseException:
            file.close()
            raise

    def _opened(self, path: str) -> BinaryIO:
        """What stands there, opened. Raises BlockingIOError when the directory itself is not there."""
        try:
            return open_below(os.path.realpath(self.directory), os.fsdecode(path.encode()).split("/"))
        except (FileNotFoundError, NotADirectoryError):
            try:
                there = self._stands(self.place or self.opened)
            except FileNotFoundError:
                there = False
            if there:
                raise
            raise BlockingIOError(errno.EAGAIN, "the directory is not there") from None

    def _current(self, path: str, file: BinaryIO, known: File, status: os.stat_result) -> File:
        what, fresh = identity(status), self._fresh.get(path)
        if fresh and fresh.identity == what:
            known = fresh
        if known.identity == what or (known.identity[:2] == what[:2] and known.size < status.st_size):
            return known
        if not is_large(status):
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


def in_the_way(gone: Mapping[str, str], come: Sequence[str]) -> set[str]:
    """Those of the paths that are gone that one that comes is below of, or above."""
    if not gone or not come:
        return set()
    coming = set(come)
    above = {path[:at] for path in come for at, sign in enumerate(path) if sign == "/"}
    below = {path for path in gone if any(path[:at] in coming for at, sign in enumerate(path) if sign == "/")}
    return (gone.keys() & above) | below
