"""What a file is: its hash, how long that can be believed, and how little has to be read to know it again.

    an open file ─▶ Hashing.read()      ─▶ a File    from its beginning to its end
    a large one  ─▶ Hashing.hashing()   ─▶ a File    in steps; of one that has only grown, what has come since
                 ─▶ Hashing.verifying() ─▶ whether it has only grown: all of it, in steps, beside that

A stat tells that a file is still the same once it has been left alone for a moment: until then it is not settled.
"""

import hashlib
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from servers.feed import Known
from servers.places import identity, open_below, runs, utf8

FRESH = 100_000_000  # ns; a file changed so shortly before it was read may change again within one tick of the clock
COARSE = 2_000_000_000  # ns; the same, where the file system counts whole seconds
CHUNK = 2**20  # bytes hashed at a time
LARGE = 2**20  # bytes; a file of more than that is hashed apart, if anybody does
BLOCK = 2**16  # bytes at a file's beginning and end that tell a file that has grown from one that was written anew
VERIFY = 50  # times as long as reading all of it took, a file that grows is believed to have only grown
STATES = 256  # files that grow, and whose growth only is hashed
COARSE_CLOCK = 5  # Linux: the clock that stamps files, CLOCK_REALTIME_COARSE


@dataclass(frozen=True, slots=True)
class File:
    """A file as a look found it: `size` in bytes, and the stat fields that differ whenever its bytes may.

    They are of one moment: a file that has grown since still begins with these bytes.
    """

    size: int
    sha256: str
    identity: tuple[int, ...]
    settled: bool  # False: changed so shortly before it was read that the same stat may hide another change
    seen: float = field(default=0.0, compare=False)  # monotonic time since when it is so known, while it is not settled
    executable: bool = False  # whether its owner may run it

    @property
    def mtime(self) -> float:
        """When it was last changed, in Unix time (s)."""
        seconds, rest = divmod(self.identity[3], 10**9)
        return seconds + rest / 1e9

    @property
    def known(self) -> Known:
        """What is told of it."""
        return Known(self.size, self.sha256, self.mtime, self.executable)


class Abandoned(Exception):
    """Nobody wants the result of this look any more."""

    def __init__(self) -> None:
        super().__init__("the server is stopping")


