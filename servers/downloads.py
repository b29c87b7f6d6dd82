"""One file of a tree, over HTTP: whole, on condition, or a range of it (RFC 9110, sections 13 and 14).

    GET /files/PATH ─▶ look(): open it, know its hash ─▶ 304, 412, 416 │ a small file at once │ FileContent, by pieces
                                              disk ─▶ piece ─▶ hash ─▶ client: the last one only if the hash is right

What a file was when it was announced is its size and its hash; while it grows, that is its beginning. Large ones are
read once: hashed as they go out, with the last piece kept back until the hash is that of the ETag. So a file that
changes while it is being served never looks complete (what was begun is broken off, and the client asks again), and one
that is only touched, or grows, arrives.
"""

import asyncio
import contextlib
import email.utils
import errno
import hashlib
import logging
import os
import re
import time
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, BinaryIO, TypeVar
from urllib.parse import unquote_to_bytes

from fastapi import HTTPException, Request, Response
from starlette.types import Receive, Scope, Send

from servers.guard import RETRY_AFTER
from servers.hashing import Abandoned, File
from servers.on_uvicorn import TRANSPORT
from servers.places import identity, runs
from servers.short_polling import matches
from servers.tree import Tree

if TYPE_CHECKING:
    from hashlib import _Hash

CHUNK = 256 * 1024  # bytes of a file read and sent at a time; what has no more is small
TRIES = 3  # readings of a small file that changes under them
READERS = ThreadPoolExecutor(4, "reader")  # of their own: what is downloaded delays no news
REMEMBERED = 8  # prefixes of a file whose hash is known
GROWING = 64  # files of which they are
RANGE = re.compile(r"bytes=(?:([0-9]{1,99})-([0-9]{0,99})|-([0-9]{1,99}))", re.IGNORECASE)
NOSNIFF = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-cache"}
# What others wrote is not shown as a page of this server, nor does it become one: it is a download without rights.
FOREIGN = NOSNIFF | {"Content-Security-Policy": "sandbox; default-src 'none'", "Content-Disposition": "attachment"}
# What opening says of what is not a regular file of the tree, or not for this server to read.
ABSENT = {errno.EACCES, errno.EINVAL, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOENT, errno.ENOTDIR,
          errno.ENXIO, errno.EPERM}  # fmt: skip
YOUNG = 2.0  # seconds; a file that changed so shortly ago may change again within the second that a date can tell

log = logging.getLogger("servers")
Result = TypeVar("Result")


async def in_thread(pool: ThreadPoolExecutor, function: Callable[..., Result], *arguments: object) -> Result:
    """What the function returns, called in a thread of this pool."""
    return await asyncio.get_running_loop().run_in_executor(pool, function, *arguments)


def requested_path(request: Request) -> str:
    """The path below /files/ as it was sent: the server's own decoding hides what is not UTF-8."""
    raw: bytes = request.scope.get("raw_path") or request.scope["path"].encode()
    below = raw.removeprefix(request.scope.get("root_path", "").encode()).removeprefix(b"/files/")
    try:
        return unquote_to_bytes(below).decode()
    except UnicodeDecodeError:
        raise HTTPException(404, "no such file") from None


class ChangedMeanwhile(Exception):
    """A file is not any more what its ETag says."""

    def __init__(self) -> None:
        super().__init__("the file changed while it was read")


def look(tree: Tree, path: str) -> tuple[File, bytes | BinaryIO]:
    """A file, and its bytes, which are those of the hash; of a large one, the open file, still to be read.

    Raises as `Tree.open` does, and ChangedMeanwhile.
    """
    for _ in range(TRIES):
        file, known = tree.open(path)
        if known.size > CHUNK:
            return known, file
        with file, contextlib.suppress(ChangedMeanwhile):
            return read_small(file.fileno(), known, CHUNK)
    raise ChangedMeanwhile


def read_small(file: int, known: File, most: int) -> tuple[File, bytes]:
    """An open file as it was announced if it still begins like that, else as it is: what it is, and its bytes.

    Raises ChangedMeanwhile when it is being written to, or has more than so many bytes.
    """
    before = os.fstat(file)
    content = os.read(file, min(before.st_size, most) + 1)
    announced = content[: known.size]
    if hashlib.sha256(announced).hexdigest() == known.sha256:
        return known, announced
    if len(content) > most or len(content) != before.st_size or identity(os.fstat(file)) != identity(before):
        raise ChangedMeanwhile
    digest = hashlib.sha256(content).hexdigest()
    return File(len(content), digest, identity(before), settled=False, executable=runs(before)), content


