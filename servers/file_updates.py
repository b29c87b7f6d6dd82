"""File updates, for real use: a directory is watched, its changes are announced over SSE, its files are served.

    client: GET /files          ─▶ {"cursor": C, "files": [{"path", "size", "sha256"}, ...]}   what stands at C
            GET /events?after=C ─▶ what changes from there on, as in sse.py                    list, then watch:
            GET /files/a/b.csv  ─▶ the bytes, and their SHA-256 as the ETag                    nothing is missed

The announcement is small and goes to everybody; the bytes are fetched by whom they concern, when it suits, and only
once (RFC 9110: entity tags, conditional and range requests). A file that changes while it is being served never
looks complete: what was begun is broken off, and the client asks again.
"""

import asyncio
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO
from urllib.parse import unquote_to_bytes

from fastapi import HTTPException, Request, Response
from starlette.convertors import Convertor, register_url_convertor
from starlette.types import Receive, Scope, Send

from servers.fan_out import FanOut, find_transport
from servers.feed import Feed
from servers.service import HEARTBEAT, Service, Source, refuse_two_cursors
from servers.sources import Abandoned, File, Tree

CHUNK = 256 * 1024  # bytes of a file read and sent at a time
FEW = 2000  # files whose listing is encoded on the loop; more of them elsewhere
TRIES = 3  # looks at a file that changes under them
RANGE = re.compile(r"bytes=(?:(\d+)-(\d*)|-(\d+))", re.IGNORECASE)
# What others wrote is neither shown as a page of this server nor guessed to be one.
FOREIGN = {"X-Content-Type-Options": "nosniff", "Content-Security-Policy": "sandbox; default-src 'none'"}


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


def create_app(
    feed: Feed,
    tree: Tree | None = None,
    *,
    heartbeat: float = HEARTBEAT,
    retry: int = 2000,
    coalesce: bool = True,
    source: Source | None = None,
) -> "FileUpdates":
    """A server that announces what `feed` says and serves the files of `tree`; `source` fills the feed.

    `heartbeat` in seconds, `retry` in ms; `coalesce`: of several updates of one path at once only the last goes out.

    What stands in the tree now is the listing's beginning. Without a tree every file is 404.
    """
    app = FileUpdates(feed, source, coalesced=coalesce)
    if tree is not None:
        feed.adopt({path: (file.size, file.sha256) for path, file in tree.files.items()})
    listing = Listing(feed)
    fan_out = app.fan_out = FanOut(app, heartbeat=heartbeat, retry=retry, coalesce=coalesce)

    @app.get("/files", responses={304: {"description": "Nothing has changed"}})
    async def files(request: Request) -> Response:
        """What stands at a cursor, in the order of paths; the cursor is the ETag."""
        cursor, body = await listing.body()
        headers = {"ETag": f'"{cursor}"', "Cache-Control": "no-cache"}
        if matches(request.headers.getlist("if-none-match"), f'"{cursor}"'):
            return Response(status_code=304, headers=headers)
        return Response(body, media_type="application/json", headers=headers)

    @app.head("/files/{path:anything}", include_in_schema=False)
    @app.get("/files/{path:anything}")
    async def file(request: Request, path: str) -> Response:
        """The bytes of one file."""
        if tree is None:
            raise HTTPException(404, "this server has no files, only news of them")
        return await answer(tree, requested_path(request), request)

    @app.get("/events")
    async def events(request: Request, after: str | None = None) -> Response:
        """Every update later than the cursor, as it comes; Last-Event-ID wins over `after`."""
        refuse_two_cursors(request)
        return fan_out.stream(feed.opening(request.headers.get("last-event-id") or after))

    return app


class FileUpdates(Service):
    """The service; `coalesced` says that of several updates of one path a client may get only the last."""

    fan_out: FanOut

    def __init__(self, feed: Feed, source: Source | None, *, coalesced: bool) -> None:
        super().__init__("file updates", feed, path="/events", source=source)
        self.coalesced = coalesced

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Remember the connection's transport before anything wraps `send`."""
        if scope["type"] == "http":
            find_transport(scope, send)
        await super().__call__(scope, receive, send)


