"""Directories that are worked in by descriptor, so that nothing that is moved meanwhile leads out of the copy.

    Walk.enter("a", "b") ─▶ Directory "a" ─▶ Directory "b" ─▶ open, rename, link, unlink, ... of a name in it

Each is opened in the one above it, and never through a symbolic link. A walk keeps open what it is in, since the next
path is most often beside the last; whoever lets others run in between leaves it first. Windows has no such descriptors:
there, names are joined, and looked at before they are used.
"""

import errno
import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from servers.places import READ

DESCRIPTORS = {os.open, os.rename, os.unlink, os.mkdir, os.rmdir, os.stat, os.link} <= os.supports_dir_fd


class Directory:
    """An open directory. Everything in it raises OSError."""

    def __init__(self, name: str, above: "Directory | None" = None) -> None:
        """Open it: NotADirectoryError for a symbolic link, as for any other thing."""
        self.path: str = os.path.join(above.path, name) if above else name
        self.descriptor = -1
        if DESCRIPTORS:
            try:
                self.descriptor = os.open(name, READ | os.O_DIRECTORY, dir_fd=above.descriptor if above else None)
            except OSError as error:
                if error.errno != errno.ELOOP:
                    raise
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), name) from None
        elif not stat.S_ISDIR(os.lstat(self.path).st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), name)

    def close(self) -> None:
        """Let go of it."""
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def at(self, name: str) -> tuple[str, dict[str, Any]]:
        """How the system is told of a name in it."""
        if DESCRIPTORS:
            return name, {"dir_fd": self.descriptor}
        return os.path.join(self.path, name), {}

    def identity(self) -> tuple[int, int]:
        """What tells it from any other: its device and inode."""
        status = os.fstat(self.descriptor) if DESCRIPTORS else os.stat(self.path)
        return status.st_dev, status.st_ino

    def names(self) -> list[str]:
        """What is in it."""
        return os.listdir(self.descriptor if DESCRIPTORS else self.path)

    def stat(self, name: str) -> os.stat_result:
        """What a name stands for, links not followed."""
        where, options = self.at(name)
        return os.stat(where, follow_symlinks=False, **options)

    def mode(self, name: str) -> int:
        """The same, as far as its type and rights go; 0 if for nothing."""
        try:
            return self.stat(name).st_mode
        except FileNotFoundError:
            return 0

    def open(self, name: str, flags: int) -> int:
        """A file's descriptor."""
        where, options = self.at(name)
        return os.open(where, flags, 0o666, **options)

    def rename(self, name: str, to: "Directory", new: str) -> None:
        """Move a file, over what is there."""
        if DESCRIPTORS:
            os.rename(name, new, src_dir_fd=self.descriptor, dst_dir_fd=to.descriptor)
        else:
            os.replace(self.at(name)[0], to.at(new)[0])

    def link(self, name: str, to: "Directory", new: str) -> None:
        """Give a file another name, which nothing has yet."""
        if DESCRIPTORS:
            os.link(name, new, src_dir_fd=self.descriptor, dst_dir_fd=to.descriptor, follow_symlinks=False)
        else:
            os.link(self.at(name)[0], to.at(new)[0])

    def unlink(self, name: str) -> None:
        """Remove a file."""
        where, options = self.at(name)
        os.unlink(where, **options)

    def mkdir(self, name: str) -> None:
        """Make a directory."""
        where, options = self.at(name)
        os.mkdir(where, **options)

    def rmdir(self, name: str) -> None:
        """Remove an empty directory."""
        where, options = self.at(name)
        os.rmdir(where, **options)


def by_name(directory: str | Path) -> tuple[int, int] | None:
    """The identity of what stands under a name now; None if nothing does."""
    try:
        status = os.stat(directory)
    except OSError:
        return None
    return status.st_dev, status.st_ino


class Walk:
    """The way from a directory down to where one is; what is on it stays open."""

    def __init__(self, top: Directory) -> None:
        self._top = top
        self._way: list[tuple[str, Directory]] = []

    def enter(self, parts: Sequence[str], absent: Callable[[Directory, str, str], bool]) -> Directory | None:
        """Go there. `absent` is called with a directory, a name in it that is none, and its path: try again, or not."""
        depth = 0
        while depth < min(len(parts), len(self._way)) and self._way[depth][0] == parts[depth]:
            depth += 1
        self.leave(depth)
        for name in parts[depth:]:
            here = self._way[-1][1] if self._way else self._top
            try:
                below = Directory(name, here)
            except (FileNotFoundError, NotADirectoryError):
                if not absent(here, name, "/".join(parts[: len(self._way) + 1])):
                    return None
                below = Directory(name, here)
            self._way.append((name, below))
        return self._way[-1][1] if self._way else self._top

    def leave(self, depth: int = 0) -> None:
        """Go back up."""
        while len(self._way) > depth:
            self._way.pop()[1].close()
