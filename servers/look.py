"""One look at a directory: what it finds, against what its tree knows; the tree takes it afterwards (tree.py).

    Look.walk(prefixes) ─▶ entries, one by one ─▶ come: files that are new or may be other ones
    Look.at(names)      ─▶                     ─▶ gone, left: files and directories that are not there any more
                                               ─▶ skipped, passed: names that are left out, and why

A large file is not read on the way if anybody hashes it apart: its name is noted for that.
"""

import contextlib
import errno
import os
import stat
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Protocol

from servers.hashing import Abandoned, File, fresh_for, is_large
from servers.places import Descent, Place, identity, in_utf8, shown, split, utf8

if TYPE_CHECKING:
    from servers.tree import Tree

SHORT = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
PRIVATE = ".mirror"  # the directory that makes its directory a mirror's copy
NOT_UTF8 = "its name is not UTF-8"
TOO_LARGE = "it is larger than"
A_COPY = f"it is a mirror's copy (it holds {PRIVATE})"


class Folder:
    """A directory as last listed: what it is (device and inode), and the names known in it."""

    __slots__ = ("files", "folders", "place")

    def __init__(self, place: tuple[int, int]) -> None:
        self.place = place
        self.files: set[str] = set()
        self.folders: set[str] = set()


class Listener(Protocol):
    """Who wants to hear of what happens in each directory of the tree."""

    def listen(self, prefix: str, place: Place) -> None:
        """This directory, held open, belongs to the tree: called before it is listed."""

    def forget(self, prefix: str) -> None:
        """No directory has this name any more."""