class Listing:
    """The listing as JSON, encoded once for every cursor, however many clients ask at once."""

    def __init__(self, feed: Feed) -> None:
        self.feed = feed
        self.latest: tuple[str, bytes] | None = None

    async def body(self) -> tuple[str, bytes]:
        """A cursor, and what stands there."""
        if self.latest is None or self.latest[0] != self.feed.cursor:
            cursor, files = self.feed.listing()
            few = len(files) <= FEW
            self.latest = cursor, encoded(cursor, files) if few else await asyncio.to_thread(encoded, cursor, files)
            return self.latest
        return self.latest


def encoded(cursor: str, files: dict[str, tuple[int | None, str | None]]) -> bytes:
    """The listing's JSON."""
    known = [{"path": path, "size": size, "sha256": sha256} for path, (size, sha256) in sorted(files.items())]
    return json.dumps({"cursor": cursor, "files": known}, ensure_ascii=False, separators=(",", ":")).encode()


def matches(if_none_match: list[str], etag: str) -> bool:
    """Whether If-None-Match, on one line or more, names this entity tag (RFC 9110, section 13.1.2)."""
    return any(tag.strip().removeprefix("W/") in (etag, "*") for tag in ",".join(if_none_match).split(","))


def requested_path(request: Request) -> str:
    """The path below /files/ as it was sent: the server's own decoding hides what is not UTF-8."""
    raw: bytes = request.scope.get("raw_path") or request.scope["path"].encode()
    below = raw.removeprefix(request.scope.get("root_path", "").encode()).removeprefix(b"/files/")
    try:
        return unquote_to_bytes(below).decode()
    except UnicodeDecodeError:
        raise HTTPException(404, "no such file") from None


@contextmanager
def not_found() -> Iterator[None]:
    """Whatever is not a regular file inside the tree is not there."""
    try:
        yield
    except (OSError, ValueError):
        raise HTTPException(404, "no such file") from None
    except Abandoned:
        raise HTTPException(503, "the server is stopping") from None


async def answer(tree: Tree, path: str, request: Request) -> Response:
    """The answer to a request for one file (RFC 9110, sections 13.2.2 and 14.2: the order of the conditions)."""
    with not_found():
        file, known = await asyncio.to_thread(tree.open, path)
    etag = f'"{known.sha256}"'
    headers = {"ETag": etag, "Accept-Ranges": "bytes", "Cache-Control": "no-cache"} | FOREIGN
    if matches(request.headers.getlist("if-none-match"), etag):
        file.close()
        return Response(status_code=304, headers=headers)
    part, status = slice(0, known.size), 200
    if request.method == "GET" and request.headers.get("if-range", etag) == etag:
        wanted = requested_range(request.headers.get("range", ""), known.size)
        if wanted is not None:
            part, status = wanted, 206
            headers["Content-Range"] = f"bytes {part.start}-{part.stop - 1}/{known.size}"
            if part.start >= part.stop:
                file.close()
                headers["Content-Range"] = f"bytes */{known.size}"
                return Response(status_code=416, headers=headers)
    headers["Content-Length"] = str(part.stop - part.start)
    return FileContent(tree, file, known, part, status, headers)


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
    """The bytes of an open file, or a part of them; the last of them only if the file is still what its ETag says."""

    def __init__(
        self, tree: Tree, file: BinaryIO, known: File, part: slice, status: int, headers: dict[str, str]
    ) -> None:
        super().__init__(status_code=status, headers=headers, media_type="application/octet-stream")
        self.tree, self.file, self.known, self.part = tree, file, known, part

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            at = self.part.start
            while scope["method"] != "HEAD" and at < self.part.stop:
                size = min(CHUNK, self.part.stop - at)
                data = await asyncio.to_thread(self.read, at, size)
                if len(data) < size:
                    raise RuntimeError("the file changed while it was served")
                at += size
                await send({"type": "http.response.body", "body": data, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        finally:
            self.file.close()

    def read(self, at: int, size: int) -> bytes:
        self.file.seek(at)
        return self.file.read(size)