class Downloads:
    """Answers for the files of one tree.

    `prefixes` has, for the device and inode of a file that was downloaded, hashes of its first so many bytes: of a log
    that grows, only what it grew by is read for a client that has the rest.
    """

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self.prefixes: dict[tuple[int, ...], dict[int, _Hash]] = {}

    async def answer(self, path: str, request: Request) -> Response:
        """The answer to a request for one file; conditions and ranges as in RFC 9110, sections 13.2.2 and 14.2.

        Whatever is not a regular file inside the tree is not there, and nor is what the tree leaves out.
        """
        try:
            known, content = await in_thread(READERS, look, self.tree, path)
        except (ChangedMeanwhile, Abandoned) as error:
            raise unavailable(error) from None
        except ValueError:
            raise HTTPException(404, "no such file") from None
        except OSError as error:
            if error.errno not in ABSENT:  # such as too many open files: it says nothing about this one
                raise unavailable(error) from None
            raise HTTPException(404, "no such file") from None
        headers = FOREIGN | {"ETag": f'"{known.sha256}"', "Accept-Ranges": "bytes"}
        if 0 <= known.mtime < time.time() - YOUNG:  # a date in the future must not be told (RFC 9110, 8.8.2.1)
            headers["Last-Modified"] = email.utils.formatdate(known.mtime, usegmt=True)
        status, part = selected(request, known, headers)
        if part is None:
            if not isinstance(content, bytes):
                content.close()
            return Response(status_code=status, headers=headers)
        if isinstance(content, bytes):
            return Response(content[part], status, headers, media_type="application/octet-stream")
        return FileContent(self, path, content, known, part, status, headers)

    def nearest(self, key: tuple[int, ...], most: int) -> "tuple[int, _Hash]":
        """The longest prefix of at most so many bytes whose hash is known, and that."""
        known = self.prefixes.get(key, {})
        size = max((size for size in known if size <= most), default=0)
        return size, known[size].copy() if size else hashlib.sha256()

    def remember(self, key: tuple[int, ...], size: int, digest: "_Hash") -> None:
        """Keep the hash of a file's first so many bytes, and forget what was kept longest."""
        known = self.prefixes.pop(key, {})
        known.pop(size, None)
        self.prefixes[key] = known | {size: digest}
        if len(self.prefixes) > GROWING:
            del self.prefixes[next(iter(self.prefixes))]
        if len(self.prefixes[key]) > REMEMBERED:
            del self.prefixes[key][next(iter(self.prefixes[key]))]


def selected(request: Request, known: File, headers: dict[str, str]) -> tuple[int, slice | None]:
    """The status and the bytes that go out, None for none of them, in the order of RFC 9110, section 13.2.2.

    What a range adds to the headers is put there. A date is as good as a file's time stamp: If-Modified-Since holds for
    the very one that was told, and If-Range for none.
    """
    etag, modified = headers["ETag"], headers.get("Last-Modified")
    asked = request.headers
    if if_match := asked.getlist("if-match"):
        if not any(tag.strip() in (etag, "*") for tag in ",".join(if_match).split(",")):
            return 412, None
    elif modified and (since := date(asked.get("if-unmodified-since"))) is not None and int(known.mtime) > since:
        return 412, None
    if if_none_match := asked.getlist("if-none-match"):
        if matches(if_none_match, etag):
            return 304, None
    elif modified and asked.get("if-modified-since") == modified:
        return 304, None
    whole = slice(0, known.size)
    if request.method != "GET" or asked.get("if-range", etag) != etag:
        return 200, whole
    part = requested_range(asked.get("range", ""), known.size)
    if part is None:
        return 200, whole
    if part.start >= part.stop:
        headers["Content-Range"] = f"bytes */{known.size}"
        return 416, None
    headers["Content-Range"] = f"bytes {part.start}-{part.stop - 1}/{known.size}"
    return 206, part


def date(header: str | None) -> float | None:
    """The Unix time (s) of an HTTP date, None for what is none."""
    try:
        return email.utils.parsedate_to_datetime(header).timestamp() if header else None
    except ValueError:
        return None


def unavailable(error: Exception) -> HTTPException:
    """The answer when it cannot be said now what the file is."""
    return HTTPException(503, f"try again: {error}", headers={"Retry-After": RETRY_AFTER})


