"""Parts that hold something before a byte is asked for: what came before the link was cut, or what a file held before.

    cut in mid-file ─▶ end: the part is kept ─▶ part: and the rest asked for
    a file that has grown ─▶ part: begun with what stands in the copy ─▶ only the tail is asked for

A part begins with a copy of what stands there, made within the system and, where the file system can, without moving
a byte; so a reader sees one state or the next. What that takes is paid for with a pause of some times as long: a large
file that grows all the time keeps neither disk nor processor busy.
"""

import asyncio
import contextlib
import hashlib
from collections import OrderedDict
from collections.abc import AsyncGenerator
from dataclasses import dataclass

import httpx

from lab.clients.answers import Refused, Unavailable
from lab.clients.follower import now
from lab.mirror.copy import Copy
from lab.mirror.fetch import Corrupt, Origin
from lab.mirror.names import Version
from lab.mirror.part import Part
from lab.mirror.queue import Job

LEAST = 2**16  # bytes; of what is smaller nothing is kept
FEW = 16  # parts, and files that have grown, that are remembered
REST = 3.0  # times as long as it took to begin a part
LONGEST_REST = 1.0  # s


@dataclass
class Grown:
    """The state of a file's SHA-256 at its end, and until when it is left alone (loop time, s)."""

    digest: "hashlib._Hash"
    until: float = 0.0


class Begun:
    """What is fetched by itself, and what is remembered of that."""

    def __init__(self, copy: Copy, origin: Origin) -> None:
        self.copy, self.state, self.origin = copy, copy.state, origin
        self._parts: OrderedDict[str, Part] = OrderedDict()
        self._grown: OrderedDict[str, Grown] = OrderedDict()

    async def rest(self, path: str) -> None:
        """Wait until a file that grows may be looked after again."""
        if grown := self._grown.get(path):
            await asyncio.sleep(max(0.0, grown.until - now()))

    @contextlib.asynccontextmanager
    async def fetched(self, path: str, wanted: Version, job: Job) -> AsyncGenerator[Part | None, None]:
        """A part with all of a file; None if the server still has what is present. Raises as `Origin.fetch` does."""
        part: Part | None = self._parts.pop(path, None) or self.copy.new_part()
        assert part
        try:
            if not part.size and not job.whole:
                await self._begin(part, path, wanted)
            if job.whole or part.size > wanted.size or (part.size == wanted.size and part.sha256 != wanted.sha256):
                part.anew()
            part.kept = part.size
            complete = 0 < part.size == wanted.size
            yield (
                part if complete or await self.origin.fetch(path, wanted, self.state.present.get(path), part) else None
            )
            self._remember(path, part)
        except (Corrupt, Refused):
            job.whole = job.whole or part.kept > 0
            raise
        except (Unavailable, httpx.RequestError):
            if part.grows and part.size == part.kept and job.failures:  # perhaps it is no file that has grown
                job.whole = True
            elif part.size >= LEAST:
                self._parts[path], part = part, None
                while len(self._parts) > FEW:
                    self.copy.drop(self._parts.popitem(last=False)[1])
            raise
        finally:
            if part:
                self.copy.drop(part)

    def forget(self, path: str) -> None:
        """The file is gone."""
        self._grown.pop(path, None)
        if part := self._parts.pop(path, None):
            self.copy.drop(part)

    async def _begin(self, part: Part, path: str, wanted: Version) -> None:
        """Have a part begin with what stands there, if that may be how the file goes on: it has not grown too much."""
        present = self.state.present.get(path)
        if present is None or not LEAST <= present.size < wanted.size <= 2 * present.size:
            return
        grown = self._grown.get(path)
        digest = grown.digest if grown and grown.digest.hexdigest() == present.sha256 else None
        begin = now()
        try:
            await asyncio.to_thread(self.copy.reading.begin, part, path, self.state.stat(path), digest)
            part.grows = True
        except OSError:
            part.anew()
        if grown:
            grown.until = now() + min(LONGEST_REST, REST * (now() - begin))

    def _remember(self, path: str, part: Part) -> None:
        if part.size < LEAST:
            return
        grown = self._grown.pop(path, None)
        self._grown[path] = Grown(part.digest, grown.until if grown else 0.0)
        if len(self._grown) > FEW:
            self._grown.popitem(last=False)
