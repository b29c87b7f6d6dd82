"""File updates, for real use: a directory is watched, its changes are announced over SSE, its files are served.

    client: GET /files          ─▶ {"cursor": C, "files": [{"path", "size", ...}, ...]}   what stands at C
            GET /events?after=C ─▶ what changes from there on, as in sse.py                    list, then watch:
            GET /files/a/b.csv  ─▶ the bytes, and their SHA-256 as the ETag                    nothing is missed
            POST /bundle        ─▶ many small files in one answer, as a tar archive

The announcement is small and goes to everybody; the bytes are fetched by whom they concern, when it suits, and only
once. What answers for one file is in downloads.py, for many in bundle.py.
"""

import asyncio
from collections.abc import Collection
from json.encoder import encode_basestring
from typing import Any

from fastapi import HTTPException, Request, Response
from fastapi.middleware.cors import CORSMiddleware
from starlette.convertors import Convertor, register_url_convertor
from starlette.middleware import Middleware

from servers.bundle import Bundle, Wanted
from servers.downloads import NOSNIFF, Downloads, requested_path
from servers.fan_out import FanOut
from servers.feed import HEARTBEAT, TO_JSON, Feed, Known
from servers.guard import RETRY_AFTER, Doors, Token
from servers.service import Service, Source, refuse_two_cursors
from servers.short_polling import matches
from servers.tree import Tree

FEW = 2000  # files whose listing is encoded on the loop; of more of them, in a thread
ASKED = ("Authorization", "Cache-Control", "If-Match", "If-None-Match", "If-Range", "Last-Event-ID", "Range")
SHOWN = ("Accept-Ranges", "Content-Range", "ETag", "Last-Modified", "Retry-After")
CONDITIONAL: dict[int | str, dict[str, Any]] = {
    206: {"description": "The range of its bytes that was asked for"},
    304: {"description": "It has not changed"},
    503: {"description": "It is being changed: try again"},
}


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


class Binary(Response):
    """What the documentation says of a file."""

    media_type = "application/octet-stream"


class Archive(Response):
    """What the documentation says of many."""

    media_type = "application/x-tar"


