"""A file of rows that is true wherever it was cut off: a line each, some of them written in one piece."""

import errno
import json
import logging
import os
from collections.abc import Iterable, Iterator
from typing import Any

from lab.mirror.places import Directory
from servers.places import READ

WRITE = os.O_WRONLY | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
APPEND, ANEW = WRITE | os.O_APPEND, WRITE | os.O_TRUNC

TO_JSON = json.JSONEncoder().encode
ENDED = b"{}\n"  # the empty row with which whoever goes on ends a line that was cut off

log = logging.getLogger("lab.mirror")

Row = dict[str, Any]


class Journal:
    """The rows in one file: `lines` of them. `unsaved` says why these are not all, until they are."""

    def __init__(self, directory: Directory | None, name: str) -> None:
        """Without a directory there are none."""
        self.directory, self.name, self.lines = directory, name, 0
        self.unsaved: OSError | None = None
        self._file = -1

    def read(self) -> Iterator[Any]:
        """What the lines say, those left out that were cut off by a full disk or the end of the process.

        Others that say nothing have been damaged: that is logged, for what only they named is nobody's now.
        """
        if self.directory is None or not self.directory.mode(self.name):
            return
        damaged = 0
        with os.fdopen(self.directory.open(self.name, READ), "rb") as file:
            for line in file:
                self.lines += 1
                try:
                    yield json.loads(line)
                except ValueError:
                    damaged += line.endswith(b"\n") and not line.endswith(ENDED)
        if damaged:
            text = "the state in %s is damaged (lines: %d): files that only those named stay, whatever the server says"
            log.warning(text, self.directory.path, damaged)

    def open(self) -> None:
        """Have it ready for more. Raises OSError."""
        assert self.directory
        self._file = self.directory.open(self.name, APPEND)

    def close(self) -> None:
        """Let go of it."""
        descriptor, self._file = self._file, -1
        if descriptor >= 0:
            os.close(descriptor)

    def append(self, *rows: Row) -> None:
        """Write lines. If `unsaved` says that it failed, write all anew: a later line alone would be a lie."""
        lines = b"".join(map(_line, rows))
        try:
            if os.write(self._file, lines) < len(lines):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self.lines += len(rows)
        except OSError as error:
            self.unsaved = error

    def rewrite(self, rows: Iterable[Row]) -> None:
        """Write these rows beside the old ones, and rename the file over those; if that fails, `unsaved` says so."""
        assert self.directory
        new, lines = f"{self.name}-new", 0
        try:
            with os.fdopen(self.directory.open(new, ANEW), "wb") as file:
                for row in rows:
                    file.write(_line(row))
                    lines += 1
                file.flush()
                os.fsync(file.fileno())  # the one file that a power failure must not leave empty
            self.close()  # Windows replaces no file that is open
            try:
                self.directory.rename(new, self.directory, self.name)
            finally:
                self.open()
        except OSError as error:
            self.unsaved = error
            return
        self.lines, self.unsaved = lines, None


def _line(row: Row) -> bytes:
    return TO_JSON(row).encode() + b"\n"
