"""Many small files in one answer: what a first copy, or a burst, asks for.

    POST /bundle {"paths": [...]} ─▶ pack(): a batch of files opened, read, hashed in one thread hop ─▶ tar ─▶ client

The answer is a tar archive (POSIX.1-2008, pax), made as it is sent. Each member has the file's bytes, its time, its
executable bit (0644 or 0755) and, as PUSHPULL.sha256 in its extended header, its hash. What is gone, is changing, is
too large or would be too much is not in it: whoever misses a file asks for that one alone. An archive that was broken
off lacks the two empty blocks at its end.
"""

import errno
import functools
import hashlib
import os
import stat
from collections.abc import AsyncGenerator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated

from pydantic import BaseModel, Field, model_validator
from pydantic_core import PydanticCustomError

from servers.downloads import FOREIGN, ChangedMeanwhile, Pieces, in_thread, look, read_small
from servers.hashing import File
from servers.places import READ
from servers.tree import Tree

MOST = 1000  # files that may be asked for at once
SMALL = 2**20  # bytes; a file of more travels alone
FULL = 64 * 2**20  # bytes of an answer, beyond which it holds no further file
BATCH = 2**18  # bytes packed at a time, and a file more at most
BLOCK = 512
AFTER = bytes(100) + b"ustar\x0000" + bytes(247)  # of a header block, what stands after the kind of the member
SUM_AFTER = sum(AFTER) + 8 * ord(" ")  # the sum itself counts as spaces
END = bytes(2 * BLOCK)
PACKER = ThreadPoolExecutor(1, "packer")  # one: more of them would only wait for each other's interpreter


class Wanted(BaseModel):
    """The body of a request for a bundle: paths as the listing has them, in 64 KiB at most, as any body."""

    paths: Annotated[list[str], Field(max_length=MOST)]

    @model_validator(mode="before")
    @classmethod
    def is_json(cls, body: object) -> object:
        """Say what is wanted to who sends a form, as curl's -d does."""
        if not isinstance(body, dict):
            raise PydanticCustomError("wanted", 'send {"paths": [...]} as application/json')
        return body


class Bundle(Pieces):
    """The files of these paths, in this order, each once."""

    name = "a bundle"

    def __init__(self, tree: Tree, paths: Sequence[str]) -> None:
        super().__init__(headers=FOREIGN | {"Cache-Control": "no-store"}, media_type="application/x-tar")
        del self.headers["content-length"]
        self.tree, self.paths = tree, dict.fromkeys(paths)

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        """The archive, a batch of its members at a time."""
        ahead, room = iter(self.paths), FULL
        while room > 0 and (batch := await in_thread(PACKER, pack, self.tree, ahead)):
            room -= len(batch)
            yield batch
        yield END


def pack(tree: Tree, paths: Iterator[str]) -> bytes:
    """The members of the next paths, until there are BATCH bytes of them; empty only if there is none to come."""
    parts, size = list[bytes](), 0
    with Siblings(tree) as siblings:
        for path in paths:
            try:
                known, content = siblings.read(path)
            except (ChangedMeanwhile, OSError, ValueError):
                continue
            parts += head(path, known), content, bytes(-len(content) % BLOCK)
            size += len(content) + 3 * BLOCK
            if size >= BATCH:
                break
    return b"".join(parts)


class Siblings:
    """Reads small files of a tree one after another.

    The directory of the last one is held open for the next, which mostly is in it; so that nothing leads out of the
    tree, each part of a path is looked up in the one before, and none is a link.
    """

    def __init__(self, tree: Tree) -> None:
        self.tree, self.top = tree, -1
        self.above, self.here = b"", -1  # the directory that is held open

    def __enter__(self) -> "Siblings":
        return self

    def __exit__(self, *error: object) -> None:
        self.leave()
        if self.top >= 0:
            os.close(self.top)

    def leave(self) -> None:
        """Close the directory."""
        if self.here not in (-1, self.top):
            os.close(self.here)
        self.above, self.here = b"", -1

    def enter(self, above: bytes) -> None:
        """Open the directory of this path."""
        self.leave()
        if self.top < 0:
            self.top = os.open(os.path.realpath(self.tree.directory), READ | os.O_DIRECTORY)
        self.here = self.top
        for part in above.split(b"/") if above else ():
            last, self.here = self.here, os.open(part, READ | os.O_DIRECTORY, dir_fd=self.here)
            if last != self.top:
                os.close(last)
        self.above = above

    def read(self, path: str) -> tuple[File, bytes]:
        """A file and its bytes. Raises ChangedMeanwhile, OSError and ValueError for what is to be left out."""
        known = self.tree.told(path)
        if known is None or known.size > SMALL:
            raise FileNotFoundError(errno.ENOENT, "not a small file of the tree")
        if os.open not in os.supports_dir_fd:
            known, content = look(self.tree, path)
            if not isinstance(content, bytes):
                content.close()
                raise ChangedMeanwhile
            return known, content
        above, _, name = path.encode().rpartition(b"/")
        if self.here < 0 or above != self.above:
            self.enter(above)
        # before it is opened: opening a device or a pipe is felt at its other end
        if not stat.S_ISREG(os.stat(name, dir_fd=self.here, follow_symlinks=False).st_mode):
            raise FileNotFoundError(errno.ENOENT, "not a regular file")
        file = os.open(name, READ, dir_fd=self.here)
        try:
            known, content = read_small(file, known, int(min(SMALL, self.tree.limit)))
        finally:
            os.close(file)
        return known, content


def head(path: str, known: File) -> bytes:
    """A member's headers: the extended one, of type "x", and its own."""
    name, records = path.encode(), [("mtime", f"{known.mtime:.9f}"), ("PUSHPULL.sha256", known.sha256)]
    if len(name) > 100 or not name.isascii():
        name = hashlib.sha256(name).hexdigest().encode()  # for who does not read the next
        records.append(("path", path))
    extended = b"".join(record(*each) for each in records)
    when = min(max(int(known.mtime), 0), 8**11 - 1)
    return (
        extended_block(len(extended))
        + extended
        + bytes(-len(extended) % BLOCK)
        + block(name, known.size, b"0", mode=0o755 if known.executable else 0o644, mtime=when)
    )


def record(keyword: str, value: str) -> bytes:
    """A record of an extended header, which begins with its own length (pax, "Extended Header")."""
    rest = f" {keyword}={value}\n".encode()
    length = len(rest) + len(str(len(rest)))
    length = len(rest) + len(str(length))
    return b"%d%b" % (length, rest)


@functools.lru_cache
def extended_block(size: int) -> bytes:
    """The block before so many bytes of records."""
    return block(b"././@PaxHeader", size, b"x")


def block(name: bytes, size: int, kind: bytes, *, mode: int = 0o644, mtime: int = 0) -> bytes:
    """A header block (pax, "ustar Interchange Format") of nobody's file: octal numbers, and the sum of its bytes."""
    before = b"%b%07o\0%07o\0%07o\0%011o\0%011o\0" % (name.ljust(100, b"\0"), mode, 0, 0, size, mtime)
    return b"%b%06o\0 %b%b" % (before, sum(before) + kind[0] + SUM_AFTER, kind, AFTER)