def requested_range(header: str, size: int) -> slice | None:
    """The bytes that a Range header asks for: None for all of them, an empty slice for none of those there are.

    Several ranges, other units and what cannot be read are ignored, as RFC 9110, section 14.2, allows.
    """
    match = RANGE.fullmatch(header.strip())
    if not match:
        return None
    first, last, suffix = match.groups()
    if suffix:
        return slice(max(size - int(suffix), 0), size)
    if last and int(last) < int(first):
        return None
    return slice(int(first), min(int(last) + 1 if last else size, size))


class Pieces(Response):
    """A response whose body comes by pieces, and is broken off, so that the client sees it, where they fail."""

    name = ""  # in the log

    def pieces(self) -> AsyncGenerator[bytes, None]:
        """The body. Raises ChangedMeanwhile, Abandoned and OSError."""
        raise NotImplementedError

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it, as fast as the client reads, or break it off."""
        transport = scope.get(TRANSPORT)
        async with contextlib.aclosing(self.pieces()) as pieces:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            try:
                async for data in pieces:
                    if transport is not None and transport.is_closing():
                        break
                    await send({"type": "http.response.body", "body": data, "more_body": True})
            except (ChangedMeanwhile, Abandoned, OSError) as error:
                log.warning("broke off %s: %s", self.name, error)
                if transport is None:
                    raise  # what serves this has to break it off by itself
                transport.abort()
        if transport is not None and transport.is_closing():
            while (await receive())["type"] != "http.disconnect":
                pass
            return
        await send({"type": "http.response.body", "body": b""})


class FileContent(Pieces):
    """The bytes of a large file, or a part of them; the last of them only if all are those that the ETag names.

    The file is hashed from its beginning, or from where its hash is known, to its end: that tells of the bytes between,
    whatever has become of those before. For a part of one that has long been the same, its stat is enough.
    """

    def __init__(
        self, of: Downloads, path: str, file: BinaryIO, known: File, part: slice, status: int, headers: dict[str, str]
    ) -> None:
        super().__init__(status_code=status, headers=headers, media_type="application/octet-stream")
        self.of, self.name, self.file, self.known, self.part = of, repr(path), file, known, part
        self.headers["Content-Length"] = str(part.stop - part.start)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it, or break it off."""
        with self.file:
            await super().__call__(scope, receive, send)

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        """The part, each piece once the next is read."""
        status, part, size = os.fstat(self.file.fileno()), self.part, self.known.size
        key = status.st_dev, status.st_ino
        by_stat = part != slice(0, size) and self.unchanged()
        at, digest = (part.start, hashlib.sha256()) if by_stat else self.of.nearest(key, part.start)
        end, kept = part.stop if by_stat else size, b""
        while at < end:
            data = await in_thread(READERS, self.read, at, min(CHUNK, end - at), digest)
            piece = data[max(part.start - at, 0) : max(part.stop - at, 0)]
            at += len(data)
            if piece:
                if kept:
                    yield kept
                kept = piece
        if by_stat:
            if not (self.unchanged() or await self.holds(digest)):
                raise ChangedMeanwhile
        elif digest.hexdigest() != self.known.sha256:
            self.of.prefixes.pop(key, None)  # it may be the beginning that is another now: the next reads all of it
            raise ChangedMeanwhile
        else:
            self.of.remember(key, size, digest)
        yield kept

    def unchanged(self) -> bool:
        """Whether the stat tells that the open file is what it was when it was hashed."""
        return self.known.settled and identity(os.fstat(self.file.fileno())) == self.known.identity

    async def holds(self, part: "_Hash") -> bool:
        """Whether the file still has the hash that it had, and within it what has been read of it: it was touched."""
        whole, again = hashlib.sha256(), hashlib.sha256()
        for at in range(0, self.known.size, CHUNK):
            data = await in_thread(READERS, self.read, at, min(CHUNK, self.known.size - at), whole)
            again.update(data[max(self.part.start - at, 0) : max(self.part.stop - at, 0)])
        return whole.hexdigest() == self.known.sha256 and again.digest() == part.digest()

    def read(self, at: int, size: int, digest: "_Hash") -> bytes:
        """So many bytes from there, which are hashed."""
        data = os.pread(self.file.fileno(), size, at)
        if len(data) < size:
            raise ChangedMeanwhile
        digest.update(data)
        return data
