"""What is done about some paths: the least that makes them what they should be.

    Batch ─▶ at once: removed, moved or linked within the copy
         ├─▶ near: right already, or copied within it           (read in a thread)
         └─▶ far: in a bundle, or each by itself                (fetch.py)   ─▶ Applied, or an error, for each path

File operations that take no time (a rename, a chunk written to the system's cache) are done on the loop, so that no
reader and no other job sees them half done; reading a whole file is done in a thread.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Literal

import httpx

from lab.clients.answers import Refused, Unavailable
from lab.mirror.bundle import SMALL, unpack
from lab.mirror.copy import Copy
from lab.mirror.fetch import Corrupt, LeftOut, NoBundles, Origin, Vanished
from lab.mirror.grow import Begun
from lab.mirror.jobs import Batch, Outcome
from lab.mirror.names import UnsafePath, Version
from lab.mirror.part import Part
from lab.mirror.protect import Losses
from lab.mirror.queue import Job
from lab.mirror.report import Applied, Counters
from lab.mirror.shelf import KEPT
from lab.mirror.state import Stat
from servers.feed import Change

SLICE = 0.02  # seconds for which the loop is kept, at most
FAULTS = (UnsafePath, Vanished, Corrupt, NoBundles, Refused, Unavailable, httpx.RequestError, OSError)


Look = tuple[str, Job, Version, str | None, bool]  # a path, what is to be there, a source, and whether to look there
Found = tuple[str, Job, Version, Stat | Part | None]


class Hands:
    """Makes the copy's files what its state wants them to be."""

    def __init__(self, copy: Copy, origin: Origin, counters: Counters, losses: Losses) -> None:
        self.copy, self.state, self.origin, self.counters, self.losses = copy, copy.state, origin, counters, losses
        self.tried: Callable[[Job], None] = lambda job: None
        self.begun = Begun(copy, origin)
        self._emptying: asyncio.TimerHandle | None = None

    def stop(self) -> None:
        """Do nothing more by itself."""
        self.begun.stop()
        if self._emptying:
            self._emptying.cancel()

    async def do(self, batch: Batch) -> dict[str, Outcome]:
        """Make some paths what they should be: what came of each, None if there was nothing to do after all.

        Raises CopyGone and TooManyLosses.
        """
        self.copy.check()
        outcomes = dict[str, Outcome]()
        left = await self._at_once(batch, outcomes)
        left = await self._near(left, outcomes)
        if len(left) > 1:
            await self._together(left, outcomes)
        else:
            for path, job in left:
                try:
                    outcomes[path] = await self._alone(path, job)
                except FAULTS as error:
                    outcomes[path] = error
        return outcomes

    async def _at_once(self, batch: Batch, outcomes: dict[str, Outcome]) -> Batch:
        """Do what needs no reading; return the rest."""
        left, begin = Batch(), time.perf_counter()
        try:
            for path, job in batch:
                try:
                    if not self._without_reading(path, job, outcomes):
                        left.append((path, job))
                except FAULTS as error:
                    outcomes[path] = error
                if time.perf_counter() - begin > SLICE:
                    self.copy.settle()
                    await asyncio.sleep(0)
                    begin = time.perf_counter()
        finally:
            self.copy.settle()
        return left

    def _without_reading(self, path: str, job: Job, outcomes: dict[str, Outcome]) -> bool:
        state, wanted = self.state, self.state.wanted.get(path)
        if wanted is None:
            if (known := state.present.get(path)) and len(state.holders(known.sha256)) == 1:
                self.losses.count(len(state.present))
            self.copy.remove(path)
            self.begun.forget(path)
            self.counters.deleted += 1
            self._empty_later()
            outcomes[path] = Applied(path, "deleted", None, None, job.published, time.time(), "removed")
            return True
        present = state.present.get(path)
        if present and present.sha256 == wanted.sha256:
            if wanted.suits(present) or self.copy.adjust(path, wanted, state.stat(path)):
                outcomes[path] = self._applied(path, "modified", job, "kept")
                return True
        elif self.copy.reuse(path, wanted):
            self.counters.copied += 1
            outcomes[path] = self._applied(path, "modified" if present else "added", job, "copied")
            return True
        return False

    async def _near(self, batch: Batch, outcomes: dict[str, Outcome]) -> Batch:
        """Do what needs reading, and nothing from the server; return the rest."""
        looks = list[Look]()
        for path, job in batch:
            if wanted := self.state.wanted.get(path):
                unknown = path not in self.state.present and self.copy.is_file(path)
                source = self.copy.source(wanted.sha256)
                if unknown or source:
                    looks.append((path, job, wanted, source, unknown))
        self.copy.leave()
        if not looks:
            return batch
        for path, job, wanted, found in await asyncio.to_thread(read, self.copy, looks):
            try:
                change: Change = "modified" if path in self.state.present else "added"
                if isinstance(found, Part):
                    if self._place(found, path, wanted):
                        self.counters.copied += 1
                        outcomes[path] = self._applied(path, change, job, "copied")
                elif found:
                    self.state.note(path, Version(wanted.size, wanted.sha256), found)
                    if not wanted.suits(self.state.present[path]):
                        self.copy.adjust(path, wanted, found)
                    outcomes[path] = self._applied(path, change, job, "kept")
            except FAULTS as error:
                outcomes[path] = error
            finally:
                if isinstance(found, Part):
                    self.copy.drop(found)
        self.copy.settle()
        return [(path, job) for path, job in batch if path not in outcomes]

    async def _together(self, batch: Batch, outcomes: dict[str, Outcome]) -> None:
        """Fetch many files at once."""
        jobs = dict(batch)
        wanted = {path: version for path in jobs if (version := self.state.wanted.get(path))}
        try:
            archive, ended = await self.origin.bundle(wanted)
        except FAULTS as error:
            outcomes |= dict.fromkeys(jobs, error)
            return
        parts, full = await asyncio.to_thread(unpack, archive, wanted, self.copy.new_part, self.copy.drop)
        begin = time.perf_counter()
        try:
            while parts:
                path, part, version = parts.pop()
                change: Change = "modified" if path in self.state.present else "added"
                try:
                    if self._place(part, path, version):
                        self.counters.fetched += 1
                        self.counters.bytes += version.size
                        outcomes[path] = self._applied(path, change, jobs[path], "fetched", version.size)
                    else:
                        outcomes[path] = None
                except FAULTS as error:
                    outcomes[path] = error
                if isinstance(outcomes[path], Exception | None):
                    self.copy.drop(part)
                if time.perf_counter() - begin > SLICE:
                    self.copy.settle()
                    await asyncio.sleep(0)
                    begin = time.perf_counter()
        finally:
            for _, part, _ in parts:
                self.copy.drop(part)
            self.copy.settle()
        rest = [path for path in jobs if path not in outcomes]
        outcomes |= {path: full or ended or LeftOut() for path in rest if path in wanted}

    async def _alone(self, path: str, job: Job) -> Applied | None:
        """Fetch one file."""
        if job.size > SMALL:  # nothing waits for what may take long
            self.tried(job)
        if (wanted := self.state.wanted.get(path)) is None:
            return None
        async with self.begun.fetched(path, wanted, job) as part:
            change: Change = "modified" if path in self.state.present else "added"
            if part is None or not self._place(part, path, Version(part.size, part.sha256)):
                return None
            self.counters.fetched += 1
            return self._applied(path, change, job, "fetched", part.size - part.kept)

    def _place(self, part: Part, path: str, version: Version) -> bool:
        """Put a part into its place, unless an update has meanwhile said that the file is gone."""
        if self.state.wanted.get(path) is None:
            return False
        self.copy.check()
        try:
            self.copy.place(part, path, version)
        finally:
            self.copy.leave()
        return True

    def _applied(
        self, path: str, change: Change, job: Job, how: Literal["fetched", "copied", "kept"], fetched: int = 0
    ) -> Applied:
        present = self.state.present[path]
        return Applied(path, change, present.size, present.sha256, job.published, time.time(), how, fetched)

    def _empty_later(self) -> None:
        """Let go of removed files when no rename can need them any more."""

        def empty() -> None:
            self._emptying = None
            with contextlib.suppress(OSError):
                if self.copy.shelf.forget():
                    self._empty_later()

        if self._emptying is None:
            self._emptying = asyncio.get_running_loop().call_later(KEPT, empty)


def read(copy: Copy, looks: list[Look]) -> list[Found]:
    """In a thread: the stat of each file that is right already, or else a part made from another one."""
    found = list[Found]()
    for path, job, wanted, source, unknown in looks:
        if unknown and (status := copy.reading.stands(path, wanted)):
            found.append((path, job, wanted, status))
        elif source:
            part = None
            try:
                part = copy.new_part()
                copy.reading.fill(part, source)
            except OSError:
                pass  # gone, or the disk is full: fetching it will tell
            if part and part.sha256 == wanted.sha256:
                found.append((path, job, wanted, part))
            elif part:
                copy.drop(part)
    return found