class Hashing:
    """The files of `directory`, read. Setting `abandoned` ends a reading in another thread: Abandoned is raised there.

    `files` maps paths to what is known of them, `read_bytes` counts what was read so far.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.files: dict[str, File] = {}
        self.abandoned, self.read_bytes = False, 0
        self._growing: dict[str, Growth] = {}

    def read(self, file: BinaryIO, known: File | None = None, name: str | None = None) -> File:
        """What an open file is, read from its beginning to its end. Raises Abandoned.

        Of a large one whose `name` is given, what has come since is enough the next time.
        """
        file.seek(0)
        before, began = os.fstat(file.fileno()), time.monotonic()
        settled, seen = settling(before, known)
        digest = hashlib.sha256()
        while chunk := self._chunk(file, CHUNK):
            digest.update(chunk)
        settled = settled and identity(os.fstat(file.fileno())) == identity(before)
        size = file.tell()
        if name is not None and size > LARGE:
            self._grown(name, Growth(digest, size, before, ends_of(file, size), sure_from(began)))
        return File(size, digest.hexdigest(), identity(before), settled, 0.0 if settled else seen, runs(before))

    def goes_on(self, name: str) -> bool:
        """Whether only what has come since has to be read of a large file. Raises OSError."""
        state = self._growing.get(name)
        if state is None:
            return False
        with self._open(name) as file:
            return state.goes_on(file, os.fstat(file.fileno()))

    def hashing(self, name: str) -> Iterator["File | None"]:
        """Hash a large file, in steps that give None, the last gives its File, or none if it never stood still.

        Of a file that has only grown, as far as its beginning, its end and its inode tell, what has come is hashed, and
        what it is counts as not settled; once it grows no more, it is read from its beginning. Raises OSError,
        Abandoned.
        """
        with self._open(name) as file:
            before, began = os.fstat(file.fileno()), time.monotonic()
            known, state = self.files.get(utf8(name)), self._growing.get(name)
            settled, seen = settling(before, known)
            if state is None or not state.goes_on(file, before):
                state = Growth()
            size, whole = before.st_size, state.size == 0
            digest = state.digest.copy()
            file.seek(state.size)
            while (left := size - file.tell()) > 0:
                if not (chunk := self._chunk(file, min(CHUNK, left))):
                    return  # cut off meanwhile
                digest.update(chunk)
                yield None
            ends = ends_of(file, size)
            after = os.fstat(file.fileno())
            unmoved = identity(after) == identity(before)
            if not unmoved and after.st_size <= before.st_size:
                return  # rewritten while it was read
            sure = sure_from(began) if whole else state.sure_until
            self._grown(name, Growth(digest, size, before, ends, sure))
            settled = settled and unmoved and whole
            yield File(size, digest.hexdigest(), identity(before), settled, 0.0 if settled else seen, runs(before))

    def verifying(self, name: str) -> Iterator[bool | None]:
        """Read a large file that grows from its beginning, in steps that give None; the last says whether it only grew.

        If it did not, the next `hashing` reads all of it. `hashing` in between goes on: no news waits. VERIFY bounds
        how long a change in the middle of a file that grows as well stays unseen. Raises OSError, Abandoned.
        """
        if (state := self._growing.get(name)) is None:
            return
        with self._open(name) as file:
            before, began, digest = os.fstat(file.fileno()), time.monotonic(), hashlib.sha256()
            if before.st_ino != state.place[1]:
                return  # another file: its own hint says so
            while (left := state.size - file.tell()) > 0 and (chunk := self._chunk(file, min(CHUNK, left))):
                digest.update(chunk)
                yield None
        same, now = digest.digest() == state.digest.digest(), self._growing.get(name)
        if not same:
            self._growing.pop(name, None)
        elif now is not None and now.place == state.place:
            now.sure_until = sure_from(began)
        yield same

    def sure_at(self, name: str) -> float:
        """Until when, in monotonic time, a file that grows is believed to have only grown."""
        state = self._growing.get(name)
        return state.sure_until if state else 0.0

    def _open(self, name: str) -> BinaryIO:
        return open_below(os.path.realpath(self.directory), name.split("/"))

    def _chunk(self, file: BinaryIO, most: int) -> bytes:
        if self.abandoned:
            raise Abandoned
        chunk = file.read(most)
        self.read_bytes += len(chunk)
        return chunk

    def _grown(self, name: str, state: "Growth") -> None:
        self._growing.pop(name, None)
        self._growing[name] = state
        while len(self._growing) > STATES:
            del self._growing[next(iter(self._growing))]


class Growth:
    """A large file as last hashed, so that only what has come since need be."""

    __slots__ = ("digest", "ends", "place", "size", "sure_until")

    def __init__(
        self,
        digest: "hashlib._Hash | None" = None,
        size: int = 0,
        status: os.stat_result | None = None,
        ends: bytes = b"",
        sure_until: float = 0.0,
    ) -> None:
        self.digest, self.size = digest or hashlib.sha256(), size
        self.place = identity(status)[:2] if status else ()
        self.ends, self.sure_until = ends, sure_until

    def goes_on(self, file: BinaryIO, status: os.stat_result) -> bool:
        """Whether the open file seems to be this one with something at its end."""
        same = identity(status)[:2] == self.place and status.st_size > self.size
        return same and ends_of(file, self.size) == self.ends


def is_large(status: os.stat_result) -> bool:
    """Whether a file is hashed apart, if anybody does that."""
    return status.st_size > LARGE


def sure_from(began: float) -> float:
    """Until when (monotonic) a file is believed to have only grown after a reading of all of it."""
    now = time.monotonic()
    return now + VERIFY * (now - began)


def ends_of(file: BinaryIO, size: int) -> bytes:
    """A digest of the first and the last of so many bytes of a file."""
    digest = hashlib.sha256()
    for at in (0, max(0, size - BLOCK)):
        file.seek(at)
        digest.update(file.read(min(BLOCK, size)))
    return digest.digest()


def settling(status: os.stat_result, known: File | None) -> tuple[bool, float]:
    """Whether a file whose stat is this can be told by it once it is read, and since when (monotonic) it is known so.

    It can when it was changed some time ago, by the clock that stamps it; modification times are anybody's to set. Or,
    since that clock may have been set back, when it has been seen so for as long.
    """
    stamp = status.st_ctime_ns if os.name == "posix" else max(status.st_ctime_ns, status.st_mtime_ns)
    fresh, now = fresh_for(status), time.monotonic()
    seen = known.seen if known and known.seen and known.identity == identity(status) else now
    clock = time.clock_gettime_ns(COARSE_CLOCK) if sys.platform == "linux" else time.time_ns()
    return clock - stamp > fresh or (now - seen) * 1e9 > fresh, seen


def fresh_for(status: os.stat_result) -> int:
    """For how long after a change (ns) another one may hide behind the same stat."""
    return FRESH if status.st_ctime_ns % 1_000_000_000 else COARSE
