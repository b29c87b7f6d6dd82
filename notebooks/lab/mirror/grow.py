"""Parts that hold something before a byte is asked for: what came before the link was cut, or what a file held before.

    cut in mid-file ─▶ end: the part is kept ─▶ part: and the rest asked for
    a file that has grown ─▶ part: begun with what stands in the copy ─▶ only the tail is asked for

COPY has one whole state of the file after the other, and a reader sees one or the next. What stood there before is kept
out of sight: it only lacks what has come since, so it becomes the next state, and an append costs what was appended.
Where that cannot be (somebody still has it open, or the system does not tell), a part begins with a copy of what stands
there, made within the system and, where the file system can, without moving a byte; what that takes is paid for with a
pause of some times as long, so that a large file that grows all the time keeps neither disk nor processor busy.
"""

import asyncio
import contextlib
import hashlib
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable

import httpx

from lab.clients.answers import Refused, Unavailable
from lab.clients.follower import now
from lab.mirror.copy import Copy
from lab.mirror.fetch import Corrupt, Origin
from lab.mirror.names import Version
from lab.mirror.part import Earlier, Part
from lab.mirror.queue import Job

LEAST = 2**16  # bytes; of what is smaller nothing is kept
FEW = 16  # parts, and files that have grown, that are remembered
REST = 3.0  # times as long as it took to begin a part
LONGEST_REST = 1.0  # s
KEPT = 60.0  # s; for so long what stood there before is kept: it takes as much of the disk as the file


class Grown:
    """A file's SHA-256 at its end, until when it is not copied again (loop time, s), and its state before."""

    def __init__(self, digest: "hashlib._Hash", until: float = 0.0) -> None:
        self.digest, self.until = digest, until
        self.earlier: Earlier | None = None
        self.expiry: asyncio.TimerHandle | None = None

    def take(self) -> Earlier | None:
        """The state before; it is somebody else's now."""
        if self.expiry:
            self.expiry.cancel()
        earlier, self.earlier = self.earlier, None
        return earlier


class Begun:
    """What is fetched by itself, and what is remembered of that."""

    def __init__(self, copy: Copy, origin: Origin) -> None:
        self.copy, self.state, self.origin = copy, copy.state, origin
        self._parts: OrderedDict[str, Part] = OrderedDict()
        self._grown: OrderedDict[str, Grown] = OrderedDict()

    def stop(self) -> None:
        """Do nothing more by itself."""
        for grown in self._grown.values():
            self._let_go(grown)

    async def rest(self, path: str) -> None:
        """Wait until a file that grows may be copied again."""
        if grown := self._grown.get(path):
            await asyncio.sleep(max(0.0, grown.until - now()))

    @contextlib.asynccontextmanager
    async def fetched(self, path: str, wanted: Version, job: Job) -> AsyncGenerator[Part | None, None]:
        """A part with all of a file; None if the server still has what is present. Raises as `Origin.fetch` does."""
        part = self._parts.pop(path, None)
        if part is None:
            part = (None if job.whole else await self._begin(path, wanted)) or self.copy.new_part()
        kept: str | None = None
        try:
            if job.whole or part.size > wanted.size or (part.size == wanted.size and part.sha256 != wanted.sha256):
                part.anew()
            part.kept = part.size
            complete = 0 < part.size == wanted.size
            present = self.state.present.get(path)
            came = complete or await self.origin.fetch(path, wanted, present, part)
            if came and part.grows and present is self.state.present.get(path):
                kept = self.copy.keep(path)
            yield part if came else None
            kept = self._remember(path, part, present, kept)
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
            if kept:
                self.copy.let_go(kept)

    def forget(self, path: str) -> None:
        """The file is gone."""
        if grown := self._grown.pop(path, None):
            self._let_go(grown)
        if part := self._parts.pop(path, None):
            self.copy.drop(part)

    async def _begin(self, path: str, wanted: Version) -> Part | None:
        """A part that begins with what stands there, if that may be how the file goes on: it has not grown too much."""
        present = self.state.present.get(path)
        if present is None or not LEAST <= present.size < wanted.size <= 2 * present.size:
            return None
        grown, status, reading = self._grown.get(path), self.state.stat(path), self.copy.reading
        if grown and (earlier := grown.take()):
            try:
                part = self.copy.again(earlier)
            except OSError:  # somebody has it open, or has had
                self.copy.let_go(earlier.name)
            else:
                if await self._filled(part, reading.go_on, path, status, present.sha256):
                    return part
        await self.rest(path)
        digest, begin = grown.digest if grown and grown.digest.hexdigest() == present.sha256 else None, now()
        copied = await self._filled(self.copy.new_part(), reading.begin, path, status, digest)
        if copied:
            self._grown[path] = Grown(copied.digest.copy(), now() + min(LONGEST_REST, REST * (now() - begin)))
        return copied

    async def _filled(self, part: Part, fill: Callable[..., None], *arguments: object) -> Part | None:
        """A part that begins like a file that may have grown, once that is done in a thread; None, if it cannot be."""
        try:
            await asyncio.to_thread(fill, part, *arguments)
        except BaseException as error:
            self.copy.drop(part)
            if isinstance(error, OSError):
                return None
            raise
        part.grows = True
        return part

    def _remember(self, path: str, part: Part, present: Version | None, kept: str | None) -> str | None:
        """Know the state of a file that stands there now, and what was kept of the one before; what is left of that."""
        if before := self._grown.pop(path, None):
            self._let_go(before)
        if part.size < LEAST:
            return kept
        grown = self._grown[path] = Grown(part.digest, before.until if before else 0.0)
        placed = self.state.present.get(path)
        if kept and before and present and before.digest.hexdigest() == present.sha256 and placed is not present:
            grown.earlier, kept = self.copy.earlier(kept, before.digest), None
            grown.expiry = asyncio.get_running_loop().call_later(KEPT, self._let_go, grown)
        if len(self._grown) > FEW:
            self._let_go(self._grown.popitem(last=False)[1])
        return kept

    def _let_go(self, grown: Grown) -> None:
        if earlier := grown.take():
            with contextlib.suppress(OSError):
                self.copy.let_go(earlier.name)
