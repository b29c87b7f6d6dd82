"""File updates, for real use: a directory is watched, its changes are announced over SSE, its files are served.

    client: GET /files          ─▶ {"cursor": C, "files": [{"path", "size", "sha256"}, ...]}   what stands at C
            GET /events?after=C ─▶ what changes from there on, as in sse.py                    list, then watch:
            GET /files/a/b.csv  ─▶ the bytes, and their SHA-256 as the ETag                    nothing is missed

The announcement is small and goes to everybody; the bytes are fetched by whom they concern, when it suits, and only
once (RFC 9110: entity tags, conditional and range requests). A file that changes while it is being served never
looks complete: what was begun is broken off, and the client asks again.
"""

import asyncio
import errno
import hashlib
import json
import logging
import os
import re
from collections.abc import Collection
from typing import BinaryIO
from urllib.parse import unquote_to_bytes

from fastapi import HTTPException, Request, Response
from fastapi.middleware.cors import CORSMiddleware
from starlette.convertors import Convertor, register_url_convertor
from starlette.middleware import Middleware
from starlette.types import Receive, Scope, Send

from servers.fan_out import FanOut
from servers.feed import Feed, Known
from servers.guard import RETRY_AFTER, Limit, Token
from servers.on_uvicorn import TRANSPORT, find_transport
from servers.service import HEARTBEAT, Service, Source, refuse_two_cursors
from servers.short_polling import matches
from servers.sources import Abandoned, File, Tree, identity

CHUNK = 256 * 1024  # bytes of a file read and sent at a time
FEW = 2000  # files whose listing is encoded on the loop; of more of them, in a thread
TRIES = 3  # readings of a small file that changes under them
RANGE = re.compile(r"bytes=(?:([0-9]{1,99})-([0-9]{0,99})|-([0-9]{1,99}))", re.IGNORECASE)
NOSNIFF = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-cache"}
# What others wrote is not shown as a page of this server, nor does it become one: it is a download without rights.
FOREIGN = NOSNIFF | {"Content-Security-Policy": "sandbox; default-src 'none'", "Content-Disposition": "attachment"}
ASKED = ("Authorization", "Cache-Control", "If-None-Match", "If-Range", "Last-Event-ID", "Range")
SHOWN = ("Accept-Ranges", "Content-Range", "ETag", "Retry-After")
# What opening says of what is not a regular file of the tree, or not for this server to read.
ABSENT = {errno.EACCES, errno.EINVAL, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOENT, errno.ENOTDIR,
          errno.ENXIO, errno.EPERM}  # fmt: skip

log = logging.getLogger("servers")


class Anything(Convertor[str]):
    """A part of a route that is any text; Starlette's "path" admits no line break, a file's name does."""

    regex = r"[\s\S]*"

    def convert(self, value: str) -> str:
        """The text as it is."""
        return value

    def to_string(self, value: str) -> str:
        """The text as it is."""
        return value


register_url_convertor("anything", Anything())


class FileUpdates(Service):
    """The service; `coalesced` says that of several updates of one path a client may get only the last."""

    def __init__(self, feed: Feed, source: Source | None, *, heartbeat: float, retry: int, coalesce: bool) -> None:
        super().__init__(
            "file updates", feed, path="/events", page="file-updates.html", heartbeat=heartbeat, source=source
        )
        self.coalesced = coalesce
        self.fan_out = FanOut(self, heartbeat=heartbeat, retry=retry, coalesce=coalesce)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Remember the connection's transport before anything wraps `send`."""
        if scope["type"] == "http":
            find_transport(scope, send)
        await super().__call__(scope, receive, send)

    def protect(self, token: str | None, max_connections: int | None, allow_origins: Collection[str]) -> None:
        """Let in who may come. What is refused is counted as a request, too; what is allowed is told to all pages."""
        if token:
            self.user_middleware.append(Middleware(Token, token=token))
        if max_connections:
            self.user_middleware.append(Middleware(Limit, most=max_connections))
        if allow_origins:
            self.add_middleware(
                CORSMiddleware,
                allow_origins=allow_origins,
                allow_credentials="*" not in allow_origins,  # a page's EventSource sends a token as HTTP Basic
                allow_methods=("GET", "HEAD"),
                allow_headers=ASKED,
                expose_headers=SHOWN,
            )


