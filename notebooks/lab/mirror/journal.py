"""A file of rows that is true wherever it was cut off: a line each, written in one piece."""

import contextlib
import errno
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

APPEND = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0)

Row = dict[str, Any]


class Journal:
    """The rows in one file: `lines` of them. `unsaved` says why these are not all, until they are."""

    def __init__(self, name: Path) -> None:
        self.name, self.lines = name, 0
        self.unsaved: OSError | None = None
        self._file = -1

    def read(self) -> Iterator[Any]:
        """What the lines say, those left out that were cut off by a full disk or the end of the process."""
        with contextlib.suppress(FileNotFoundError):
            for line in self.name.read_bytes().split(b"\n"):
                self.lines += 1
                with contextlib.suppress(ValueError):
                    yield json.loads(line)

    def open(self) -> None:
        """Have it ready for more. Raises OSError."""
        self._file = os.open(self.name, APPEND, 0o666)

    def close(self) -> None:
        """Let go of it."""
        descriptor, self._file = self._file, -1
        if descriptor >= 0:
            os.close(descriptor)

    def append(self, row: Row) -> None:
        """Write a line. If `unsaved` says that it failed, write all anew: a later line alone would be a lie."""
        line = _line(row)
        try:
            if os.write(self._file, line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self.lines += 1
        except OSError as error:
            self.unsaved = error

    def rewrite(self, rows: Iterable[Row]) -> None:
        """Write these rows beside the old ones, and rename the file over those; if that fails, `unsaved` says so."""
        new, lines = self.name.with_name(f"{self.name.name}-new"), 0
        try:
            with new.open("wb") as file:
                for row in rows:
                    file.write(_line(row))
                    lines += 1
                file.flush()
                os.fsync(file.fileno())  # the one file that a power failure must not leave empty
            self.close()  # Windows replaces no file that is open
            try:
                new.replace(self.name)
            finally:
                self.open()
        except OSError as error:
            self.unsaved = error
            return
        self.lines, self.unsaved = lines, None


def _line(row: Row) -> bytes:
    return json.dumps(row).encode() + b"\n"
