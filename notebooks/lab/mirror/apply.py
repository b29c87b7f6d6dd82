"""What is done about one path: the least that makes it what it should be.

              ┌─ remove ─┐
    Job ─▶ do ─ copy ────┼─▶ Applied
              └─ fetch ──┘

File operations that take no time (a rename, a chunk written to the system's cache) are done on the loop, so that no
reader and no other job sees them half done; reading a whole file is done in a thread.
"""

import asyncio
import contextlib
import time
from typing import Literal

from lab.mirror.copy import KEPT, Copy, Part
from lab.mirror.fetch import Origin
from lab.mirror.jobs import Job
from lab.mirror.names import Version
from lab.mirror.report import Applied, Counters
from servers.feed import Change


class Hands:
    """Makes the copy's files what its state wants them to be, one path at a time."""

    def __init__(self, copy: Copy, origin: Origin, counters: Counters) -> None:
        self.copy, self.origin, self.counters = copy, origin, counters
        self._emptying: asyncio.TimerHandle | None = None

    def stop(self) -> None:
        """Do nothing more by itself."""
        if self._emptying:
            self._emptying.cancel()

    async def do(self, path: str, job: Job) -> Applied | None:
        """Make a path what it should be; None if there was nothing to do after all. Raises what `Jobs` handles."""
        copy, state = self.copy, self.copy.state
        wanted = state.wanted.get(path)
        if wanted is None:
            copy.remove(path)
            self.counters.deleted += 1
            self._empty_later()
            return Applied(path, "deleted", None, None, job.published, time.time(), "removed")
        if state.is_right(path):
            return self._applied(path, "modified", job, "kept")
        change: Change = "modified" if path in state.present else "added"
        if change == "added" and (status := await asyncio.to_thread(copy.stands, path, wanted)):
            state.note(path, wanted, status)
            return self._applied(path, change, job, "kept")
        if await self._copied(path, wanted):
            self.counters.copied += 1
            return self._applied(path, change, job, "copied")
        with copy.part() as part:
            if await self.origin.fetch(path, wanted, state.present.get(path), part) and self._place(part, path):
                self.counters.fetched += 1
                return self._applied(path, change, job, "fetched", part.size)
        return None

    async def _copied(self, path: str, wanted: Version) -> bool:
        """Whether the copy had the bytes elsewhere, and has them there now, too."""
        if (source := self.copy.source(wanted.sha256)) is None:
            return False
        with self.copy.part() as part:
            try:
                await asyncio.to_thread(self.copy.fill, part, source)
            except OSError:
                pass  # gone, or the disk is full: fetching it will tell
            return part.sha256 == wanted.sha256 and self._place(part, path)

    def _place(self, part: Part, path: str) -> bool:
        """Put a part into its place, unless an update has meanwhile said that the file is gone."""
        if self.copy.state.wanted.get(path) is None:
            return False
        self.copy.place(part, path)
        return True

    def _applied(
        self, path: str, change: Change, job: Job, how: Literal["fetched", "copied", "kept"], fetched: int = 0
    ) -> Applied:
        size, sha256 = self.copy.state.present[path]
        return Applied(path, change, size, sha256, job.published, time.time(), how, fetched)

    def _empty_later(self) -> None:
        """Let go of removed files when no rename can need them any more."""

        def empty() -> None:
            self._emptying = None
            with contextlib.suppress(OSError):
                if self.copy.forget_removed():
                    self._empty_later()

        if self._emptying is None:
            self._emptying = asyncio.get_running_loop().call_later(KEPT, empty)
