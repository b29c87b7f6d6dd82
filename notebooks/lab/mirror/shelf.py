"""Removed files, out of sight in COPY/.mirror, their bytes within reach for a while: they may be about to come back."""

import contextlib
import errno
import time
from typing import NamedTuple

from lab.mirror.names import PRIVATE, Version
from lab.mirror.places import Directory
from lab.mirror.state import Stat
from servers.places import identity

KEPT = 2.0  # seconds


class Removed(NamedTuple):
    """A file out of sight, since when (s)."""

    since: float
    version: Version
    stat: Stat


class Shelf:
    """Where they are, by SHA-256. Everything here raises OSError."""

    def __init__(self, own: Directory) -> None:
        self._own = own
        self._removed: dict[str, Removed] = {}

    def keep(self, directory: Directory, name: str, version: Version) -> None:
        """Move a file here; or remove it, if it is on another file system."""
        here = f"removed-{version.sha256}"
        try:
            directory.rename(name, self._own, here)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            directory.unlink(name)
            return
        self._removed[version.sha256] = Removed(time.monotonic(), version, identity(self._own.stat(here)))

    def path(self, sha256: str) -> str | None:
        """Where in the copy a file with these bytes should be."""
        return f"{PRIVATE}/removed-{sha256}" if sha256 in self._removed else None

    def take(self, wanted: Version) -> tuple[str, Version] | None:
        """The name of a file, untouched, that is what is wanted, and is not the shelf's any more; and what it is."""
        removed, name = self._removed.get(wanted.sha256), f"removed-{wanted.sha256}"
        if removed is None or not wanted.suits(removed.version) or identity(self._own.stat(name)) != removed.stat:
            return None
        del self._removed[wanted.sha256]
        return name, removed.version

    def forget(self, age: float = KEPT) -> bool:
        """Let go of what was removed `age` seconds ago or earlier; say whether something is left."""
        now = time.monotonic()
        for sha256 in [sha256 for sha256, removed in self._removed.items() if now - removed.since >= age]:
            del self._removed[sha256]
            with contextlib.suppress(FileNotFoundError):
                self._own.unlink(f"removed-{sha256}")
        return bool(self._removed)
