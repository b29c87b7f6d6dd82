"""What was known of a tree's files when the server stopped, so that the next one need not read them again.

    Tree.files ─▶ Index.save()                 one line a file; written beside, then renamed: whole or not at all
                  Index.load() ─▶ remembered   a file whose size, times, inode and device are the same is the same

Only what is settled is kept: a stat that could hide another change is worth nothing later.
"""

import contextlib
import hashlib
import logging
import os
import secrets
from collections.abc import Mapping
from pathlib import Path

from servers.hashing import File

FORM = "known hashes of file-updates, form 2, of "
log = logging.getLogger("servers")


class Index:
    """The file that keeps them, and `source`, a name for the directory by which its copies know it over restarts.

    Raises ValueError for one that could not be written, or would be announced itself.
    """

    def __init__(self, file: Path, directory: Path) -> None:
        self.source = secrets.token_hex(8)
        self.file, self.directory = file, os.path.realpath(directory)
        if Path(os.path.realpath(file)).is_relative_to(self.directory):
            raise ValueError(f"{file} must not lie in the directory that is watched: it would be announced itself")
        if not file.parent.is_dir():
            raise ValueError(f"{file}: there is no directory {file.parent}")

    def load(self) -> dict[str, File]:
        """Path to file. What is no whole index of this directory is nothing, and one line says so.

        Raises ValueError for one that cannot be read.
        """
        try:
            data = self.file.read_bytes()
        except FileNotFoundError:
            return self._begin()
        except OSError as error:
            raise ValueError(f"{self.file}: {error.strerror}") from None
        try:
            body, end = data[:-65], data[-65:]
            if end != f"{hashlib.sha256(body).hexdigest()}\n".encode():
                raise ValueError("it is not whole")
            first, source, *lines = body.decode("utf-8", "surrogateescape").split("\0")
            if first != FORM + self.directory:
                raise ValueError("it is of another directory")
            files = dict(parsed(line) for line in lines if line)
            self.source = source
            return files
        except ValueError as error:
            log.warning("%s is no use (%s): every file is read", self.file, error)
            return self._begin()

    def _begin(self) -> dict[str, File]:
        """Keep the name at once: copies remember it."""
        try:
            self.save({})
        except OSError as error:
            raise ValueError(f"{self.file}: {error.strerror}") from None
        return {}

    def save(self, files: Mapping[str, File]) -> None:
        """Keep what is settled. Raises OSError, the index before it stays."""
        lines = [FORM + self.directory, self.source]
        for path, file in files.items():
            if file.settled:
                lines.append(f"{file.sha256} {' '.join(map(str, file.identity))} {file.executable:d} {path}")
        body = "\0".join(lines).encode("utf-8", "surrogateescape")
        beside = self.file.with_name(f"{self.file.name}.{os.getpid()}")
        try:
            with beside.open("wb") as new:
                new.write(body)
                new.write(f"{hashlib.sha256(body).hexdigest()}\n".encode())
                new.flush()
                os.fsync(new.fileno())
            beside.replace(self.file)
        finally:
            with contextlib.suppress(FileNotFoundError):
                beside.unlink()


def parsed(line: str) -> tuple[str, File]:
    """One line: "sha256 dev ino size mtime_ns ctime_ns executable path". Raises ValueError."""
    sha256, dev, ino, size, mtime, ctime, runs, path = line.split(" ", 7)
    what = int(dev), int(ino), int(size), int(mtime), int(ctime)
    return path, File(what[2], sha256, what, settled=True, executable=runs == "1")
