"""Jobs that are ready, in their order: what workers take, many small ones at a time, or one that is large."""

import asyncio
from collections import deque
from collections.abc import Callable

from lab.mirror.bundle import MOST_ASKED, MOST_BYTES, MOST_FILES, SMALL, asked


class Job:
    """What is to be done about a path; `published` when the update says, None from a listing; `size` in bytes."""

    __slots__ = ("alone", "begun", "failures", "number", "published", "size", "waits", "whole")

    def __init__(self, published: float | None, size: int = 0) -> None:
        self.published, self.size = published, size
        self.failures = self.number = 0
        self.alone = self.whole = False  # fetched by itself; without what is there already
        self.waits = False  # for others to be tried first
        self.begun: float | None = None  # loop time of the first failure (s)

    def since(self) -> float:
        """How long ago it failed for the first time (s)."""
        now = asyncio.get_running_loop().time()
        self.begun = now if self.begun is None else self.begun
        return now - self.begun


class Queue:
    """Small jobs and large ones apart, so that neither wait long for the other; at most `most_large` at a time."""

    def __init__(self, most_large: int) -> None:
        self.small, self.large = deque[tuple[str, Job]](), deque[tuple[str, Job]]()
        self.most_large, self.at_large = most_large, 0
        self._was_large = False
        self._news = asyncio.Event()

    def put(self, path: str, job: Job) -> None:
        """Add one that is ready."""
        (self.large if job.size > SMALL else self.small).append((path, job))
        self._news.set()

    async def wait(self) -> None:
        """Return when there may be something to take."""
        self._news.clear()
        await self._news.wait()

    def take(self, begins: Callable[[str, Job], bool], *, together: bool) -> list[tuple[str, Job]]:
        """Jobs that a worker is to do now, if there are any; `begins` says of each whether it is still to be done."""
        while self.small or (self.large and self.at_large < self.most_large):
            room = self.large and self.at_large < self.most_large
            self._was_large = bool(room and not (self.small and self._was_large))
            if not self._was_large:
                if batch := self._some(begins, together=together):
                    return batch
            elif begins(*(first := self.large.popleft())):
                return [first]
        return []

    def _some(self, begins: Callable[[str, Job], bool], *, together: bool) -> list[tuple[str, Job]]:
        batch, size, words = list[tuple[str, Job]](), 0, 0
        while self.small and len(batch) < MOST_FILES:
            path, job = self.small[0]
            if batch and (job.alone or not together or size + job.size > MOST_BYTES):
                break
            words += len(asked(path)) + 1
            if batch and words > MOST_ASKED:
                break
            self.small.popleft()
            if begins(path, job):
                batch.append((path, job))
                size += job.size
                if job.alone:
                    break
        return batch