class Look:
    """What a look at a tree has found so far, until the tree takes it."""

    def __init__(self, tree: "Tree", top: Place) -> None:
        self.tree, self.top = tree, top
        self.descent = Descent(top)
        self.come: dict[str, tuple[str, File]] = {}  # path to name and file
        self.gone: dict[str, str] = {}  # path to name
        self.left: dict[str, None] = {}  # prefixes of directories that are gone
        self.missing: list[str] = []  # names that a listing lacks
        self.skipped: dict[str, str] = {}
        self.passed: dict[str, str] = {}

    def at(self, names: Iterable[str]) -> None:
        """Look at these names, and at what is below a directory that was not known."""
        by_folder: dict[str, dict[str, None]] = {}
        for name in names:
            prefix, last = split(self._known_part(name))
            by_folder.setdefault(prefix, {})[last] = None
        for prefix, group in by_folder.items():
            self._at(prefix, group)
        for name in self.missing:
            self.forget(name)

    def _known_part(self, name: str) -> str:
        """The name, or that of the first directory above it that is not known."""
        at = name.find("/")
        while at >= 0:
            if name[: at + 1] not in self.tree.folders:
                return name[:at]
            at = name.find("/", at + 1)
        return name

    def _at(self, prefix: str, names: Iterable[str]) -> None:
        try:
            place = self.top.below(prefix) if prefix else self.top
        except OSError as error:
            if prefix:
                self.left_out(prefix, error)
            return
        ahead: list[str] = []
        with place if prefix else contextlib.nullcontext(place):
            for name in names:
                if name == PRIVATE and prefix and self._is_copy(place):
                    self._leave_copy(prefix)
                    return
                self.tree.skipped.pop(shown(prefix + name), None)
                self.tree.skipped.pop(shown(f"{prefix}{name}/"), None)
                self.tree.passed.pop(prefix + name, None)
                self._entry(place, prefix, name, None, ahead)
        for _ in self.walk(ahead, deep=False):
            pass

    def walk(self, ahead: list[str], *, deep: bool) -> Iterator[None]:
        """List these directories, and those below them: all if `deep`, else what is new; give way now and then."""
        with contextlib.closing(self.descent):
            while ahead:
                prefix = ahead.pop()
                if prefix and split(prefix[:-1])[0] not in self.tree.folders:
                    continue  # a look in between found that gone; if it has come again, a hint says so
                try:
                    place = self.descent.open(prefix)
                except OSError as error:
                    if not prefix:
                        raise
                    self.left_out(prefix, error)
                    continue
                with place if prefix else contextlib.nullcontext(place):
                    if prefix and self._is_copy(place):
                        self._leave_copy(prefix)
                        continue
                    try:
                        yield from self._list(place, prefix, ahead, deep=deep)
                    except OSError as error:
                        if not prefix:
                            raise
                        self.left_out(prefix, error)
                yield

    def _list(self, place: Place, prefix: str, ahead: list[str], *, deep: bool) -> Iterator[None]:
        folder = self.tree.folders.get(prefix)
        deep = deep or folder is None or folder.place != place.place
        self.left.pop(prefix, None)
        if folder is None:
            folder = self.tree.folders[prefix] = Folder(place.place)
            if prefix:
                above, name = split(prefix[:-1])
                self.tree.folders[above].folders.add(name)
        if self.tree.listener:
            self.tree.listener.listen(prefix, place)
        folder.place = place.place
        missing, fresh = folder.files | folder.folders, list[str]()
        with place.entries() as entries:
            for number, entry in enumerate(entries, 1):
                if self.tree.abandoned:
                    raise Abandoned
                missing.discard(entry.name)
                self._entry(place, prefix, entry.name, entry, ahead if deep else fresh)
                if fresh:
                    ahead += [each for each in fresh if each not in self.tree.folders]
                    fresh.clear()
                if number % 256 == 0:
                    yield
                    if self.tree.folders.get(prefix) is not folder or (prefix and not self.top.holds(prefix, place)):
                        if prefix in self.tree.folders:
                            ahead.append(prefix)  # another has come in its place meanwhile
                        return
        self.missing += [prefix + name for name in missing]

    def _entry(self, place: Place, prefix: str, name: str, entry: "os.DirEntry[str] | None", ahead: list[str]) -> None:
        """One name in a directory, which may be nothing by now."""
        full = prefix + name
        folder = self.tree.folders[prefix]
        try:
            status = entry.stat(follow_symlinks=False) if entry and not entry.is_dir(follow_symlinks=False) else None
            if status is None and entry is None:
                status = place.stat(name)
            is_dir = status is None or stat.S_ISDIR(status.st_mode)
            if is_dir and name == PRIVATE:
                return
            if self.tree.ignore.hides(full, is_dir):
                self.passed[full] = "ignored"
                return
            if is_dir:
                if name in folder.files:
                    self.forget(full)
                ahead.append(f"{full}/")
                return
            if name in folder.folders:
                self.forget(full)
            assert status is not None
            if not stat.S_ISREG(status.st_mode):
                self.passed[full] = "links" if stat.S_ISLNK(status.st_mode) else "special"
                if name in folder.files:
                    self.forget(full)
            elif (path := in_utf8(full)) is None:
                self.skipped[shown(full)] = NOT_UTF8
            elif status.st_size > self.tree.limit:
                self.skipped[shown(full)] = f"{TOO_LARGE} {self.tree.limit:,} bytes"
                self.forget(full)
            else:
                self._file(place, full, name, path, status)
        except OSError as error:
            self.left_out(full, error)

    def _file(self, place: Place, full: str, name: str, path: str, status: os.stat_result) -> None:
        tree, what = self.tree, identity(status)
        tree.counted += 1
        self.gone.pop(path, None)  # it has come back since
        known = tree.files.get(path)
        if known is None and tree.remembered and (known := tree.remembered.get(path)) and known.identity == what:
            self.come[path] = full, known
            return
        if known is not None and known.settled and known.identity == what:
            return
        if is_large(status) and tree.apart is not None:
            tree.apart.append(full)
            return
        with place.open(name) as file:
            now = tree.read(file, known, full)
        if not now.settled:
            tree.again[full] = fresh_for(status) * 1.2e-9
        if known != now:
            self.come[path] = full, now

    def forget(self, name: str) -> None:
        """What was known under this name is gone: a file, or a directory with all that is below it."""
        prefix, last = split(name)
        folder = self.tree.folders.get(prefix)
        if folder is None:
            return
        if last in folder.files:
            self.gone[utf8(name)] = name
        if last in folder.folders:
            ahead = [f"{name}/"]
            while ahead:
                below = ahead.pop()
                self.left[below] = None
                if inner := self.tree.folders.get(below):
                    self.gone |= {utf8(below + each): below + each for each in inner.files}
                    ahead += [f"{below}{each}/" for each in inner.folders]

    def left_out(self, name: str, error: OSError) -> None:
        """What cannot be read is there as it was, as far as anybody can tell, unless it is gone."""
        plain = name.removesuffix("/")
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            self.forget(plain)
            return
        self.skipped[shown(name)] = error.strerror or type(error).__name__
        if error.errno in SHORT:  # it says nothing about this one, and no hint says when it is over
            self.tree.again[plain] = 1.0
        folder = self.tree.folders.get(split(plain)[0])
        last = split(plain)[1]
        if folder and last in (folder.files if name.endswith("/") else folder.folders):
            self.forget(plain)  # a closed directory in the place of a file, or the other way round

    def _is_copy(self, place: Place) -> bool:
        try:
            return stat.S_ISDIR(place.stat(PRIVATE).st_mode)
        except OSError:
            return False

    def _leave_copy(self, prefix: str) -> None:
        """A mirror of this server might write there: everything would come again, one level deeper, for ever."""
        self.forget(prefix[:-1])
        self.skipped[shown(prefix)] = A_COPY


def kind(reason: str) -> str:
    """In a word, why a name of `Tree.skipped` was left out."""
    if reason.startswith(TOO_LARGE):
        return "large"
    return {NOT_UTF8: "not_utf8", A_COPY: "copies"}.get(reason, "unreadable")
