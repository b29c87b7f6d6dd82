"""One file of a tree, over HTTP: whole, on condition, or a range of it (RFC 9110, sections 13 and 14).

    GET /files/PATH ─▶ look: open it, know its hash ─▶ 304, 416 │ a small file at once │ FileContent, part by part

A file that changes while it is being served never looks complete: what was begun is broken off, and the client asks
again.
"""

import asyncio
import errno
import hashlib
import logging
import os
import re
from typing import BinaryIO
from urllib.parse import unquote_to_bytes

from fastapi import HTTPException, Request, Response
from starlette.types import Receive, Scope, Send

from servers.guard import RETRY_AFTER
from servers.on_uvicorn import TRANSPORT
from servers.short_polling import matches
from servers.tree import Abandoned, File, Tree, identity

CHUNK = 256 * 1024  # bytes of a file read and sent at a time
TRIES = 3  # readings of a small file that changes under them
RANGE = re.compile(r"bytes=(?:([0-9]{1,99})-([0-9]{0,99})|-([0-9]{1,99}))", re.IGNORECASE)
NOSNIFF = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-cache"}
# What others wrote is not shown as a page of this server, nor does it become one: it is a download without rights.
FOREIGN = NOSNIFF | {"Content-Security-Policy": "sandbox; default-src 'none'", "Content-Disposition": "attachment"}
# What opening says of what is not a regular file of the tree, or not for this server to read.
ABSENT = {errno.EACCES, errno.EINVAL, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOENT, errno.ENOTDIR,
          errno.ENXIO, errno.EPERM}  # fmt: skip

log = logging.getLogger("servers")


def requested_path(request: Request) -> str:
    """The path below /files/ as it was sent: the server's own decoding hides what is not UTF-8."""
    raw: bytes = request.scope.get("raw_path") or request.scope["path"].encode()
    below = raw.removeprefix(request.scope.get("root_path", "").encode()).removeprefix(b"/files/")
    try:
        return unquote_to_bytes(below).decode()
    except UnicodeDecodeError:
        raise HTTPException(404, "no such file") from None


async def answer(tree: Tree, path: str, request: Request) -> Response:
    """The answer to a request for one file; conditions and ranges as in RFC 9110, sections 13.2.2 and 14.2.

    Whatever is not a regular file inside the tree is not there, and nor is what the tree leaves out.
    """
    try:
        known, content = await asyncio.to_thread(look, tree, path)
    except (ChangedMeanwhile, Abandoned) as error:
        raise unavailable(error) from None
    except ValueError:
        raise HTTPException(404, "no such file") from None
    except OSError as error:
        if error.errno not in ABSENT:  # such as too many open files: it says nothing about this one
            raise unavailable(error) from None
        raise HTTPException(404, "no such file") from None
    status, part = 200, slice(0, known.size)
    headers = FOREIGN | {"ETag": f'"{known.sha256}"', "Accept-Ranges": "bytes"}
    if matches(request.headers.getlist("if-none-match"), headers["ETag"]):
        status = 304
    elif request.method == "GET" and request.headers.get("if-range", headers["ETag"]) == headers["ETag"]:
        wanted = requested_range(request.headers.get("range", ""), known.size)
        if wanted is None:
            pass
        elif wanted.start < wanted.stop:
            status, part = 206, wanted
            headers["Content-Range"] = f"bytes {part.start}-{part.stop - 1}/{known.size}"
        else:
            status = 416
            headers["Content-Range"] = f"bytes */{known.size}"
    if status in (304, 416):
        if not isinstance(content, bytes):
            content.close()
        return Response(status_code=status, headers=headers)
    if isinstance(content, bytes):
        return Response(content[part], status, headers, media_type="application/octet-stream")
    return FileContent(tree, path, content, known, part, status, headers)


def unavailable(error: Exception) -> HTTPException:
    """The answer when it cannot be said now what the file is."""
    return HTTPException(503, f"try again: {error}", headers={"Retry-After": RETRY_AFTER})


class ChangedMeanwhile(Exception):
    """A file is not any more what its ETag says."""

    def __init__(self) -> None:
        super().__init__("the file changed while it was read")


def look(tree: Tree, path: str) -> tuple[File, bytes | BinaryIO]:
    """A file, and its bytes, which are those of the hash; of a large one, the open file, still to be read."""
    for _ in range(TRIES):
        file, known = tree.open(path)
        if known.size > CHUNK:
            return known, file
        with file:
            content = file.read(known.size)
        if hashlib.sha256(content).hexdigest() == known.sha256:
            return known, content
    raise ChangedMeanwhile


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


class FileContent(Response):
    """The bytes of a large file, or a part of them; the last of them only if the file is still what its ETag says."""

    def __init__(
        self, tree: Tree, path: str, file: BinaryIO, known: File, part: slice, status: int, headers: dict[str, str]
    ) -> None:
        super().__init__(status_code=status, headers=headers, media_type="application/octet-stream")
        self.tree, self.path, self.file, self.known, self.part = tree, path, file, known, part
        self.headers["Content-Length"] = str(part.stop - part.start)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it, or break it off."""
        at, end = self.part.start, self.part.stop
        transport = scope.get(TRANSPORT)
        with self.file:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            while scope["method"] != "HEAD" and at < end:
                size = min(CHUNK, end - at)
                try:
                    data = await asyncio.to_thread(self.read, at, size, last=at + size == end)
                except (ChangedMeanwhile, Abandoned, OSError) as error:
                    log.warning("broke off %r: %s", self.path, error)
                    if transport is None:
                        raise  # what serves this has to break it off by itself
                    transport.abort()
                if transport is not None and transport.is_closing():
                    while (await receive())["type"] != "http.disconnect":
                        pass
                    return
                at += size
                await send({"type": "http.response.body", "body": data, "more_body": True})
            await send({"type": "http.response.body", "body": b""})

    def read(self, at: int, size: int, *, last: bool) -> bytes:
        """So many bytes from there; before the last ones go out, the file is looked at again."""
        self.file.seek(at)
        data = self.file.read(size)
        if len(data) < size or (last and not self.unchanged()):
            raise ChangedMeanwhile
        return data

    def unchanged(self) -> bool:
        """Whether the open file is what it was; one that is too fresh for its stat to tell is read once more."""
        now = identity(os.fstat(self.file.fileno()))
        if self.known.settled and now == self.known.identity:
            return True
        if now[:2] != self.known.identity[:2] or now[2] < self.known.size:
            return False
        return self.tree.read(self.file, size=self.known.size).sha256 == self.known.sha256
