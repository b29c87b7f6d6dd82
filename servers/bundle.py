"""Many small files in one answer: what a first copy, or a burst, asks for.

    POST /bundle {"paths": [...]} ─▶ pack(): a batch of files opened, read, hashed in one thread hop ─▶ tar ─▶ client

The answer is a tar archive (POSIX.1-2008, pax), made as it is sent. Each member has the file's bytes, its time, its
executable bit (0644 or 0755) and, as PUSHPULL.sha256 in its extended header, its hash. What is gone, is changing, is
too large or would be too much is not in it: whoever misses a file asks for that one alone. An archive that was broken
off lacks the two empty blocks at its end.
"""

import functools
import hashlib
from collections.abc import AsyncGenerator, Iterator, Sequence
from typing import Annotated

from pydantic import BaseModel, Field

from servers.downloads import FOREIGN, ChangedMeanwhile, Pieces, in_reader, look
from servers.tree import File, Tree

MOST = 1000  # files that may be asked for at once
SMALL = 2**20  # bytes; a file of more travels alone
FULL = 64 * 2**20  # bytes of an answer, beyond which it holds no further file
BATCH = 2**18  # bytes packed at a time, and a file more at most
BLOCK = 512
END = bytes(2 * BLOCK)


class Wanted(BaseModel):
    """The body of a request for a bundle: paths as the listing has them."""

    paths: Annotated[list[str], Field(max_length=MOST)]


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
        while room > 0 and (batch := await in_reader(pack, self.tree, ahead)):
            room -= len(batch)
            yield batch
        yield END


def pack(tree: Tree, paths: Iterator[str]) -> bytes:
    """The members of the next paths, until there are BATCH bytes of them; empty only if there is none to come."""
    parts, size = list[bytes](), 0
    for path in paths:
        try:
            known, content = look(tree, path, small=SMALL)
        except (ChangedMeanwhile, OSError, ValueError):
            continue
        if not isinstance(content, bytes):
            content.close()
            continue
        parts += head(path, known), content, bytes(-len(content) % BLOCK)
        size += len(parts[-3]) + len(content)
        if size >= BATCH:
            break
    return b"".join(parts)


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
    after = kind + bytes(100) + b"ustar\x0000" + bytes(247)
    return b"%b%06o\0 %b" % (before, sum(before) + sum(after) + 8 * ord(" "), after)
