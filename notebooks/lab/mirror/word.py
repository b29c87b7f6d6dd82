"""What a server says, taken at its word as far as it is to be: whose copy it is, which paths, what must not be written.

Listing ─▶ take ─▶ State.expect_all ─▶ planned: what would be done about it
a file of a listing or an update ─▶ version, or None
"""

import asyncio
import contextlib
import os
from pathlib import Path
from typing import Literal

from lab.mirror.copy import CopyError
from lab.mirror.fetch import SHA256, Listing
from lab.mirror.names import LONGEST_PATH, UnsafePath, Version, check_name
from lab.mirror.protect import Losses
from lab.mirror.read import Reading
from lab.mirror.report import Counters, Faults
from lab.mirror.settings import Settings
from lab.mirror.state import State
from servers.places import tag

Doing = Literal["fetch", "copy", "delete"]


class Word:
    """What of a server's word becomes a state."""

    def __init__(self, settings: Settings, counters: Counters, faults: Faults, state: State, top: Path) -> None:
        self.settings, self.counters, self.faults, self.state, self.top = settings, counters, faults, state, top
        self.room = LONGEST_PATH - len(os.fsencode(top)) - 2  # bytes that a path may have: "/" and NUL
        self.left_out = ""  # of the listing, in words

    def take(self, listing: Listing) -> None:
        """Expect what a listing says, and nothing else. Raises CopyError."""
        self.check_directory(listing.directory)
        self.check_source(listing.source)
        self.left_out = f"; left out: {listing.left_out}" if listing.left_out else ""
        versions = ((entry.path, self.version(*entry)) for entry in listing.files)
        wanted = {path: version for path, version in versions if version}
        for path in [path for path in self.state.wanted if not self.settings.wants(path)]:
            self.state.disown(path)
        self.state.expect_all(wanted, listing.cursor, listing.source, self.settings.plain_url)

    def check_directory(self, directory: str | None) -> None:
        """Raise CopyError if the copy is what the server serves: whoever edits there would be written over."""
        with contextlib.suppress(FileNotFoundError):  # there is no copy yet
            status = self.top.stat()
            if directory == tag((status.st_dev, status.st_ino)):
                raise CopyError(f"{self.top} is the directory that {self.settings.plain_url} serves, and no copy of it")

    def check_source(self, source: str | None) -> None:
        """Raise CopyError if the copy is another server's, as far as anybody can tell."""
        state, url = self.state, self.settings.plain_url
        known, here = (state.source, source) if state.source and source else (state.url, url)
        if known not in (None, here) and not self.settings.adopt:
            raise CopyError(f"{self.top} is a copy of {state.url}, and {url} is another (--adopt takes it over)")

    def version(
        self, path: str, size: int | None, sha256: str | None, mtime: float | None, executable: bool | None
    ) -> Version | None:
        """What the server says is there; None, counted and named, if that must not be written or cannot be checked."""
        if not self.settings.wants(path):
            self.counters.excluded += 1
            return None
        try:
            check_name(path, self.room)
            if size is None or size < 0 or sha256 is None or not SHA256.fullmatch(sha256):
                raise UnsafePath("no size and SHA-256 to check it by")
        except UnsafePath as error:
            self.faults.refuse(path, error)
            return None
        return Version(size, sha256, mtime, executable)


async def planned(word: Word) -> list[tuple[Doing, str]]:
    """What is to be done, in order. Raises TooManyLosses."""
    state, reading, plan = word.state, Reading(str(word.top)), list[tuple[Doing, str]]()
    Losses(word.settings.max_delete).check(state.losses(), len(state.present))
    for path in state.differing():
        if (version := state.wanted[path]) is None:
            plan.append(("delete", path))
        elif path in state.present or not await asyncio.to_thread(reading.stands, path, version):
            plan.append(("copy" if state.holders(version.sha256) else "fetch", path))
    return plan