class FileUpdates(Service):
    """The service; `coalesced` says that of several updates of one path a client may get only the last."""

    def __init__(
        self,
        feed: Feed,
        source: Source | None,
        *,
        heartbeat: float,
        retry: int,
        coalesce: bool,
        max_age: float | None = None,
        seed: int | None = None,
    ) -> None:
        page = "file-updates.html"
        super().__init__(
            "file updates",
            feed,
            path="/events",
            page=page,
            heartbeat=heartbeat,
            source=source,
            max_age=max_age,
            seed=seed,
        )
        self.coalesced = coalesce
        self.fan_out = FanOut(self, heartbeat=heartbeat, retry=retry, coalesce=coalesce)
        self.fan_out.stands_before(self)

    def protect(self, token: str | None, max_connections: int | None, allow_origins: Collection[str]) -> None:
        """Let in who may come. What is refused is counted as a request, too; what is allowed is told to all pages."""
        if token:
            self.user_middleware.append(Middleware(Token, token=token))
        self.doors = Doors(max_connections)
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
    max_age: float | None = None,
    seed: int | None = None,
    source: Source | None = None,
) -> FileUpdates:
    """A server that announces what `feed` says and serves the files of `tree`; `source` fills the feed.

    What stands in the tree now is what the listing begins with. Without a tree there is news of files, but no file:
    404. `heartbeat` in seconds, `retry` in ms; a stream ends at an age (s) drawn from [`max_age`/2, `max_age`];
    `coalesce`: of several updates of one path at once only the last goes out. `token` is what every request must carry,
    `max_connections` the most connections at once, `allow_origins` the pages from elsewhere that may read the
    answers, such as "https://hub.example".
    """
    app = FileUpdates(feed, source, heartbeat=heartbeat, retry=retry, coalesce=coalesce, max_age=max_age, seed=seed)
    app.protect(token, max_connections, allow_origins)
    if tree is not None and tree.looked:
        feed.adopt({path: file.known for path, file in tree.files.items()})
    feed.listing()  # from now on it is kept, however short the history
    listing = Listing(feed, tree)
    downloads = Downloads(tree) if tree else None

    def be_there() -> None:
        if waiting := feed.starting() if feed.starting else feed.delayed:
            raise HTTPException(503, waiting, headers={"Retry-After": RETRY_AFTER})

    @app.get("/files", responses={304: {"description": "Nothing has changed"}})
    async def files(request: Request) -> Response:
        """What stands at a cursor, in the order of paths; the cursor is the ETag."""
        if feed.starting:  # half a listing would be taken for all of it
            raise HTTPException(503, feed.starting(), headers={"Retry-After": RETRY_AFTER})
        cursor, body = await listing.now()
        headers = NOSNIFF | {"ETag": f'"{cursor}"'}
        if matches(request.headers.getlist("if-none-match"), headers["ETag"]):
            return Response(status_code=304, headers=headers)
        return Response(body, media_type="application/json", headers=headers)

    @app.get("/files/{path:anything}", response_class=Binary, responses=CONDITIONAL)
    async def file(request: Request, path: str) -> Response:
        """The bytes of one file, or a range of them; their SHA-256 is the ETag."""
        if downloads is None:
            raise HTTPException(404, "this server has news of files, and none of them")
        be_there()
        return await downloads.answer(requested_path(request), request)

    @app.post("/bundle", response_class=Archive)
    async def bundle(wanted: Wanted) -> Response:
        """The small ones of these files in one tar archive, each with its hash; the others are asked for alone."""
        if tree is None:
            raise HTTPException(404, "this server has news of files, and none of them")
        be_there()
        return Bundle(tree, wanted.paths)

    @app.get("/events")
    async def events(request: Request, after: str | None = None) -> Response:
        """Every update later than the cursor, as it comes; Last-Event-ID wins over `after`."""
        refuse_two_cursors(request)
        return app.fan_out.stream(feed.opening(after, request.headers.get("last-event-id")))

    return app


class Listing:
    """The listing as JSON, encoded once for a cursor, however many clients ask at once.

    "source" names the directory for as long as it is known by its index, over restarts; "directory" tells it from all
    others, so that nobody takes it for a copy of itself; "left_out" is how many names are not listed, by what they are,
    as of when it was encoded.
    """

    def __init__(self, feed: Feed, tree: Tree | None = None) -> None:
        self.feed, self.tree = feed, tree
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
        head: dict[str, Any] = {"cursor": self.feed.cursor_at(position)}
        if self.tree and self.tree.source:
            head["source"] = self.tree.source
        if self.tree:
            head["directory"] = self.tree.tag()
        if self.tree and (left_out := self.tree.left_out()):
            head["left_out"] = left_out
        few = len(files) <= FEW
        self.body = encoded(head, files) if few else await asyncio.to_thread(encoded, head, files)
        self.position = position


def encoded(head: dict[str, Any], files: dict[str, Known]) -> bytes:
    """The listing's JSON: what `head` says, and "files": [{"path", "size", "sha256", "mtime", "executable"}, ...]."""
    known = ",".join([entry(path, *known) for path, known in sorted(files.items())])
    return f'{TO_JSON(head)[:-1]},"files":[{known}]}}'.encode()


def entry(path: str, size: int | None, sha256: str | None, mtime: float | None, executable: bool | None) -> str:
    """What the listing says of a file, by hand: an encoder of any objects takes three times as long, and no pause."""
    if sha256 is None or mtime is None:  # made up
        return TO_JSON({"path": path, "size": size, "sha256": sha256})
    name, digest, runs = encode_basestring(path), encode_basestring(sha256), "true" if executable else "false"
    return f'{{"path":{name},"size":{size},"sha256":{digest},"mtime":{mtime!r},"executable":{runs}}}'