def create_app(
    feed: Feed,
    tree: Tree | None = None,
    *,
    heartbeat: float = HEARTBEAT,
    retry: int = 2000,
    coalesce: bool = True,
    token: str | None = None,
    max_connections: int | None = None,
    allow_origins: Collection[str] = (),
    source: Source | None = None,
) -> FileUpdates:
    """A server that announces what `feed` says and serves the files of `tree`; `source` fills the feed.

    What stands in the tree now is what the listing begins with. Without a tree there is news of files, but no file:
    404. `heartbeat` in seconds, `retry` in ms; `coalesce`: of several updates of one path at once only the last goes
    out. `token` is what every request must carry, `max_connections` the most requests and streams at once,
    `allow_origins` the pages from elsewhere that may read the answers, such as "https://hub.example".
    """
    app = FileUpdates(feed, source, heartbeat=heartbeat, retry=retry, coalesce=coalesce)
    app.protect(token, max_connections, allow_origins)
    if tree is not None:
        feed.adopt({path: (file.size, file.sha256) for path, file in tree.files.items()})
    listing = Listing(feed)

    @app.get("/files", responses={304: {"description": "Nothing has changed"}})
    async def files(request: Request) -> Response:
        """What stands at a cursor, in the order of paths; the cursor is the ETag."""
        cursor, body = await listing.now()
        headers = NOSNIFF | {"ETag": f'"{cursor}"'}
        if matches(request.headers.getlist("if-none-match"), headers["ETag"]):
            return Response(status_code=304, headers=headers)
        return Response(body, media_type="application/json", headers=headers)

    @app.head("/files/{path:anything}", include_in_schema=False)
    @app.get("/files/{path:anything}", responses={304: {"description": "It has not changed"}})
    async def file(request: Request, path: str) -> Response:
        """The bytes of one file, or a range of them; their SHA-256 is the ETag."""
        if tree is None:
            raise HTTPException(404, "this server has news of files, and none of them")
        return await answer(tree, requested_path(request), request)

    @app.get("/events")
    async def events(request: Request, after: str | None = None) -> Response:
        """Every update later than the cursor, as it comes; Last-Event-ID wins over `after`."""
        refuse_two_cursors(request)
        return app.fan_out.stream(feed.opening(request.headers.get("last-event-id") or after))

    return app


class Listing:
    """The listing as JSON, encoded once for a cursor, however many clients ask at once."""

    def __init__(self, feed: Feed) -> None:
        self.feed = feed
        self.position, self.body = -1, b""
        self.encoding: asyncio.Task[None] | None = None

    async def now(self) -> tuple[str, bytes]:
        """A cursor, not older than the question, and what stands there."""
        asked = self.feed.head
        while self.position < asked:
            if self.encoding is None or self.encoding.done():
                self.encoding = asyncio.create_task(self.encode())
            await asyncio.shield(self.encoding)  # others wait for it, too
        return self.feed.cursor_at(self.position), self.body

    async def encode(self) -> None:
        position, files = self.feed.listing()
        cursor = self.feed.cursor_at(position)
        few = len(files) <= FEW
        self.body = encoded(cursor, files) if few else await asyncio.to_thread(encoded, cursor, files)
        self.position = position


def encoded(cursor: str, files: dict[str, Known]) -> bytes:
    """The listing's JSON: {"cursor", "files": [{"path", "size", "sha256"}, ...]}."""
    known = [{"path": path, "size": size, "sha256": sha256} for path, (size, sha256) in sorted(files.items())]
    return json.dumps({"cursor": cursor, "files": known}, ensure_ascii=False, separators=(",", ":")).encode()


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
            content = file.read(CHUNK)
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
        if identity(os.fstat(self.file.fileno())) != self.known.identity:
            return False
        return self.known.settled or self.tree.read(self.file).sha256 == self.known.sha256
